"""A manifest's `steps`, ready to run, and the trail that leads back onto the source grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isocenter.core.errors import InputNotAccepted
from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.image import Note
from isocenter.imaging.transforms.arrays import grid, intensity
from isocenter.imaging.transforms.arrays.channels import normalized
from isocenter.imaging.transforms.arrays.schemes import NormalizeChannels
from isocenter.imaging.transforms.arrays.steps import (
    ArrayStep,
    CenterCrop,
    Clip,
    CropForeground,
    Orient,
    PadTo,
    PadToMultiple,
    Resample,
    ResizeArray,
    Scale,
    SelectChannels,
    ShiftScale,
    Standardize,
    Transpose,
)
from isocenter.imaging.volume import Volume


@dataclass(frozen=True, slots=True)
class Trail:
    """Where an array has come from, step by step."""

    source: Geometry
    undos: tuple[grid.Undo, ...] = ()

    @property
    def leaves_out(self) -> bool:
        """Whether a part of the source may be missing in the array."""
        return any(isinstance(each, grid.Boxed) for each in self.undos)

    @property
    def resamples(self) -> bool:
        """Whether voxels of the source may be mixed of several of the array."""
        return any(isinstance(each, grid.Mapped) for each in self.undos)

    def back(self, array: Array, *, labels: bool = False, fill: float | Sequence[float] = 0.0) -> Array:
        """An array [K, *spatial] of the prepared grid on the source grid.

        Args:
            array: labels or probabilities; a label keeps its type, everything else becomes float32.
            labels: by nearest neighbour; else linearly.
            fill: what stands where the source was not prepared at all, for all channels or one a channel.
        """
        filled = np.broadcast_to(np.asarray(fill, np.float64), (len(array),))
        for undo in reversed(self.undos):
            array = undo(array, labels=labels, fill=filled)
        return array if labels else array.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class PreparedVolume:
    """What a model takes, float32 [C, *spatial]; its grid; the way back; the notes of preprocessing only."""

    tensor: FloatArray
    geometry: Geometry
    trail: Trail
    notes: tuple[Note, ...] = ()


class ArrayPipeline:
    """Steps, ready to run. Holds nothing of a volume: safe to call from many threads at once.

    >>> pipeline = ArrayPipeline((PadTo(kind="pad_to", size=(4, 4)),))
    >>> prepared = pipeline(Volume.of(np.ones((1, 2, 3), np.uint8)))
    >>> prepared.tensor.shape, prepared.trail.back(prepared.tensor).shape
    ((1, 4, 4), (1, 2, 3))
    """

    def __init__(self, steps: tuple[ArrayStep, ...]) -> None:
        self._steps = steps

    def __call__(self, volume: Volume) -> PreparedVolume:
        """Prepare one volume.

        Raises:
            BadInput: a step cannot take it.
        """
        array: FloatArray = np.ascontiguousarray(volume.voxels, np.float32)
        geometry = volume.geometry
        undos: list[grid.Undo] = []
        notes: list[Note] = []
        names = volume.channels or tuple(map(str, range(len(array))))
        for step in self._steps:
            if isinstance(step, Scale | Clip):
                windows = intensity.windows_of(array, step)
                notes.append(intensity.said_of(step, windows, names))
                array = intensity.windowed(array, step, windows)
                continue
            array, geometry, undo = _applied(step, array, geometry)
            if undo is not None:
                undos.append(undo)
            if isinstance(step, SelectChannels):
                names = tuple(names[channel] for channel in step.channels)
        return PreparedVolume(array, geometry, Trail(volume.geometry, tuple(undos)), tuple(notes))


def _applied(step: ArrayStep, array: FloatArray, geometry: Geometry) -> grid.Gridded:
    match step:
        case Orient():
            return grid.oriented(array, geometry, step)
        case Transpose():
            return grid.transposed(array, geometry, step)
        case Resample():
            return grid.respaced(array, geometry, step)
        case ResizeArray():
            return grid.resized(array, geometry, step)
        case CropForeground():
            return grid.cropped_to_foreground(array, geometry, step)
        case PadTo() | PadToMultiple():
            return grid.padded(array, geometry, step)
        case CenterCrop():
            return grid.centre_cropped(array, geometry, step)
        case NormalizeChannels():
            return normalized(array, step), geometry, None
        case _:
            return _changed(step, array), geometry, None


def _changed(step: Scale | Standardize | ShiftScale | Clip | SelectChannels, array: FloatArray) -> FloatArray:
    match step:
        case Scale() | Clip():
            return intensity.windowed(array, step, intensity.windows_of(array, step))
        case Standardize():
            return intensity.standardized(array, step)
        case ShiftScale():
            return intensity.shifted(array, step)
        case SelectChannels():
            if max(step.channels) >= len(array):
                raise InputNotAccepted(
                    f"select_channels takes channel {max(step.channels)}, there are {len(array)}",
                    details={"channel": max(step.channels), "channels": len(array)},
                )
            return array[list(step.channels)]
