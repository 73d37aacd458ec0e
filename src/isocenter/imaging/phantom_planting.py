"""Lesions planted into a given head: its own anatomy and noise, and a mask that is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from isocenter.core.errors import InputNotAccepted
from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.phantom_lesions import (
    Lesion,
    LesionKind,
    Levels,
    box_around,
    draw_lesion,
    draw_volume_ml,
    look_of,
    radius_mm,
)
from isocenter.imaging.transforms.arrays.axes import AxisMap, resampled
from isocenter.imaging.volume import Volume

_COARSE_MM = 4.0
_SKULL_MM = 15.0  # what lies over the brain
_HIGHEST_MM, _LOWEST_MM = 14.0, 88.0  # below the vertex: between them there is brain, and no face
_TRIES = 200
_KINDS = ("ring", "solid", "diffuse", "several")
_ODDS = (0.32, 0.30, 0.13, 0.25)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Planted:
    """The head with its lesions, and what is true of them."""

    volume: Volume
    truth: npt.NDArray[np.uint8]
    """[i, j, k]: the number of a voxel's lesion, from 1 in the order of `lesions`; 0 elsewhere."""
    lesions: tuple[Lesion, ...]
    seed: int


def plant(volume: Volume, seed: int, *, kind: str | None = None, contrast: str | None = None) -> Planted:
    """Draw lesions into a head scan of one channel; the same scan and seed give the same voxels.

    Where the brain is, is guessed from the air round the head and from the vertex down: good enough to put something
    there, and for nothing else.

    Args:
        volume: a head, in any orientation; left alone.
        seed: chooses what is not said.
        kind: ring, solid, diffuse or several.
        contrast: as what sequence its lesions look: t1, t1c or t2. The seed chooses between the first two.

    Raises:
        InputNotAccepted: no place for a lesion was found: there is no head in it.
    """
    rng = np.random.default_rng((seed, 40))
    kind = kind or _KINDS[int(rng.choice(len(_KINDS), p=_ODDS))]
    contrast = contrast or ("t1c" if rng.random() < 0.6 else "t1")
    voxels = volume.voxels[0]
    image: FloatArray = voxels.astype(np.float32)
    depth_mm = _depth_mm(image, volume)
    spacing = volume.geometry.spacing_mm
    coarse = tuple(slice(None, None, max(1, int(_COARSE_MM / each))) for each in spacing)
    inner = image[coarse][depth_mm[coarse] > _SKULL_MM + 8.0]
    if inner.size < 100:
        raise InputNotAccepted("no head was found in the scan", details={"voxels": int(inner.size)})
    levels = Levels(*(float(each) for each in np.percentile(inner, (5.0, 50.0, 92.0))))
    truth = np.zeros(image.shape, np.uint8)
    lesions = []
    count = int(rng.integers(2, 6)) if kind == "several" else 1
    for number in range(1, count + 1):
        own: LesionKind = ("ring" if rng.random() < 0.4 else "solid") if kind == "several" else _single(kind)
        volume_ml = draw_volume_ml(rng, kind)
        centre = _place(rng, depth_mm, truth, volume, radius_mm(volume_ml))
        near = box_around(centre, radius_mm(volume_ml), spacing, image.shape)
        mask = draw_lesion(
            rng,
            image[near],
            (depth_mm[near] > _SKULL_MM) & (truth[near] == 0),
            kind=own,
            look=look_of(rng, own, volume_ml, contrast, levels),
            volume_ml=volume_ml,
            centre_voxel=[at - part.start for at, part in zip(centre, near, strict=True)],
            spacing_mm=spacing,
            edge_mm=float(rng.uniform(1.2, 2.2)) + 0.3 * max(spacing),
        )
        truth[near][mask] = number
        found_ml = float(np.count_nonzero(mask)) * math.prod(spacing) / 1e3
        lesions.append(Lesion(own, volume.geometry.position_lps_mm(centre), found_ml))
    grain = 0.04 * (levels.high - levels.middle)
    image[truth > 0] += rng.normal(0.0, grain, int(np.count_nonzero(truth))).astype(np.float32)
    planted = replace(volume, voxels=_as_type(image, voxels)[np.newaxis])
    return Planted(volume=planted, truth=truth, lesions=tuple(lesions), seed=seed)


def _single(kind: str) -> LesionKind:
    if kind == "ring":
        return "ring"
    return "solid" if kind == "solid" else "diffuse"


