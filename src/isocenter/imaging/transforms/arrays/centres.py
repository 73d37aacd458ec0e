"""Where a grid of another spacing lies, by MONAI's rule (`Spacing`: `zoom_affine` and `compute_shape_offset`, 1.6).

Axes that are square to each other keep the centre of their first voxel, and so do axes that are less than 90 degrees
apart. Where another voxel lies before the first one, by more than 1e-8 voxels (as in many oblique affines, which files
round to float32), the middles of both grids coincide instead. The arithmetic
is step by step that of MONAI: at a size that is meant to lie halfway, its rounding decides.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from isocenter.core.errors import InputNotAccepted
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.transforms.arrays.axes import AxisMap

_SQUARE = 1e-8  # voxels; np.allclose against 0, as there
_LARGEST_SHEAR = 1e-2
"""Voxels over the whole grid. Beyond, the axes cannot be resampled one by one."""


def centred(geometry: Geometry, spacing_mm: Sequence[float]) -> list[AxisMap]:
    """How every axis is resampled.

    >>> centred(Geometry.of((6, 4), (1.0, 1.0)), (2.0, 1.0))
    [AxisMap(source=6, target=4, scale=2.0, offset=0.0), AxisMap(source=4, target=4, scale=1.0, offset=0.0)]

    Raises:
        InputNotAccepted: the axes are sheared, as of a CT with a tilted gantry.
    """
    rank = len(geometry.shape)
    source = geometry.lps_from_voxel[np.ix_([*range(rank), 3], [*range(rank), 3])]
    zooms = np.linalg.cholesky(source[:-1, :-1].T @ source[:-1, :-1]).T
    wanted = np.eye(rank + 1)
    wanted[:-1, :-1] = source[:-1, :-1] @ np.linalg.inv(zooms) @ np.diag(spacing_mm)
    corners = np.array([(*corner, 1.0) for corner in product(*((0.0, size - 1.0) for size in geometry.shape))]).T
    reached = (np.linalg.solve(wanted, source) @ corners)[:-1]
    sizes = np.round(np.ptp(reached, axis=1) + 1.0)
    source_from_target = np.linalg.inv(zooms) @ np.diag(spacing_mm)
    _refuse_shear(source_from_target, sizes)
    lowest = [at for at in range(corners.shape[1]) if _is_lowest(reached, at)]
    middle = np.array(geometry.shape) / 2 - source_from_target @ (sizes / 2)
    start = corners[:-1, lowest[0]] if lowest else middle
    return [
        AxisMap(size, int(target), float(scale), float(offset))
        for size, target, scale, offset in zip(geometry.shape, sizes, np.diag(source_from_target), start, strict=True)
    ]


def _is_lowest(reached: npt.NDArray[np.float64], corner: int) -> bool:
    below = (reached - reached[:, corner : corner + 1]).min(axis=1)
    return bool(np.abs(below).max() <= _SQUARE)


def _refuse_shear(source_from_target: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> None:
    beside = float(np.abs((source_from_target - np.diag(np.diag(source_from_target))) @ sizes).max())
    if beside > _LARGEST_SHEAR:
        raise InputNotAccepted(
            f"the axes of the volume are sheared by {beside:.3g} voxels, allowed are {_LARGEST_SHEAR:g}",
            details={"shear_voxels": beside, "limit": _LARGEST_SHEAR},
        )
