"""Resampling axis by axis: each axis is a band of weights, applied in blocks by BLAS (without the GIL).

Target sample i lies at `scale * i + offset` among the centres of the source, 0 .. n - 1; outside of them the border
value goes on. Weights are made in float64 and rounded once to float32:

- linear: the two neighbours. Where it widens (`antialias` and scale > 1), max(0, 1 - |j - centre| / scale), divided
  by their sum.
- cubic: the B-spline of order 3 that passes through the samples, clipped to their range (scikit-image's `resize` of
  order 3, mode edge).
- area: the mean of the samples that the target voxel touches (torch's adaptive average).
- nearest: the nearest sample; halfway, the even one as torch's grid_sample, or the later one, where edges keep their
  place, as its interpolate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.transforms.arrays.steps import Filter

_Indices = npt.NDArray[np.int64]
_Weights = npt.NDArray[np.float64]
_BLOCK = 32
_NOWHERE = 1e-7  # voxels: what the noise of an affine may move a sample by
_POLE = np.sqrt(3.0) - 2.0
_REACH = 18  # |pole| ** 18 is 5e-11


@dataclass(frozen=True, slots=True)
class AxisMap:
    """How `target` samples of an axis are made of `source` ones."""

    source: int
    target: int
    scale: float = 1.0
    offset: float = 0.0
    halfway_later: bool = field(default=False, repr=False)
    """Which of two equally near samples the nearest one is: the later, or the even one."""

    @property
    def unchanged(self) -> bool:
        """Whether every sample stays what and where it is."""
        moved = abs(self.scale - 1.0) * self.source + abs(self.offset)
        return self.source == self.target and moved < _NOWHERE

    @property
    def inverse(self) -> "AxisMap":
        """The way back.

        >>> AxisMap(4, 8, 0.5, -0.25).inverse
        AxisMap(source=8, target=4, scale=2.0, offset=0.5)
        """
        return AxisMap(self.target, self.source, 1.0 / self.scale, -self.offset / self.scale, self.halfway_later)

    @classmethod
    def edges(cls, source: int, target: int) -> "AxisMap":
        """The outer edges of both keep their place.

        >>> AxisMap.edges(4, 8)
        AxisMap(source=4, target=8, scale=0.5, offset=-0.25)
        """
        scale = source / target
        return cls(source, target, scale, 0.5 * scale - 0.5, halfway_later=True)

    @classmethod
    def centres(cls, source: int, target: int) -> "AxisMap":
        """The outermost centres of both keep their place; a lone target sample takes the first."""
        return cls(source, target, (source - 1) / (target - 1) if target > 1 and source > 1 else 1.0)


def resampled(array: Array, maps: Sequence[AxisMap], filters: Sequence[Filter], *, antialias: bool = False) -> Array:
    """An array [C, *spatial] with every spatial axis mapped; nearest keeps the type, the others give float32.

    >>> resampled(np.float32([[0, 2]]), [AxisMap.edges(2, 4)], ["linear"])
    array([[0. , 0.5, 1.5, 2. ]], dtype=float32)
    """
    work = [each for each in enumerate(zip(maps, filters, strict=True), start=1) if not each[1][0].unchanged]
    cubic = tuple(axis for axis, how in enumerate(filters, start=1) if how == "cubic" and work)
    low, high = (array.min(axis=cubic, keepdims=True), array.max(axis=cubic, keepdims=True)) if cubic else (None, None)
    for axis, (along, how) in work:
        if how != "nearest":
            array = _mixed(np.ascontiguousarray(array, np.float32), axis, *banded(along, how, antialias=antialias))
    if cubic:
        array = np.clip(array, low, high, out=array)
    for axis, (along, how) in work:
        if how == "nearest":
            array = array.take(nearest(along), axis=axis)
    return array


def nearest(along: AxisMap) -> _Indices:
    """Which source sample each target sample is.

    >>> nearest(AxisMap.edges(4, 2)), nearest(AxisMap.edges(2, 4))
    (array([1, 3]), array([0, 0, 1, 1]))
    """
    # The rounding of a position that is meant to lie halfway must not decide.
    positions = np.round(_positions(along), 9)
    whole = np.floor(positions + 0.5) if along.halfway_later else np.rint(positions)
    return np.clip(whole, 0, along.source - 1).astype(np.int64)


def banded(along: AxisMap, how: Filter, *, antialias: bool = False) -> tuple[_Indices, _Weights]:
    """The first source sample of every target sample, and the weights [target, taps] of it and those that follow."""
    positions = _positions(along)
    if how == "area":
        return _area(along)
    if how == "cubic":
        return _folded(along.source, *_cubic(positions))
    if antialias and along.scale > 1:
        return _widened(along, positions)
    positions = np.clip(positions, 0, along.source - 1)
    first = np.minimum(np.floor(positions).astype(np.int64), max(0, along.source - 2))
    after = positions - first
    weights: _Weights = np.stack([1 - after, after], axis=1)
    return first, weights[:, : min(2, along.source)]


def _positions(along: AxisMap) -> _Weights:
    return along.scale * np.arange(along.target, dtype=np.float64) + along.offset


def _area(along: AxisMap) -> tuple[_Indices, _Weights]:
    cells = np.arange(along.target)
    first = (cells * along.source) // along.target
    last = -(-(cells + 1) * along.source // along.target)
    taps = np.arange(int((last - first).max()))
    weights: _Weights = (taps < (last - first)[:, None]) / (last - first)[:, None]
    return _folded(along.source, first, weights)


def _widened(along: AxisMap, positions: _Weights) -> tuple[_Indices, _Weights]:
    taps = min(along.source, 2 * int(np.ceil(along.scale)) + 1)
    first = np.clip(np.ceil(positions - along.scale).astype(np.int64), 0, along.source - taps)
    weights: _Weights = np.maximum(0, 1 - np.abs(first[:, None] + np.arange(taps) - positions[:, None]) / along.scale)
    weights /= weights.sum(axis=1, keepdims=True)
    return first, weights


def _cubic(positions: _Weights) -> tuple[_Indices, _Weights]:
    """Weights on samples of an axis without ends: the spline's four, times the filter that makes it interpolate."""
    start = np.floor(positions).astype(np.int64) - 1
    distance = np.abs(positions[:, None] - (start[:, None] + np.arange(4)))
    spline = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.maximum(0, 2 - distance) ** 3 / 6)
    filtered = np.sqrt(3.0) * _POLE ** np.abs(np.arange(-_REACH, _REACH + 1))
    weights = np.zeros((len(positions), 2 * _REACH + 4))
    for tap in range(4):
        weights[:, tap : tap + len(filtered)] += spline[:, tap, None] * filtered
    return start - _REACH, weights


