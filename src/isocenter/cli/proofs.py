"""The proofs behind `isocenter check`: each on its own, so that one failure does not hide the next."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from isocenter.core.errors import BadInput, GoldenMismatch, IsocenterError, UnknownModel
from isocenter.core.tensor import Tensors, TensorSpec
from isocenter.imaging.codecs.raster import decode
from isocenter.imaging.image import RasterImage, SourceInfo
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.transforms import reference
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.repository import accuracy, integrity
from isocenter.repository.golden import pipeline_of
from isocenter.repository.layout import ModelFolder
from isocenter.repository.load import open_sessions, typical_item
from isocenter.repository.manifest import Manifest
from isocenter.runtimes.base import Session

Said = tuple[str, dict[str, Any]]
"""A sentence for people and figures for programs."""

_ROUNDING: Final = 1e-3
"""A gray level is 0.01 or more after normalising: what is below this is float32, what is above is another image."""
_PAYS_FROM: Final = 1.1
_MOST_RUNS: Final = 15
_FEWEST_RUNS: Final = 3
_ENOUGH_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Proof:
    """One line of the report; `ok` is None if it could not be tried because an earlier one failed."""

    name: str
    ok: bool | None
    summary: str
    details: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    """The error's stable code, where it failed."""


class _Missing(Exception):
    """An earlier proof did not come to what this one needs."""


def prove(find: Callable[[], ModelFolder], *, now_s: Callable[[], float] = time.perf_counter) -> Iterator[Proof]:
    """Run every proof, in order, as far as each can be run. `find` reads the manifest and may raise.

    Raises:
        UnknownModel: there is nothing to prove.
    """
    work = _Work(find, now_s)
    steps: tuple[tuple[str, Callable[[], Said]], ...] = (
        ("manifest", work.manifest_),
        ("digest", work.digest),
        ("difference", work.difference),
        ("tensors", work.tensors),
        ("golden", work.golden),
        ("precision", work.precision),
        ("preprocessing", work.preprocessing),
        ("batch invariance", work.batch_invariance),
        ("warm-up", work.warm_up),
    )
    try:
        for name, step in steps:
            yield _tried(name, step)
    finally:
        work.close()


def _tried(name: str, step: Callable[[], Said]) -> Proof:
    try:
        summary, details = step()
    except _Missing as missing:
        return Proof(name, None, f"not tried: {missing}")
    except UnknownModel:
        raise  # there is nothing to prove
    except IsocenterError as error:
        return Proof(name, False, error.message, dict(error.details), error.code)
    except Exception as error:  # a proof that cannot be finished is a proof that failed
        return Proof(name, False, f"unexpected {type(error).__name__}: {error}", {}, "internal")
    return Proof(name, True, summary, details)


