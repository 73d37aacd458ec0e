"""MetaImage in one file (.mha), raw or zlib: header, place, voxels. Its millimetres are in LPS, as ITK writes them."""

from collections.abc import Sequence
from itertools import pairwise
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
from isocenter.imaging.geometry import Affine
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

_TYPES: Final = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_UNIT_LIMIT: Final = 1e-3
_DIRECTIONS: Final = ("TransformMatrix", "Orientation", "Rotation")
_ORIGIN: Final = ("Offset", "Position", "Origin")
_SPACING: Final = ("ElementSpacing", "ElementSize")
_ROUNDING: Final = 1e-5
"""How far apart one number may be under two names, in its own size or in 1: writers round."""
_LAST: Final = b"ElementDataFile"


def starts_as_metaimage(start: bytes) -> bool:
    """Whether the first bytes are of a MetaImage header."""
    head = start.lstrip()
    return head.startswith((b"ObjectType", b"NDims")) and b"=" in head[:32]


def peek(part: Part, *, limits: VolumeLimits) -> GridHeader:
    """The header of a file, within the limits; no voxel is read.

    Raises:
        UnsupportedMedia: voxels in another file, other types or numbers of axes.
        MissingGeometry, BadGeometry: no place, or an impossible one.
        BadImage, TruncatedImage, TooManyPixels: as the names say.
    """
    fields, offset = _fields(part.read(HEADER_BYTES))
    if fields.get("ElementDataFile") != "LOCAL":
        raise UnsupportedMedia("a MetaImage header whose voxels lie in other files; one file is read")
    if fields.get("ObjectType", "Image") != "Image" or _flag(fields, "BinaryData") is False:
        raise UnsupportedMedia("a MetaImage that is no image of binary data")
    sizes = [int(each) for each in _numbers(fields, "DimSize") or [] if each.is_integer()]
    if len(sizes) != 3 or fields.get("NDims") != "3" or fields.get("ElementNumberOfChannels", "1") != "1":
        raise UnsupportedMedia(f"a MetaImage of {len(sizes)} axes, or of several values per voxel; three axes are read")
    if fields.get("HeaderSize", "0") not in ("0", "-1"):
        raise UnsupportedMedia("a MetaImage that skips bytes before its voxels")
    shape = (sizes[0], sizes[1], sizes[2])
    limits.check_grid(shape)
    name = _TYPES.get(fields.get("ElementType", ""))
    if name is None:
        raise UnsupportedMedia("a MetaImage of voxels of another type than whole numbers and floats")
    orders = {_flag(fields, each) for each in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")} - {None}
    if len(orders) > 1:
        raise BadImage("BinaryDataByteOrderMSB and ElementByteOrderMSB of the MetaImage contradict each other")
    scaled = [_numbers(fields, f"ElementToIntensityFunction{each}") for each in ("Slope", "Offset")]
    if scaled[0] not in (None, [1.0]) or scaled[1] not in (None, [0.0]):
        raise UnsupportedMedia(
            "a MetaImage that scales its voxels (ElementToIntensityFunction), which readers leave out"
        )
    affine, notes = in_millimetres(_affine(fields), [fields.get("DistanceUnits", "")])
    return GridHeader(
        shape=shape,
        volumes=1,
        interleaved=False,
        dtype=np.dtype(f"{'>' if True in orders else '<'}{name}"),
        offset=offset,
        packing="deflate" if _flag(fields, "CompressedData") else "raw",
        geometry=geometry_of(shape, affine),
        notes=(*notes, *shear_notes(affine)),
    )


def read(part: Part, *, limits: VolumeLimits, volume: int | None = None) -> Volume:
    """Read the volume; its type stays as stored.

    Raises:
        SeveralVolumes: another volume than 0 is asked for.
        BadInput: others of its kinds, as `peek`.
    """
    return read_grid(part, peek(part, limits=limits), limits=limits, volume=volume)


def _affine(fields: dict[str, str]) -> Affine:
    """Triples of TransformMatrix are the directions of the axes, one after the other."""
    directions, origin = _said_once(fields, _DIRECTIONS), _said_once(fields, _ORIGIN)
    _said_once(fields, _SPACING)
    spacing = _numbers(fields, "ElementSpacing")  # sizes of voxels alone are no distances between them
    if directions is None or origin is None or spacing is None:
        raise MissingGeometry("the MetaImage does not say its directions, origin and spacing")
    if (len(directions), len(origin), len(spacing)) != (9, 3, 3):
        raise BadGeometry("the MetaImage's directions, origin and spacing are not of 9, 3 and 3 numbers")
    lengths = np.linalg.norm(np.reshape(directions, (3, 3)), axis=1)
    if not (np.abs(lengths - 1.0) <= _UNIT_LIMIT).all():
        raise BadGeometry(
            f"directions of length {', '.join(f'{each:g}' for each in lengths)} in the MetaImage, whose spacing stands"
            " elsewhere",
            details={"lengths": [*map(str, lengths)]},
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(directions, (3, 3)).T * spacing
    affine[:3, 3] = origin
    return affine


def _said_once(fields: dict[str, str], names: Sequence[str]) -> list[float] | None:
    """What stands under any of several names for one thing; readers differ in which of them they look at first.

    Raises:
        BadImage: two of them say otherwise.
    """
    said = {name: found for name in names if (found := _numbers(fields, name))}
    for (one, first), (other, second) in pairwise(said.items()):
        if len(first) != len(second) or not np.allclose(first, second, rtol=_ROUNDING, atol=_ROUNDING):
            raise BadImage(
                f"{one} and {other} of the MetaImage contradict each other", details={"fields": [one, other]}
            )
    return next(iter(said.values()), None)


def _fields(start: bytes) -> tuple[dict[str, str], int]:
    fields: dict[str, str] = {}
    at = 0
    while at < len(start):
        end = start.find(b"\n", at)
        if end < 0:
            break
        name, _, value = start[at:end].decode("utf-8", "replace").partition("=")
        name, value = name.strip(), value.strip()
        if fields.setdefault(name, value) != value:
            raise BadImage(f"the MetaImage says its {name[:20]} twice, and each time another one")
        at = end + 1
        if name == _LAST.decode():
            return fields, at
    raise TruncatedImage("the MetaImage ends within its header, or it is too long", details={"bytes": len(start)})


def _flag(fields: dict[str, str], name: str) -> bool | None:
    value = fields.get(name)
    return None if value is None else value[:1] in ("T", "t", "1")  # as MetaIO reads it


def _numbers(fields: dict[str, str], name: str) -> list[float] | None:
    if name not in fields:
        return None
    try:
        return [float(each) for each in fields[name].split()]
    except ValueError as exc:
        raise BadImage(f"{name} of the MetaImage is not numbers", details={"field": name}) from exc
