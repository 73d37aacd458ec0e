"""WebP: lossy, lossless, with alpha; one frame.

A bit flip inside the lossy code gives other pixels and no error: the format carries no checksum.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import WebPImagePlugin

from isocenter.core.errors import BadImage, MultiFrameImage, TruncatedImage
from isocenter.imaging.codecs.header import Decoded, Header
from isocenter.imaging.codecs.ifd import read_orientation
from isocenter.imaging.codecs.pixels import over_black
from isocenter.imaging.image import SourceInfo

_MAX_CHUNKS = 4096
_ANIMATED = 0x02


@dataclass(frozen=True, slots=True, kw_only=True)
class WebpHeader(Header):
    """How much of the data belongs to the file."""

    end: int


def read_header(data: bytes) -> WebpHeader:
    """Walk the RIFF chunks."""
    if len(data) < 20:
        raise _truncated("the header is cut", len(data))
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise _truncated(f"it announces {end} bytes", len(data))
    chunks: dict[bytes, bytes] = {}
    frames = 0
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > end:
            break
        name, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > end:
            raise _truncated(f"a chunk at byte {at} ends beyond the file", len(data))
        frames += name == b"ANMF"
        keep = length if name == b"EXIF" else 10
        chunks.setdefault(name, data[at + 8 : at + 8 + min(length, keep)])
        at += 8 + length + (length & 1)
    canvas = chunks.get(b"VP8X")
    if b"ANIM" in chunks or b"ANMF" in chunks or (canvas and canvas[0] & _ANIMATED):
        raise MultiFrameImage(f"the WebP is animated, with {frames} frames", details={"frames": frames})
    width, height, has_alpha = _size(chunks)
    if canvas is not None:
        _check_canvas(canvas, width, height)
        has_alpha = has_alpha or b"ALPH" in chunks
    orientation, notes = read_orientation(chunks[b"EXIF"]) if b"EXIF" in chunks else (1, ())
    return WebpHeader(
        source=SourceInfo("webp", "RGBA" if has_alpha else "RGB", width, height, 8),
        channels=4 if has_alpha else 3,
        orientation=orientation,
        notes=notes,
        end=end,
    )


def decode(data: bytes, header: WebpHeader) -> Decoded:
    """Pillow (libwebp), in both paths."""
    with WebPImagePlugin.WebPImageFile(io.BytesIO(data[: header.end])) as image:
        if image.size != (header.source.width_px, header.source.height_px):
            raise BadImage("the header announces another size than was decoded")
        pixels = np.array(image)
    return over_black(pixels[..., :3], pixels[..., 3]) if pixels.shape[2] == 4 else Decoded(pixels)


decode_reference = decode


def _size(chunks: dict[bytes, bytes]) -> tuple[int, int, bool]:
    """Width, height and alpha from the image chunk itself (RFC 9649, 2.5 and 3.4)."""
    lossy, lossless = chunks.get(b"VP8 "), chunks.get(b"VP8L")
    if lossy is not None and len(lossy) == 10 and lossy[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", lossy, 6)
        return width & 0x3FFF, height & 0x3FFF, False
    if lossless is not None and len(lossless) >= 5 and lossless[0] == 0x2F:
        bits = int.from_bytes(lossless[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    raise BadImage("the WebP holds no readable image chunk")


def _check_canvas(canvas: bytes, width: int, height: int) -> None:
    if len(canvas) < 10:
        raise BadImage("the WebP's canvas chunk is too short")
    said = (int.from_bytes(canvas[4:7], "little") + 1, int.from_bytes(canvas[7:10], "little") + 1)
    if said != (width, height):
        raise BadImage(
            f"the canvas announces {said[0]} x {said[1]} pixels, the image {width} x {height}",
            details={"canvas_px": [*said], "image_px": [width, height]},
        )


def _truncated(what: str, size: int) -> TruncatedImage:
    return TruncatedImage(f"the WebP is cut: {what} ({size} bytes)", details={"bytes": size})
