"""Steps that change values and leave the grid alone: float32 in, float32 out."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from isocenter.core.errors import EmptyInput, InputNotAccepted
from isocenter.core.tensor import FloatArray
from isocenter.imaging.image import Note
from isocenter.imaging.transforms.arrays.steps import ArrayPercentile, Clip, Limit, Scale, ShiftScale, Standardize

Window: TypeAlias = tuple[float, float]
"""Low and high, in the units of what is scaled or clipped."""


def windows_of(array: FloatArray, step: Scale | Clip) -> tuple[Window, ...]:
    """What the limits of a step come to: one for all channels, or one a channel.

    Raises:
        EmptyInput: nothing is left inside a window, of values that differ.
    """
    low, high = step.low or ArrayPercentile(percentile=0), step.high or ArrayPercentile(percentile=100)
    found = []
    for values in array if step.per_channel else [array]:
        window = bounds(values, low, high)
        refuse_empty(window, partial(_ends, values))
        found.append(window)
    return tuple(found)


def _ends(values: FloatArray) -> Window:
    return float(values.min()), float(values.max())


def refuse_empty(window: Window, extremes: Callable[[], Window]) -> None:
    """See that a window does not come to one value, unless that is all there is: a channel may be empty.

    Raises:
        EmptyInput: it does. The rest would go to the model as it is, and mean nothing to it.
    """
    low, high = window
    if high > low or (ends := extremes())[0] == ends[1]:
        return
    raise EmptyInput(
        f"nothing is left inside the intensity window, {low:.6g} to {high:.6g}: nearly all values are one; "
        f"they reach from {ends[0]:.6g} to {ends[1]:.6g}",
        details={"low": low, "high": high, "min": ends[0], "max": ends[1]},
    )


def windowed(array: FloatArray, step: Scale | Clip, windows: Sequence[Window]) -> FloatArray:
    """`scale` and `clip`; see the steps. `windows` are from `windows_of`, of this array or of what it is a part of."""
    if len(windows) == 1:
        return _windowed(array, step, windows[0])
    return np.stack([_windowed(values, step, window) for values, window in zip(array, windows, strict=True)])


def _windowed(values: FloatArray, step: Scale | Clip, window: Window) -> FloatArray:
    low, high = window
    if isinstance(step, Clip):
        return np.clip(values, np.float32(low), np.float32(high))
    bottom, top = step.to
    if high == low:
        return values - np.float32(low) + np.float32(bottom)
    out: FloatArray = values - np.float32(low)
    out /= np.float32(high - low + step.eps)
    out *= np.float32(top - bottom)
    out += np.float32(bottom)
    return np.clip(out, np.float32(min(step.to)), np.float32(max(step.to)), out=out) if step.clip else out


def standardized(array: FloatArray, step: Standardize) -> FloatArray:
    """`standardize`; see the step.

    Raises:
        InputNotAccepted: there are other channels than means.
    """
    means, stds = _each(step.mean, len(array), "mean"), _each(step.std, len(array), "std")
    given = {len(each) for each in (step.mean, step.std) if each is not None}
    if not step.per_channel and given <= {1}:
        return _standardized(array, step, means[0], stds[0])
    return np.stack([_standardized(*each) for each in zip(array, [step] * len(array), means, stds, strict=True)])


def _standardized(values: FloatArray, step: Standardize, mean: float | None, std: float | None) -> FloatArray:
    chosen = values[values != 0] if step.nonzero else values
    if not chosen.size:
        return values
    middle = float(chosen.mean(dtype=np.float64)) if mean is None else mean
    spread = float(chosen.std(dtype=np.float64)) if std is None else std
    out = values - np.float32(middle)
    out /= np.float32((spread + step.eps) or 1.0)
    if step.nonzero:
        out[values == 0] = 0
    return out


def shifted(array: FloatArray, step: ShiftScale) -> FloatArray:
    """`shift_scale`; see the step.

    Raises:
        InputNotAccepted: there are other channels than gains or offsets.
    """
    ones = (len(array), *[1] * (array.ndim - 1))
    gain = np.array(_each(step.gain, len(array), "gain"), np.float32).reshape(ones)
    return array * gain + np.array(_each(step.offset, len(array), "offset"), np.float32).reshape(ones)


def said_of(step: Scale | Clip, windows: Sequence[Window], channels: Sequence[str]) -> Note:
    """What was done, for the answer.

    >>> said_of(Scale(kind="scale", per_channel=True), [(130, 3120)], ["DAPI"]).message
    'DAPI: 130 to 3120 became 0 to 1'
    """
    names = channels if len(windows) == len(channels) else ["all channels"]
    became = f"became {step.to[0]:g} to {step.to[1]:g}" if isinstance(step, Scale) else "was kept"
    shown = [f"{name}: {low:.6g} to {high:.6g} {became}" for name, (low, high) in zip(names, windows, strict=True)]
    return Note("intensity_window", "; ".join(shown))


def bounds(values: FloatArray, low: Limit, high: Limit) -> tuple[float, float]:
    """What two limits come to for these values."""
    asked = [limit.percentile for limit in (low, high) if isinstance(limit, ArrayPercentile)]
    found = iter(_percentiles(values, asked))
    first, second = (next(found) if isinstance(limit, ArrayPercentile) else limit.value for limit in (low, high))
    return first, second


def _percentiles(values: FloatArray, asked: list[float]) -> list[float]:
    ends = {0.0: np.min, 100.0: np.max}
    if all(each in ends for each in asked):  # without sorting anything
        return [float(ends[each](values)) for each in asked]
    return [float(each) for each in np.percentile(values, asked)]


def _each(values: Sequence[float] | None, channels: int, what: str) -> Sequence[float | None]:
    if values is None or len(values) == 1:
        return [values[0] if values else None] * channels
    if len(values) != channels:
        raise InputNotAccepted(
            f"there are {channels} channels and {len(values)} values of {what}",
            details={"channels": channels, what: len(values)},
        )
    return values
