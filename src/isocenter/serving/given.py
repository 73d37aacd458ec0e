"""What a Python program hands in as an image."""

import asyncio
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np

from isocenter.core.errors import BadRequest, MissingImage, TooManyBytes
from isocenter.core.tensor import Array

Image: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | Array
"""The bytes of a file; or where the file is; or pixels, HxW (gray) or HxWx3 (RGB)."""


async def bytes_or_pixels(image: object, max_bytes: int) -> bytes | Array:
    """What decoding takes. A file is read on a thread, if it is not too large.

    Raises:
        MissingImage: no bytes, or the file cannot be read.
        TooManyBytes: the file is larger than the limit; nothing of it was read.
        BadRequest: it is something else.
    """
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, str | os.PathLike):
        return await asyncio.to_thread(_read, Path(image), max_bytes)
    if not isinstance(image, bytes | bytearray | memoryview):
        kind = type(image).__name__
        raise BadRequest(f"an image is the bytes of a file, a path or a numpy array, not {kind}")
    if not len(image):
        raise MissingImage("the image has no bytes")
    return bytes(image)


def _read(file: Path, max_bytes: int) -> bytes:
    # The messages hold no file name: it may be a patient's.
    try:
        size = file.stat().st_size
        if size > max_bytes:
            raise TooManyBytes(
                f"the file has {size} bytes, the limit for an image is {max_bytes}",
                details={"bytes": size, "limit": max_bytes},
            )
        data = file.read_bytes()
    except OSError as error:
        raise MissingImage(f"the file cannot be read: {error.strerror or type(error).__name__}") from error
    if not data:
        raise MissingImage("the file has no bytes")
    return data
