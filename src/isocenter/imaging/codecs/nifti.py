"""NIfTI-1 and -2 in one file, plain or gzip, of both byte orders: the header, the place, the voxels. The door to RAS.

Read by the definitions (nifti1.h and nifti2.h of the NIfTI data format working group), without a library: the header
is a table of numbers, and each of them is checked before anything is unpacked.
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from itertools import product
from typing import IO, Any, Final

import numpy as np

from isocenter.core.errors import (
    BadGeometry,
    BadImage,
    MissingGeometry,
    TruncatedImage,
    UnsupportedMedia,
)
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.volume_grid import counted_in, geometry_of, pick_volume, shear_notes, volume_notes
from isocenter.imaging.codecs.volume_parts import Part
from isocenter.imaging.geometry import Affine, Geometry, swap_lps_ras
from isocenter.imaging.image import Note
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

SFORM_QFORM_LIMIT: Final = 0.1
"""Millimetres at a corner of the grid: above it, the two forms of a file are two places. A quaternion in float32 that
turns by nearly half a circle is off by about as much."""
_TYPES: Final = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_OTHER_TYPES: Final = {1: "single bits", 32: "complex", 128: "RGB", 1536: "float128", 1792: "complex", 2304: "RGBA"}
_LABELS: Final = (1002, 1003)
"""Of intent_code: what voxels hold are numbers of labels, or of names of structures."""
_MM_PER_UNIT: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""By the lowest three bits of xyzt_units; 0 says nothing, and is taken for millimetres as other readers do."""
_VOXELS_FROM: Final = {1: 352, 2: 544}
"""The first byte of voxels in one file, by version: four bytes after the header say whether extensions follow."""
_TINY_QUATERNION: Final = 3 * float(np.finfo(np.float32).eps)
_CHUNK_VOXELS: Final = 2**22
_PADDING_BYTES: Final = 2**20
_PACKED_START_BYTES: Final = 4_096
_GZIP: Final = b"\x1f\x8b"

