"""Where a grid of voxels lies in the patient: millimetres in LPS (x to the left, y to the back, z to the head).

Everything inside is LPS. NIfTI, nibabel and MONAI speak RAS: `swap_lps_ras` is the one function that goes between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Affine: TypeAlias = npt.NDArray[np.float64]
"""4 x 4, millimetres from array indices (or the other way round, as the name says); the last row is 0 0 0 1."""
_POSITIVE, _NEGATIVE = "LPS", "RAI"


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of 2 or 3 spatial axes and its place.

    Indices count in the order of the array's spatial axes, whichever that is, and mean the centres of voxels. A
    picture has two axes; the third column of its affine is normal to it, 1 mm long unless its maker knows better.

    Raises:
        ValueError: a size is not positive, or the affine is not one.
    """

    shape: tuple[int, ...]
    lps_from_voxel: Affine

    def __post_init__(self) -> None:
        affine = np.array(self.lps_from_voxel, np.float64)
        if len(self.shape) not in (2, 3) or min(self.shape) < 1:
            raise ValueError(f"a grid has 2 or 3 axes of at least one voxel, not {self.shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise ValueError("an affine is 4 x 4, finite, and ends with the row 0 0 0 1")
        if abs(np.linalg.det(affine[:3, :3])) <= 1e-12 * float(np.prod(np.linalg.norm(affine[:3, :3], axis=0))):
            raise ValueError("an affine has three independent axes")
        affine.flags.writeable = False
        object.__setattr__(self, "lps_from_voxel", affine)
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))

    @classmethod
    def of(cls, shape: Sequence[int], spacing_mm: Sequence[float] | None = None) -> "Geometry":
        """A grid along the axes of LPS, its first voxel at the origin.

        >>> Geometry.of((4, 5, 6), (1.0, 1.0, 2.5)).spacing_mm
        (1.0, 1.0, 2.5)
        """
        diagonal = [*(spacing_mm or [1.0] * len(shape)), 1.0, 1.0][:3]
        return cls(tuple(shape), np.diag([*diagonal, 1.0]))

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Millimetres between the centres of neighbours, along each axis of the array."""
        return tuple(float(length) for length in np.linalg.norm(self.lps_from_voxel[:3, : len(self.shape)], axis=0))

    @property
    def axcodes(self) -> str:
        """Where each axis of the array points, most nearly: L or R, P or A, S or I.

        >>> Geometry.of((4, 5, 6)).axcodes
        'LPS'
        """
        codes = [_POSITIVE[axis] if sign > 0 else _NEGATIVE[axis] for axis, sign in self._directions()]
        return "".join(codes[: len(self.shape)])

    def position_lps_mm(self, index: Sequence[float]) -> tuple[float, float, float]:
        """Where an index lies.

        >>> Geometry.of((4, 5, 6), (2.0, 1.0, 1.0)).position_lps_mm((3, 0, 0))
        (6.0, 0.0, 0.0)
        """
        full = np.array([*index, *[0.0] * (3 - len(index)), 1.0])
        x, y, z, _ = (self.lps_from_voxel @ full).tolist()
        return x, y, z

    def moved(self, shape: Sequence[int], source_from_target: npt.ArrayLike) -> "Geometry":
        """Another grid of the same patient; `source_from_target` takes its indices to indices of this one."""
        return Geometry(tuple(shape), self.lps_from_voxel @ np.asarray(source_from_target, np.float64))

    def same_place(self, other: "Geometry", *, within_mm: float = 1e-3) -> bool:
        """Whether both have one shape and every corner of both lies within a distance."""
        if self.shape != other.shape:
            return False
        corners = np.array([(*corner, 1.0) for corner in _corners(self.shape)]).T
        apart = (self.lps_from_voxel - other.lps_from_voxel) @ corners
        return float(np.linalg.norm(apart[:3], axis=0).max()) <= within_mm

    def _directions(self) -> list[tuple[int, int]]:
        """For each column, the axis of LPS that it is nearest to, and its sign: each axis once, the clearest first.

        As nibabel's `io_orientation`: by the rotation nearest to the affine.
        """
        columns = self.lps_from_voxel[:3, :3]
        left, _, right = np.linalg.svd(columns / np.linalg.norm(columns, axis=0))
        rotation = left @ right
        found = [(0, 1)] * 3
        for column in np.argsort(np.min(-(rotation**2), axis=0), kind="stable").tolist():
            axis = int(np.argmax(np.abs(rotation[:, column])))
            found[column] = axis, 1 if rotation[axis, column] > 0 else -1
            rotation[axis] = 0.0
        return found


def swap_lps_ras(affine: npt.ArrayLike) -> Affine:
    """Millimetres in RAS where they were in LPS, and the other way round: x and y change sign. Twice is nothing.

    >>> swap_lps_ras(np.eye(4)).diagonal().tolist()
    [-1.0, -1.0, 1.0, 1.0]
    """
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, np.float64)


def _corners(shape: tuple[int, ...]) -> list[tuple[float, float, float]]:
    last = [size - 1.0 for size in (*shape, 1)[:3]]
    return [(x, y, z) for x in (0.0, last[0]) for y in (0.0, last[1]) for z in (0.0, last[2])]
