"""Resampling, defined: out = W_y · X · W_xᵀ in floating point, nothing rounded between or after.

Target sample i of an axis with n_in sources and n_out targets is centred at (i + 0.5) * s, s = n_in / n_out, in a frame
where source j covers [j, j + 1]. Row i of W, before it is divided by its sum:

- bilinear: max(0, 1 - |j + 0.5 - centre| / support); support is max(1, s) with antialias (as Pillow and torch do,
  without Pillow's rounding), else 1. Dividing by the sum makes the border right.
- area: the part of [i * s, (i + 1) * s] that [j, j + 1] covers (a box, with fractions, as cv2.INTER_AREA shrinks).
- nearest: 1 at floor((i + 0.5) * s), else 0.

An axis that keeps its size is left alone.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isocenter.imaging.transforms.prepared import Grid
from isocenter.imaging.transforms.steps import Resize

Matrix = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: `source` samples become `inner` ones, of which the first lies at `offset` of `target`."""

    source: int
    inner: int
    target: int
    offset: int

    @property
    def shown(self) -> slice:
        """The inner samples inside the target."""
        return slice(max(0, -self.offset), min(self.inner, self.target - self.offset))

    @property
    def place(self) -> slice:
        """Where they lie in the target."""
        return slice(max(0, self.offset), min(self.target, self.offset + self.inner))


def fit(height: int, width: int, resize: Resize | None) -> tuple[Axis, Axis]:
    """How both axes go to the target; sizes round half up, the odd pixel of a border goes to the end.

    >>> fit(100, 200, Resize(kind="resize", size=(64, 64), mode="letterbox"))
    (Axis(source=100, inner=32, target=64, offset=16), Axis(source=200, inner=64, target=64, offset=0))
    """
    if resize is None:
        return Axis(height, height, height, 0), Axis(width, width, width, 0)
    target_h, target_w = inner_h, inner_w = resize.size
    height_is_tighter = target_h * width <= target_w * height  # height grows by the smaller factor
    if resize.mode != "stretch" and height_is_tighter == (resize.mode == "letterbox"):
        inner_w = max(1, (2 * width * target_h + height) // (2 * height))
    elif resize.mode != "stretch":
        inner_h = max(1, (2 * height * target_w + width) // (2 * width))
    return (
        Axis(height, inner_h, target_h, (target_h - inner_h) // 2),
        Axis(width, inner_w, target_w, (target_w - inner_w) // 2),
    )


def grid_of(y: Axis, x: Axis) -> Grid:
    """The mapping of both axes."""
    return Grid((y.inner / y.source, x.inner / x.source), (float(y.offset), float(x.offset)))


def dense(axis: Axis, resize: Resize) -> Matrix:
    """W with every column, its rows those that are shown.

    >>> dense(Axis(4, 2, 2, 0), Resize(kind="resize", size=(2, 2), filter="area"))
    array([[0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5]])
    """
    rows = np.arange(axis.inner)[axis.shown]
    return _rows(rows[:, None], np.arange(axis.source)[None, :], axis, resize)


def banded(axis: Axis, resize: Resize) -> tuple[_Indices, Matrix]:
    """The same W, as the first column and a few weights of each row."""
    rows = np.arange(axis.inner)[axis.shown]
    scale = axis.source / axis.inner
    reach = 0.5 * scale if resize.filter == "area" else _support(scale, resize)
    taps = min(axis.source, int(np.ceil(2 * reach)) + 2)
    first = np.clip(np.floor((rows + 0.5) * scale - reach).astype(np.int64), 0, axis.source - taps)
    return first, _rows(rows[:, None], first[:, None] + np.arange(taps), axis, resize)


def nearest(axis: Axis) -> _Indices:
    """Which source sample each shown target sample is, in integers."""
    return ((2 * np.arange(axis.inner)[axis.shown] + 1) * axis.source) // (2 * axis.inner)


def _rows(i: _Indices, j: _Indices, axis: Axis, resize: Resize) -> Matrix:
    scale = axis.source / axis.inner
    weights: Matrix
    if axis.source == axis.inner:
        weights = (i == j).astype(np.float64)
    elif resize.filter == "nearest":
        weights = (j == nearest(axis)[:, None]).astype(np.float64)
    elif resize.filter == "area":
        weights = np.minimum(j + 1, (i + 1) * scale) - np.maximum(j, i * scale)
    else:
        weights = 1 - np.abs(j + 0.5 - (i + 0.5) * scale) / _support(scale, resize)
    np.maximum(weights, 0, out=weights)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _support(scale: float, resize: Resize) -> float:
    return max(1.0, scale) if resize.antialias else 1.0
