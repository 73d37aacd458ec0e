"""What preprocessing gives: the model's input, what was done, and the way back to the picture."""

from dataclasses import dataclass

import numpy as np

from isocenter.core.errors import InputNotAccepted, MissingWindow
from isocenter.core.tensor import FloatArray
from isocenter.imaging.image import Note, RasterImage
from isocenter.imaging.transforms.steps import Normalize, Step, Window


@dataclass(frozen=True, slots=True)
class Grid:
    """target_from_source, per axis (y, x): target = source * scale + offset, in pixels measured from pixel edges.

    `source` is the upright image. An offset is above zero for letterbox, below for crop.

    >>> Grid(scale_yx=(0.5, 0.5), offset_yx=(0.0, 16.0)).source_from_target(10.0, 26.0)
    (20.0, 20.0)
    """

    scale_yx: tuple[float, float] = (1.0, 1.0)
    offset_yx: tuple[float, float] = (0.0, 0.0)

    def source_from_target(self, y: float, x: float) -> tuple[float, float]:
        """Where a point of the model's input lies in the upright picture."""
        return (y - self.offset_yx[0]) / self.scale_yx[0], (x - self.offset_yx[1]) / self.scale_yx[1]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One item for a model: float32 CHW, C-contiguous; the notes of preprocessing only; the grid."""

    tensor: FloatArray
    notes: tuple[Note, ...]
    grid: Grid


def refuse_unprepared(image: RasterImage, steps: tuple[Step, ...]) -> None:
    """Raise if these steps cannot take this image: too deep without a window, or the wrong number of channels."""
    channels = 1 if image.pixels.ndim == 2 else 3
    if image.pixels.dtype != np.uint8 and not any(isinstance(step, Window) for step in steps):
        raise MissingWindow(
            f"the image has {image.source.bits} bits per sample and the model declares no intensity window",
            details={"bits": image.source.bits, "type": str(image.pixels.dtype)},
        )
    normalize = steps[-1]
    if not isinstance(normalize, Normalize):
        raise TypeError("the last step is not normalize")
    if len(normalize.mean) != channels and not any(step.kind == "color" for step in steps):
        raise InputNotAccepted(
            f"the image has {channels} channels, the model takes {len(normalize.mean)} and declares no conversion",
            details={"channels": channels, "expected": len(normalize.mean)},
        )


def window_note(low: float, high: float) -> Note:
    """What the intensity window came to for this image."""
    return Note("windowed", f"samples were mapped from low={low:.9g}, high={high:.9g} to 0..255")