class _Work:
    """What the proofs have in common; filled by the earlier ones, needed by the later ones."""

    def __init__(self, find: Callable[[], ModelFolder], now_s: Callable[[], float]) -> None:
        self._find = find
        self._now_s = now_s
        self._folder: ModelFolder | None = None
        self._sessions: list[Session] = []
        self._cases: list[integrity.GoldenCase] = []
        self._items: list[Tensors] = []

    def close(self) -> None:
        for session in self._sessions:
            session.close()

    def manifest_(self) -> Said:
        self._folder = self._find()
        manifest = self._manifest
        said = f"{manifest.name} {manifest.version}: {manifest.task}, {len(manifest.output.labels)} labels"
        return f"{said}, {manifest.runtime_in_words} in {manifest.runtime.precision}", {
            "model": manifest.name,
            "version": manifest.version,
            "runtime": manifest.runtime_kind,
            "runtime_stated": manifest.runtime.kind,
        }

    def digest(self) -> Said:
        found = integrity.check_digest(self._there)
        if not found:
            return f"the weights are those of {self._manifest.runtime.url}", {"url": self._manifest.runtime.url}
        size = self._there.weights.stat().st_size
        return f"sha256 {found[:12]}…, {size / 1e6:.1f} MB", {"sha256": found, "bytes": size}

    def difference(self) -> Said:
        manifest = self._manifest
        found = accuracy.check_difference(self._there)
        spare = accuracy.check_fallback_difference(self._there)
        if found is None and spare is None:
            return f"{manifest.runtime.precision}, which is the reference", {"precision": manifest.runtime.precision}
        measured = {"": found, "fallback ": spare}
        said = [f"{which}{accuracy.in_words(each)}" for which, each in measured.items() if each is not None]
        details = {"difference": found, "fallback_difference": spare}
        return "; ".join(said), {name: each.model_dump(mode="json") for name, each in details.items() if each}

    def tensors(self) -> Said:
        self._sessions = open_sessions(self._there)
        taken, given = self._tensors()
        return f"{_shape(taken)} → {_shape(given)}", {
            "input": {"name": taken.name, "dtype": str(taken.dtype), "shape": list(taken.shape)},
            "output": {"name": given.name, "dtype": str(given.dtype), "shape": list(given.shape)},
        }

    def golden(self) -> Said:
        manifest = self._manifest
        self._cases = integrity.golden_cases(self._there)
        items = integrity.golden_items(self._cases, pipeline_of(manifest), self._open[0])
        self._items = items
        found = [integrity.check_golden(manifest, session, self._cases, items) for session in self._sessions]
        worst = max(found, key=lambda each: each.worst)
        return (
            f"{len(items)} cases, worst |diff| {worst.worst:.2g}, {worst.misses} of {worst.values} values outside "
            f"{integrity.tolerance_in_words(manifest)}",
            {"cases": len(items), "worst": worst.worst, "misses": worst.misses, "values": worst.values},
        )

    def precision(self) -> Said:
        # After a first run: some sessions can only be watched while they compute.
        said = list(dict.fromkeys(session.proof for session in self._open))
        return "; ".join(said), {"stated": self._manifest.runtime.precision, "seen": said}

    def preprocessing(self) -> Said:
        if not self._cases:
            raise _Missing("needs golden inputs")
        steps = self._manifest.transforms
        if not steps:
            return f"{len(self._manifest.steps)} steps on arrays, which have one implementation", {"cases": 0}
        fast = FastPipeline(steps)
        images = [decode(case.image, limits=ImageLimits()) for case in self._cases if case.image]
        pairs = [(fast(image).tensor, reference.preprocess(image, steps).tensor) for image in images]
        for image in odd_images():
            with contextlib.suppress(BadInput):  # a model need not take colour, or more than 8 bits
                pairs.append((fast(image).tensor, reference.preprocess(image, steps).tensor))
        if any(one.shape != other.shape for one, other in pairs):
            raise GoldenMismatch("the fast and the reference preprocessing give different shapes")
        worst = max(float(np.abs(one - other).max()) for one, other in pairs)
        if not worst <= _ROUNDING:
            raise GoldenMismatch(
                f"the fast preprocessing is off the reference by up to {worst:.3g}, allowed is {_ROUNDING:g}",
                details={"worst": worst, "limit": _ROUNDING},
            )
        return (
            f"fast against reference on {len(images)} golden inputs and {len(pairs) - len(images)} of odd sizes and "
            f"depths: worst |diff| {worst:.2g}",
            {"cases": len(pairs), "worst": worst},
        )

    def batch_invariance(self) -> Said:
        sessions, items = self._open, self._items or [self._noise()]
        found = integrity.check_batch_invariance(self._manifest, sessions[0], items)
        size = self._manifest.batching.max_batch_size
        return (
            f"alone and in a mixed batch of {size}: worst |diff| {found.worst:.2g}, {found.misses} of "
            f"{found.values} values outside",
            {"batch_size": size, "worst": found.worst, "misses": found.misses, "values": found.values},
        )

    def warm_up(self) -> Said:
        item = typical_item(self._manifest, self._items) if self._items else self._noise()
        service_s = {size: self._median_s(item, size) for size in timed_sizes(self._manifest)}
        return batching_in_words(service_s), {
            "service_ms": {str(size): round(seconds * 1e3, 3) for size, seconds in service_s.items()},
            "items_per_s": {str(size): round(size / seconds, 1) for size, seconds in service_s.items()},
        }

    def _median_s(self, item: Tensors, size: int) -> float:
        session = self._open[0]
        batch = {name: np.stack([array] * size) for name, array in item.items()}
        session.run(batch)
        taken: list[float] = []
        while len(taken) < _FEWEST_RUNS or (len(taken) < _MOST_RUNS and sum(taken) < _ENOUGH_S):
            started_s = self._now_s()
            session.run(batch)
            taken.append(self._now_s() - started_s)
        return statistics.median(taken)

    def _noise(self) -> Tensors:
        inputs = self._open[0].inputs
        if any(-1 in spec.shape for spec in inputs):
            raise _Missing("needs a golden input, as the model leaves its shape open")
        rng = np.random.default_rng(0)
        return {spec.name: rng.standard_normal(spec.shape).astype(spec.dtype) for spec in inputs}

    def _tensors(self) -> tuple[TensorSpec, TensorSpec]:
        return integrity.check_tensors(self._manifest, self._open[0])

    @property
    def _there(self) -> ModelFolder:
        if self._folder is None:
            raise _Missing("needs the manifest")
        return self._folder

    @property
    def _manifest(self) -> Manifest:
        return self._there.manifest

    @property
    def _open(self) -> list[Session]:
        if self._folder is None or not self._sessions:
            raise _Missing("needs the manifest" if self._folder is None else "needs a model that opens")
        return self._sessions


