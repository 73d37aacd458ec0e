"""The banded matrices of `resample` as stacks of small dense blocks, which BLAS multiplies (without the GIL).

One call does a whole stack: with a call for each block, the decode threads would spend more time handing the GIL to
one another than multiplying.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.transforms.resample import Axis, banded
from isocenter.imaging.transforms.scratch import Scratch
from isocenter.imaging.transforms.steps import Resize

_CHUNK_FLOATS = 2**19  # 2 MB of gathered rows at a time


@dataclass(frozen=True, slots=True)
class Bands:
    """One axis as B blocks of R target rows, each a mix of K source rows.

    `weights` is float32 [B, R, K], `sources` int64 [B, K]; B is 0 if the axis keeps its size and a part of it is shown.
    """

    axis: Axis
    weights: FloatArray
    sources: npt.NDArray[np.int64]

    @property
    def length(self) -> int:
        """How many target samples are shown."""
        shown = self.axis.shown
        return int(shown.stop) - int(shown.start)

    @property
    def padded(self) -> int:
        """How many rows the blocks give; those after `length` mean nothing."""
        return int(self.weights.shape[0] * self.weights.shape[1])


def keep(axis: Axis) -> Bands:
    """An axis whose samples are picked, not mixed."""
    return Bands(axis, np.empty((0, 1, 1), np.float32), np.empty((0, 1), np.int64))


def plan(axis: Axis, resize: Resize) -> Bands:
    """Cut the band into blocks: of 8 rows, or of 4 where shrinking makes the band wide."""
    if axis.source == axis.inner:
        return keep(axis)
    starts, taps = banded(axis, resize)
    rows = 8 if axis.source < 2.5 * axis.inner else 4
    blocks = -(-len(starts) // rows)
    firsts = starts[::rows]
    lasts = starts[np.minimum(np.arange(1, blocks + 1) * rows, len(starts)) - 1]
    reach = int((lasts - firsts).max()) + taps.shape[1]
    # A block near the end would reach beyond the source; it starts earlier instead, with zeros before its band.
    lows = np.clip(firsts, 0, max(0, axis.source - reach))
    width = min(reach, axis.source)
    weights = np.zeros((blocks * rows, width), np.float32)
    columns = starts[:, None] - np.repeat(lows, rows)[: len(starts), None] + np.arange(taps.shape[1])
    np.put_along_axis(weights[: len(starts)], columns, taps.astype(np.float32), axis=1)
    return Bands(axis, weights.reshape(blocks, rows, width), lows[:, None] + np.arange(width))


def vertical(source: Array, bands: Bands, scratch: Scratch, *, to_gray: bool) -> FloatArray:
    """Rows of HxW or HxWx3 samples resampled: float32 rows x (W * channels), colours still interleaved."""
    channels = 1 if source.ndim == 2 or to_gray else 3
    width = source.shape[1] * channels
    if not len(bands.weights):
        out = scratch.take("rows", bands.length, width)
        _floats(source[bands.axis.shown], scratch, to_gray=to_gray, out=out)
        return out
    out = scratch.take("rows", bands.padded, width)
    blocks, rows, reach = bands.weights.shape
    at_once = max(1, _CHUNK_FLOATS // (reach * width))
    for first in range(0, blocks, at_once):
        wanted = bands.sources[first : first + at_once]
        chunk = scratch.take("chunk", wanted.size, width)
        _floats(source.take(wanted.reshape(-1), axis=0), scratch, to_gray=to_gray, out=chunk)
        _multiply(bands, first, chunk.reshape(len(wanted), reach, width), out[first * rows :])
    return out[: bands.length]


def horizontal(rows: FloatArray, bands: Bands, channels: int, scratch: Scratch) -> FloatArray:
    """Columns resampled: rows x (W * channels) to (W', channels * rows), column-major as BLAS likes it."""
    height, width = len(rows), rows.shape[1] // channels
    turned = scratch.take("turned", width * channels, height)
    cv2.transpose(rows, turned)
    columns = turned.reshape(width, channels * height)
    if not len(bands.weights):
        return columns[bands.axis.shown]
    out = scratch.take("columns", bands.padded, channels * height)
    blocks, per_block, reach = bands.weights.shape
    at_once = max(1, _CHUNK_FLOATS // (reach * channels * height))
    for first in range(0, blocks, at_once):
        wanted = bands.sources[first : first + at_once]
        chunk = scratch.take("chunk", len(wanted), reach, channels * height)
        # mode="clip" writes straight into `out`; every index is inside anyway.
        columns.take(wanted, axis=0, out=chunk, mode="clip")
        _multiply(bands, first, chunk, out[first * per_block :])
    return out[: bands.length]


def _multiply(bands: Bands, first: int, chunk: FloatArray, out: FloatArray) -> None:
    weights = bands.weights[first : first + len(chunk)]
    blocks, rows, _ = weights.shape
    np.matmul(weights, chunk, out=out[: blocks * rows].reshape(blocks, rows, -1))


def _floats(source: Array, scratch: Scratch, *, to_gray: bool, out: FloatArray) -> None:
    if not to_gray:
        np.copyto(out, source.reshape(out.shape))
        return
    colour: Array = source
    if source.dtype != np.float32:
        colour = scratch.take("colour", *source.shape)
        np.copyto(colour, source)
    cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY, dst=out)
