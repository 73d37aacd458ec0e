"""NRRD in one file, raw or gzip (teem's "Definition of NRRD File Format"): header, place, voxels."""

import math
import re
from typing import Final

import numpy as np

from isocenter.core.errors import BadGeometry, BadImage, MissingGeometry, TruncatedImage, UnsupportedMedia
from isocenter.imaging.codecs.volume_grid import (
    HEADER_BYTES,
    GridHeader,
    geometry_of,
    in_millimetres,
    read_grid,
    shear_notes,
)
from isocenter.imaging.codecs.volume_parts import Part
from isocenter.imaging.geometry import Affine, swap_lps_ras
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

_MAGIC: Final = b"NRRD000"
_TYPES: Final = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_LPS_FROM: Final = {
    "left-posterior-superior": np.diag([1.0, 1.0, 1.0, 1.0]),
    "lps": np.diag([1.0, 1.0, 1.0, 1.0]),
    "right-anterior-superior": swap_lps_ras(np.eye(4)),
    "ras": swap_lps_ras(np.eye(4)),
    "left-anterior-superior": np.diag([1.0, -1.0, 1.0, 1.0]),
    "las": np.diag([1.0, -1.0, 1.0, 1.0]),
}
_ROUNDING: Final = 1e-4
_OF_SEGMENTS: Final = ("Segment0_", "Segmentation_")
"""Beginnings of keys that 3D Slicer writes into a segmentation (.seg.nrrd), whose voxels are labels."""
_UNIT: Final = re.compile(r'"[^"]*"|[^\s"]+')
_VECTOR: Final = re.compile(r"none|\([^()]*\)", re.IGNORECASE)


def starts_as_nrrd(start: bytes) -> bool:
    """Whether the first bytes are of an NRRD file."""
    return start.startswith(_MAGIC)


