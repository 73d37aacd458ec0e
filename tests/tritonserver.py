"""A real tritonserver for tests: started, found, stopped; `tests/real/install_tritonserver.sh` installs it."""

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from patience import PATIENCE_S

HOME = Path(os.environ.get("TRITONSERVER_HOME", "~/.cache/isocenter/tritonserver")).expanduser()


@dataclass
class TritonServer:
    """One server on this machine; its ports stay the same when it is started again."""

    repository: Path
    http_port: int
    grpc_port: int
    log: IO[bytes]
    process: subprocess.Popen[bytes] | None = None

    def url(self, scheme: str) -> str:
        """Where it listens."""
        return f"{scheme}://127.0.0.1:{self.http_port if scheme == 'http' else self.grpc_port}"

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        prefix = HOME
        packages = next(prefix.glob("lib/python3.*/site-packages"))
        server = packages / "pytriton" / "tritonserver"
        asked = subprocess.run(
            [str(prefix / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
            capture_output=True,
            text=True,
            check=True,
        )
        self.process = subprocess.Popen(
            [
                str(server / "bin" / "tritonserver"),
                *(f"--model-repository={self.repository}", f"--backend-directory={server / 'backends'}"),
                *("--http-address=127.0.0.1", f"--http-port={self.http_port}"),
                *("--grpc-address=127.0.0.1", f"--grpc-port={self.grpc_port}"),
                *("--allow-metrics=false", "--exit-timeout-secs=5", "--model-control-mode=explicit", "--load-model=*"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={
                "PATH": f"{prefix / 'bin'}:{os.environ['PATH']}",
                "LD_LIBRARY_PATH": asked.stdout.strip(),
                "PYTHONPATH": str(packages),
            },
        )
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            if self.process.poll() is not None:
                break
            if self._ready():
                return
            time.sleep(0.05)
        raise AssertionError(f"tritonserver did not become ready:\n{Path(self.log.name).read_text(errors='replace')}")

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Stop it, and what it started."""
        if self.process is None:
            return
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        self.process.send_signal(how)
        self.process.wait(PATIENCE_S)
        for child in children:  # stubs of the python backend outlive a server that was killed
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        for region in set(re.findall(r"/dev/shm/triton_python_backend_shm_region_[\w-]+", maps)):
            Path(region).unlink(missing_ok=True)  # and so does what they shared
        self.process = None

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url('http')}/v2/health/ready", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def tritonserver(repository: Path) -> Iterator[TritonServer]:
    """A server that is ready; gone at the end."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        server = TritonServer(repository, free_port(), free_port(), log.file)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
