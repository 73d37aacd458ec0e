"""A real tritonserver and this server in front of it, started and stopped together: one command for a benchmark.

    python benchmarks/triton_stack.py --repository R --http 8000 --grpc 8001 -- isocenter serve --models M --port 8080

TRITONSERVER_HOME is where `tests/real/install_tritonserver.sh` put tritonserver.
"""

import argparse
import os
import signal
import subprocess
from pathlib import Path

from server_process import Launch, started, stop_when_told


def home() -> Path:
    """Where tritonserver is installed.

    Raises:
        SystemExit: it is not.
    """
    found = Path(os.environ.get("TRITONSERVER_HOME", "~/.cache/isocenter/tritonserver")).expanduser()
    if not (found / "bin" / "python").exists():
        raise SystemExit("tritonserver is not installed: tests/real/install_tritonserver.sh, or set TRITONSERVER_HOME.")
    return found


def tritonserver(repository: Path, *, http_port: int, grpc_port: int) -> Launch:
    """How a server with a repository is started; it listens on this machine only."""
    prefix = home()
    packages = next(prefix.glob("lib/python3.*/site-packages"))
    server = packages / "pytriton" / "tritonserver"
    libraries = subprocess.run(
        [str(prefix / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    argv = [
        str(server / "bin" / "tritonserver"),
        *(f"--model-repository={repository}", f"--backend-directory={server / 'backends'}", "--allow-metrics=false"),
        *("--http-address=127.0.0.1", f"--http-port={http_port}"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"),
    ]
    path = f"{prefix / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(packages)}
    return Launch("tritonserver", argv, environment, port=http_port, ready_path="/v2/health/ready")


def main() -> None:
    """Run both until told to stop."""
    stop_when_told()
    parser = argparse.ArgumentParser(description="tritonserver and a server in front of it")
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--http", type=int, required=True)
    parser.add_argument("--grpc", type=int, required=True)
    parser.add_argument("front", nargs="+")
    given = parser.parse_args()
    port = int(given.front[given.front.index("--port") + 1])
    front = Launch("front", given.front, port=port, ready_path="/readyz")
    with started(tritonserver(given.repository, http_port=given.http, grpc_port=given.grpc)), started(front):
        signal.pause()


if __name__ == "__main__":
    main()