def peek(part: Part, *, limits: VolumeLimits) -> GridHeader:
    """The header of a file, within the limits; no voxel is read.

    Raises:
        UnsupportedMedia: voxels in another file, other encodings, types or numbers of axes.
        MissingGeometry, BadGeometry: no place, or an impossible one.
        BadImage, TruncatedImage, TooManyPixels: as the names say.
    """
    fields, offset = _fields(part.read(HEADER_BYTES))
    for name in ("data file", "datafile"):
        if name in fields:
            raise UnsupportedMedia("an NRRD header whose voxels lie in other files; one file is read")
    if any(fields.get(name, "0") != "0" for name in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise UnsupportedMedia("an NRRD that skips lines or bytes before its voxels")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise UnsupportedMedia(f"an NRRD of encoding {encoding[:20] or 'unknown'}; raw and gzip are read")
    sizes = _whole(fields.get("sizes", ""))
    directions = [_numbers(each) for each in _VECTOR.findall(fields.get("space directions", ""))]
    dtype = _dtype(fields)
    if fields.get("dimension") != str(len(sizes)) or len(sizes) not in (3, 4):
        raise UnsupportedMedia(f"an NRRD of {len(sizes)} axes; three are read, and one of another kind")
    origin = _numbers(fields.get("space origin", ""))
    space = fields.get("space", "").lower()
    if space not in _LPS_FROM or not directions or origin is None:
        raise MissingGeometry("the NRRD does not say its space, directions and origin in the patient")
    spatial = [at for at, each in enumerate(directions) if each is not None]
    if len(directions) != len(sizes) or len(spatial) != 3 or spatial not in ([*range(3)], [*range(1, 4)]):
        raise UnsupportedMedia("an NRRD whose spatial axes are not its first or last three")
    if any(len(each) != 3 for each in (*filter(None, directions), origin)):
        raise BadGeometry("the NRRD's directions and origin are not of three numbers each")
    _refuse_other_spacings(fields.get("spacings", ""), directions)
    shape = (sizes[spatial[0]], sizes[spatial[1]], sizes[spatial[2]])
    volumes = sizes[0] if spatial[0] == 1 else sizes[3] if len(sizes) == 4 else 1
    limits.check_grid((*shape, volumes) if volumes < 1 else shape)
    affine: Affine = np.eye(4)
    affine[:3, :3] = np.transpose([directions[at] or [] for at in spatial])
    affine[:3, 3] = origin
    affine, notes = in_millimetres(affine, [each.strip('"') for each in _UNIT.findall(fields.get("space units", ""))])
    lps = _LPS_FROM[space] @ affine
    geometry = geometry_of(shape, lps)
    return GridHeader(
        shape=shape,
        volumes=volumes,
        interleaved=spatial[0] == 1,
        dtype=dtype,
        offset=offset,
        packing="raw" if encoding == "raw" else "deflate",
        geometry=geometry,
        notes=(*notes, *shear_notes(lps)),
    )


def read(part: Part, *, limits: VolumeLimits, volume: int | None = None) -> Volume:
    """Read one volume; its type stays as stored.

    Raises:
        SeveralVolumes: the file holds more than one and none is named, or there is no such.
        BadInput: others of its kinds, as `peek`.
    """
    return read_grid(part, peek(part, limits=limits), limits=limits, volume=volume)


def _fields(start: bytes) -> tuple[dict[str, str], int]:
    ends = [(at, len(mark)) for mark in (b"\n\n", b"\r\n\r\n") if (at := start.find(mark)) >= 0]
    if not ends:
        raise TruncatedImage("the NRRD ends within its header, or it is too long", details={"bytes": len(start)})
    end, mark = min(ends)
    fields: dict[str, str] = {}
    for line in start[:end].decode("utf-8", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if value.startswith("=") and name.startswith(_OF_SEGMENTS):
            raise UnsupportedMedia("the NRRD is a segmentation, and no scan", details={"kind": "segmentation"})
        if not line.startswith("#") and colon and not value.startswith("="):
            name, value = name.strip().lower(), value.strip()
            if fields.setdefault(name, value) != value:
                raise BadImage(f"the NRRD says its {name[:20]} twice, and each time another one")
    return fields, end + mark


def _dtype(fields: dict[str, str]) -> "np.dtype[np.generic]":
    name = _TYPES.get(" ".join(fields.get("type", "").lower().split()))
    if name is None:
        raise UnsupportedMedia("an NRRD of voxels of another type than whole numbers and floats")
    endian = fields.get("endian", "").lower()
    if endian not in ("little", "big") and name[1] != "1":
        raise BadImage("the NRRD does not say its byte order")
    return np.dtype(f"{'>' if endian == 'big' else '<'}{name}")


def _refuse_other_spacings(text: str, directions: list[list[float] | None]) -> None:
    """See that `spacings`, which have no place beside directions, say nothing else than they; NaN says nothing.

    Raises:
        BadImage: they do, or are no number for each axis.
    """
    try:
        said = [float(each) for each in text.split()]
    except ValueError as exc:
        raise BadImage("the spacings of the NRRD are not numbers") from exc
    if said and len(said) != len(directions):
        raise BadImage(f"the NRRD says {len(said)} spacings of {len(directions)} axes")
    for spacing, direction in zip(said, directions, strict=False):
        if direction is not None and not math.isnan(spacing):
            length = math.hypot(*direction)
            if not math.isclose(abs(spacing), length, rel_tol=_ROUNDING):
                raise BadImage(
                    f"spacings and space directions of the NRRD contradict each other: {spacing:g} and {length:g}",
                    details={"spacing": str(spacing), "length": str(length)},
                )


def _whole(text: str) -> list[int]:
    try:
        return [int(each) for each in text.split()]
    except ValueError as exc:
        raise BadImage("the sizes of the NRRD are not whole numbers") from exc


def _numbers(text: str) -> list[float] | None:
    if text.lower() in ("none", ""):
        return None
    try:
        return [float(each) for each in text.strip("()").split(",")]
    except ValueError as exc:
        raise BadGeometry("the NRRD's directions and origin are not numbers") from exc