def odd_images() -> Iterator[RasterImage]:
    """Noise in the sizes and depths that golden inputs seldom have: taller, wider, smaller, in colour, deep."""
    rng = np.random.default_rng(0)
    shapes: tuple[tuple[tuple[int, ...], type[np.uint8] | type[np.uint16]], ...] = (
        ((301, 150), np.uint8),
        ((97, 643), np.uint8),
        ((61, 47, 3), np.uint8),
        ((512, 400), np.uint16),
    )
    for shape, dtype in shapes:
        pixels = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
        mode = "RGB" if len(shape) == 3 else "L" if dtype == np.uint8 else "I;16"
        yield RasterImage(pixels, SourceInfo("png", mode, shape[1], shape[0], 8 * pixels.itemsize))


def timed_sizes(manifest: Manifest) -> list[int]:
    """The batch sizes that tell the story: powers of two, the preferred ones, the largest."""
    largest = manifest.batching.max_batch_size
    powers = {1 << exponent for exponent in range(largest.bit_length())}
    return sorted({*powers, *manifest.batching.preferred_batch_sizes, largest})


def batching_in_words(service_s: dict[int, float]) -> str:
    """Whether larger batches answer more items a second here, from seconds of a run by batch size.

    >>> batching_in_words({1: 0.004, 2: 0.004})
    'batching pays: 2.0 x the items/s of one at a time, at batch 2 (500/s against 250/s)'
    """
    rates = {size: size / seconds for size, seconds in service_s.items()}
    alone = rates[min(rates)]
    best = max(rates, key=lambda size: rates[size])
    gain = rates[best] / alone
    if gain >= _PAYS_FROM:
        return (
            f"batching pays: {gain:.1f} x the items/s of one at a time, at batch {best} "
            f"({rates[best]:.0f}/s against {alone:.0f}/s)"
        )
    return f"batching does not pay on this machine: {alone:.0f} items/s alone, {rates[best]:.0f}/s at best"


def _shape(spec: TensorSpec) -> str:
    sizes = " x ".join("?" if size == -1 else str(size) for size in spec.shape)
    return f"{spec.name} {spec.dtype} [{sizes}]"
