"""Intensities channel by channel, each by a scheme of nnU-Net 2.8 (`preprocessing/normalization`).

Where a scheme is `masked`, the foreground is every voxel that is not 0 in some channel, and what that encloses: holes
are filled in volumes. In a picture they are not: nnU-Net takes one for a volume of one slice, whose holes are open to
both sides.
"""

from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from isocenter.core.errors import InputNotAccepted
from isocenter.core.tensor import FloatArray
from isocenter.imaging.transforms.arrays.schemes import (
    Divide,
    MinMax,
    NormalizeChannels,
    Scheme,
    TrainingWindow,
    ZScore,
)

_Mask: TypeAlias = npt.NDArray[np.bool_]
_EPS = 1e-8


def normalized(array: FloatArray, step: NormalizeChannels) -> FloatArray:
    """`normalize_channels` of [C, *spatial].

    >>> step = NormalizeChannels(kind="normalize_channels", channels=({"scheme": "min_max"},))
    >>> normalized(np.float32([[[2, 4]]]), step)
    array([[[0., 1.]]], dtype=float32)

    Raises:
        InputNotAccepted: there are other channels than schemes.
    """
    if len(array) != len(step.channels):
        raise InputNotAccepted(
            f"there are {len(array)} channels and {len(step.channels)} schemes to normalise them",
            details={"channels": len(array), "schemes": len(step.channels)},
        )
    masked = any(isinstance(scheme, ZScore) and scheme.masked for scheme in step.channels)
    inside = foreground(array) if masked else None
    return np.stack([_one(channel, scheme, inside) for channel, scheme in zip(array, step.channels, strict=True)])


def _one(values: FloatArray, scheme: Scheme, inside: _Mask | None) -> FloatArray:
    match scheme:
        case ZScore(masked=masked):
            chosen = values[inside] if masked and inside is not None else values
            mean, std = float(chosen.mean(dtype=np.float64)), float(chosen.std(dtype=np.float64))
            out: FloatArray = (values - np.float32(mean)) / np.float32(max(std, _EPS))
            return np.where(inside, out, values) if masked and inside is not None else out
        case TrainingWindow():
            clipped = np.clip(values, np.float32(scheme.low), np.float32(scheme.high))
            scaled: FloatArray = (clipped - np.float32(scheme.mean)) / np.float32(max(scheme.std, _EPS))
            return scaled
        case MinMax():
            low, high = values.min(), values.max()
            ranged: FloatArray = (values - low) / np.maximum(high - low, np.float32(_EPS))
            return ranged
        case Divide():
            return values / np.float32(scheme.by)
    return values


def foreground(array: FloatArray) -> _Mask:
    """Voxels [*spatial] of an array [C, *spatial] that are not 0 in some channel, and holes in a volume of them.

    A hole is what cannot be left for the border of the volume by steps along its axes.
    """
    there = np.any(array != 0, axis=0)
    return there if there.ndim == 2 else ~_open_to_the_border(~there)


def _open_to_the_border(empty: _Mask) -> _Mask:
    """Slice by slice, regions of empty voxels are numbered; those that touch in neighbouring slices become one."""
    numbers = np.zeros(empty.shape, np.int32)
    pairs: list[npt.NDArray[np.int32]] = []
    count = 1  # 0 is what is not empty; 1 is the outside
    for at, plane in enumerate(empty):
        found, regions = cv2.connectedComponents(np.ascontiguousarray(plane, np.uint8), connectivity=4)
        numbers[at] = np.where(plane, regions + count, 0)
        edges = [numbers[at, 0], numbers[at, -1], numbers[at, :, 0], numbers[at, :, -1]]
        if at in (0, len(empty) - 1):
            edges.append(numbers[at].ravel())
        border = np.unique(np.concatenate(edges))
        pairs.append(np.stack([border[border > 0], np.ones(int((border > 0).sum()), np.int32)], axis=1))
        if at:
            both = (numbers[at] > 0) & (numbers[at - 1] > 0)
            pairs.append(np.unique(np.stack([numbers[at - 1][both], numbers[at][both]], axis=1), axis=0))
        count += found
    return _together_with(np.concatenate(pairs), count + 1)[numbers] & empty


def _together_with(pairs: npt.NDArray[np.int32], count: int) -> _Mask:
    """Which numbers are joined with number 1 by pairs, directly or through others."""
    reached = np.zeros(count, np.bool_)
    reached[1] = True
    while True:
        joined = reached[pairs].any(axis=1) if len(pairs) else np.zeros(0, np.bool_)
        if reached[pairs[joined]].all():
            return reached
        reached[pairs[joined]] = True
