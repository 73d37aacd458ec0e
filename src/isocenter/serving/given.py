"""What a Python program hands in as an image."""

import asyncio
import math
import os
import stat
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadRequest, DeadlineExceeded, MissingImage, TooManyBytes
from isocenter.core.tensor import Array

Image: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | Array
"""The bytes of a file; or where the file is; or pixels, HxW (gray) or HxWx3 (RGB)."""

# What is put in the place of a plain file between two looks at it may be a pipe: opening that must not wait.
_OPEN: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


async def bytes_or_pixels(image: object, max_bytes: int, *, deadline: Deadline, clock: Clock) -> bytes | Array:
    """What decoding takes. A file is read on a thread, if it is not too large; nobody waits beyond the deadline.

    Raises:
        MissingImage: no bytes, or there is no plain file that can be read.
        TooManyBytes: the file is larger than the limit; nothing of it was read.
        DeadlineExceeded: the file was not read in time. The thread may go on; what it reads is dropped.
        BadRequest: it is something else.
    """
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, str | os.PathLike):
        left_s = deadline.left_s(clock.now_s())
        try:
            async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                return await asyncio.to_thread(_read, image, max_bytes)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the file was read", details={"where": "read"}) from None
    if not isinstance(image, bytes | bytearray | memoryview):
        kind = type(image).__name__
        raise BadRequest(f"an image is the bytes of a file, a path or a numpy array, not {kind}")
    if not len(image):
        raise MissingImage("the image has no bytes")
    return bytes(image)


def _read(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    try:
        data = _bytes_of(path, max_bytes)
    except OSError as error:
        refusal = MissingImage(f"the file cannot be read: {error.strerror or type(error).__name__}")
    except ValueError:
        refusal = MissingImage("the file cannot be read: its path is no text that a path can be")
    else:
        if not data:
            raise MissingImage("the file has no bytes")
        return data
    # Not where it was caught, and so not chained: the error holds the file's name, which may be a patient's.
    raise refusal


def _bytes_of(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    path = Path(os.fsdecode(path))
    _check(path.stat(), max_bytes)
    with os.fdopen(os.open(path, _OPEN), "rb") as file:
        _check(os.fstat(file.fileno()), max_bytes)
        return file.read()


def _check(found: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise MissingImage("the file cannot be read: it is no plain file")
    if found.st_size > max_bytes:
        raise TooManyBytes(
            f"the file has {found.st_size} bytes, the limit for an image is {max_bytes}",
            details={"bytes": found.st_size, "limit": max_bytes},
        )
