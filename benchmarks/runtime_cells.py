"""One network in one runtime and precision, in a process of its own that measures whenever a line asks it to.

Lines in and out are JSON. Asked {"do": "open"}, it answers with what the session proved; then {"do": "alone"} and
{"do": "rate"} for times, {"do": "answers"} for outputs, {"do": "peak"} for memory. What fails is {"error": ...}.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asked_process import AskedProcess, answer_lines, asked_process
from isocenter.core.tensor import FloatArray
from isocenter.measure.memory import ProcessMemory
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.registry import open_runtime

FEWEST_RUNS = 3
SEED = 5


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured."""

    name: str
    kind: str
    file: str
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def measured(cell: Cell) -> AbstractContextManager[AskedProcess]:
    """The cell in its own process, which is gone afterwards; idle unless asked."""
    return asked_process(__file__, asdict(cell))


class Work:
    """The other end."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._sessions: list[Session] = []
        self._item: FloatArray = np.zeros(0, np.float32)

    def open(self, shape: list[int]) -> dict[str, Any]:
        """Open one session and run it once."""
        began_s = time.perf_counter()
        session = self._opened()
        opened_s = time.perf_counter() - began_s
        self._item = np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)
        session.run(self._batch(1))
        return {"proof": session.proof, "opened_s": opened_s}

    def alone(self, seconds: float) -> dict[str, Any]:
        """Seconds of each run of one item."""
        batch, taken, began_s = self._batch(1), list[float](), time.perf_counter()
        while len(taken) < FEWEST_RUNS or time.perf_counter() - began_s < seconds:
            started_s = time.perf_counter()
            self._sessions[0].run(batch)
            taken.append(time.perf_counter() - started_s)
        return {"seconds": taken}

    def rate(self, batch: int, seconds: float, streams: int = 1) -> dict[str, Any]:
        """Items a second in batches of a size, by so many sessions at once."""
        while len(self._sessions) < streams:
            self._opened()
        given = self._batch(batch)
        for session in self._sessions[:streams]:  # a size of its own may cost once
            session.run(given)
        began_s = time.perf_counter()
        with ThreadPoolExecutor(streams) as pool:
            runs = sum(pool.map(lambda session: _runs(session, given, began_s + seconds), self._sessions[:streams]))
        return {"per_s": runs * batch / (time.perf_counter() - began_s)}

    def answers(self, inputs: str, out: str) -> dict[str, Any]:
        """Answers to the items of a file, one at a time, into another."""
        session = self._sessions[0]
        (taken, *_), (given, *_) = session.inputs, session.outputs
        found = [session.run({taken.name: item[None]})[given.name] for item in np.load(inputs)]
        np.save(out, np.concatenate(found))
        return {}

    def peak(self) -> dict[str, Any]:
        """The most that was held so far: by the process, or on the device."""
        if self._cell.device == "cpu":
            return {"bytes": ProcessMemory().peak_bytes()}
        torch = sys.modules.get("torch")
        return {"bytes": torch.cuda.max_memory_reserved() if torch else None}

    def _opened(self) -> Session:
        cell = self._cell
        precision: Any = cell.precision
        options = SessionOptions(
            precision=precision, device=cell.device, threads=cell.threads, options=dict(cell.options)
        )
        self._sessions.append(open_runtime(cell.kind).open(Path(cell.file), options))
        return self._sessions[-1]

    def _batch(self, size: int) -> dict[str, FloatArray]:
        return {self._sessions[0].inputs[0].name: np.stack([self._item] * size)}


def _runs(session: Session, batch: dict[str, FloatArray], until_s: float) -> int:
    runs = 0
    while runs < FEWEST_RUNS or time.perf_counter() < until_s:
        session.run(batch)
        runs += 1
    return runs


def main() -> None:
    """Do what each line asks for."""
    warnings.simplefilter("ignore")
    work = Work(Cell(**json.loads(sys.argv[1])))
    doings: dict[str, Callable[..., dict[str, Any]]] = {
        each.__name__: each for each in (work.open, work.alone, work.rate, work.answers, work.peak)
    }
    answer_lines(lambda what, **more: doings[what](**more))


if __name__ == "__main__":
    main()
