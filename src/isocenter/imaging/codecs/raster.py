"""The one door for image bytes: header, limits, pixels, checks; whatever a library raises becomes a typed refusal."""

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from isocenter.core.errors import BadImage, IsocenterError, TooManyPixels, TruncatedImage
from isocenter.imaging.codecs import bmp, jpeg, pixels, png, tiff, tiff_blocks, webp
from isocenter.imaging.codecs.header import Header
from isocenter.imaging.codecs.sniff import sniff
from isocenter.imaging.image import RasterImage, SourceInfo
from isocenter.imaging.limits import ImageLimits

_HEADERS: dict[str, ModuleType] = {"jpeg": jpeg, "png": png, "tiff": tiff, "bmp": bmp, "webp": webp}
_DECODERS: dict[str, ModuleType] = _HEADERS | {"tiff": tiff_blocks}
# A BMP has one header, at its beginning.
_SOON_READ: dict[str, Callable[[bytes], bool]] = {
    "jpeg": jpeg.few_segments,
    "png": png.few_chunks,
    "bmp": lambda _: True,
}
_CUT = re.compile(r"truncated|premature|not enough|unexpected end|ends? before", re.IGNORECASE)


def peek(data: bytes, *, limits: ImageLimits) -> SourceInfo:
    """What the header says, within the limits; no pixel is decoded.

    >>> import cv2, numpy
    >>> png = cv2.imencode(".png", numpy.eye(5, dtype=numpy.uint8))[1].tobytes()
    >>> peek(png, limits=ImageLimits())
    SourceInfo(format='png', mode='L', width_px=5, height_px=5, bits=8)

    Raises:
        BadInput: one of its kinds, as `decode`.
    """
    return read_header(data, limits=limits).source


def decode(data: bytes, *, limits: ImageLimits, header: Header | None = None) -> RasterImage:
    """Decode the fastest way that gives the reference's pixels. Thread-safe; JPEG and most PNG run without the GIL.

    `header` is what `read_header` said of the same bytes, where that was asked before.

    >>> import cv2, numpy
    >>> png = cv2.imencode(".png", numpy.eye(5, dtype=numpy.uint8))[1].tobytes()
    >>> decode(png, limits=ImageLimits()).pixels.sum()
    np.uint64(5)

    Raises:
        BadInput: one of its kinds; no other exception leaves here, whatever the bytes are.
    """
    return _not_constant(_decode(data, header or read_header(data, limits=limits), "decode"))


def decode_answer(data: bytes, *, limits: ImageLimits) -> RasterImage:
    """As `decode`, of a picture that answers something: one value everywhere is an answer, such as "no objects".

    >>> import cv2, numpy
    >>> png = cv2.imencode(".png", numpy.zeros((2, 2), numpy.uint16))[1].tobytes()
    >>> decode_answer(png, limits=ImageLimits()).pixels.max()
    np.uint16(0)

    Raises:
        BadInput: one of its kinds.
    """
    return _decode(data, read_header(data, limits=limits), "decode")


def decode_reference(data: bytes, *, limits: ImageLimits) -> RasterImage:
    """Decode with Pillow wherever Pillow keeps every bit; the same pixels as `decode`, bit for bit."""
    return _not_constant(_decode(data, read_header(data, limits=limits), "decode_reference"))


def _decode(data: bytes, header: Header, how: str) -> RasterImage:
    source = header.source
    decoder: Any = getattr(_DECODERS[source.format], how)
    try:
        decoded = decoder(data, header)
    except IsocenterError:
        raise
    except Exception as exc:
        refuse(source.format, exc, len(data))
    if decoded.pixels.shape[:2] != (source.height_px, source.width_px):
        shape = [*decoded.pixels.shape]
        raise BadImage(f"the header announces {source.width_px} x {source.height_px}", details={"decoded": shape})
    pixels.refuse_non_finite(decoded.pixels)
    upright, turned = pixels.upright(decoded.pixels, header.orientation)
    return RasterImage(np.ascontiguousarray(upright), source, header.notes + decoded.notes + turned)


def _not_constant(image: RasterImage) -> RasterImage:
    pixels.refuse_constant(image.pixels)
    return image


def read_header(data: bytes, *, limits: ImageLimits) -> Header:
    """Everything that is known before decoding, within the limits.

    Raises:
        BadInput: one of its kinds, as `decode`.
    """
    limits.check_bytes(len(data))
    name = sniff(data)
    try:
        header: Header = _HEADERS[name].read_header(data)
    except IsocenterError:
        raise
    except Exception as exc:
        refuse(name, exc, len(data))
    check_header(header, len(data), limits)
    return header


def soon_read(data: bytes) -> bool:
    """Whether a file's header is read at once: headers of others may hold tens of thousands of entries.

    >>> import cv2, numpy
    >>> soon_read(cv2.imencode(".png", numpy.eye(5, dtype=numpy.uint8))[1].tobytes())
    True

    Raises:
        MissingImage, UnsupportedMedia: it is none that is read at all.
    """
    few_pieces = _SOON_READ.get(sniff(data))
    return few_pieces is not None and few_pieces(data)


def check_header(header: Header, size: int, limits: ImageLimits) -> None:
    """See that what a header announces is within the limits, for a file of `size` bytes.

    Raises:
        BadImage, TooManyPixels: there are no pixels; there are too many, or they cannot be in so few bytes.
    """
    width, height = header.source.width_px, header.source.height_px
    found = {"width_px": width, "height_px": height}
    if width < 1 or height < 1:
        raise BadImage(f"the header announces {width} x {height} pixels", details=found)
    limits.check_size(width, height, header.decoded_bytes, said="the header announces", done="decoded")
    announced = header.announced_bytes
    if announced > limits.expansion_from_bytes and announced > limits.max_expansion * size:
        raise TooManyPixels(
            f"the header announces {announced} bytes of samples in a file of {size}:"
            f" more than {limits.max_expansion} to one is a bomb or a lie",
            details={**found, "announced_bytes": announced, "bytes": size, "limit_expansion": limits.max_expansion},
        )


def refuse(name: str, exc: Exception, size: int) -> NoReturn:
    """The one seam: what a library said becomes ours, with its cause kept.

    Raises:
        BadImage, TruncatedImage, TooManyPixels: always one of them.
    """
    said = f"{type(exc).__name__}: {exc}".split(" at 0x")[0][:200]
    if isinstance(exc, MemoryError):
        raise TooManyPixels(f"the {name.upper()} does not fit into memory", details={"bytes": size}) from exc
    if isinstance(exc, EOFError) or _CUT.search(said):
        raise TruncatedImage(f"the {name.upper()} ends before its pixels do ({said})", details={"bytes": size}) from exc
    raise BadImage(f"the {name.upper()} is broken ({said})", details={"bytes": size}) from exc