def _as_type(image: FloatArray, like: Array) -> Array:
    if like.dtype.kind not in "iu":
        return image.astype(like.dtype)
    limits = np.iinfo(like.dtype)
    return np.clip(np.rint(image), limits.min, limits.max).astype(like.dtype)


def _depth_mm(image: FloatArray, volume: Volume) -> FloatArray:
    """How far a voxel lies from the air, within what may be brain; 0 elsewhere."""
    spacing = volume.geometry.spacing_mm
    sizes = [max(2, round(size * step / _COARSE_MM)) for size, step in zip(image.shape, spacing, strict=True)]
    there = [AxisMap.edges(size, small) for size, small in zip(image.shape, sizes, strict=True)]
    small = resampled(image[np.newaxis], there, ["linear"] * 3, antialias=True)[0]
    air = small < 0.22 * float(np.percentile(small, 95.0))
    outside = np.zeros(np.array(air.shape) + 2, np.bool_)
    inside = outside[1:-1, 1:-1, 1:-1]
    outside[[0, -1]] = outside[:, [0, -1]] = outside[:, :, [0, -1]] = True
    # The neck leaves through the lowest slab: where it is cut there is no air.
    axis, up = _upwards(volume)
    below = [slice(1, -1)] * 3
    below[axis] = slice(0, 1) if up else slice(-1, None)
    outside[tuple(below)] = False
    while True:
        grown = _grown(outside)[1:-1, 1:-1, 1:-1] & air
        if not (grown & ~inside).any():
            break
        inside |= grown
    depth = np.zeros(air.shape, np.float32)
    front = outside
    for step in range(1, 30):
        front = _grown(front) if step % 3 else _grown(_grown(front), corners=True)
        left = ~front[1:-1, 1:-1, 1:-1]
        if not left.any():
            break
        depth[left] += _COARSE_MM
    depth = np.where(_brain_levels(~inside, axis, up), depth, np.float32(0.0))
    fine = resampled(depth[np.newaxis], [each.inverse for each in there], ["linear"] * 3)
    return np.asarray(fine[0], np.float32)


def _upwards(volume: Volume) -> tuple[int, bool]:
    """The axis that runs from the neck to the vertex, and whether it runs up."""
    codes = volume.geometry.axcodes
    axis = next(at for at, code in enumerate(codes) if code in "IS")
    return axis, codes[axis] == "S"


def _brain_levels(head: npt.NDArray[np.bool_], axis: int, up: bool) -> npt.NDArray[np.bool_]:
    shape = [1, 1, 1]
    shape[axis] = head.shape[axis]
    area = head.sum(axis=tuple(other for other in range(3) if other != axis))
    filled = np.flatnonzero(area > 0.15 * area.max())
    heights = np.arange(head.shape[axis])
    below_mm = _COARSE_MM * ((filled[-1] - heights) if up else (heights - filled[0]))
    return np.asarray((below_mm >= _HIGHEST_MM) & (below_mm <= _LOWEST_MM)).reshape(shape)


def _grown(mask: npt.NDArray[np.bool_], *, corners: bool = False) -> npt.NDArray[np.bool_]:
    out = mask.copy()
    for axis in range(3):
        source = out.copy() if corners else mask
        ahead, behind = np.moveaxis(out, axis, 0), np.moveaxis(source, axis, 0)
        ahead[1:] |= behind[:-1]
        ahead[:-1] |= behind[1:]
    return out


def _place(
    rng: Generator, depth_mm: FloatArray, truth: npt.NDArray[np.uint8], volume: Volume, radius: float
) -> Sequence[float]:
    """A voxel in the brain, deep enough for most of the lesion, where there is none yet."""
    step = tuple(slice(None, None, max(1, int(_COARSE_MM / each))) for each in volume.geometry.spacing_mm)
    coarse = depth_mm[step]
    deepest = float(coarse.max())
    found = np.argwhere(coarse > min(_SKULL_MM + 0.7 * radius, 0.85 * deepest))
    if not len(found) or deepest <= _SKULL_MM:
        raise InputNotAccepted("no place for a lesion was found", details={"deepest_mm": round(deepest, 1)})
    steps = np.array([part.step for part in step])
    place: list[float] = []
    for _ in range(_TRIES):
        place = [float(each) for each in found[int(rng.integers(len(found)))] * steps]
        near = box_around(place, 0.8 * radius, volume.geometry.spacing_mm, truth.shape)
        if not truth[near].any():
            break
    return place
