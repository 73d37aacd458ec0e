"""A runtime with a known answer and a known cost, for tests and benchmarks of everything above it."""

import threading
import time
import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isocenter.core.errors import BadManifest
from isocenter.core.tensor import Array, FloatArray, Tensors, TensorSpec
from isocenter.runtimes.base import Session, SessionOptions

INPUT = "x"
OUTPUT = "checksum"

_BURNT_AT_ONCE = bytes(64 * 1024)


class SyntheticError(Exception):
    """What a synthetic session raises when it was asked to; not one of our own errors, as no framework's is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of a run: base + per_item * items."""

    base_s: float = 0.0
    per_item_s: float = 0.0
    busy: bool = True
    """Burn a core without the GIL, as a CPU runtime does; False sleeps, as one waits for a device."""

    def service_s(self, items: int) -> float:
        """What a run of so many items takes."""
        return self.base_s + self.per_item_s * items

    def spend(self, items: int) -> None:
        """Take that long."""
        ends_s = time.perf_counter() + self.service_s(items)
        if not self.busy:
            time.sleep(self.service_s(items))
        while time.perf_counter() < ends_s:
            zlib.crc32(_BURNT_AT_ONCE)  # gives up the GIL above 5 kB


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong. Markers are compared with the first element of an item."""

    raise_on_runs: frozenset[int] = frozenset()
    """Numbers of runs, from 1, that raise."""
    raise_markers: Container[float] = frozenset()
    """A batch that holds such an item raises."""
    nan_markers: Container[float] = frozenset()
    """Such an item is answered with NaN."""
    wrong_axis_above: int | None = None
    """A larger batch is answered with one row too few."""


class Gate:
    """Holds runs back until they are let through, one by one. Shared by any number of sessions."""

    def __init__(self) -> None:
        self._passes = threading.Semaphore(0)
        self._open = False

    def let_through(self, runs: int = 1) -> None:
        """Let so many runs end."""
        self._passes.release(runs)

    def open(self) -> None:
        """Hold nothing back from here on."""
        self._open = True
        self._passes.release()

    def wait(self) -> None:
        """Block until let through."""
        self._passes.acquire()
        if self._open:
            self._passes.release()


class SyntheticSession:
    """Answers each item with the checksum of its bytes, so that any mix-up shows.

    Its output memory is used again by the next run: the harshest thing that a session may do.
    `runs` lists the first elements of every batch at the moment that its run began.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (4,),
        cost: Cost | None = None,
        gate: Gate | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.inputs = (TensorSpec(INPUT, np.dtype(np.float32), shape),)
        self.outputs = (TensorSpec(OUTPUT, np.dtype(np.float64), ()),)
        self.runs: list[tuple[float, ...]] = []
        self.closed = False
        self._cost = cost
        self._gate = gate
        self._faults = faults or Faults()
        self._memory = np.empty(64, np.float64)

    def run(self, batch: Tensors) -> Tensors:
        """Answer one batch, or fail as asked."""
        items = batch[INPUT]
        markers = tuple(float(item.flat[0]) for item in items)
        self.runs.append(markers)
        if self._gate is not None:
            self._gate.wait()
        if self._cost is not None:
            self._cost.spend(len(items))
        faults = self._faults
        if len(self.runs) in faults.raise_on_runs or any(m in faults.raise_markers for m in markers):
            raise SyntheticError(f"asked to fail, holding {items!r}")
        answers = self._room(len(items))
        for row, item in enumerate(items):
            answers[row] = np.nan if markers[row] in faults.nan_markers else checksum(item)
        short = faults.wrong_axis_above is not None and len(items) > faults.wrong_axis_above
        return {OUTPUT: answers[:-1] if short else answers}

    def close(self) -> None:
        """Take note."""
        self.closed = True

    def _room(self, items: int) -> Array:
        if items > len(self._memory):
            self._memory = np.empty(items, np.float64)
        return self._memory[:items]


def item(marker: float, shape: tuple[int, ...] = (4,)) -> dict[str, FloatArray]:
    """An item whose elements all have one value.

    >>> item(3.0, shape=(2,))
    {'x': array([3., 3.], dtype=float32)}
    """
    return {INPUT: np.full(shape, marker, np.float32)}


def checksum(array: Array) -> float:
    """The answer for one item.

    >>> checksum(item(3.0)["x"])
    2175366424.0
    """
    return float(zlib.crc32(array.tobytes()))


class SyntheticRuntime:
    """`runtime.kind: synthetic`. The file is not read.

    Options: `elements` of an item (4), `base_ms` and `per_item_ms` of a run (0), `busy` (true).
    """

    name = "synthetic"
    _DEFAULTS: Mapping[str, str | int | float | bool] = {
        "elements": 4,
        "base_ms": 0.0,
        "per_item_ms": 0.0,
        "busy": True,
    }

    def open(self, file: Path, options: SessionOptions) -> Session:
        """Make a session.

        Raises:
            BadManifest: an option is unknown, or the precision is not fp32.
        """
        if options.precision != "fp32":
            raise BadManifest(f"the synthetic runtime runs fp32, not {options.precision}")
        if unknown := sorted(set(options.options) - set(self._DEFAULTS)):
            raise BadManifest(f"unknown options of the synthetic runtime: {', '.join(unknown)}")
        chosen = {**self._DEFAULTS, **options.options}
        cost = Cost(
            base_s=float(chosen["base_ms"]) / 1e3,
            per_item_s=float(chosen["per_item_ms"]) / 1e3,
            busy=bool(chosen["busy"]),
        )
        return SyntheticSession(shape=(int(chosen["elements"]),), cost=cost)
