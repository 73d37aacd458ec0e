"""What a manifest's `steps` will make of a grid, known before a voxel is touched."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from isocenter.imaging.geometry import Geometry
from isocenter.imaging.transforms.arrays import grid
from isocenter.imaging.transforms.arrays.axes import AxisMap
from isocenter.imaging.transforms.arrays.steps import (
    ArrayStep,
    CenterCrop,
    CropForeground,
    Orient,
    PadTo,
    PadToMultiple,
    Resample,
    ResizeArray,
    SelectChannels,
    Transpose,
)


@dataclass(frozen=True, slots=True)
class Ahead:
    """An array that will be there after a step, float32 [channels, *grid]."""

    channels: int
    geometry: Geometry
    """Its size, spacing and orientation; where a crop lies is not known before."""
    held_voxels: int
    """Of all channels, held at the most while the step is done: what it is given and what it gives included."""
    resampled: bool = False
    """Whether a step so far has mixed voxels of several."""

    @property
    def voxels(self) -> int:
        """Of all channels together."""
        return self.channels * math.prod(self.geometry.shape)


def ahead(steps: tuple[ArrayStep, ...], geometry: Geometry, channels: int) -> Iterator[Ahead]:
    """The array before the first step, then after each one; after `crop_foreground`, the largest that it can be.

    >>> steps = (PadTo(kind="pad_to", size=(4, 4)),)
    >>> max(each.voxels for each in ahead(steps, Geometry.of((2, 3)), 1))
    16

    Raises:
        InputNotAccepted: a step is of another number of axes.
    """
    now = Ahead(channels, geometry, channels * math.prod(geometry.shape))
    yield now
    for step in steps:
        now = _after(step, now)
        yield now


def _after(step: ArrayStep, given: Ahead) -> Ahead:
    geometry = given.geometry
    match step:
        case Orient() | Transpose():
            one = np.zeros((1, *[1] * len(geometry.shape)), np.float32)  # it turns as the whole does
            turned = (
                grid.oriented(one, geometry, step) if isinstance(step, Orient) else grid.transposed(one, geometry, step)
            )
            return replace(given, geometry=turned[1], held_voxels=2 * given.voxels)
        case Resample():
            return _mapped(given, grid.respacing(geometry, step))
        case ResizeArray():
            return _mapped(given, grid.resizing(geometry, step))
        case CropForeground():
            return _boxed(given, _largest_crop(geometry, step))
        case PadTo() | PadToMultiple():
            return _boxed(given, grid.padding(geometry, step)[1])
        case CenterCrop():
            sizes = [min(have, new or have) for have, new in zip(geometry.shape, step.size, strict=True)]
            return _boxed(given, sizes)
        case SelectChannels():
            chosen = replace(given, channels=len(step.channels))
            return replace(chosen, held_voxels=given.voxels + chosen.voxels)
        case _:
            # Means, percentiles and masks are taken channel by channel, in float64.
            return replace(given, held_voxels=3 * given.voxels + 3 * given.voxels // given.channels)


def _mapped(given: Ahead, maps: Sequence[AxisMap]) -> Ahead:
    if all(each.unchanged for each in maps):
        return replace(given, held_voxels=given.voxels)
    found = replace(given, geometry=grid.mapped_grid(given.geometry, maps), resampled=True)
    shape, sizes = list(given.geometry.shape), [0]
    for axis, each in enumerate(maps):
        if not each.unchanged:
            shape[axis] = each.target
            sizes.append(given.channels * math.prod(shape))
    return replace(found, held_voxels=given.voxels + max(map(sum, pairwise(sizes))))


def _boxed(given: Ahead, sizes: Sequence[int]) -> Ahead:
    found = replace(given, geometry=given.geometry.moved(sizes, np.eye(4)))
    return replace(found, held_voxels=given.voxels + found.voxels + min(given.voxels, found.voxels))


def _largest_crop(geometry: Geometry, step: CropForeground) -> list[int]:
    """All of it is foreground."""
    margins = (step.margin,) * len(geometry.shape) if isinstance(step.margin, int) else step.margin
    grid.check_rank(geometry, len(margins), step.kind)
    beyond = [0 if step.stay_inside else margin for margin in margins]
    sizes = [size + 2 * margin for size, margin in zip(geometry.shape, beyond, strict=True)]
    return [-(-size // step.multiple_of) * step.multiple_of for size in sizes]
