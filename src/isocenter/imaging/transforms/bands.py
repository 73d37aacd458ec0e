"""The banded matrices of `resample` as a few small dense blocks, which BLAS multiplies (without the GIL)."""

from dataclasses import dataclass

import cv2
import numpy as np

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.transforms.resample import Axis, banded
from isocenter.imaging.transforms.scratch import Scratch
from isocenter.imaging.transforms.steps import Resize

_CHUNK_FLOATS = 2**18  # 1 MB of converted rows at a time: about a second-level cache


@dataclass(frozen=True, slots=True)
class Block:
    """Target rows first..last are `weights` times source rows low..high."""

    first: int
    last: int
    low: int
    high: int
    weights: FloatArray


@dataclass(frozen=True, slots=True)
class Bands:
    """One axis in blocks; none of them if the axis keeps its size and only a part of it is shown."""

    axis: Axis
    blocks: tuple[Block, ...]

    @property
    def length(self) -> int:
        """How many target samples are shown."""
        shown = self.axis.shown
        return int(shown.stop) - int(shown.start)


def plan(axis: Axis, resize: Resize) -> Bands:
    """Cut the band into blocks: of 8 rows, or of 4 where shrinking makes the band wide."""
    if axis.source == axis.inner:
        return Bands(axis, ())
    starts, taps = banded(axis, resize)
    height = 8 if axis.source < 2.5 * axis.inner else 4
    firsts = np.arange(0, len(starts), height)
    lasts = np.minimum(firsts + height, len(starts))
    lows, highs = starts[firsts], starts[lasts - 1] + taps.shape[1]
    widths = highs - lows
    ends = np.cumsum((lasts - firsts) * widths)
    # All blocks lie one after the other in one array, filled by one scatter.
    block = np.arange(len(starts)) // height
    row_at = ends[block] - (lasts[block] - np.arange(len(starts))) * widths[block] + starts - lows[block]
    flat = np.zeros(int(ends[-1]), np.float32)
    flat[row_at[:, None] + np.arange(taps.shape[1])] = taps
    return Bands(
        axis,
        tuple(
            Block(first, last, low, high, flat[end - (last - first) * (high - low) : end].reshape(last - first, -1))
            for first, last, low, high, end in zip(
                firsts.tolist(), lasts.tolist(), lows.tolist(), highs.tolist(), ends.tolist(), strict=True
            )
        ),
    )


def vertical(source: Array, bands: Bands, scratch: Scratch, *, to_gray: bool) -> FloatArray:
    """Rows of HxW or HxWx3 samples resampled: float32 rows x (W * channels), colours still interleaved."""
    shown = bands.axis.shown
    channels = 1 if source.ndim == 2 or to_gray else 3
    width = source.shape[1] * channels
    out = scratch.take("rows", bands.length, width)
    if not bands.blocks:
        _floats(source[shown], scratch, to_gray=to_gray, out=out)
        return out
    if source.dtype == np.float32 and not to_gray:
        flat = source.reshape(len(source), width)
        for block in bands.blocks:
            np.matmul(block.weights, flat[block.low : block.high], out=out[block.first : block.last])
        return out
    reach = max(1, _CHUNK_FLOATS // width)
    low = high = 0
    chunk = out[:0]
    for index, block in enumerate(bands.blocks):
        if block.high > high:
            low, high = block.low, block.high
            for later in bands.blocks[index + 1 :]:
                if later.high - low > reach:
                    break
                high = later.high
            chunk = scratch.take("chunk", high - low, width)
            _floats(source[low:high], scratch, to_gray=to_gray, out=chunk)
        part = chunk[block.low - low : block.high - low]
        np.matmul(block.weights, part, out=out[block.first : block.last])
    return out


def horizontal(rows: FloatArray, bands: Bands, channels: int, scratch: Scratch) -> FloatArray:
    """Columns resampled: rows x (W * channels) to (W', channels * rows), column-major as BLAS likes it."""
    height, width = len(rows), rows.shape[1] // channels
    turned = scratch.take("turned", width * channels, height)
    cv2.transpose(rows, turned)
    columns = turned.reshape(width, channels * height)
    if not bands.blocks:
        return columns[bands.axis.shown]
    out = scratch.take("columns", bands.length, channels * height)
    for block in bands.blocks:
        np.matmul(block.weights, columns[block.low : block.high], out=out[block.first : block.last])
    return out


def _floats(source: Array, scratch: Scratch, *, to_gray: bool, out: FloatArray) -> None:
    if not to_gray:
        np.copyto(out, source.reshape(out.shape))
        return
    colour: Array = source
    if source.dtype != np.float32:
        colour = scratch.take("colour", *source.shape)
        np.copyto(colour, source)
    cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY, dst=out)
