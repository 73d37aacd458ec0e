"""Steps over an image that is never in memory as a whole: measured in passes over its rows, then done part by part.

Percentiles, extremes, means and deviations are those of the whole image, so a part gets the numbers that it would get
as a part of the whole; percentiles are exact (ranks are counted, nothing is sampled).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from isocenter.core.errors import InputNotAccepted
from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.image import Note
from isocenter.imaging.transforms.arrays import intensity
from isocenter.imaging.transforms.arrays.channels import normalized
from isocenter.imaging.transforms.arrays.grid import padding
from isocenter.imaging.transforms.arrays.intensity import Window
from isocenter.imaging.transforms.arrays.schemes import MinMax, NormalizeChannels, ZScore
from isocenter.imaging.transforms.arrays.steps import (
    ArrayPercentile,
    ArrayStep,
    Clip,
    PadTo,
    PadToMultiple,
    Scale,
    SelectChannels,
    ShiftScale,
    Standardize,
)

Bands: TypeAlias = Callable[[], Iterator[Array]]
"""Goes through the rows of an image [C, H, W] once more: parts [C, rows, W], first to last."""
_Change: TypeAlias = Callable[[FloatArray], FloatArray]
_HALF = 2**16


@dataclass(frozen=True)
class StreamedSteps:
    """Measured steps, ready for any part of the image; `pad` is what they add around it."""

    changes: tuple[_Change, ...]
    pad: "Padding"
    notes: tuple[Note, ...]

    def __call__(self, part: Array) -> FloatArray:
        """A part [C, h, w] as the model takes it, without padding."""
        return _through(self.changes, part)


@dataclass(frozen=True)
class Padding:
    """Rows and columns that stand around an image."""

    shape: tuple[int, int]
    """With them."""
    before: tuple[int, int]
    source: tuple[int, int]
    mode: str = "constant"
    value: float = 0.0

    def rows(self, axis: int) -> npt.NDArray[np.int64]:
        """For each row (axis 0) or column (axis 1), which one of the image stands there; -1: `value` does."""
        margins = (self.before[axis], self.shape[axis] - self.source[axis] - self.before[axis])
        inside = np.arange(self.source[axis])
        if self.mode == "constant":
            return np.pad(inside, margins, constant_values=-1)
        return np.pad(inside, margins, mode="edge" if self.mode == "edge" else "reflect")


def measured(steps: Sequence[ArrayStep], bands: Bands, shape: tuple[int, int], names: Sequence[str]) -> StreamedSteps:
    """Measure what the steps need to know of an image of `shape`, height and width.

    Raises:
        InputNotAccepted: a step cannot be done part by part.
        EmptyInput: nothing is left inside an intensity window.
    """
    changes: list[_Change] = []
    notes: list[Note] = []
    pad = Padding(shape, (0, 0), shape)
    for step in steps:
        if pad.shape != shape:
            raise _refused(step, "comes after padding")
        match step:
            case Scale() | Clip():
                windows = _windows(step, bands, tuple(changes), len(names), shape[0] * shape[1])
                notes.append(intensity.said_of(step, windows, names))
                changes.append(partial(intensity.windowed, step=step, windows=windows))
            case Standardize():
                fixed = _standard(step, bands, tuple(changes))
                changes.append(partial(intensity.standardized, step=fixed))
            case ShiftScale():
                changes.append(partial(intensity.shifted, step=step))
            case SelectChannels():
                chosen = [*step.channels]
                if max(chosen) >= len(names):
                    raise InputNotAccepted(f"select_channels takes channel {max(chosen)}, there are {len(names)}")
                names = [names[channel] for channel in chosen]
                changes.append(partial(np.take, indices=chosen, axis=0))
            case NormalizeChannels():
                if any(isinstance(scheme, ZScore | MinMax) for scheme in step.channels):
                    raise _refused(step, "measures channels")
                changes.append(partial(normalized, step=step))
            case PadTo() | PadToMultiple():
                pad = _padding(step, shape)
            case _:
                raise _refused(step, "changes the grid")
    return StreamedSteps(tuple(changes), pad, tuple(notes))


def percentiles(bands: Callable[[], Iterator[FloatArray]], asked: Sequence[float], count: int) -> tuple[float, ...]:
    """Percentiles of all `count` values of the bands, to the last bit those of `numpy.percentile`.

    >>> values = np.float32([3, 1, 4, 1, 5, 9, 2, 6])
    >>> percentiles(lambda: iter([values[:3], values[3:]]), [0, 50, 100], 8)
    (1.0, 3.5, 9.0)
    """
    places = [(count - 1) * (each / 100) for each in asked]
    lows = [min(math.floor(place), count - 1) for place in places]
    ranks = sorted({rank for low in lows for rank in (low, min(low + 1, count - 1))})
    value = dict(zip(ranks, _at_ranks(bands, ranks), strict=True))
    found = []
    for place, low in zip(places, lows, strict=True):
        first, second, part = value[low], value[min(low + 1, count - 1)], place - low
        step = float(second - first)  # in float32, as numpy does it
        found.append(float(second) - step * (1 - part) if part >= 0.5 else float(first) + step * part)
    return tuple(found)


def _at_ranks(bands: Callable[[], Iterator[FloatArray]], ranks: Sequence[int]) -> list[np.float32]:
    """The values at ranks, counted from 0: first by the upper half of their bits, then by the lower."""
    upper = np.zeros(_HALF, np.int64)
    for band in bands():
        upper += np.bincount(_keys(band) >> 16, minlength=_HALF)
    ends = np.cumsum(upper)
    halves = np.searchsorted(ends, ranks, side="right")
    lower = {int(half): np.zeros(_HALF, np.int64) for half in halves}
    for band in bands():
        keys = _keys(band)
        for half, counts in lower.items():
            counts += np.bincount(keys[keys >> 16 == half] & (_HALF - 1), minlength=_HALF)
    found = []
    for rank, half in zip(ranks, halves.tolist(), strict=True):
        within = rank - int(ends[half] - upper[half])
        found.append(_value((half << 16) + int(np.searchsorted(np.cumsum(lower[half]), within, side="right"))))
    return found


def _keys(values: FloatArray) -> npt.NDArray[np.uint32]:
    """Unsigned numbers in the order of the values."""
    bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))


def _value(key: int) -> np.float32:
    bits = key ^ 2**31 if key >> 31 else key ^ (2**32 - 1)
    return np.uint32(bits).view(np.float32)


def _windows(
    step: Scale | Clip, bands: Bands, before: tuple[_Change, ...], channels: int, size: int
) -> tuple[Window, ...]:
    limits = (step.low or ArrayPercentile(percentile=0), step.high or ArrayPercentile(percentile=100))
    asked = [limit.percentile for limit in limits if isinstance(limit, ArrayPercentile)]
    only_ends = all(each in (0, 100) for each in asked)
    everywhere = [*range(channels)]
    low, high = _extremes(bands, before) if asked and only_ends else (np.zeros(channels), np.zeros(channels))
    windows = []
    for group in [[channel] for channel in everywhere] if step.per_channel else [everywhere]:
        if only_ends:
            ends = {0.0: float(low[group].min()), 100.0: float(high[group].max())}
            found = iter([ends[each] for each in asked])
        else:
            found = iter(percentiles(partial(_floats, bands, before, group), asked, size * len(group)))
        first, second = (next(found) if isinstance(limit, ArrayPercentile) else limit.value for limit in limits)
        intensity.refuse_empty((first, second), partial(_ends, bands, before, group))
        windows.append((first, second))
    return tuple(windows)


def _ends(bands: Bands, before: tuple[_Change, ...], group: list[int]) -> Window:
    low, high = _extremes(bands, before)
    return float(low[group].min()), float(high[group].max())


def _extremes(bands: Bands, before: tuple[_Change, ...]) -> tuple[Array, Array]:
    """The lowest and highest value of each channel."""
    lows, highs = [], []
    for band in _floats(bands, before):
        lows.append(band.min(axis=(1, 2)))
        highs.append(band.max(axis=(1, 2)))
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _standard(step: Standardize, bands: Bands, before: tuple[_Change, ...]) -> Standardize:
    """The same with the mean and deviation of the whole image where it does not say them."""
    if step.mean is not None and step.std is not None:
        return step
    counts, means = _sums(step, bands, before, None)
    centres = means if step.mean is None else np.broadcast_to(np.array(step.mean), means.shape)
    _, variances = _sums(step, bands, before, means)
    spreads = np.sqrt(variances)
    if not counts.all():  # nothing but zeros: as nothing was measured, nothing changes
        centres, spreads = np.where(counts, centres, 0), np.where(counts, spreads, 1)
    given = step.std or tuple(float(each) for each in spreads)
    return step.model_copy(update={"mean": tuple(float(each) for each in centres), "std": given})


def _sums(step: Standardize, bands: Bands, before: tuple[_Change, ...], means: Array | None) -> tuple[Array, Array]:
    """How many values count, and their mean, or the mean of their squared distance from `means`; one or a channel."""
    total = counts = np.zeros(1)
    for band in _floats(bands, before):
        parts = [*band] if step.per_channel or len(step.mean or step.std or (1,)) > 1 else [band]
        chosen = [part[part != 0] if step.nonzero else part.ravel() for part in parts]
        if means is not None:
            chosen = [(part - mean) ** 2 for part, mean in zip(chosen, means, strict=True)]
        total = total + np.array([part.sum(dtype=np.float64) for part in chosen])
        counts = counts + np.array([part.size for part in chosen])
    return counts, total / np.maximum(counts, 1)


def _floats(bands: Bands, before: tuple[_Change, ...], channels: Sequence[int] | None = None) -> Iterator[FloatArray]:
    for band in bands():
        values = _through(before, band)
        yield values if channels is None or len(channels) == len(values) else values[list(channels)]


def _through(changes: Sequence[_Change], part: Array) -> FloatArray:
    values: FloatArray = np.ascontiguousarray(part, np.float32)
    for change in changes:
        values = change(values)
    return values


def _padding(step: PadTo | PadToMultiple, shape: tuple[int, int]) -> Padding:
    starts, sizes = padding(Geometry.of(shape), step)
    return Padding((sizes[0], sizes[1]), (-starts[0], -starts[1]), shape, step.mode, step.value)


def _refused(step: ArrayStep, why: str) -> InputNotAccepted:
    return InputNotAccepted(
        f"the model's step {step.kind} {why}: an image that is too large for memory cannot be prepared part by part",
        details={"step": step.kind},
    )
