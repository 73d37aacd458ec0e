"""Windows and OS/2 bitmaps: 1 to 32 bits per pixel, run-length codes included."""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import BmpImagePlugin

from isocenter.core.errors import BadImage, TruncatedImage, UnsupportedMedia
from isocenter.imaging.codecs.header import Decoded, Header
from isocenter.imaging.codecs.pixels import over_black
from isocenter.imaging.image import Note, SourceInfo

_PLAIN, _RLE8, _RLE4, _BITFIELDS, _ALPHA_BITFIELDS = 0, 1, 2, 3, 6
_DEPTHS = {_PLAIN: (1, 4, 8, 16, 24, 32), _RLE8: (8,), _RLE4: (4,), _BITFIELDS: (16, 32), _ALPHA_BITFIELDS: (16, 32)}
_GRAYS, _TWO_GRAYS = np.arange(256, dtype=np.uint8), np.array([0, 255], np.uint8)
_MAX_RUN_LENGTH_BYTES = 2**20  # Pillow expands runs in Python, about a second per megabyte, holding the GIL


@dataclass(frozen=True, slots=True, kw_only=True)
class BmpHeader(Header):
    """Nothing more is needed: Pillow reads the rest."""

    @property
    def effort_pixels(self) -> float:
        """They only have to be copied."""
        return self.source.width_px * self.source.height_px


def read_header(data: bytes) -> BmpHeader:
    """Read both headers and the palette, and see that the rows are all there."""
    if len(data) < 26:
        raise _truncated("the header is cut", len(data))
    offset, size = struct.unpack_from("<II", data, 10)
    if size not in (12, 16, 40, 52, 56, 64, 108, 124):
        raise BadImage(f"a bitmap header of {size} bytes, which no version has", details={"header_bytes": size})
    if len(data) < 14 + size + 12:
        raise _truncated("the header is cut", len(data))
    compression = _PLAIN
    if size == 12:
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, depth = struct.unpack_from("<iiHH", data, 18)
        compression = int.from_bytes(data[30:34], "little") if size >= 40 else _PLAIN
    if compression not in _DEPTHS:
        raise UnsupportedMedia(f"a BMP with compression {compression}", details={"compression": compression})
    if depth not in _DEPTHS[compression]:
        raise BadImage(f"{depth} bits per pixel with compression {compression}", details={"bits": depth})
    if width < 0 or height == -(2**31):
        raise BadImage(f"a size of {width} x {height}", details={"width_px": width, "height_px": height})
    mode, bits = _mode(data, size, depth, compression, offset)
    header = BmpHeader(source=SourceInfo("bmp", mode, width, abs(height), bits), channels=max(1, depth // 8))
    _check_body(data, header, offset, depth, compression)
    return header


def decode(data: bytes, header: BmpHeader) -> Decoded:
    """Pillow, in both paths."""
    with BmpImagePlugin.BmpImageFile(io.BytesIO(data)) as image:
        if image.size != (header.source.width_px, header.source.height_px):
            raise BadImage("the header announces another size than was decoded")
        if image.mode == "P":
            note = Note("palette_expanded", "palette indices were replaced by their colours")
            return Decoded(np.array(image.convert("RGB")), (note,))
        if image.mode == "1":
            return Decoded(np.array(image.convert("L")))
        pixels = np.array(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB"))
    return over_black(pixels[..., :3], pixels[..., 3]) if pixels.ndim == 3 and pixels.shape[2] == 4 else Decoded(pixels)


decode_reference = decode


def _mode(data: bytes, size: int, depth: int, compression: int, offset: int) -> tuple[str, int]:
    """Pillow's word for the samples: a palette that is a plain ramp of grays counts as gray."""
    if depth > 8:
        with_alpha = compression in (_BITFIELDS, _ALPHA_BITFIELDS) and size >= 56 and data[66:70] != b"\0\0\0\0"
        return ("RGBA" if with_alpha and depth == 32 else "RGB"), 8
    entry = 3 if size == 12 else 4
    count = (int.from_bytes(data[46:50], "little") if size >= 40 else 0) or 2**depth
    ramp = _TWO_GRAYS if count == 2 else _GRAYS[: min(count, 256)]
    palette = np.frombuffer(data[14 + size : min(offset, 14 + size + entry * len(ramp))], np.uint8)
    gray = len(palette) == entry * len(ramp) and bool((palette.reshape(-1, entry)[:, :3] == ramp[:, None]).all())
    return ("P" if not gray else "1" if count == 2 else "L"), depth


def _check_body(data: bytes, header: BmpHeader, offset: int, depth: int, compression: int) -> None:
    if compression in (_RLE8, _RLE4):
        if len(data) > _MAX_RUN_LENGTH_BYTES:
            raise UnsupportedMedia(
                f"a run-length coded BMP of {len(data)} bytes; up to {_MAX_RUN_LENGTH_BYTES} are read",
                details={"bytes": len(data), "limit": _MAX_RUN_LENGTH_BYTES},
            )
        return
    needed = offset + (header.source.width_px * depth + 31) // 32 * 4 * header.source.height_px
    if needed > len(data):
        raise TruncatedImage(
            f"the BMP is cut: its rows need {needed} bytes, the file has {len(data)}",
            details={"bytes": len(data), "needed": needed},
        )


def _truncated(what: str, size: int) -> TruncatedImage:
    return TruncatedImage(f"the BMP is cut: {what} ({size} bytes)", details={"bytes": size})
