"""How much of the bare model is left when it is served, beside a plain FastAPI server: ratios inside one run.

    make bench                                   # the demonstration model, phantoms as JPEG
    python benchmarks/serving.py --model NAME --models DIR --connections 1,8,32,64 --seconds 10 --rounds 2

Servers take turns within each round, on the same images and the same model file. CPU time is that of the server's
whole process tree. Prints a Markdown table and writes it, with the machine named, to `benchmarks/results/serving.md`.
"""

import argparse
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from PIL import Image

from isocenter.imaging.phantoms import brain_slice
from isocenter.measure.percentiles import Percentiles
from isocenter.repository.layout import ModelFolder, find
from isocenter.repository.load import usable_cores

HERE = Path(__file__).resolve().parent
TICK_HZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """One server at one number of connections in one round."""

    server: str
    connections: int
    per_second: float
    latency_ms: Percentiles
    cpu_ms: float
    failed: int


def write_images(folder: Path, count: int, side_px: int) -> None:
    """Phantoms as colour JPEG files, each different."""
    for number in range(count):
        gray = cv2.resize(brain_slice(6_000_000 + number).pixels, (side_px, side_px))
        noise = np.random.default_rng(number).normal(0, 12, (side_px, side_px, 3))
        pixels = np.clip(gray[..., None] + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "jpeg", quality=92)
        (folder / f"{number:03d}.jpg").write_bytes(buffer.getvalue())


def bare_per_second(folder: ModelFolder, seconds: float) -> float:
    """Items per second of the model alone, at its best batch size."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(folder.weights), options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    best = 0.0
    for size in (1, 4, 8, 16):
        batch = np.random.default_rng(0).standard_normal((size, *taken.shape[1:])).astype(np.float32)
        session.run(None, {taken.name: batch})
        began_s, runs = time.perf_counter(), 0
        while time.perf_counter() - began_s < seconds / 4:
            session.run(None, {taken.name: batch})
            runs += 1
        best = max(best, runs * size / (time.perf_counter() - began_s))
    return best


def command_of(server: str, models: Path, folder: ModelFolder) -> tuple[list[str], dict[str, str], str]:
    """How to start a server, with what environment, and how it says its port."""
    if server == "isocenter":
        argv = [
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
        ]
        return argv, {"ISOCENTER_DEFAULT_MODEL": folder.manifest.name}, r'"port":(\d+)'
    normalize: Any = folder.manifest.transforms[-1]
    given = {
        "file": str(folder.weights),
        "input": folder.manifest.input.tensor,
        "labels": folder.manifest.output.labels,
        "mean": list(normalize.mean),
        "std": list(normalize.std),
        "threads": usable_cores(),
    }
    argv = [
        sys.executable,
        "-m",
        "uvicorn",
        "plain_fastapi:app",
        "--app-dir",
        str(HERE),
        "--port",
        "0",
        "--no-access-log",
    ]
    return argv, {"PLAIN_MODEL": json.dumps(given)}, r"running on http://127\.0\.0\.1:(\d+)"


@contextmanager
def started(server: str, models: Path, folder: ModelFolder) -> Iterator[tuple[int, int]]:
    """A running server: its process and its port."""
    argv, environment, port_pattern = command_of(server, models, folder)
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        try:
            while not (found := re.search(port_pattern, Path(log.name).read_text(errors="replace"))):
                if process.poll() is not None:
                    raise RuntimeError(f"{server} ended:\n{Path(log.name).read_text()}")
                time.sleep(0.05)
            yield process.pid, int(found.group(1))
        finally:
            process.terminate()
            process.wait(30)


def cpu_s(pid: int) -> float:
    """User and system seconds of a process, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICK_HZ


def load(server: str, pid: int, port: int, connections: int, images: Path, seconds: float) -> Measured:
    """Run the generator against a server."""
    job = {
        "images": str(images),
        "port": port,
        "path": "/predict",
        "field": "file",
        "connections": connections,
        "settle_s": 0.5,
        "warm_s": 1.5,
        "seconds": seconds,
    }
    generator = subprocess.Popen(
        [sys.executable, str(HERE / "closed_loop.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert generator.stdin is not None
    assert generator.stdout is not None
    generator.stdin.write(json.dumps(job))
    generator.stdin.close()
    marks: list[float] = []
    result: dict[str, Any] = {}
    for line in generator.stdout:
        if line.strip() in ("begin", "end"):
            marks.append(cpu_s(pid))
        else:
            result = json.loads(line)
    generator.wait()
    latencies_ms = [second * 1e3 for second in result["latencies_s"]]
    return Measured(
        server,
        connections,
        len(latencies_ms) / seconds,
        Percentiles.of(latencies_ms),
        (marks[1] - marks[0]) / len(latencies_ms) * 1e3,
        result["failed"],
    )


def cpu_name() -> str:
    """The processor, in its own words."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def table(measured: list[Measured], bare: list[float]) -> str:
    """Medians over the rounds, as Markdown."""
    lines = [
        "| server | connections | requests/s | of the bare model | P50 ms | P95 ms | n | CPU ms/request | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    bare_median = statistics.median(bare)
    for server, connections in dict.fromkeys((one.server, one.connections) for one in measured):
        rows = [one for one in measured if (one.server, one.connections) == (server, connections)]

        per_second = statistics.median(row.per_second for row in rows)
        p50_ms = statistics.median(row.latency_ms.p50 for row in rows)
        p95_ms = statistics.median(row.latency_ms.p95 for row in rows)
        cpu_ms = statistics.median(row.cpu_ms for row in rows)
        lines.append(
            f"| {server} | {connections} | {per_second:.1f} | {per_second / bare_median:.0%} "
            f"| {p50_ms:.1f} | {p95_ms:.1f} | {sum(row.latency_ms.count for row in rows)} "
            f"| {cpu_ms:.2f} | {sum(row.failed for row in rows)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description="served against bare, in one run")
    parser.add_argument("--models", type=Path, default=HERE.parent / "models")
    parser.add_argument("--model", default="brain-mri-classifier")
    parser.add_argument("--connections", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side-px", type=int, default=320)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "serving.md")
    given = parser.parse_args()
    folder = find(given.models, given.model)
    measured: list[Measured] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        images = Path(name)
        write_images(images, 48, given.side_px)
        for turn in range(given.rounds):
            bare.append(bare_per_second(folder, 4.0))
            for server in ("isocenter", "plain FastAPI"):
                with started(server, given.models, folder) as (pid, port):
                    for connections in map(int, given.connections.split(",")):
                        measured.append(load(server, pid, port, connections, images, given.seconds))
                        print(f"round {turn + 1}: {measured[-1]}", file=sys.stderr)
    text = (
        f"# Served against bare: {folder.manifest.name} {folder.manifest.version}\n\n"
        f"{cpu_name()}, {usable_cores()} usable cores; Python {platform.python_version()}, ONNX Runtime "
        f"{ort.__version__}, fp32. Closed loop, {given.seconds:g} s a window after 1.5 s of warm-up, {given.rounds} "
        f"rounds in turn, medians; {given.side_px} x {given.side_px} colour JPEG in a form. The bare model alone, at "
        f"its best batch size: {statistics.median(bare):.1f} items/s. Repeat: `make bench`.\n\n"
        f"{table(measured, bare)}\n"
    )
    print(text)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text)


if __name__ == "__main__":
    main()
