"""Preprocessing as it is meant: plain float64, rounded once to float32 at the end. `fast` must agree with this."""

import numpy as np
import numpy.typing as npt

from isocenter.imaging.image import Note, RasterImage
from isocenter.imaging.transforms import intensity
from isocenter.imaging.transforms.prepared import Grid, Prepared, refuse_unprepared, window_note
from isocenter.imaging.transforms.resample import dense, fit, grid_of
from isocenter.imaging.transforms.steps import Color, Normalize, Resize, Step, Steps, Window

Samples = npt.NDArray[np.float64]
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601


def preprocess(image: RasterImage, steps: Steps) -> Prepared:
    """Apply the steps one after the other.

    >>> import numpy as np
    >>> from isocenter.imaging.image import SourceInfo
    >>> pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    >>> image = RasterImage(pixels, SourceInfo("png", "L", 3, 2, 8))
    >>> preprocess(image, (Normalize(kind="normalize", scale=1, mean=(1,), std=(2,)),)).tensor
    array([[[-0.5,  0. ,  0.5],
            [ 1. ,  1.5,  2. ]]], dtype=float32)

    Raises:
        BadInput: no window for a deep image, the wrong number of channels, an empty intensity window.
    """
    refuse_unprepared(image, steps)
    samples = image.pixels.astype(np.float64).reshape(*image.pixels.shape[:2], -1)
    notes: list[Note] = []
    grid = Grid()
    for step in steps:
        if isinstance(step, Window) and image.pixels.dtype != np.uint8:
            low, high = intensity.bounds(image.pixels, step)
            samples = (np.clip(samples, low, high) - low) * (255 / (high - low))
            notes.append(window_note(low, high))
        elif isinstance(step, Color):
            samples = _in_color(samples, step)
        elif isinstance(step, Resize):
            samples, grid = _resized(samples, step)
        elif isinstance(step, Normalize):
            samples = (samples * step.scale - np.array(step.mean)) / np.array(step.std)
    return Prepared(np.ascontiguousarray(samples.transpose(2, 0, 1), np.float32), tuple(notes), grid)


class ReferencePipeline:
    """The same, in the shape of `FastPipeline`."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self._steps = steps

    def __call__(self, image: RasterImage) -> Prepared:
        """Preprocess one image."""
        return preprocess(image, self._steps)


def _in_color(samples: Samples, step: Color) -> Samples:
    if step.to == "gray":
        return samples if samples.shape[2] == 1 else (samples @ np.array(GRAY_WEIGHTS))[..., None]
    return np.repeat(samples, 3, axis=2) if samples.shape[2] == 1 else samples


def _resized(samples: Samples, step: Resize) -> tuple[Samples, Grid]:
    height, width, channels = samples.shape
    y, x = fit(height, width, step)
    out = np.full((y.target, x.target, channels), step.pad, np.float64)
    w_y, w_x = dense(y, step), dense(x, step)
    for channel in range(channels):
        out[y.place, x.place, channel] = w_y @ samples[..., channel] @ w_x.T
    return out, grid_of(y, x)
