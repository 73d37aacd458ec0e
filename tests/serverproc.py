"""A real server process for tests: started, found, stopped."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from patience import PATIENCE_S

_SHOWN_LINES = 60
_PATIENT = {"ISOCENTER_DRAIN__BOUND_S": str(PATIENCE_S), "ISOCENTER_HANG_AFTER_S": str(PATIENCE_S)}
"""What has a bound in seconds, where a test says nothing of it."""


@dataclass(frozen=True)
class ServerProcess:
    """A running server and what it wrote on stderr."""

    process: subprocess.Popen[bytes]
    port: int
    started_s: float
    log: IO[bytes]

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a GET."""
        connection = self.connect()
        connection.request("GET", path)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        connection.close()
        return answer.status, body

    def predict(self, image: bytes, connection: http.client.HTTPConnection | None = None) -> tuple[int, Any, Any]:
        """Status, JSON and headers of a prediction for a raw image."""
        used = connection or self.connect()
        used.request("POST", "/predict", body=image, headers={"Content-Type": "application/octet-stream"})
        answer = used.getresponse()
        body = json.loads(answer.read())
        if connection is None:
            used.close()
        return answer.status, body, answer.headers

    def memory_mb(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found
        return int(found.group(1)) / 1024

    def part(self, module: str, number: int = 0) -> int:
        """The process id of the `engine_process`, or of a `front_end`, in the order of their starts."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = [pid for pid in children if f"isocenter.supervisor.{module}" in _command_line(pid)]
        return int(found[number])

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What was logged of one event."""
        lines = [json.loads(line) for line in self.written().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def written(self) -> str:
        """Everything on stderr so far."""
        self.log.flush()
        return Path(self.log.name).read_text(errors="replace")


def _command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:  # it has just ended
        return ""


def command(models: Path, *more: str) -> list[str]:
    """How a server is started on a free port."""
    return [
        sys.executable,
        "-m",
        "isocenter",
        "serve",
        "--models",
        str(models),
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        *more,
    ]


@contextmanager
def running(models: Path, *more: str, **environment: str) -> Iterator[ServerProcess]:
    """A server that answers; killed at the end if it is still there."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        began_s = time.monotonic()
        process = subprocess.Popen(
            command(models, *more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, **_PATIENT, **environment},
        )
        try:
            port = _announced_port(process, Path(log.name), began_s + PATIENCE_S)
            yield ServerProcess(process, port, time.monotonic() - began_s, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_S)
            _show_end(Path(log.name))


def _show_end(log: Path) -> None:
    """For whoever reads of a test that failed: pytest prints it only then."""
    lines = log.read_text(errors="replace").splitlines()
    sys.stdout.write("\n".join([f"the last of {len(lines)} lines that the server wrote:", *lines[-_SHOWN_LINES:], ""]))


def _announced_port(process: subprocess.Popen[bytes], log: Path, until_s: float) -> int:
    while time.monotonic() < until_s:
        for line in log.read_text(errors="replace").splitlines():
            if '"event":"ready"' in line:
                return int(json.loads(line)["port"])
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}:\n{log.read_text()}")
        time.sleep(0.01)
    raise AssertionError(f"the server was not ready in {PATIENCE_S} s:\n{log.read_text()}")
