"""Preprocessing as it is served: float32, no page touched twice, plans kept per picture size.

It agrees with `reference` within `TOLERANCE` times the output range (`Normalize.output_range`): float32 weights and
sums, nothing else differs. 8-bit pictures that keep their size agree exactly.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.image import Note, RasterImage
from isocenter.imaging.transforms import intensity
from isocenter.imaging.transforms.bands import Bands, horizontal, keep, plan, vertical
from isocenter.imaging.transforms.prepared import Grid, Prepared, refuse_unprepared, window_note
from isocenter.imaging.transforms.resample import fit, grid_of, nearest
from isocenter.imaging.transforms.scratch import Scratch
from isocenter.imaging.transforms.steps import Color, Normalize, Resize, Step, Window

TOLERANCE = 1e-6
_KEPT_PLANS = 32
_WINDOWED_AT_ONCE = 2**16
_SCRATCH = Scratch()  # shared by all pipelines of a thread, so its memory is bounded per thread


@dataclass(frozen=True, slots=True)
class _Plan:
    y: Bands
    x: Bands
    grid: Grid

    @property
    def resamples(self) -> bool:
        """Whether samples are mixed at all, rather than picked."""
        return bool(len(self.y.weights) or len(self.x.weights))


class FastPipeline:
    """A manifest's transforms, ready to run. Safe to call from many threads at once.

    >>> import numpy as np
    >>> from isocenter.imaging.image import SourceInfo
    >>> steps = (Normalize(kind="normalize", mean=(0.5,), std=(0.25,)),)
    >>> image = RasterImage(np.uint8([[0, 255]]), SourceInfo("png", "L", 2, 1, 8))
    >>> FastPipeline(steps)(image).tensor
    array([[[-2.,  2.]]], dtype=float32)
    """

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self._steps = steps
        self._window = next((step for step in steps if isinstance(step, Window)), None)
        self._resize = next((step for step in steps if isinstance(step, Resize)), None)
        self._to_gray = any(isinstance(step, Color) and step.to == "gray" for step in steps)
        normalize = steps[-1]
        if not isinstance(normalize, Normalize):
            raise TypeError("the last step is not normalize")
        mean, std = np.array(normalize.mean), np.array(normalize.std)
        levels = np.arange(256.0)
        self._tables = [((levels * normalize.scale - m) / s).astype(np.float32) for m, s in zip(mean, std, strict=True)]
        self._gain = (normalize.scale / std).astype(np.float32)[:, None, None]
        self._offset = (-mean / std).astype(np.float32)[:, None, None]
        pad = self._resize.pad if self._resize else 0.0
        self._pad = ((pad * normalize.scale - mean) / std).astype(np.float32)[:, None, None]
        self._plans: OrderedDict[tuple[int, int], _Plan] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, image: RasterImage, out: FloatArray | None = None) -> Prepared:
        """Preprocess one image. The tensor is `out`, where that has its shape and type.

        Raises:
            BadInput: no window for a deep image, the wrong number of channels, an empty intensity window.
        """
        refuse_unprepared(image, self._steps)
        pixels, notes = image.pixels, tuple[Note, ...]()
        if self._window is not None and pixels.dtype != np.uint8:
            low, high = intensity.bounds(pixels, self._window)
            pixels, notes = _windowed(pixels, low, high), (window_note(low, high),)
        chosen = self._plan(*pixels.shape[:2])
        y, x = chosen.y.axis, chosen.x.axis
        shape = (len(self._gain), y.target, x.target)
        if out is None or out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            out = np.empty(shape, np.float32)
        where = out[:, y.place, x.place]
        if where.shape != out.shape:
            out[...] = self._pad
        if chosen.resamples:
            self._resample(pixels, chosen, where)
            return Prepared(out, notes, chosen.grid)
        if pixels.shape[:2] != where.shape[1:]:
            pixels = np.ascontiguousarray(pixels[nearest(y)[:, None], nearest(x)])
        if pixels.dtype == np.uint8 and not (self._to_gray and pixels.ndim == 3):
            self._look_up(pixels, where)
        else:
            self._convert(pixels, where)
        return Prepared(out, notes, chosen.grid)

    def _plan(self, height: int, width: int) -> _Plan:
        key = (height, width)
        with self._lock:
            known = self._plans.get(key)
            if known is not None:
                self._plans.move_to_end(key)
                return known
        y, x = fit(height, width, self._resize)
        resize = self._resize if self._resize and self._resize.filter != "nearest" else None
        made = _Plan(
            plan(y, resize) if resize else keep(y),
            plan(x, resize) if resize else keep(x),
            grid_of(y, x),
        )
        with self._lock:
            self._plans[key] = made
            if len(self._plans) > _KEPT_PLANS:
                self._plans.popitem(last=False)
        return made

    def _look_up(self, pixels: Array, where: Array) -> None:
        """8 bits have 256 answers: each was computed in float64 beforehand."""
        planes = [pixels] if pixels.ndim == 2 else cv2.split(pixels)
        for channel, table in enumerate(self._tables):
            plane = planes[channel] if len(planes) > 1 else planes[0]
            if where[channel].flags.c_contiguous:
                cv2.LUT(plane, table, dst=where[channel])
            else:
                where[channel] = cv2.LUT(plane, table)

    def _convert(self, pixels: Array, where: Array) -> None:
        """Deep or weighted samples that keep their size."""
        if self._to_gray and pixels.ndim == 3:
            gray = _SCRATCH.take("rows", *pixels.shape[:2])
            pixels = cv2.cvtColor(pixels.astype(np.float32, copy=False), cv2.COLOR_RGB2GRAY, dst=gray)
        self._normalize(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), where)

    def _resample(self, pixels: Array, chosen: _Plan, where: Array) -> None:
        channels = 1 if pixels.ndim == 2 or self._to_gray else 3
        rows = vertical(pixels, chosen.y, _SCRATCH, to_gray=self._to_gray and pixels.ndim == 3)
        columns = horizontal(rows, chosen.x, channels, _SCRATCH)
        height = channels * chosen.y.length
        if channels == len(where) and where.flags.c_contiguous:
            planes = where.reshape(height, -1)
        else:
            planes = _SCRATCH.take("planes", height, chosen.x.length)
        cv2.transpose(columns, planes)
        self._normalize(planes.reshape(channels, chosen.y.length, chosen.x.length), where)

    def _normalize(self, planes: Array, target: Array) -> None:
        """All channels in two calls; one plane serves them all if there is only one."""
        np.multiply(planes, self._gain, out=target)
        np.add(target, self._offset, out=target)


def _windowed(pixels: Array, low: float, high: float) -> FloatArray:
    """In float64, a cache-full at a time, rounded once."""
    out = np.empty(pixels.shape, np.float32)
    source, target = pixels.reshape(-1), out.reshape(-1)
    for at in range(0, source.size, _WINDOWED_AT_ONCE):
        part = source[at : at + _WINDOWED_AT_ONCE].astype(np.float64)
        np.clip(part, low, high, out=part)
        part -= low
        np.multiply(part, 255 / (high - low), out=target[at : at + _WINDOWED_AT_ONCE], casting="same_kind")
    return out
