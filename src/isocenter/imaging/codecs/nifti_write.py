"""NIfTI-1, written: a mask, or layers of one, on the grid of its source. The door out to RAS.

By the definition (nifti1.h of the NIfTI data format working group), without a library, as `codecs.nifti` reads.
"""

import math
import zlib
from typing import Any, Final

import numpy as np

from isocenter.core.tensor import Array
from isocenter.imaging.codecs.nifti import NIFTI1_FIELDS, SFORM_QFORM_LIMIT, apart_mm, from_quaternion
from isocenter.imaging.geometry import Affine, Geometry, swap_lps_ras

MEDIA_TYPE: Final = "application/gzip"
_HEADER_BYTES: Final = 348
_OFFSET: Final = 352
_CODES: Final = {"uint8": 2, "uint16": 512, "float32": 16}
_MM: Final = 2
_SCANNER: Final = 1
_QFORM_LIMIT_MM: Final = 0.9 * SFORM_QFORM_LIMIT
"""At a corner, so that readers take both for one place. In float32, a quaternion turns some rotations by more."""
_LONGEST_AXIS: Final = 32_767
_EFFORT: Final = {"u": (6, zlib.Z_DEFAULT_STRATEGY), "f": (1, zlib.Z_RLE)}
"""Of deflate, by the kind of number: probabilities hardly shrink, whatever the effort."""


def nifti_of(voxels: Array, geometry: Geometry, *, compress: bool = True) -> bytes:
    """A .nii.gz of voxels [i, j, k], or of [K, i, j, k] as K volumes behind each other; a .nii without `compress`.

    uint8, uint16 or float32 as they are. The sform is the grid in RAS, in the float32 that the format has; the qform
    says the same, or nothing (code 0) where it cannot: axes too far off right angles, a rotation too fine for it. Where
    axes are a little off them, ITK takes the qform, and cannot open a file without.

    >>> data = nifti_of(np.zeros((2, 3, 4), np.uint8), Geometry.of((2, 3, 4)), compress=False)
    >>> len(data), data[344:347]
    (376, b'n+1')

    Raises:
        ValueError: another element type, another shape than the grid, or an axis that the format cannot hold.
    """
    shape = voxels.shape[-3:]
    if voxels.dtype.name not in _CODES or voxels.ndim not in (3, 4) or shape != geometry.shape:
        raise ValueError(f"{voxels.dtype} {voxels.shape} on a grid of {geometry.shape} is not written as NIfTI")
    if max(voxels.shape) > _LONGEST_AXIS:
        raise ValueError(f"an axis of {max(voxels.shape)} voxels, NIfTI-1 holds {_LONGEST_AXIS}")
    header = _header(voxels, swap_lps_ras(geometry.lps_from_voxel))
    layers = voxels[np.newaxis] if voxels.ndim == 3 else voxels
    little = layers.dtype.newbyteorder("<")
    body = b"".join(layer.astype(little, copy=False).tobytes(order="F") for layer in layers)
    data = header.ljust(_OFFSET, b"\0") + body
    if not compress:
        return data
    level, strategy = _EFFORT[voxels.dtype.kind]
    packing = zlib.compressobj(level, zlib.DEFLATED, 16 + zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return packing.compress(data) + packing.flush()


def _header(voxels: Array, ras_from_voxel: Affine) -> bytes:
    volumes = [len(voxels)] if voxels.ndim == 4 else []
    zooms = np.linalg.norm(ras_from_voxel[:3, :3], axis=0)
    sform = ras_from_voxel[:3].astype(np.float32)
    said: dict[str, Any] = {
        "dim": [voxels.ndim, *voxels.shape[-3:], *volumes, *[1] * (4 - len(volumes))],
        "datatype": _CODES[voxels.dtype.name],
        "bitpix": 8 * voxels.dtype.itemsize,
        "pixdim": [1.0, *zooms, *[1.0] * 4],
        "vox_offset": _OFFSET,
        "scl_slope": 1.0,
        "scl_inter": 0.0,
        "xyzt_units": _MM,
        "sform_code": _SCANNER,
        "srow": sform,
    }
    said["pixdim"][0], quaternion = _quaternion(ras_from_voxel[:3, :3] / zooms)
    said |= {"quatern": quaternion, "qoffset": ras_from_voxel[:3, 3]}
    held = {name: np.asarray(said[name], np.float32) for name in ("pixdim", "quatern", "qoffset")}
    if apart_mm(from_quaternion(held)[:3], np.asarray(said["srow"], np.float64), voxels.shape[-3:]) < _QFORM_LIMIT_MM:
        said["qform_code"] = _SCANNER
    header = bytearray(_HEADER_BYTES)
    header[:4] = _HEADER_BYTES.to_bytes(4, "little")
    header[344:348] = b"n+1\0"
    for name, form, at in NIFTI1_FIELDS:
        value = np.asarray(said.get(name, 0), np.dtype(form).base.newbyteorder("<"))
        header[at : at + value.nbytes] = value.tobytes()
    return bytes(header)


def _quaternion(directions: Affine) -> tuple[float, tuple[float, float, float]]:
    """The handedness of the axes, 1 or -1, and the quaternion (b, c, d) of the rotation nearest to them, a >= 0."""
    left, _, right = np.linalg.svd(directions)
    rotation = left @ right
    handedness = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    rotation[:, 2] *= handedness
    # The eigenvector of the largest eigenvalue of a symmetric matrix of the rotation (Bar-Itzhack, 2000): no cases.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    matrix = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    a, b, c, d = np.linalg.eigh(matrix)[1][:, -1].tolist()
    sign = math.copysign(1.0, a)
    return handedness, (sign * b, sign * c, sign * d)
