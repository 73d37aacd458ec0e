"""Head-scan phantoms: seeded volumes like T1, T1 with contrast agent, and T2, with lesions whose mask is known.

For demonstrations, tests and training. Nothing here is a patient, and nothing here should be read as one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.phantom_heads import (
    BRAIN_EDGE,
    TISSUES,
    Box,
    Grid,
    Head,
    Mass,
    Pose,
    Tissues,
    base_of_skull,
    draw_head,
    draw_pose,
    smooth_noise,
)
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

Kind: TypeAlias = Literal["healthy", "ring", "solid", "diffuse", "several"]
Contrast: TypeAlias = Literal["t1", "t1c", "t2"]

KINDS: tuple[Kind, ...] = ("healthy", "ring", "solid", "diffuse", "several")
CONTRASTS: tuple[Contrast, ...] = ("t1", "t1c", "t2")
SHAPE = (256, 256, 128)
_KIND_ODDS = (0.4, 0.18, 0.17, 0.09, 0.16)
_CONTRAST_ODDS = (0.35, 0.45, 0.20)
_DRAWN_MM = 1.8  # anatomy is drawn on such voxels: finer ones would be blurred again, and cost eight times as much
_TRIES = 200


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeadPhantom:
    """One scan, and what is true of it."""

    volume: Volume
    """uint16 [1, i, j, k] along the axes of LPS."""
    truth: npt.NDArray[np.uint8]
    """[i, j, k]: the number of a voxel's lesion, from 1 in the order of `lesions`; 0 elsewhere. Oedema is 0."""
    lesions: tuple[Lesion, ...]
    kind: Kind
    contrast: Contrast
    seed: int


