"""A runtime with a known answer and a known cost, for tests and benchmarks of everything above it."""

import threading
import time
import zlib
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isocenter.core.errors import BadManifest, OutOfMemory
from isocenter.core.tensor import Array, FloatArray, Tensors, TensorSpec
from isocenter.runtimes.base import Session, SessionOptions

INPUT = "x"
OUTPUT = "checksum"
SCORES = "scores"
"""The output of a session that answers with scores."""

_BURNT_AT_ONCE = bytes(64 * 1024)
_LOOKS_UP_EVERY_S = 0.05


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


class Every(Container[int]):
    """The numbers of every so-manieth run; of none if it is every 0th.

    >>> [run for run in range(1, 12) if run in Every(3)]
    [3, 6, 9]
    """

    def __init__(self, every: int) -> None:
        self._every = every

    def __contains__(self, run: object) -> bool:
        return isinstance(run, int) and self._every > 0 and run % self._every == 0


class Switch:
    """Turned on and off, by whoever looks on, while sessions run."""

    def __init__(self) -> None:
        self.on = False

    def __call__(self) -> bool:
        """Whether it is on."""
        return self.on


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong. Markers are compared with the first element of an item, numbers of runs count from 1."""

    healthy_runs: int = 0
    """So many runs of a session neither raise nor hang, whatever else is asked."""
    raise_on_runs: Container[int] = frozenset()
    """Such runs raise."""
    raise_markers: Container[float] = frozenset()
    """A batch that holds such an item raises."""
    fail_always: Callable[[], bool] = field(default_factory=Switch)
    """While this is so, every run raises."""
    nan_markers: Container[float] = frozenset()
    """Such an item is answered with NaN."""
    wrong_axis_above: int | None = None
    """A larger batch is answered with one row too few."""
    oom_on_runs: Container[int] = frozenset()
    """Such runs have no memory."""
    oom_above: int | None = None
    """A larger batch has no memory."""
    hang_on_runs: Container[int] = frozenset()
    """Such runs do not end until the session is closed or `released`."""
    hang_markers: Container[float] = frozenset()
    """A batch that holds such an item does not end until the session is closed or `released`."""
    released: threading.Event = field(default_factory=threading.Event)
    """Set, it lets every run end that hangs, now and later."""


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
    With `labels`, it answers with that many scores instead: the item's mean, times 1, 2, 3 and so on. With `voxels`
    as well, with scores for every voxel: those of its first channel, times 0, 1, 2 and so on.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (4,),
        cost: Cost | None = None,
        gate: Gate | None = None,
        faults: Faults | None = None,
        labels: int = 0,
        voxels: bool = False,
    ) -> None:
        self.inputs = (TensorSpec(INPUT, np.dtype(np.float32), shape),)
        checksums = TensorSpec(OUTPUT, np.dtype(np.float64), ())
        grid = shape[1:] if voxels else ()
        self.outputs = (TensorSpec(SCORES, np.dtype(np.float32), (labels, *grid)) if labels else checksums,)
        self.proof = "fp32: nothing is multiplied; a checksum, or a mean"
        self.runs: list[tuple[float, ...]] = []
        self.closed = False
        self._cost = cost
        self._gate = gate
        self._faults = faults or Faults()
        self._closing = threading.Event()
        self._memory = self._make_room(64)

    def run(self, batch: Tensors) -> Tensors:
        """Answer one batch, or fail as asked."""
        items = batch[INPUT]
        markers = tuple(float(item.flat[0]) for item in items)
        self.runs.append(markers)
        if self._gate is not None:
            self._gate.wait()
        if self._cost is not None:
            self._cost.spend(len(items))
        self._suffer(items, markers)
        faults = self._faults
        answers = self._room(len(items))
        for row, item in enumerate(items):
            answers[row] = np.nan if markers[row] in faults.nan_markers else self._answer(item)
        short = faults.wrong_axis_above is not None and len(items) > faults.wrong_axis_above
        return {self.outputs[0].name: answers[:-1] if short else answers}

    def close(self) -> None:
        """Take note, and let a run end that hangs."""
        self.closed = True
        self._closing.set()

    def _suffer(self, items: Array, markers: tuple[float, ...]) -> None:
        faults, run = self._faults, len(self.runs)
        if run <= faults.healthy_runs:
            return
        if run in faults.hang_on_runs or any(marker in faults.hang_markers for marker in markers):
            while not (self._closing.is_set() or faults.released.wait(_LOOKS_UP_EVERY_S)):
                pass
        if run in faults.oom_on_runs or (faults.oom_above is not None and len(items) > faults.oom_above):
            raise OutOfMemory("asked to have no memory")
        if faults.fail_always() or run in faults.raise_on_runs or any(m in faults.raise_markers for m in markers):
            raise SyntheticError(f"asked to fail, holding {items!r}")

    def _answer(self, item: Array) -> Array | float:
        (output,) = self.outputs
        if output.name == OUTPUT:
            return checksum(item)
        if len(output.shape) > 1:
            return np.stack([label * item[0] for label in range(output.shape[0])])
        scores: Array = np.arange(1, 1 + output.shape[0]) * item.mean(dtype=np.float64)
        return scores

    def _room(self, items: int) -> Array:
        if items > len(self._memory):
            self._memory = self._make_room(items)
        return self._memory[:items]

    def _make_room(self, items: int) -> Array:
        return np.empty((items, *self.outputs[0].shape), self.outputs[0].dtype)


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

    Options of what it computes: `elements` of an item (4), or `image` (such as "3x8x8", or "1x8x8x8") and `labels`:
    tensors `x` and `scores`, as a classifier has them, or a segmenter with `voxels` (false). Of what a run costs:
    `base_ms`, `per_item_ms` (0), `busy` (true).

    Options of what goes wrong after the first `healthy_runs` (0) of a session: every `fail_every`-th run raises, every
    `hang_every`-th does not end (0: none), one of more than `oom_above` items has no memory (0: none is). `fails_while`
    names a file in the version's folder: while it is there, no session can be opened and every run raises.
    """

    name = "synthetic"
    _DEFAULTS: Mapping[str, str | int | float | bool] = {
        "elements": 4,
        "image": "",
        "labels": 0,
        "voxels": False,
        "base_ms": 0.0,
        "per_item_ms": 0.0,
        "busy": True,
        "healthy_runs": 0,
        "fail_every": 0,
        "hang_every": 0,
        "oom_above": 0,
        "fails_while": "",
    }

    def open(self, file: Path, options: SessionOptions) -> Session:
        """Make a session.

        Raises:
            BadManifest: an option is unknown, or the precision is not fp32; or it was asked to fail.
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
        sick = (file.parent / str(chosen["fails_while"])).exists if chosen["fails_while"] else Switch()
        if sick():
            raise BadManifest("asked to fail")
        faults = Faults(
            healthy_runs=int(chosen["healthy_runs"]),
            raise_on_runs=Every(int(chosen["fail_every"])),
            hang_on_runs=Every(int(chosen["hang_every"])),
            oom_above=int(chosen["oom_above"]) or None,
            fail_always=sick,
        )
        return SyntheticSession(
            shape=_shape(chosen),
            cost=cost,
            faults=faults,
            labels=int(chosen["labels"]),
            voxels=bool(chosen["voxels"]),
        )


def _shape(chosen: Mapping[str, str | int | float | bool]) -> tuple[int, ...]:
    image = str(chosen["image"])
    if not image:
        return (int(chosen["elements"]),)
    try:
        shape = tuple(int(side) for side in image.split("x"))
    except ValueError:
        shape = ()
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise BadManifest(f"image {image!r} of the synthetic runtime is not of the form 3x8x8")
    return shape
