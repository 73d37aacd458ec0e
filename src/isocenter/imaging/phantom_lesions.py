"""Drawn lesions: their shape, their size to the voxel, and what they look like under each pulse sequence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from isocenter.core.tensor import FloatArray
from isocenter.imaging.phantom_heads import Box, smooth_noise

LesionKind: TypeAlias = Literal["ring", "solid", "diffuse"]

SIZES_ML: dict[str, tuple[float, float, float, float]] = {
    "ring": (13.0, 0.8, 1.0, 60.0),
    "solid": (6.0, 1.1, 0.15, 50.0),
    "diffuse": (20.0, 0.6, 5.0, 60.0),
    "several": (0.8, 0.9, 0.1, 8.0),
}
"""Median, spread of the logarithm, smallest and largest volume of a lesion, by the kind of head."""
_SMALL_ML = 1.5  # below it a lesion is bright or dark enough to be told from a vessel's or a furrow's share of a voxel
_RAGGED = {"ring": 0.22, "solid": 0.10, "diffuse": 0.30}


@dataclass(frozen=True, slots=True)
class Levels:
    """Brightness of what surrounds a lesion: fluid or the darkest, the middle, and the brightest of the brain."""

    low: float
    middle: float
    high: float

    def at(self, share: float) -> float:
        """-1 is low, 0 the middle, 1 high; beyond goes on."""
        return self.middle + share * ((self.high - self.middle) if share > 0 else (self.middle - self.low))


@dataclass(frozen=True, slots=True)
class Look:
    """Brightness of the parts of a lesion; a core as bright as the body is none."""

    body: float
    core: float
    oedema: float
    oedema_share: float


@dataclass(frozen=True, slots=True, eq=False)
class Lesion:
    """A lesion as drawn."""

    kind: LesionKind
    centre_lps_mm: tuple[float, float, float]
    """Where it was begun: near its middle."""
    volume_ml: float
    """Of its voxels in the mask; oedema is none of it."""


def draw_volume_ml(rng: Generator, kind: str) -> float:
    """How large a lesion is."""
    median, spread, low, high = SIZES_ML[kind]
    while True:
        found = median * math.exp(rng.normal(0.0, spread))
        if low <= found <= high:
            return float(found)


def radius_mm(volume_ml: float) -> float:
    """Of a ball.

    >>> round(radius_mm(1.0), 2)
    6.2
    """
    return float((0.75e3 * volume_ml / math.pi) ** (1 / 3))


def look_of(rng: Generator, kind: LesionKind, volume_ml: float, contrast: str, levels: Levels) -> Look:
    """What a lesion looks like; with contrast agent bodies are bright, otherwise either way."""
    small = volume_ml < _SMALL_ML
    fluid_bright = contrast == "t2"
    bright = contrast == "t1c" or rng.random() < (0.6 if fluid_bright else 0.45)
    oedema = levels.at(rng.uniform(1.1, 1.6) if fluid_bright else rng.uniform(-0.55, -0.25))
    share = 0.0 if small or rng.random() < 0.35 else float(rng.uniform(0.5, 0.95))
    if kind == "diffuse":
        body = levels.at(rng.uniform(1.4, 2.4) if fluid_bright else rng.uniform(-0.75, -0.5))
        return Look(body, body, oedema, 0.0)
    if bright:
        body = levels.at(rng.uniform(2.2, 4.0) if small or contrast == "t1c" else rng.uniform(1.8, 3.5))
    else:
        body = levels.at(rng.uniform(-1.3, -0.9) if small else rng.uniform(-1.0, -0.7))
    core = body
    if kind == "ring":
        core = levels.at(rng.uniform(2.5, 4.0) if fluid_bright and not bright else rng.uniform(-1.0, -0.7))
        if not bright and not fluid_bright:
            core = levels.at(rng.uniform(-1.15, -1.0))
    return Look(max(body, 0.0), max(core, 0.0), oedema, share)


def draw_lesion(
    rng: Generator,
    image: FloatArray,
    allowed: npt.NDArray[np.bool_],
    *,
    kind: LesionKind,
    look: Look,
    volume_ml: float,
    centre_voxel: Sequence[float],
    spacing_mm: Sequence[float],
    edge_mm: float,
) -> npt.NDArray[np.bool_]:
    """Paint one lesion into `image` float32 [i, j, k], in place; gives its mask in the same grid.

    It has as many voxels of `allowed` as its volume asks for: those that lie innermost. It has fewer only where there
    are not so many.

    Args:
        centre_voxel: where it begins, within the array.
        spacing_mm: along each axis.
        edge_mm: how wide its border is.
    """
    radius = radius_mm(volume_ml)
    shape = image.shape
    plain = _distance(rng, shape, centre_voxel, spacing_mm, radius)
    cells = [_cells(size * spacing, 1.0 * radius) for size, spacing in zip(shape, spacing_mm, strict=True)]
    finer = [_cells(size * spacing, 0.5 * radius) for size, spacing in zip(shape, spacing_mm, strict=True)]
    ragged = plain + np.float32(_RAGGED[kind]) * smooth_noise(rng, shape, cells)
    ragged += np.float32(0.5 * _RAGGED[kind]) * smooth_noise(rng, shape, finer)
    voxels = max(1, round(1e3 * volume_ml / math.prod(spacing_mm)))
    candidates = ragged[allowed]
    if not candidates.size:
        return np.zeros(shape, np.bool_)
    order = min(voxels, candidates.size) - 1
    level = float(np.partition(candidates, order)[order])
    ragged += np.float32(1.0 - level)
    mask: npt.NDArray[np.bool_] = (ragged <= 1.0) & allowed
    inside = allowed.astype(np.float32)
    if look.oedema_share > 0.0:
        fingers = plain + np.float32(0.42) * smooth_noise(rng, shape, cells)
        swelling = _below(fingers, level * rng.uniform(1.35, 1.75), 0.30) * inside
        _paint(image, np.float32(look.oedema_share) * swelling, look.oedema)
    grain = 1.0 + np.float32(0.05) * smooth_noise(rng, shape, finer)
    body = _below(ragged, 1.0 + 0.02, max(edge_mm / radius, 0.05)) * inside
    _paint(image, body, look.body * grain)
    if look.core != look.body:
        core = _below(ragged + np.float32(0.12) * smooth_noise(rng, shape, finer), rng.uniform(0.58, 0.78), 0.16)
        _paint(image, np.float32(0.95) * core * inside, look.core * grain)
    return mask


def box_around(centre_voxel: Sequence[float], radius: float, spacing_mm: Sequence[float], shape: Sequence[int]) -> Box:
    """The part of a grid in which a lesion of that radius in mm, with its oedema, has room."""
    parts = []
    for centre, spacing, size in zip(centre_voxel, spacing_mm, shape, strict=True):
        reach = (2.0 * radius + 4.0) / spacing
        first, last = math.floor(centre - reach), math.ceil(centre + reach) + 1
        parts.append(slice(min(max(0, first), size), min(max(0, last), size)))
    return parts[0], parts[1], parts[2]


def _distance(
    rng: Generator, shape: Sequence[int], centre_voxel: Sequence[float], spacing_mm: Sequence[float], radius: float
) -> FloatArray:
    """Elliptic distance, about 1 at the radius; of several lobes at times."""
    stretch = np.exp(rng.uniform(-0.22, 0.22, 3))
    stretch /= math.prod(stretch) ** (1 / 3)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rows = (turn / stretch[:, None] / radius).astype(np.float32)
    lobes = [np.zeros(3)]
    if rng.random() < 0.35:
        lobes += [offset / np.linalg.norm(offset) for offset in rng.normal(size=(int(rng.integers(1, 3)), 3))]
    found: FloatArray | None = None
    for number, offset in enumerate(lobes):
        size = 1.0 if number == 0 else float(rng.uniform(0.55, 0.75))
        axes = []
        for axis in range(3):
            line = (np.arange(shape[axis]) - centre_voxel[axis]) * spacing_mm[axis]
            line = line - (0.55 * radius * offset[axis] if number else 0.0)
            axes.append(line.astype(np.float32).reshape([-1 if other == axis else 1 for other in range(3)]))
        squares = sum((row[0] * axes[0] + row[1] * axes[1] + row[2] * axes[2]) ** 2 for row in rows)
        distance = np.sqrt(squares) / np.float32(size)
        found = distance if found is None else np.minimum(found, distance)
    assert found is not None
    return np.asarray(found, np.float32)


def _cells(extent_mm: float, cell_mm: float) -> int:
    return max(1, min(40, round(extent_mm / cell_mm)))


def _below(field: FloatArray, edge: float, softness: float) -> FloatArray:
    share = (np.float32(edge) - field) / np.float32(softness)
    share += np.float32(0.5)
    return np.clip(share, 0.0, 1.0, out=share)


def _paint(image: FloatArray, share: FloatArray, value: float | FloatArray) -> None:
    image += share * (np.asarray(value, np.float32) - image)