@dataclass(frozen=True, slots=True)
class _View:
    """The scanner's grid: spacing, size, and where the first voxel lies, from the head's centre."""

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    first_mm: tuple[float, float, float]

    def voxel(self, lps_mm: npt.NDArray[np.float64]) -> list[float]:
        return [
            (at - first) / spacing for at, first, spacing in zip(lps_mm, self.first_mm, self.spacing_mm, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Planned:
    """A lesion before it is drawn."""

    kind: LesionKind
    volume_ml: float
    at: tuple[float, float, float]
    """In the head frame."""


def head_scan(
    seed: int,
    *,
    kind: Kind | None = None,
    contrast: Contrast | None = None,
    shape: tuple[int, int, int] = SHAPE,
    voxel_mm: float | None = None,
) -> HeadPhantom:
    """Draw the scan of a seed; the same seed and arguments give the same voxels.

    Without `kind` or `contrast` the seed chooses. In-plane spacing is 0.9 to 1.2 mm, slices lie 1.2 to 1.6 mm apart.

    >>> scan = head_scan(1_000_000, voxel_mm=5.0)
    >>> scan.kind, scan.contrast, scan.volume.geometry.axcodes, bool(scan.truth.any())
    ('healthy', 't1c', 'LPS', False)

    Args:
        seed: from 0.
        kind: which lesions: none, one of a kind, or several.
        contrast: the pulse sequence that it looks like.
        shape: voxels; another one covers the same field of view.
        voxel_mm: instead of `shape`, isotropic voxels of this size over the same field of view.

    Raises:
        ValueError: a negative seed, another kind or contrast, or a grid whose voxels are coarser than 6 mm.
    """
    if seed < 0:
        raise ValueError(f"seed {seed} is negative")
    chosen = np.random.default_rng((seed, 30))
    drawn_kind, drawn_contrast = KINDS[_one_of(chosen, _KIND_ODDS)], CONTRASTS[_one_of(chosen, _CONTRAST_ODDS)]
    kind, contrast = kind or drawn_kind, contrast or drawn_contrast
    if kind not in KINDS or contrast not in CONTRASTS:
        raise ValueError(f"{kind!r} of {contrast!r}: kinds are {', '.join(KINDS)}; contrasts {', '.join(CONTRASTS)}")
    rng = np.random.default_rng((seed, 31))
    pose = draw_pose(rng)
    view = _view(rng, pose, shape, voxel_mm)
    tissue = Tissues(*(np.array(TISSUES[contrast]) * rng.uniform(0.93, 1.07, len(Tissues._fields))).tolist())
    lesion_rng = np.random.default_rng((seed, 32, KINDS.index(kind)))
    planned = _planned(lesion_rng, kind, pose)
    masses = [
        Mass(each.at, radius_mm(each.volume_ml), float(lesion_rng.uniform(0.1, 0.4)))
        for each in planned
        if each.kind != "diffuse" and each.volume_ml > 2.0
    ]
    head = draw_head(rng, tissue, pose, _drawing(pose, view, voxel_mm), masses)
    scan_rng = np.random.default_rng((seed, 33))
    image, truth, lesions = _scanned(scan_rng, lesion_rng, head, view, pose, planned, tissue, contrast, voxel_mm)
    affine = np.diag([*view.spacing_mm, 1.0])
    affine[:3, 3] = view.first_mm
    volume = Volume.of(image[np.newaxis], geometry=Geometry(view.shape, affine))
    return HeadPhantom(volume=volume, truth=truth, lesions=lesions, kind=kind, contrast=contrast, seed=seed)


def _one_of(rng: Generator, odds: Sequence[float]) -> int:
    return int(rng.choice(len(odds), p=odds))


def _view(rng: Generator, pose: Pose, shape: Sequence[int], voxel_mm: float | None) -> _View:
    across, apart = rng.uniform(0.9, 1.2), rng.uniform(1.2, 1.6)
    extent_mm = [across * SHAPE[0], across * SHAPE[1], apart * SHAPE[2]]
    sizes = [round(extent / voxel_mm) for extent in extent_mm] if voxel_mm else list(shape)
    spacing = [extent / max(1, size) for extent, size in zip(extent_mm, sizes, strict=True)]
    if max(spacing) > 6.0:
        raise ValueError(f"voxels of {max(spacing):.3g} mm are coarser than 6 mm")
    above = pose.semi_mm[2] + rng.uniform(6.0, 20.0)  # from the centre to the uppermost slice
    middle = [rng.normal(0.0, 4.0), rng.normal(0.0, 4.0)]
    corner = [shift - 0.5 * extent for shift, extent in zip(middle, extent_mm[:2], strict=True)]
    edges = [*corner, above - extent_mm[2]]
    first = [edge + 0.5 * step for edge, step in zip(edges, spacing, strict=True)]
    return _View(_triple(spacing), (sizes[0], sizes[1], sizes[2]), _triple(first))


def _triple(values: Sequence[float] | npt.NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _drawing(pose: Pose, view: _View, voxel_mm: float | None) -> Grid:
    """The coarse grid: round the head, and no farther than is seen."""
    step = voxel_mm or max(_DRAWN_MM, max(view.spacing_mm))
    first, shape = [], []
    for axis in range(3):
        low, high = view.first_mm[axis], view.first_mm[axis] + (view.shape[axis] - 1) * view.spacing_mm[axis]
        reach = 1.12 * pose.semi_mm[axis] + 8.0
        low, high = max(low, -9e9 if axis == 2 else -reach - 4.0), min(high, reach)
        first.append(low)
        shape.append(max(2, math.ceil((high - low) / step) + 1))
    return Grid(_triple(first), step, (shape[0], shape[1], shape[2]))


def _planned(rng: Generator, kind: Kind, pose: Pose) -> list[_Planned]:
    """Which lesions there will be, and where: within the brain, apart from one another."""
    if kind == "healthy":
        return []
    count = int(rng.integers(2, 7)) if kind == "several" else 1
    unit_mm = sum(pose.semi_mm) / 3.0
    planned: list[_Planned] = []
    for _ in range(_TRIES * count):
        own: LesionKind = ("ring" if rng.random() < 0.4 else "solid") if kind == "several" else kind
        volume_ml = draw_volume_ml(rng, kind)
        size = radius_mm(volume_ml) / unit_mm
        on_dura = own == "solid" and rng.random() < 0.5
        direction = rng.normal(size=3)
        farthest = BRAIN_EDGE - (0.5 if on_dura else 0.85) * size - (0.0 if on_dura else 0.02)
        reach = farthest if on_dura else farthest * rng.uniform(0.15, 1.0) ** (1 / 3)
        at = reach * direction / np.linalg.norm(direction)
        if at[2] - float(base_of_skull(float(at[1]))) < 0.85 * size + 0.02:
            continue
        others = [(np.linalg.norm(at - each.at), radius_mm(each.volume_ml) / unit_mm) for each in planned]
        if any(away < 1.5 * (size + other) for away, other in others):
            continue
        planned.append(_Planned(own, volume_ml, _triple(at)))
        if len(planned) == count:
            break
    return planned


def _scanned(
    rng: Generator,
    lesion_rng: Generator,
    head: Head,
    view: _View,
    pose: Pose,
    planned: Sequence[_Planned],
    tissue: Tissues,
    contrast: str,
    voxel_mm: float | None,
) -> tuple[Array, npt.NDArray[np.uint8], tuple[Lesion, ...]]:
    """Onto the scanner's grid: lesions, partial volumes, coil shading, noise, and a scanner's integers."""
    blur = float(rng.uniform(0.0, 0.16)) + (0.06 if voxel_mm else 0.0)
    grid = _drawing(pose, view, voxel_mm)
    image = np.zeros(view.shape, np.float32)
    box, maps = _seen(grid, view)
    part = resampled(_blurred(head.image, blur)[np.newaxis], maps, ["linear"] * 3)[0]
    stripped = rng.random() < 0.12  # some come without skull and face, as a program has cut them out
    share = resampled(head.brain[np.newaxis], maps, ["linear"] * 3)[0] if planned or stripped else part
    brain = share > 0.5
    truth = np.zeros(view.shape, np.uint8)
    lesions = []
    levels = Levels(min(tissue.csf, tissue.white), tissue.gray, max(tissue.gray, tissue.white))
    if contrast == "t2":
        levels = Levels(0.4 * tissue.white, tissue.gray, tissue.gray + 0.15)
    edge_mm = float(rng.uniform(1.2, 2.2)) + (0.6 if voxel_mm else 0.0)
    for number, each in enumerate(planned, start=1):
        centre = [at - there.start for at, there in zip(view.voxel(pose.lps_mm(each.at)), box, strict=True)]
        near = box_around(centre, radius_mm(each.volume_ml), view.spacing_mm, part.shape)
        mask = draw_lesion(
            lesion_rng,
            part[near],
            brain[near] & (truth[box][near] == 0),
            kind=each.kind,
            look=look_of(lesion_rng, each.kind, each.volume_ml, contrast, levels),
            volume_ml=each.volume_ml,
            centre_voxel=[at - there.start for at, there in zip(centre, near, strict=True)],
            spacing_mm=view.spacing_mm,
            edge_mm=edge_mm,
        )
        truth[box][near][mask] = number
        found_ml = float(np.count_nonzero(mask)) * math.prod(view.spacing_mm) / 1e3
        lesions.append(Lesion(each.kind, _triple(pose.lps_mm(each.at)), found_ml))
    part *= 1.0 + np.float32(rng.uniform(0.02, 0.22)) * smooth_noise(rng, part.shape, (2, 2, 2))
    image[box] = part
    _add_noise(rng, image, float(rng.uniform(0.006, 0.030)), view, voxel_mm)
    if not stripped and rng.random() < 0.3:  # some scanners write nothing where there is no patient
        around = np.full(view.shape, np.False_)
        around[box] = resampled(head.outside[np.newaxis], maps, ["linear"] * 3)[0] < 1.06
        image *= around
    elif stripped:
        kept = np.full(view.shape, np.False_)
        kept[box] = share > 0.35
        image *= kept
    image *= np.float32(math.exp(rng.uniform(math.log(200.0), math.log(3000.0))))
    return np.rint(image).astype(np.uint16), truth, tuple(lesions)


def _seen(grid: Grid, view: _View) -> tuple[Box, list[AxisMap]]:
    """Which voxels lie within the drawing, and where in it."""
    parts, maps = [], []
    for axis in range(3):
        spacing, first = view.spacing_mm[axis], view.first_mm[axis]
        start = max(0, math.ceil((grid.first_mm[axis] - first) / spacing - 1e-6))
        last = grid.first_mm[axis] + (grid.shape[axis] - 1) * grid.step_mm
        stop = min(view.shape[axis], math.floor((last - first) / spacing + 1e-6) + 1)
        offset = (first + start * spacing - grid.first_mm[axis]) / grid.step_mm
        parts.append(slice(start, stop))
        maps.append(AxisMap(grid.shape[axis], stop - start, spacing / grid.step_mm, offset))
    return (parts[0], parts[1], parts[2]), maps


def _blurred(image: FloatArray, weight: float) -> FloatArray:
    for axis in range(3):
        moved = np.moveaxis(image, axis, 0)
        out = np.float32(1.0 - 2.0 * weight) * moved
        out[1:] += np.float32(weight) * moved[:-1]
        out[:-1] += np.float32(weight) * moved[1:]
        image = np.moveaxis(out, 0, axis)
    return np.ascontiguousarray(image)


def _add_noise(rng: Generator, image: FloatArray, sigma: float, view: _View, voxel_mm: float | None) -> None:
    """Magnitude of a complex signal: Gaussian in tissue, Rayleigh in air (Gudbjartsson and Patz, 1995)."""
    noise = rng.standard_normal(view.shape, dtype=np.float32)
    if voxel_mm:  # as voxels of the scanner's size would give it, averaged
        share = math.sqrt(1.6 / math.prod(view.spacing_mm))
        np.sqrt(image * image + np.float32(1.57 * sigma * sigma), out=image)
        noise *= np.float32(0.75 * sigma * min(1.0, share))
        image += noise
        np.maximum(image, 0.0, out=image)
        return
    noise *= np.float32(sigma)
    image += noise
    noise = rng.standard_normal(view.shape, dtype=np.float32)
    noise *= np.float32(sigma)
    np.hypot(image, noise, out=image)