# name, format, offset: of what is asked of nifti1.h and nifti2.h
NIFTI1_FIELDS: Final = (
    ("dim", "8i2", 40), ("intent_code", "i2", 68), ("datatype", "i2", 70), ("bitpix", "i2", 72), ("pixdim", "8f4", 76),
    ("vox_offset", "f4", 108), ("scl_slope", "f4", 112), ("scl_inter", "f4", 116), ("xyzt_units", "u1", 123),
    ("qform_code", "i2", 252), ("sform_code", "i2", 254), ("quatern", "3f4", 256), ("qoffset", "3f4", 268),
    ("srow", "(3,4)f4", 280),
)  # fmt: skip
_FIELDS_2: Final = (
    ("datatype", "i2", 12), ("bitpix", "i2", 14), ("dim", "8i8", 16), ("pixdim", "8f8", 104), ("vox_offset", "i8", 168),
    ("scl_slope", "f8", 176), ("scl_inter", "f8", 184), ("qform_code", "i4", 344), ("sform_code", "i4", 348),
    ("quatern", "3f8", 352), ("qoffset", "3f8", 376), ("srow", "(3,4)f8", 400), ("xyzt_units", "i4", 500),
    ("intent_code", "i4", 504),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiHeader:
    """What the header says, checked."""

    version: int
    shape: tuple[int, int, int]
    volumes: int
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    geometry: Geometry
    notes: tuple[Note, ...]

    @property
    def volume_bytes(self) -> int:
        """The voxels of one volume as they are stored."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_nifti(start: bytes) -> bool:
    """Whether the first bytes (540 or more) are of a NIfTI file that is not compressed."""
    return _layout(start) is not None


def starts_as_nifti(part: Part) -> bool:
    """Whether a file is a NIfTI volume, looking into gzip."""
    start = part.read(_PACKED_START_BYTES)
    if start[:2] != _GZIP:
        return is_nifti(start)
    try:
        return is_nifti(zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(start, 540))
    except zlib.error:
        return False


def read_header(start: bytes, *, limits: VolumeLimits) -> NiftiHeader:
    """Read and check the header in the first 540 bytes.

    Raises:
        UnsupportedMedia: a pair of files, colours, complex numbers, labels.
        MissingGeometry: neither form says where the voxels lie.
        BadGeometry: the forms contradict each other, or are impossible.
        BadImage, TooManyPixels, TruncatedImage: as the names say.
    """
    layout = _layout(start)
    if layout is None:
        raise BadImage("the header is not one of NIfTI")
    version, order, fields = layout
    magic = start[344:348] if version == 1 else start[4:8]
    if magic.startswith(b"ni"):
        raise UnsupportedMedia("the header of a NIfTI pair, whose voxels lie in a second file; one file is read")
    if len(start) < (348, 540)[version - 1]:
        raise TruncatedImage("the NIfTI ends within its header", details={"bytes": len(start)})
    said = {
        name: np.frombuffer(start, np.dtype(form).newbyteorder(order), 1, at)[0]  # type: ignore[arg-type]
        for name, form, at in fields
    }
    if said["intent_code"] in _LABELS:
        raise UnsupportedMedia(
            f"the NIfTI holds labels (intent {said['intent_code']}), and no scan", details={"kind": "segmentation"}
        )
    shape, volumes = _shape(said["dim"])
    limits.check_grid(shape)
    dtype = _dtype(int(said["datatype"]), int(said["bitpix"]), order)
    offset = float(said["vox_offset"])
    first = _VOXELS_FROM[version]
    if not (math.isfinite(offset) and offset >= first and offset == int(offset)):
        raise BadImage(
            f"the voxels start at byte {offset:g}; in a NIfTI-{version} of one file at a whole number from {first}",
            details={"offset": str(offset), "limit": first},
        )
    affine, notes = _affine(said, shape)
    geometry = geometry_of(shape, swap_lps_ras(affine))
    slope, intercept = _scaling(float(said["scl_slope"]), float(said["scl_inter"]))
    return NiftiHeader(
        version=version,
        shape=shape,
        volumes=volumes,
        dtype=dtype,
        offset=int(offset),
        slope=slope,
        intercept=intercept,
        geometry=geometry,
        notes=(*notes, *shear_notes(affine)),
    )


def peek(part: Part, *, limits: VolumeLimits) -> NiftiHeader:
    """The header of a file, within the limits; no voxel is read.

    Raises:
        BadInput: one of its kinds, as `read`.
    """
    try:
        with part.open() as file:
            return _checked(_unpacking(file, part).read(540), part, limits)
    except (OSError, EOFError, zlib.error) as exc:
        raise _broken(exc) from exc


def read(part: Part, *, limits: VolumeLimits, volume: int | None = None) -> Volume:
    """Read one volume; index order and values are those of nibabel, the place is in LPS.

    Stored integers stay as they are, unless the header scales them: then they become float32.

    Raises:
        SeveralVolumes: the file holds more than one and none is named, or there is no such.
        TruncatedImage: it ends before its voxels do.
        BadInput: others of its kinds, as `read_header`.
    """
    try:
        with part.open() as file:
            unpacked = _unpacking(file, part)
            header = _checked(unpacked.read(540), part, limits)
            picked = pick_volume(header.volumes, volume)
            unpacked.seek(header.offset + picked * header.volume_bytes)
            held = unpacked.read(header.volume_bytes)
            if len(held) < header.volume_bytes:
                raise EOFError
            _check_the_end(unpacked, header)
    except (OSError, EOFError, zlib.error) as exc:
        raise _broken(exc) from exc
    voxels = np.frombuffer(held, header.dtype, math.prod(header.shape)).reshape(header.shape, order="F")
    return Volume(
        _scaled(voxels, header.slope, header.intercept)[None],
        header.geometry,
        notes=(*header.notes, *volume_notes(header.volumes, picked)),
    )


def _layout(start: bytes) -> tuple[int, str, tuple[tuple[str, str, int], ...]] | None:
    for version, size, fields, at in ((1, 348, NIFTI1_FIELDS, 344), (2, 540, _FIELDS_2, 4)):
        for order, name in (("<", "little"), (">", "big")):
            wanted = (b"n+%d" % version, b"ni%d" % version)
            if start[:4] == size.to_bytes(4, name) and start[at : at + 3] in wanted:  # type: ignore[arg-type]
                return version, order, fields
    return None


def _unpacking(file: IO[bytes], part: Part) -> Any:
    packed = part.read(2) == _GZIP
    return gzip.GzipFile(fileobj=file) if packed else file


def _checked(start: bytes, part: Part, limits: VolumeLimits) -> NiftiHeader:
    header = read_header(start, limits=limits)
    needed = header.offset + header.volumes * header.volume_bytes
    if part.read(2) == _GZIP:
        limits.check_unpacked(needed, part.size)
    elif part.size > needed + _PADDING_BYTES:
        raise BadImage(
            f"{part.size - needed} bytes follow the voxels that the header of the NIfTI announces",
            details={"bytes": part.size, "announced_bytes": needed},
        )
    elif needed > part.size:
        raise TruncatedImage(
            f"the NIfTI has {part.size} bytes, its header announces {needed}",
            details={"bytes": part.size, "announced_bytes": needed},
        )
    return header


def _check_the_end(unpacked: Any, header: NiftiHeader) -> None:
    """The checksum of gzip stands at its end; no more may follow than was announced, and a little padding."""
    if not isinstance(unpacked, gzip.GzipFile):
        return
    left = header.offset + header.volumes * header.volume_bytes - unpacked.tell() + _PADDING_BYTES
    while step := len(unpacked.read(2**20)):
        if (left := left - step) < 0:
            raise BadImage(f"more than {_PADDING_BYTES} bytes follow the voxels of the compressed NIfTI")


def _broken(exc: Exception) -> BadImage:
    said = type(exc).__name__
    if isinstance(exc, EOFError):
        return TruncatedImage("the NIfTI ends before its voxels do")
    return BadImage(f"the compressed NIfTI is broken ({said})")


def _shape(dim: Array) -> tuple[tuple[int, int, int], int]:
    axes = int(dim[0])
    if not 1 <= axes <= 7:
        raise BadImage(f"the header announces {axes} axes", details={"axes": axes})
    sizes = [int(size) for size in dim[1 : axes + 1]] + [1] * (7 - axes)
    more = [size for size in sizes[3:] if size != 1]
    if min(sizes) < 1:
        raise BadImage(f"the header announces {' x '.join(map(str, sizes))} voxels", details={"shape": sizes})
    if len(more) > 1:
        raise UnsupportedMedia(
            f"a NIfTI of {axes} axes; three are read, and one of a fourth", details={"shape": sizes[:axes]}
        )
    return (sizes[0], sizes[1], sizes[2]), more[0] if more else 1


def _dtype(code: int, bits: int, order: str) -> np.dtype[Any]:
    if code not in _TYPES:
        name = _OTHER_TYPES.get(code, f"number {code}")
        raise UnsupportedMedia(f"a NIfTI of voxels of type {name}", details={"datatype": code})
    dtype = np.dtype(_TYPES[code]).newbyteorder(order)  # type: ignore[arg-type]
    if bits != 8 * dtype.itemsize:
        raise BadImage(
            f"the header announces {bits} bits per voxel, its type has {8 * dtype.itemsize}", details={"bits": bits}
        )
    return dtype


def _scaling(slope: float, intercept: float) -> tuple[float, float]:
    """Slope 0 means that nothing is scaled; what is no number means the same, as nibabel takes it."""
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise BadImage("the header adds what is no number to every voxel", details={"scl_inter": str(intercept)})
    return slope, intercept


def _affine(said: dict[str, Any], shape: tuple[int, int, int]) -> tuple[Affine, tuple[Note, ...]]:
    """Millimetres in RAS: sform if its code is positive, else qform if its code is; both must agree."""
    forms: dict[str, Affine] = {}
    if said["sform_code"] > 0:
        forms["sform"] = np.vstack([np.asarray(said["srow"], np.float64), (0, 0, 0, 1)])
    if said["qform_code"] > 0:
        forms["qform"] = from_quaternion(said)
    if not forms:
        raise MissingGeometry("neither sform nor qform of the NIfTI says where it lies: both codes are 0")
    for name, form in forms.items():
        if not np.isfinite(form).all():
            raise BadGeometry(f"the {name} of the NIfTI is not finite", details={"form": name})
    unit = int(said["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        raise BadGeometry(f"the NIfTI counts lengths in unit {unit}, which is none of length", details={"unit": unit})
    unit_mm = _MM_PER_UNIT[unit]
    (affine, notes), *others = (counted_in(unit_mm, form) for form in forms.values())
    apart = max((apart_mm(affine, other, shape) for other, _ in others), default=0.0)
    if apart > SFORM_QFORM_LIMIT:
        raise BadGeometry(
            f"sform and qform of the NIfTI put a corner {apart:.4g} mm apart, at most {SFORM_QFORM_LIMIT:g} are taken"
            " as equal",
            details={"difference_mm": apart, "limit_mm": SFORM_QFORM_LIMIT},
        )
    return affine, notes


def apart_mm(one: Affine, other: Affine, shape: tuple[int, int, int]) -> float:
    """How far apart two places, each [3 or 4, 4], put a corner of a grid, at most."""
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))]).T
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


def from_quaternion(said: dict[str, Any]) -> Affine:
    """Millimetres in RAS, from `quatern`, `qoffset` and `pixdim` of a header: nifti1.h, "METHOD 2".

    Raises:
        BadGeometry: the voxels have no size, or the quaternion is too long.
    """
    b, c, d = (float(each) for each in said["quatern"])
    zooms = [float(each) for each in said["pixdim"][1:4]]
    if not all(0 < each < math.inf for each in zooms):
        raise BadGeometry(
            f"voxels of {' x '.join(f'{each:g}' for each in zooms)} mm in the qform", details={"form": "qform"}
        )
    rest = 1.0 - (b * b + c * c + d * d)
    if not rest > -_TINY_QUATERNION:
        raise BadGeometry(f"the quaternion of the qform is {1 - rest:.6g} long, squared", details={"form": "qform"})
    a = math.sqrt(rest) if rest > _TINY_QUATERNION else 0.0
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    ) / (a * a + b * b + c * c + d * d)
    zooms[2] *= -1.0 if said["pixdim"][0] < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * zooms
    affine[:3, 3] = said["qoffset"]
    return affine


def _scaled(voxels: Array, slope: float, intercept: float) -> Array:
    """In double precision, then float32: a bit more than 7 digits of each value."""
    if (slope, intercept) == (1.0, 0.0):
        return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    scaled = np.empty(voxels.shape, np.float32, order="F")
    step = max(1, _CHUNK_VOXELS // max(1, math.prod(voxels.shape[:2])))
    for first in range(0, voxels.shape[2], step):
        slices = slice(first, first + step)
        with np.errstate(over="ignore"):  # what leaves float32 is infinite, and refused as such
            scaled[..., slices] = voxels[..., slices].astype(np.float64) * slope + intercept
    return scaled
