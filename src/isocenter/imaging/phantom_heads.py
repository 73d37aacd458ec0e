"""The anatomy of drawn heads, on a coarse grid: what `phantoms_3d` makes scans of.

The head frame has its origin in the middle of the brain: x to the left, y to the back, z to the vertex, each in units
of the head's own half axes, so that the scalp lies near radius 1. Grids lie along the axes of LPS.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from isocenter.core.tensor import FloatArray
from isocenter.imaging.transforms.arrays.axes import AxisMap, resampled

Triple: TypeAlias = tuple[float, float, float]
Box: TypeAlias = tuple[slice, slice, slice]

BRAIN_EDGE = 0.845
"""Radius of the inner table of the skull."""
_EDGE_MM = 1.3  # half of what a scanner's point spread makes of an edge; the grid adds its own


class Tissues(NamedTuple):
    """Brightness of each tissue under one pulse sequence, 0 black to 1 white."""

    scalp: float
    bone: float
    muscle: float
    csf: float
    gray: float
    white: float
    dura: float
    vessel: float
    gland: float
    """Pituitary, choroid plexus and mucosa: what takes up contrast agent in everybody."""
    oedema: float


TISSUES = {
    "t1": Tissues(0.85, 0.07, 0.32, 0.12, 0.38, 0.55, 0.34, 0.24, 0.46, 0.31),
    "t1c": Tissues(0.80, 0.06, 0.36, 0.12, 0.36, 0.48, 0.62, 0.92, 0.84, 0.28),
    "t2": Tissues(0.48, 0.05, 0.20, 0.90, 0.50, 0.35, 0.15, 0.08, 0.52, 0.68),
}


@dataclass(frozen=True, slots=True)
class Pose:
    """Size and tilt of a head."""

    semi_mm: Triple
    """Half axes to the scalp."""
    frame_from_lps: npt.NDArray[np.float64]
    """3 x 3: a rotation."""

    def frame(self, lps_mm: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """A position in the head frame; `lps_mm` counts from the head's centre."""
        return (self.frame_from_lps @ np.asarray(lps_mm, np.float64)) / self.semi_mm

    def lps_mm(self, at: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Where something of the head frame lies, from the head's centre."""
        return self.frame_from_lps.T @ (np.asarray(at, np.float64) * self.semi_mm)


@dataclass(frozen=True, slots=True)
class Mass:
    """What pushes the anatomy aside: centre in the head frame, radius in mm, strength 0..1."""

    at: Triple
    radius_mm: float
    strength: float


@dataclass(frozen=True, slots=True)
class Grid:
    """Isotropic voxels along the axes of LPS; positions count from the head's centre."""

    first_mm: Triple
    step_mm: float
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What was drawn, float32 [i, j, k] each."""

    image: FloatArray
    brain: FloatArray
    """Share of brain in a voxel, 0..1."""
    outside: FloatArray
    """Below 1 in the head, above in the air."""


def draw_pose(rng: Generator) -> Pose:
    """How large a head is and how it lies."""
    width = rng.uniform(69.0, 79.0)
    semi: Triple = (width, width * rng.uniform(1.18, 1.34), width * rng.uniform(1.06, 1.20))
    angles = rng.normal(0.0, (0.07, 0.05, 0.06))
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        first, second = [other for other in range(3) if other != axis]
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        rotation = rotation @ turn
    return Pose(semi, rotation)


def smooth_noise(rng: Generator, shape: Sequence[int], cells: Sequence[int]) -> FloatArray:
    """A smooth random field, about -1..1, with that many cells along each axis."""
    tile = rng.uniform(-1.0, 1.0, [count + 2 for count in cells]).astype(np.float32)
    maps = [
        AxisMap(count + 2, size, count / size, 0.5 * count / size + 0.5)
        for count, size in zip(cells, shape, strict=True)
    ]
    return np.asarray(resampled(tile[np.newaxis], maps, ["cubic"] * len(cells))[0], np.float32)


def base_of_skull(y: FloatArray | float) -> FloatArray:
    """Height of the floor that the brain lies on, by how far back: it descends in steps from the forehead."""
    return np.asarray(np.clip(-0.50 - 0.34 * np.asarray(y, np.float32), -0.74, -0.27), np.float32)


class _Sketch:
    """A head in the making."""

    def __init__(self, rng: Generator, tissue: Tissues, pose: Pose, grid: Grid, masses: Sequence[Mass]) -> None:
        self.rng, self.tissue, self.pose, self.grid = rng, tissue, pose, grid
        self.unit_mm = sum(pose.semi_mm) / 3.0
        self.edge = (_EDGE_MM + 0.35 * grid.step_mm) / self.unit_mm
        self.image: FloatArray = np.zeros(grid.shape, np.float32)
        self.whole: Box = (slice(None), slice(None), slice(None))
        lines = [
            (first + grid.step_mm * np.arange(size)).astype(np.float32)
            for first, size in zip(grid.first_mm, grid.shape, strict=True)
        ]
        px, py, pz = lines[0][:, None, None], lines[1][None, :, None], lines[2][None, None, :]
        rows = (pose.frame_from_lps / np.array(pose.semi_mm)[:, None]).astype(np.float32)
        self.x, self.y, self.z = (row[0] * px + row[1] * py + row[2] * pz for row in rows)
        self.skull = np.sqrt(self.x * self.x + self.y * self.y + self.z * self.z)
        for axis in (self.x, self.y, self.z):
            axis += np.float32(0.020) * self.noise(48.0)
        for mass in masses:
            self._displace(mass)
        self.radius = np.sqrt(self.x * self.x + self.y * self.y + self.z * self.z)

    def _displace(self, mass: Mass) -> None:
        """Push the anatomy away; the skull, which does not give, stays."""
        reach = 1.5 * mass.radius_mm / self.unit_mm
        box = self.box(mass.at, (2.2 * reach,) * 3)
        axes = [axis[box] for axis in (self.x, self.y, self.z)]
        away = [axis - np.float32(centre) for axis, centre in zip(axes, mass.at, strict=True)]
        near = np.exp(-sum(each * each for each in away) / np.float32(reach**2))
        pull = np.float32(mass.strength) * near * self.below(self.skull[box], 0.74, 0.3)
        for axis, each in zip(axes, away, strict=True):
            axis -= pull * each

    def box(self, at: Triple, reach: Triple) -> Box:
        """The part of the grid where something may be that reaches so far in the head frame."""
        centre = self.pose.lps_mm(at)
        parts = []
        for axis in range(3):
            extent = max(reach) * self.pose.semi_mm[axis] * 1.15 + 8.0
            first = (centre[axis] - extent - self.grid.first_mm[axis]) / self.grid.step_mm
            last = (centre[axis] + extent - self.grid.first_mm[axis]) / self.grid.step_mm
            size = self.grid.shape[axis]
            parts.append(slice(min(size, max(0, math.floor(first))), max(0, min(size, math.ceil(last) + 1))))
        return parts[0], parts[1], parts[2]

    def noise(self, cell_mm: float, box: Box | None = None) -> FloatArray:
        shape = self.image[box].shape if box else self.image.shape
        cells = [max(1, round(size * self.grid.step_mm / cell_mm)) for size in shape]
        return smooth_noise(self.rng, shape, cells)

    def below(self, field: FloatArray, edge: float | FloatArray, softness: float | None = None) -> FloatArray:
        """1 where `field` is under `edge`, 0 where over, and a ramp between."""
        share = (np.asarray(edge, np.float32) - field) / np.float32(softness or self.edge)
        share += np.float32(0.5)
        return np.clip(share, 0.0, 1.0, out=share)

    def paint(self, share: FloatArray, value: float | FloatArray, box: Box | None = None) -> None:
        part = self.image[box] if box else self.image
        part += share * (np.asarray(value, np.float32) - part)

    def distance(self, box: Box, at: Triple, semi: Triple, turn: float = 0.0) -> FloatArray:
        """The elliptic distance from a centre, 1 on the outline; `turn` in radians about the z axis."""
        dx, dy = self.x[box] - np.float32(at[0]), self.y[box] - np.float32(at[1])
        dz = (self.z[box] - np.float32(at[2])) / np.float32(semi[2])
        cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
        along = (dx * cos + dy * sin) / np.float32(semi[0])
        across = (dy * cos - dx * sin) / np.float32(semi[1])
        return np.asarray(np.sqrt(along * along + across * across + dz * dz), np.float32)

    def oval(self, value: float, at: Triple, semi: Triple, turn: float = 0.0, share: float = 1.0) -> None:
        """Paint an ellipsoid."""
        box = self.box(at, semi)
        if self.image[box].size:
            inside = self.below(self.distance(box, at, semi, turn), 1.0, self.edge / min(semi))
            self.paint(np.float32(share) * inside, value, box)

    def tube(self, value: float, points: npt.NDArray[np.float64], radius: float) -> None:
        """Paint a thread through points [N, 3] of the head frame, which lie close to one another."""
        for point in points:
            self.oval(value, (float(point[0]), float(point[1]), float(point[2])), (radius,) * 3)


def draw_head(rng: Generator, tissue: Tissues, pose: Pose, grid: Grid, masses: Sequence[Mass] = ()) -> Head:
    """Draw one head without lesions; `masses` push its brain aside."""
    sketch = _Sketch(rng, tissue, pose, grid, masses)
    outside = _draw_soft_parts(sketch)
    brain = _draw_skull(sketch, outside)
    _draw_cerebrum(sketch, brain)
    _draw_hindbrain(sketch)
    _draw_face(sketch)
    _draw_vessels(sketch)
    return Head(np.maximum(sketch.image, 0.0, out=sketch.image), brain, outside)


def _draw_soft_parts(sketch: _Sketch) -> FloatArray:
    """Skin, fat and muscle of head, face and neck."""
    tissue, z = sketch.tissue, sketch.z
    neck = np.hypot(sketch.x / np.float32(0.72), (sketch.y - np.float32(0.12)) / np.float32(0.58))
    neck = np.where(z < 0.0, neck, np.float32(9.0))
    face = sketch.distance(sketch.whole, (0.0, -0.42, -0.72), (0.66, 0.62, 0.86))
    outside = np.minimum(np.minimum(sketch.skull, neck), face) + np.float32(0.012) * sketch.noise(30.0)
    grain = sketch.noise(14.0)
    sketch.paint(sketch.below(outside, 1.0), tissue.scalp * (1.0 + 0.12 * grain))
    deep = sketch.below(outside, 0.90) * sketch.below(z, -0.30, 0.2)
    sketch.paint(deep, tissue.muscle * (1.0 + 0.35 * sketch.noise(9.0)))
    return np.asarray(outside, np.float32)


def _draw_skull(sketch: _Sketch, outside: FloatArray) -> FloatArray:
    """Bone with its marrow, dura and the fluid under it; gives where the brain is."""
    tissue, rng = sketch.tissue, sketch.rng
    base = base_of_skull(sketch.y)
    above = sketch.below(base - sketch.z, 0.07)
    table = float(rng.uniform(0.915, 0.935))
    sketch.paint(sketch.below(sketch.skull, table) * above, tissue.bone)
    middle = 0.5 * (table + BRAIN_EDGE + 0.012)
    marrow = sketch.below(np.abs(sketch.skull - np.float32(middle)), 0.013, 0.02) * above
    sketch.paint(marrow * (0.5 + 0.5 * sketch.noise(22.0)), 0.6 * tissue.scalp)
    depth = np.minimum(np.float32(BRAIN_EDGE) - sketch.skull, sketch.z - base)
    sketch.paint(sketch.below(-depth, 0.012), tissue.dura)
    sketch.paint(sketch.below(-depth, 0.0), tissue.csf)
    brain = sketch.below(-depth, -0.018 - 0.012 * float(rng.random()))
    return np.where(outside < 1.0, brain, np.float32(0.0))


def _draw_cerebrum(sketch: _Sketch, brain: FloatArray) -> None:
    """Folded cortex round white matter, the halves and what parts them, nuclei and ventricles."""
    tissue, rng = sketch.tissue, sketch.rng
    atrophy = float(rng.uniform(0.0, 1.0))
    depth = np.minimum(np.float32(BRAIN_EDGE) - sketch.radius, sketch.z - base_of_skull(sketch.y))
    folds = np.abs(sketch.noise(11.0) + np.float32(0.55) * sketch.noise(7.0))
    reach = np.clip(1.0 - depth / np.float32(rng.uniform(0.32, 0.46)), 0.0, 1.0)  # sulci end before the deep white
    cortex = np.maximum(
        sketch.below(folds, 0.20, 0.16) * np.clip(1.8 * reach, 0.0, 1.0), sketch.below(depth, 0.055, 0.03)
    )
    grain = sketch.noise(26.0)
    sketch.paint(brain, tissue.white * (1.0 + 0.05 * grain))
    sketch.paint(cortex * brain, tissue.gray * (1.0 + 0.05 * grain))
    for side in (-1.0, 1.0):
        sketch.oval(tissue.gray, (side * 0.13, 0.08, 0.02), (0.10, 0.15, 0.12), side * 0.3, 0.85)
        sketch.oval(tissue.gray, (side * 0.30, -0.06, 0.02), (0.075, 0.20, 0.14), side * -0.18, 0.85)
        sketch.oval(tissue.gray, (side * 0.165, -0.24, 0.10), (0.045, 0.11, 0.12), side * -0.35, 0.75)
    sulci = sketch.below(folds, 0.030 + 0.045 * atrophy, 0.09) * np.clip(2.0 * reach - 0.45, 0.0, 1.0)
    sketch.paint(sulci * brain, 0.85 * tissue.csf + 0.15 * tissue.gray)
    wander = np.abs(sketch.x + np.float32(0.015) * sketch.noise(40.0))
    rim = np.hypot(sketch.y - np.float32(0.03), sketch.z - np.float32(0.02))
    parted = sketch.below(-rim, -0.42, 0.05) * sketch.below(-sketch.z, 0.20, 0.05) * brain
    gap = 0.012 + 0.010 * atrophy
    sketch.paint(parted * sketch.below(wander, gap + 0.035, 0.04), tissue.gray)
    sketch.paint(parted * sketch.below(wander, gap), tissue.csf)
    sketch.paint(parted * sketch.below(wander, 0.007), tissue.dura)
    for side in (-1.0, 1.0):
        sketch.oval(tissue.csf, (side * 0.60, -0.08, -0.05), (0.15, 0.20, 0.028), side * 0.25)  # the Sylvian fissure
    _draw_ventricles(sketch, width=float(rng.uniform(0.75, 1.3)) + 0.25 * atrophy)


def _draw_ventricles(sketch: _Sketch, *, width: float) -> None:
    tissue, rng = sketch.tissue, sketch.rng
    for side in (-1.0, 1.0):
        own = width * float(rng.uniform(0.9, 1.1))
        sketch.oval(tissue.csf, (side * 0.085 * own, -0.28, 0.10), (0.050 * own, 0.17, 0.10), side * -0.42)
        sketch.oval(tissue.csf, (side * 0.075 * own, 0.00, 0.20), (0.050 * own, 0.26, 0.075), side * 0.08)
        sketch.oval(tissue.csf, (side * 0.20, 0.33, 0.09), (0.055 * own, 0.17, 0.085), side * 0.50)
        sketch.oval(tissue.csf, (side * 0.36, 0.06, -0.17), (0.030 * own, 0.17, 0.030), side * -0.2)
        sketch.oval(tissue.gland, (side * 0.17, 0.27, 0.10), (0.018, 0.055, 0.022), side * 0.50)  # choroid plexus
    sketch.oval(tissue.csf, (0.0, 0.05, 0.0), (0.018 * width, 0.12, 0.10))
    sketch.oval(0.5 * (tissue.dura + tissue.gland), (0.0, 0.24, 0.03), (0.03, 0.03, 0.03))  # the pineal gland


def _draw_hindbrain(sketch: _Sketch) -> None:
    """Cerebellum under its tent, brain stem and the cisterns round them."""
    tissue = sketch.tissue
    at, semi = (0.0, 0.42, -0.46), (0.60, 0.36, 0.26)
    sketch.oval(tissue.csf, at, (0.64, 0.39, 0.29))
    box = sketch.box(at, semi)
    if sketch.image[box].size:
        outline = sketch.distance(box, at, semi) + np.float32(0.05) * sketch.noise(18.0, box)
        body = sketch.below(outline, 1.0, sketch.edge / 0.3)
        leaves = np.sin(np.float32(46.0) * np.hypot(sketch.z[box] + np.float32(0.46), sketch.y[box] - np.float32(0.15)))
        sketch.paint(body, tissue.gray * (1.0 - 0.10 * leaves), box)
    for side in (-1.0, 1.0):
        sketch.oval(tissue.white, (side * 0.23, 0.38, -0.45), (0.20, 0.15, 0.11), side * 0.35, 0.85)
    sketch.oval(tissue.csf, (0.0, -0.02, -0.36), (0.24, 0.20, 0.20))
    stem = 0.45 * tissue.gray + 0.55 * tissue.white
    sketch.oval(stem, (0.0, 0.10, -0.42), (0.17, 0.14, 0.20))
    sketch.oval(stem, (0.0, 0.16, -0.75), (0.085, 0.085, 0.42))
    sketch.oval(stem, (0.0, 0.06, -0.16), (0.15, 0.11, 0.12))
    sketch.oval(tissue.csf, (0.0, 0.25, -0.46), (0.06, 0.045, 0.10))  # the fourth ventricle
    sketch.oval(tissue.gland, (0.0, -0.20, -0.46), (0.075, 0.06, 0.045))  # the pituitary gland


def _draw_face(sketch: _Sketch) -> None:
    """Orbits, sinuses, airway: bright fat, fluid and air close to the brain."""
    tissue, rng = sketch.tissue, sketch.rng
    for side in (-1.0, 1.0):
        sketch.oval(0.9 * tissue.scalp, (side * 0.40, -0.70, -0.40), (0.21, 0.22, 0.20), side * 0.3)
        sketch.oval(tissue.muscle, (side * 0.33, -0.60, -0.40), (0.03, 0.16, 0.03), side * 0.45)
        sketch.oval(0.9 * tissue.csf + 0.04, (side * 0.43, -0.78, -0.40), (0.155, 0.125, 0.145))
        sketch.oval(0.03, (side * 0.34, -0.62, -0.80), (0.20, 0.18, 0.22))
        sketch.oval(0.06, (side * 0.62, 0.18, -0.62), (0.14, 0.16, 0.12))  # the mastoid
    sketch.oval(0.8 * tissue.gland, (0.0, -0.64, -0.52), (0.15, 0.26, 0.16))  # mucosa
    sketch.oval(0.03, (0.0, -0.62, -0.48), (0.10, 0.22, 0.10))
    sketch.oval(0.03, (0.0, -0.86, -0.26), (float(rng.uniform(0.05, 0.22)), 0.06, 0.09))
    sketch.oval(0.03, (0.0, -0.22, -0.98), (0.13, 0.12, 0.34))


def _draw_vessels(sketch: _Sketch) -> None:
    """Venous sinuses and arteries: bright with contrast agent, dark where blood flows through T2."""
    tissue, rng = sketch.tissue, sketch.rng
    value = tissue.vessel * float(rng.uniform(0.9, 1.05))
    angles = np.linspace(-2.0, 0.9, 60)  # from the forehead over the vertex to the back
    ring = BRAIN_EDGE - 0.012
    arc = np.stack([np.zeros_like(angles), ring * np.sin(angles + 0.55), ring * np.cos(angles + 0.55)], axis=1)
    sketch.tube(value, arc[arc[:, 2] > -0.25], 0.030)
    for side in (-1.0, 1.0):
        turns = np.linspace(0.05, 1.25, 24)
        level = np.full_like(turns, -0.24)
        flat = math.sqrt(ring**2 - 0.24**2)
        across = np.stack([side * flat * np.sin(turns), flat * np.cos(turns), level], axis=1)
        sketch.tube(value, across, 0.032)
        sketch.tube(value, np.array([[side * 0.12, -0.24, height] for height in np.linspace(-0.75, -0.36, 12)]), 0.028)
        wave = np.linspace(0.0, 1.0, 18)
        out = np.stack([side * (0.08 + 0.55 * wave), -0.18 - 0.03 * np.sin(5.0 * wave), -0.33 + 0.16 * wave], axis=1)
        sketch.tube(value, out, 0.021)
    sketch.tube(value, np.array([[0.0, -0.06, height] for height in np.linspace(-0.7, -0.35, 12)]), 0.022)
    for _ in range(int(rng.integers(5, 11))):  # veins and branches of the convexity
        start = rng.normal(size=3)
        start[2] = abs(start[2])
        along = np.cross(start, rng.normal(size=3))
        start, along = start / np.linalg.norm(start), along / np.linalg.norm(along)
        steps = np.linspace(0.0, float(rng.uniform(0.3, 0.8)), 16)
        path = np.cos(steps)[:, None] * start + np.sin(steps)[:, None] * along
        sketch.tube(value, (BRAIN_EDGE - 0.03) * path, float(rng.uniform(0.014, 0.022)))
