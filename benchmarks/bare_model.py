"""The model alone: no pictures, no HTTP. How many items a second a session runs, by batch size.

    python benchmarks/bare_model.py models/brain-mri-classifier/1/model.onnx

As a module it keeps a session in a process of its own, so that a server can be measured between two of its windows.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from isocenter.repository.load import usable_cores
from tables import conditions, table

BATCHES = (1, 2, 4, 8, 16)
FEWEST_RUNS = 3


@dataclass(frozen=True)
class Way:
    """How the bare model is run."""

    batch: int
    spin: bool
    threads: int

    def __str__(self) -> str:
        return f"batches of {self.batch}, spinning {'on' if self.spin else 'off'}"


class BareModel:
    """A session in another process; idle unless asked."""

    def __init__(self, process: "subprocess.Popen[str]", way: Way) -> None:
        self._process = process
        self.way = way

    def per_second(self, seconds: float) -> float:
        """Items a second over a window of about so many seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))


@contextmanager
def bare_model(weights: Path, way: Way) -> Iterator[BareModel]:
    """The bare model in its own process, which is gone afterwards."""
    argv = [sys.executable, __file__, str(weights), "--threads", str(way.threads), "--batch", str(way.batch)]
    argv += ["--spin"] if way.spin else []
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield BareModel(process, way)
    finally:
        process.kill()
        process.communicate()


def sweep(weights: Path, *, threads: int, seconds: float) -> list[tuple[Way, float]]:
    """Items a second of every batch size, spinning off and on; `seconds` for each."""
    found = []
    for spin in (False, True):
        for batch in BATCHES:
            way = Way(batch, spin, threads)
            found.append((way, _timed(*_session(weights, way), seconds)))
    return found


def best(swept: list[tuple[Way, float]]) -> Way:
    """The fastest way; what is faster by less than 1 % does not displace an earlier one."""
    leader, most = swept[0]
    for way, per_second in swept[1:]:
        if per_second > most * 1.01:
            leader, most = way, per_second
    return leader


def sweep_table(swept: list[tuple[Way, float]]) -> str:
    """The sweep, one line for each setting of spinning."""
    rows = [
        ["on" if spin else "off", *(per_second for way, per_second in swept if way.spin is spin)]
        for spin in (False, True)
    ]
    return table(["spinning", *(f"items/s in batches of {batch}" for batch in BATCHES)], rows)


def _session(weights: Path, way: Way) -> tuple[ort.InferenceSession, dict[str, np.ndarray]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = way.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if way.spin else "0")
    session = ort.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    batch = np.random.default_rng(0).standard_normal((way.batch, *taken.shape[1:])).astype(np.float32)
    return session, {taken.name: batch}


def _timed(session: ort.InferenceSession, given: dict[str, np.ndarray], seconds: float) -> float:
    session.run(None, given)
    (batch,) = given.values()
    runs, began_s = 0, time.perf_counter()
    while runs < FEWEST_RUNS or time.perf_counter() - began_s < seconds:
        session.run(None, given)
        runs += 1
    return runs * len(batch) / (time.perf_counter() - began_s)


def main() -> None:
    """Measure at every batch size; with `--batch`, whenever a line with a number of seconds comes in."""
    parser = argparse.ArgumentParser(description="items a second of the model alone")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--spin", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.batch is None:
        print(f"{conditions(threads=given.threads)}\n")
        print(sweep_table(sweep(given.weights, threads=given.threads, seconds=given.seconds)))
        return
    session, batch = _session(given.weights, Way(given.batch, given.spin, given.threads))
    for line in sys.stdin:
        print(json.dumps(_timed(session, batch, float(line))), flush=True)


if __name__ == "__main__":
    main()
