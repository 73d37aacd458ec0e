"""Image file directories: the tag tables of TIFF and BigTIFF files and of EXIF blocks."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from isocenter.core.errors import BadImage, TruncatedImage
from isocenter.imaging.image import Note

_MAX_ENTRIES = 4096
_MAX_DIRECTORIES = 16_384
# TIFF 6.0, section 2, and BigTIFF: type number -> NumPy type of what is read as integers. None needed is signed.
_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_TEXT, _FRACTION = 2, 5
_ORIENTATION = 274
_LISTS = frozenset({273, 279, 324, 325})  # offsets and byte counts of strips and tiles
_LONG = frozenset({270, 347})  # a description, tables of a JPEG
_MAX_LISTED, _MAX_VALUES, _MAX_LONG = 2**18, 4096, 2**24


class Readable(Protocol):
    """Bytes, or a file that gives stretches of itself; a stretch beyond the end is shorter than asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """How the numbers of a TIFF structure are stored."""

    order: str
    big: bool
    first: int
    """Where the first directory lies."""

    @property
    def offset(self) -> str:
        """An offset or a count of values, for `struct`."""
        return self.order + ("Q" if self.big else "I")

    @property
    def head(self) -> str:
        """The number of entries of a directory."""
        return self.order + ("Q" if self.big else "H")

    @property
    def entry_bytes(self) -> int:
        """One entry: tag, type, count, value or where it lies."""
        return 20 if self.big else 12


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory: tag -> its integers, texts, and fractions. Tags of other types are left out."""

    order: str
    values: dict[int, tuple[int, ...]]
    next_offset: int
    texts: dict[int, bytes] = field(default_factory=dict)
    fractions: dict[int, tuple[float, ...]] = field(default_factory=dict)

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


def read_layout(data: Readable) -> Layout:
    """Byte order, 32 or 64 bits, and where the first directory is.

    Raises:
        BadImage: not a TIFF structure.
        TruncatedImage: it ends within its first bytes.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or data[2:4] not in (struct.pack(order + "H", 42), struct.pack(order + "H", 43)):
        raise BadImage("a tag table does not start with II or MM")
    big = data[2:4] == struct.pack(order + "H", 43)
    try:
        if not big:
            return Layout(order, big, struct.unpack(order + "I", data[4:8])[0])
        size, zero, first = struct.unpack(order + "HHQ", data[4:16])
    except struct.error as exc:
        raise TruncatedImage(f"a tag table lies beyond the {len(data)} bytes", details={"bytes": len(data)}) from exc
    if (size, zero) != (8, 0):
        raise BadImage(f"a BigTIFF with offsets of {size} bytes", details={"offset_bytes": size})
    return Layout(order, big, first)


def directories(data: Readable, layout: Layout) -> Iterator[int]:
    """Where each directory lies, in the order of the file.

    Raises:
        BadImage: they go round in a circle, or there are too many.
        TruncatedImage: one lies beyond the end.
    """
    seen: set[int] = set()
    at = layout.first
    while at:
        if at in seen:
            raise BadImage("the pages of the TIFF go round in a circle", details={"offset": at})
        if len(seen) == _MAX_DIRECTORIES:
            raise BadImage(f"more than {_MAX_DIRECTORIES} pages", details={"limit": _MAX_DIRECTORIES})
        seen.add(at)
        yield at
        _, at = _entries(data, layout, at)


def read_directory(
    data: Readable, wanted: frozenset[int], *, layout: Layout | None = None, at: int | None = None
) -> Directory:
    """Read a directory of a TIFF structure (the first, unless one is meant), only the `wanted` tags.

    Raises:
        BadImage: not a TIFF structure.
        TruncatedImage: the directory or a value lies beyond the end.
    """
    layout = layout or read_layout(data)
    table, following = _entries(data, layout, layout.first if at is None else at)
    found = Directory(layout.order, {}, following)
    values_at = 12 if layout.big else 8
    for entry in range(0, len(table), layout.entry_bytes):
        tag, kind = struct.unpack_from(layout.order + "HH", table, entry)
        if tag not in wanted or tag in found.values or tag in found.texts or tag in found.fractions:
            continue
        (items,) = struct.unpack_from(layout.offset, table, entry + 4)
        value = table[entry + values_at : entry + layout.entry_bytes]
        if kind in _TYPES and tag not in _LONG:
            numbers = np.frombuffer(
                _read(data, layout, value, items, np.dtype(_TYPES[kind]).itemsize, tag), layout.order + _TYPES[kind]
            )
            found.values[tag] = tuple(numbers.tolist())
        if kind in (_TEXT, 1, 7):
            found.texts[tag] = _read(data, layout, value, items, 1, tag)
        elif kind == _FRACTION:
            pairs = np.frombuffer(_read(data, layout, value, items, 8, tag), layout.order + "u4").reshape(-1, 2)
            found.fractions[tag] = tuple(above / below if below else 0.0 for above, below in pairs.tolist())
    return found


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


def _entries(data: Readable, layout: Layout, at: int) -> tuple[bytes, int]:
    """The entries of a directory as they lie in the file, and where the next directory is."""
    head = struct.calcsize(layout.head)
    try:
        (count,) = struct.unpack(layout.head, data[at : at + head])
        if not 0 < count <= _MAX_ENTRIES:
            raise BadImage(f"a tag table announces {count} entries", details={"entries": count, "limit": _MAX_ENTRIES})
        end = at + head + layout.entry_bytes * count
        table = data[at + head : end]
        (following,) = struct.unpack(layout.offset, data[end : end + struct.calcsize(layout.offset)])
    except struct.error as exc:
        raise TruncatedImage(f"a tag table lies beyond the {len(data)} bytes", details={"bytes": len(data)}) from exc
    return bytes(table), following


def _read(data: Readable, layout: Layout, value: bytes, items: int, item_bytes: int, tag: int) -> bytes:
    limit = _MAX_LISTED if tag in _LISTS else _MAX_LONG if tag in _LONG else _MAX_VALUES
    if items > limit:
        raise BadImage(
            f"tag {tag} announces {items} values, at most {limit} are read",
            details={"tag": tag, "values": items, "limit": limit},
        )
    size = items * item_bytes
    if size <= len(value):
        return value[:size]
    (at,) = struct.unpack(layout.offset, value)
    if at + size > len(data):
        raise TruncatedImage(
            f"tag {tag} announces {items} values at byte {at}, beyond the {len(data)} bytes of the file",
            details={"tag": tag, "values": items, "offset": at, "bytes": len(data)},
        )
    return bytes(data[at : at + size])
