"""The wire format of protocol buffers, as far as reading needs it: fields by number, nothing copied."""

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

Buffer: TypeAlias = memoryview

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


@contextlib.contextmanager
def mapped(file: Path) -> Iterator[Buffer]:
    """A file as memory, for a while.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty.
    """
    with file.open("rb") as stream:
        if not stream.seek(0, 2):
            raise ValueError("it is empty")
        whole = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    content = memoryview(whole)
    try:
        yield content
    finally:
        # An error's traceback may still hold slices of it; then the map goes with them.
        with contextlib.suppress(BufferError):
            content.release()
            whole.close()


def fields(content: Buffer) -> Iterator[tuple[int, int | Buffer]]:
    """Every field of a message: its number, and a whole number or the bytes.

    Raises:
        ValueError, IndexError: it is not a message.
    """
    for number, value, _ in fields_with_ends(content):
        yield number, value


def fields_with_ends(content: Buffer) -> Iterator[tuple[int, int | Buffer, int]]:
    """The same, and where in the message each field ends."""
    at, end = 0, len(content)
    while at < end:
        tag, at = _varint(content, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("a field has the number 0")
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield number, value, at
            continue
        if kind == _LENGTH:
            size, at = _varint(content, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {kind} is not one of proto3's")
        if size > end - at:
            raise ValueError(f"a field of {size} bytes, where {end - at} are left")
        at += size
        yield number, content[at - size : at], at


def varints(content: Buffer) -> Iterator[int]:
    """Whole numbers packed into one field."""
    at = 0
    while at < len(content):
        value, at = _varint(content, at)
        yield value


def _varint(content: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
