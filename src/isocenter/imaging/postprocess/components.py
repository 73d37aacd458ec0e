"""Groups of neighbouring voxels, by runs: stretches of voxels along the last axis, joined where they touch.

A mask of millions of voxels has some thousands of runs, so that what follows costs next to nothing.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from isocenter.core.tensor import Array

Ids: TypeAlias = npt.NDArray[np.int64]
Connectivity: TypeAlias = Literal[6, 18, 26]
# How many indices of two neighbours may differ.
_DIFFER: Final = {6: 1, 18: 2, 26: 3}
_ROWS_AFTER = ((0, 1), (1, -1), (1, 0), (1, 1))
_SWEEPS = 4
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class Components:
    """The runs of a mask [a, b, c] along c, in the order of its voxels, and which component each belongs to."""

    row: Ids
    """[runs, 2]: a and b."""
    start: Ids
    end: Ids
    """c of the first voxel, and of the one after the last."""
    owner: Ids
    """From 0, in the order of the components' first voxels."""

    @property
    def count(self) -> int:
        """How many components there are."""
        return int(self.owner.max(initial=-1)) + 1

    @property
    def voxels(self) -> Ids:
        """Of each component."""
        return np.bincount(self.owner, weights=self.end - self.start, minlength=self.count).astype(np.int64)


def components_of(mask: Array, connectivity: Connectivity) -> Components:
    """The components of a mask [a, b, c], of True and False or any number.

    >>> found = components_of(np.array([[[1, 0, 1, 1]]]), 26)
    >>> found.count, found.voxels.tolist()
    (2, [1, 2])
    """
    depth, height, width = mask.shape
    stride = width + 1  # a voxel of nothing parts the rows
    flat = np.zeros(depth * height * stride + 1, np.int8)
    flat[1:].reshape(depth, height, stride)[..., :width] = mask != 0
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    start, end = edges[0::2], edges[1::2]
    row = np.stack(np.divmod(start // stride, height), axis=1)
    pairs = []
    for down, across in _ROWS_AFTER:
        room = _DIFFER[connectivity] - down - abs(across)
        if room < 0:
            continue
        slack = min(room, 1)
        inside = np.flatnonzero((row[:, 1] + across >= 0) & (row[:, 1] + across < height) & (row[:, 0] + down < depth))
        shift = (down * height + across) * stride
        first = np.searchsorted(end, start[inside] + shift - slack, side="right")
        count = np.maximum(np.searchsorted(start, end[inside] + shift + slack, side="left") - first, 0)
        other = np.arange(count.sum()) + np.repeat(first - np.cumsum(count) + count, count)
        pairs.append(np.stack([np.repeat(inside, count), other], axis=1))
    owner = np.unique(roots(len(start), np.concatenate(pairs)), return_inverse=True)[1]
    at = (row[:, 0] * height + row[:, 1]) * stride
    return Components(row, start - at, end - at, owner)


def roots(count: int, pairs: Ids) -> Ids:
    """The smallest number that each number is joined with by pairs [n, 2], directly or through others."""
    root = np.arange(count)
    one, other = pairs[:, 0], pairs[:, 1]
    while len(pairs):
        least = np.minimum(root[one], root[other])
        before = root.copy()
        for side in (root[one], root[other], one, other):
            np.minimum.at(root, side, least)
        root = root[root]
        if np.array_equal(root, before):
            break
    return root


def largest_distance(points: npt.NDArray[np.float64]) -> float:
    """The largest distance between two of points [n, 3].

    Points that lie too near to the middle to be one of the two are left out, so that few pairs are measured.

    >>> largest_distance(np.array([[0.0, 0, 0], [3, 4, 0], [1, 1, 0]]))
    5.0
    """
    one = other = points[0]
    for _ in range(_SWEEPS):  # from the furthest to the one furthest from it: never more than the largest distance
        one, other = other, points[int(np.square(points - other).sum(axis=1).argmax())]
    largest = float(np.square(one - other).sum())
    points = points - (one + other) / 2
    reach = np.linalg.norm(points, axis=1)
    order = np.argsort(-reach, kind="stable")
    points, reach = points[order], reach[order]
    first = 0
    while first < len(points) and 2 * reach[first] > math.sqrt(largest):
        block = points[first : first + _BLOCK]
        partners = points[first : int(np.searchsorted(-reach, reach[first] - math.sqrt(largest), side="right"))]
        squares = np.square(block).sum(axis=1)[:, np.newaxis] + np.square(partners).sum(axis=1) - 2 * block @ partners.T
        largest = max(largest, float(squares.max(initial=0.0)))
        first += _BLOCK
    return math.sqrt(largest)
