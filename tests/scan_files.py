"""Small scans as files, written by their definitions."""

import gzip
import struct

import numpy as np

from isocenter.core.tensor import Array
from isocenter.imaging.geometry import Affine

SHAPE = (13, 9, 17)
RAS = np.array([[-1.5, 0, 0, 20], [0, 2, 0, -7], [0, 0, 1, 30], [0, 0, 0, 1]], np.float64)
"""Millimetres in RAS, as NIfTI says it."""


def blobs(seed: int = 5, shape: tuple[int, ...] = SHAPE) -> Array:
    """A voxel above zero has the label, for the models of `segmenters`."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ball(shape: tuple[int, ...] = SHAPE, *, radius: float = 3.5) -> Array:
    """One lesion in the middle."""
    grid = np.meshgrid(*(np.arange(size) - (size - 1) / 2 for size in shape), indexing="ij")
    inside = sum(axis**2 for axis in grid) <= radius**2
    return np.where(inside, np.float32(4), np.float32(-4))


def nifti(voxels: Array | None = None, *, ras: Affine = RAS, packed: bool = False) -> bytes:
    """A NIfTI-1 file of float32 voxels [i, j, k], or more axes."""
    voxels = blobs() if voxels is None else voxels
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, voxels.ndim, *voxels.shape, *[1] * (7 - voxels.ndim))
    struct.pack_into("<hh", header, 70, 16, 32)
    struct.pack_into("<8f", header, 76, 1, *np.linalg.norm(ras[:3, :3], axis=0), 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<ff", header, 112, 1, 0)
    header[123] = 2
    struct.pack_into("<hh", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, *ras[:3].ravel())
    header[344:348] = b"n+1\0"
    data = bytes(header) + voxels.astype("<f4").tobytes(order="F")
    return gzip.compress(data, 1) if packed else data
