"""A server process: started, found, weighed with everything it started, and stopped whatever happens."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

START_BOUND_S = 180.0
STOP_BOUND_S = 30.0
_TICK_HZ = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Launch:
    """How a server is started, and how it says that it is ready.

    It is ready when its output matches `port_pattern` (whose group is the port), or else when a GET of `ready_path` at
    `port` answers 200.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    port_pattern: str = ""
    port: int = 0
    ready_path: str = "/health"


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    name: str
    pid: int
    port: int
    started_s: float

    def cpu_s(self) -> float:
        """User and system seconds of the whole process tree, ended children included."""
        return sum(_cpu_s(pid) for pid in tree(self.pid))

    def resident_mb(self) -> float:
        """Resident memory of the whole process tree; what processes share is counted in each."""
        return sum(_resident_bytes(pid) for pid in tree(self.pid)) / 2**20

    def shared_out_mb(self) -> float:
        """Resident memory of the process tree; what processes share is divided among them (PSS)."""
        return sum(proportional_bytes(pid) for pid in tree(self.pid)) / 2**20

    def open_files(self) -> int:
        """Open file descriptors of the whole process tree."""
        return sum(_open_files(pid) for pid in tree(self.pid))


def isocenter(
    models: Path,
    *,
    default_model: str | None = None,
    frontends: int = 0,
    environment: Mapping[str, str] | None = None,
    name: str = "Isocenter",
) -> Launch:
    """The server of this project, on a port that the system chooses."""
    argv = [sys.executable, "-m", "isocenter", "serve", "--models", str(models), "--host", "127.0.0.1", "--port", "0"]
    argv += ["--frontends", str(frontends)]
    argv += ["--default-model", default_model] if default_model else []
    return Launch(name, argv, environment or {}, port_pattern=r"at http://127\.0\.0\.1:(\d+)")


@contextmanager
def started(launch: Launch) -> Iterator[Running]:
    """A running server; it and everything it started is gone afterwards.

    Raises:
        RuntimeError: it ended or was not ready in time; the message holds what it wrote.
    """
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            launch.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **launch.environment},
            start_new_session=True,
        )
        try:
            port = _wait(process, launch, Path(log.name), began_s + START_BOUND_S)
            yield Running(launch.name, process.pid, port, time.perf_counter() - began_s)
        finally:
            _stop(process)


def stop_when_told() -> None:
    """SIGTERM unwinds the script, so that the servers it started are stopped."""

    def unwind(signal_number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal_number)

    signal.signal(signal.SIGTERM, unwind)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def tree(root: int) -> list[int]:
    """A process and all its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, at = [root], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found


def _wait(process: subprocess.Popen[bytes], launch: Launch, log: Path, until_s: float) -> int:
    while time.perf_counter() < until_s:
        if process.poll() is not None:
            break
        if launch.port_pattern:
            if found := re.search(launch.port_pattern, log.read_text(errors="replace")):
                return int(found.group(1))
        elif _answers(launch.port, launch.ready_path):
            return launch.port
        time.sleep(0.002 if launch.port_pattern else 0.1)
    state = f"ended with {process.returncode}" if process.returncode is not None else "was not ready in time"
    raise RuntimeError(f"{launch.name} {state}:\n{log.read_text(errors='replace')[-2000:]}")


def _answers(port: int, path: str) -> bool:
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        asking.request("GET", path)
        return asking.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asking.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, then end whatever is left of its tree and of its session."""
    everyone = tree(process.pid)
    process.terminate()
    try:
        process.wait(STOP_BOUND_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_BOUND_S)
    for pid in everyone[1:]:
        fields = _stat(pid)
        # A number may have been given to somebody else's process meanwhile; its session tells.
        if fields and int(fields[3]) == process.pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: state, parent, group, session ...; empty for the dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] == "Z" else fields


def _cpu_s(pid: int) -> float:
    return sum(int(ticks) for ticks in _stat(pid)[11:15]) / _TICK_HZ


def _resident_bytes(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[21]) * _PAGE_BYTES if fields else 0


def proportional_bytes(pid: int) -> int:
    """Resident memory of a process; what it shares with others is divided among them (PSS). 0: it is gone."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) * 1024 if found else 0


def _open_files(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0