def _folded(source: int, first: _Indices, weights: _Weights) -> tuple[_Indices, _Weights]:
    """Weights on samples beyond the ends go to the first or the last one."""
    taps = min(source, weights.shape[1])
    columns = np.clip(first[:, None] + np.arange(weights.shape[1]), 0, source - 1)
    low = np.clip(first, 0, source - taps)
    folded = np.zeros((len(first), taps))
    rows = np.broadcast_to(np.arange(len(first))[:, None], columns.shape)
    # What lies before `low` or after its taps has weight 0, or was folded onto an end that is inside.
    np.add.at(folded, (rows, np.clip(columns - low[:, None], 0, taps - 1)), weights)
    return low, folded


def _mixed(array: FloatArray, axis: int, first: _Indices, weights: _Weights) -> FloatArray:
    """Blocks of target rows, each a small dense matrix over the source rows that it touches."""
    before, after = int(np.prod(array.shape[:axis])), int(np.prod(array.shape[axis + 1 :]))
    rows = array.reshape(before, array.shape[axis], after)
    out = np.empty((before, len(first), after), np.float32)
    for at in range(0, len(first), _BLOCK):
        starts, taps = first[at : at + _BLOCK], weights[at : at + _BLOCK]
        low, high = int(starts.min()), int(starts.max()) + taps.shape[1]
        block = np.zeros((len(starts), high - low), np.float32)
        np.put_along_axis(block, starts[:, None] - low + np.arange(taps.shape[1]), taps.astype(np.float32), axis=1)
        if after == 1:
            np.matmul(rows[:, low:high, 0], block.T, out=out[:, at : at + _BLOCK, 0])
        else:
            np.matmul(block, rows[:, low:high], out=out[:, at : at + _BLOCK])
    return out.reshape(*array.shape[:axis], len(first), *array.shape[axis + 1 :])
