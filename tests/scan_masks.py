"""Masks and grids of any orientation: what findings and the files written of them are held against."""

from itertools import permutations, product

import numpy as np

from isocenter.core.tensor import Array
from isocenter.imaging.geometry import Geometry

ALL_48 = [
    "".join(codes)
    for pairs in permutations([("L", "R"), ("P", "A"), ("I", "S")])
    for codes in product(*pairs)
]  # fmt: skip
SPACINGS_MM = ((1.0, 1.0, 1.0), (0.7, 1.5, 4.0), (1.0547, 1.0547, 1.2))
SHAPE = (7, 9, 11)


def pointing(axcodes: str, spacing_mm: tuple[float, float, float] = SPACINGS_MM[1]) -> Geometry:
    """A grid whose axes point as the codes say, one size and spacing for each axis of the array."""
    affine = np.zeros((4, 4))
    affine[:, 3] = (12.5, -30.25, 7.125, 1)
    for column, (code, length) in enumerate(zip(axcodes, spacing_mm, strict=True)):
        axis = next(number for number, both in enumerate(("LR", "PA", "SI")) if code in both)
        affine[axis, column] = length if code in "LPS" else -length
    return Geometry(SHAPE, affine)


def turned(array: Array, geometry: Geometry, axcodes: str) -> tuple[Array, Geometry]:
    """An array [*spatial] and its grid with axes in another order, each voxel where it was in the patient."""
    opposite = dict(zip("LRPASI", "RLAPIS", strict=True))
    order = [
        next(axis for axis, code in enumerate(geometry.axcodes) if code in (wanted, opposite[wanted]))
        for wanted in axcodes
    ]
    flipped = [geometry.axcodes[axis] != wanted for axis, wanted in zip(order, axcodes, strict=True)]
    source_from_target = np.zeros((4, 4))
    source_from_target[3, 3] = 1
    for column, (axis, flip) in enumerate(zip(order, flipped, strict=True)):
        source_from_target[axis, column] = -1 if flip else 1
        source_from_target[axis, 3] = geometry.shape[axis] - 1 if flip else 0
    found = array.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]
    return found, geometry.moved(found.shape, source_from_target)


def lumps(shape: tuple[int, ...] = SHAPE) -> Array:
    """A mask of two labels, unlike any of its mirror images: 1 in an L and a lone voxel, 2 in a block."""
    mask = np.zeros(shape, np.uint8)
    mask[1:3, 1, 1] = mask[1, 1:5, 1] = mask[1, 1, 1:7] = 1
    mask[5, 7, 9] = 1
    mask[4:6, 3:6, 4:8] = 2
    return mask
