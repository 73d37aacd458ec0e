"""Image file directories: the tag tables of TIFF files and EXIF blocks."""

import struct
from dataclasses import dataclass

import numpy as np

from isocenter.core.errors import BadImage, TruncatedImage
from isocenter.imaging.image import Note

_MAX_ENTRIES = 4096
# TIFF 6.0, section 2: type number -> NumPy type. No tag needed here is signed, a fraction or a text.
_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4"}
_ORIENTATION = 274
_LISTS = frozenset({273, 279, 324, 325})  # offsets and byte counts of strips and tiles
_MAX_LISTED, _MAX_VALUES = 2**18, 4096


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory: tag -> its integers. Tags of other types are left out."""

    order: str
    values: dict[int, tuple[int, ...]]
    next_offset: int

    def one(self, tag: int, default: int | None = None) -> int:
        """The first value of a tag.

        Raises:
            BadImage: the tag is missing and has no default.
        """
        values = self.values.get(tag)
        if values:
            return values[0]
        if default is None:
            raise BadImage(f"the TIFF lacks its required tag {tag}", details={"tag": tag})
        return default


def read_directory(data: bytes, wanted: frozenset[int]) -> Directory:
    """Read the first directory of a TIFF structure, only the `wanted` tags.

    Raises:
        BadImage: not a TIFF structure.
        TruncatedImage: the directory or a value lies beyond the end.
    """
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(data[:4])
    if order is None:
        raise BadImage("a tag table does not start with II or MM")
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        if not 0 < count <= _MAX_ENTRIES:
            raise BadImage(f"a tag table announces {count} entries", details={"entries": count, "limit": _MAX_ENTRIES})
        (following,) = struct.unpack_from(order + "I", data, start + 2 + 12 * count)
    except struct.error as exc:
        raise TruncatedImage(f"a tag table lies beyond the {len(data)} bytes", details={"bytes": len(data)}) from exc
    values: dict[int, tuple[int, ...]] = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, items = struct.unpack_from(order + "HHI", data, entry)
        if tag in wanted and tag not in values and kind in _TYPES:
            values[tag] = _read_values(data, entry + 8, order, np.dtype(order + _TYPES[kind]), items, tag)
    return Directory(order, values, following)


def read_orientation(exif: bytes) -> tuple[int, tuple[Note, ...]]:
    """The EXIF orientation (1 to 8), and a note if the block cannot be read or the value means nothing.

    >>> read_orientation(b"not exif")[1][0].code
    'exif_unreadable'
    """
    exif = exif.removeprefix(b"Exif\x00\x00")
    try:
        value = read_directory(exif, frozenset({_ORIENTATION})).one(_ORIENTATION, 1)
    except BadImage:
        return 1, (Note("exif_unreadable", "the EXIF block cannot be read; the pixels are taken as upright"),)
    return checked_orientation(value)


def checked_orientation(value: int) -> tuple[int, tuple[Note, ...]]:
    """An orientation within 1 to 8, or 1 and a note.

    >>> checked_orientation(6)
    (6, ())
    """
    if 1 <= value <= 8:
        return value, ()
    return 1, (Note("orientation_ignored", f"orientation {value} is not one of 1 to 8; taken as upright"),)


def _read_values(
    data: bytes, at: int, order: str, dtype: "np.dtype[np.generic]", items: int, tag: int
) -> tuple[int, ...]:
    limit = _MAX_LISTED if tag in _LISTS else _MAX_VALUES
    if items > limit:
        raise BadImage(
            f"tag {tag} announces {items} values, at most {limit} are read",
            details={"tag": tag, "values": items, "limit": limit},
        )
    size = items * dtype.itemsize
    if size > 4:
        (at,) = struct.unpack_from(order + "I", data, at)
    if at + size > len(data):
        raise TruncatedImage(
            f"tag {tag} announces {items} values at byte {at}, beyond the {len(data)} bytes of the file",
            details={"tag": tag, "values": items, "offset": at, "bytes": len(data)},
        )
    return tuple(np.frombuffer(data, dtype, items, at).tolist())
