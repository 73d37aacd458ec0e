"""What a program hands in as an image, as the bytes that are sent."""

import asyncio
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np

from isocenter.core.errors import BadRequest, MissingImage, UnsupportedMedia
from isocenter.core.tensor import Array

Image: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | Array
"""The bytes of a file; or where the file is; or pixels, HxW (gray) or HxWx3 (RGB), of uint8, uint16 or float32."""


async def to_bytes(image: Image) -> bytes:
    """The bytes to send. Files are read, and arrays written losslessly, on a thread.

    Raises:
        MissingImage: no bytes, or the file cannot be read.
        UnsupportedMedia: an array of another shape or type.
        BadRequest: it is something else.
    """
    if isinstance(image, np.ndarray):
        return await asyncio.to_thread(encode, image)
    if isinstance(image, str | os.PathLike):
        return await asyncio.to_thread(_read, Path(image))
    if not isinstance(image, bytes | bytearray | memoryview):
        raise BadRequest(f"an image is the bytes of a file, a path or a numpy array, not {type(image).__name__}")
    if not len(image):
        raise MissingImage("the image has no bytes")
    return bytes(image)


def encode(pixels: Array) -> bytes:
    """Pixels as a PNG (8 and 16 bits) or a TIFF (floats), each value as it is.

    >>> encode(np.zeros((2, 3), np.uint16))[:4]
    b'\\x89PNG'

    Raises:
        UnsupportedMedia: not HxW or HxWx3, or neither uint8, uint16 nor float32; or a masked array.
    """
    import cv2

    if isinstance(pixels, np.ma.MaskedArray):
        raise UnsupportedMedia("a masked array: what the model should see in masked places is not guessed; fill them")
    gray = pixels.ndim == 2
    if not (gray or (pixels.ndim == 3 and pixels.shape[2] == 3)) or pixels.size == 0:
        raise UnsupportedMedia(
            f"an array of shape {list(pixels.shape)}; an image is HxW or HxWx3", details={"shape": [*pixels.shape]}
        )
    if pixels.dtype not in (np.uint8, np.uint16, np.float32):
        raise UnsupportedMedia(
            f"an array of {pixels.dtype}; uint8, uint16 and float32 are sent", details={"dtype": str(pixels.dtype)}
        )
    # OpenCV writes blue first.
    ordered = np.ascontiguousarray(pixels if gray else pixels[..., ::-1])
    done, found = cv2.imencode(".tiff" if pixels.dtype == np.float32 else ".png", ordered)
    if not done:
        raise UnsupportedMedia(f"an array of shape {list(pixels.shape)} cannot be written as an image")
    return found.tobytes()


def _read(file: Path) -> bytes:
    # The messages hold no file name: it may be a patient's.
    try:
        data = file.read_bytes()
    except OSError as error:
        raise MissingImage(f"the file cannot be read: {error.strerror or type(error).__name__}") from error
    except ValueError as error:  # a path with a zero byte, or with letters that the file system cannot write
        raise MissingImage("the file cannot be read: its path is none") from error
    if not data:
        raise MissingImage("the file has no bytes")
    return data
