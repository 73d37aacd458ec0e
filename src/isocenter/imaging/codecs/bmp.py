"""Windows and OS/2 bitmaps: 1 to 32 bits per pixel, run-length codes included."""

import io
import math
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
    """Pillow reads the rest."""

    run_lengths: bool
    colours: int
    """Of the palette; 0 if the samples are colours themselves."""
    offset: int
    """Where the rows begin."""

    @property
    def effort_pixels(self) -> float:
        """They only have to be copied, unless runs have to be expanded."""
        return math.inf if self.run_lengths else self.source.width_px * self.source.height_px


def read_header(data: bytes) -> BmpHeader:
    """Read both headers and the palette, and see that the rows are all there."""
    if len(data) < 26:
        raise _truncated("the header is cut", len(data))
    offset, size = struct.unpack_from("<II", data, 10)
    if size not in (12, 16, 40, 52, 56, 64, 108, 124):
        raise BadImage(f"a bitmap header of {size} bytes, which no version has", details={"header_bytes": size})
    if len(data) < 14 + size + 12:
        raise _truncated("the header is cut", len(data))
    compression, said_bytes = _PLAIN, 0
    if size == 12:
        width, height, planes, depth = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, planes, depth = struct.unpack_from("<iiHH", data, 18)
        compression, said_bytes = struct.unpack_from("<II", data, 30) if size >= 40 else (_PLAIN, 0)
    if compression not in _DEPTHS:
        raise UnsupportedMedia(f"a BMP with compression {compression}", details={"compression": compression})
    if depth not in _DEPTHS[compression]:
        raise BadImage(f"{depth} bits per pixel with compression {compression}", details={"bits": depth})
    if width < 0 or height == -(2**31):
        raise BadImage(f"a size of {width} x {height}", details={"width_px": width, "height_px": height})
    if planes != 1:
        raise BadImage(f"{planes} colour planes; a BMP has one", details={"planes": planes})
    colours = _colours(data, size, depth, compression, offset)
    mode = _palette_mode(data, size, colours) if colours else _colour_mode(data, size, depth, compression)
    header = BmpHeader(
        source=SourceInfo("bmp", mode, width, abs(height), min(depth, 8)),
        channels=max(1, depth // 8),
        run_lengths=compression in (_RLE8, _RLE4),
        colours=colours,
        offset=offset,
    )
    _check_body(data, header, depth, said_bytes)
    return header


def decode(data: bytes, header: BmpHeader) -> Decoded:
    """Pillow, in both paths."""
    _check_indices(data, header)
    if header.run_lengths and header.source.mode == "1":
        return _black_and_white_runs(data, header)
    with BmpImagePlugin.BmpImageFile(io.BytesIO(data)) as image:
        if image.size != (header.source.width_px, header.source.height_px):
            raise BadImage("the header announces another size than was decoded")
        if header.run_lengths and image.mode in ("P", "L"):  # of a ramp of grays, samples are indices too
            _refuse_beyond(int(np.array(image).max(initial=0)), header)
        if image.mode == "P":
            note = Note("palette_expanded", "palette indices were replaced by their colours")
            return Decoded(np.array(image.convert("RGB")), (note,))
        if image.mode == "1":
            return Decoded(np.array(image.convert("L")))
        pixels = np.array(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB"))
    return over_black(pixels[..., :3], pixels[..., 3]) if pixels.ndim == 3 and pixels.shape[2] == 4 else Decoded(pixels)


decode_reference = decode


def _black_and_white_runs(data: bytes, header: BmpHeader) -> Decoded:
    """Pillow takes any index but 0 for white, unless the palette is another one: a byte of it is changed."""
    palette = 14 + int.from_bytes(data[14:18], "little")
    with BmpImagePlugin.BmpImageFile(io.BytesIO(data[:palette] + b"\x01" + data[palette + 1 :])) as image:
        indices = np.array(image)
    _refuse_beyond(int(indices.max(initial=0)), header)
    return Decoded(indices * np.uint8(255))


def _colours(data: bytes, size: int, depth: int, compression: int, offset: int) -> int:
    """How many colours the palette has, 0 without one; it lies between the header and the rows."""
    begins = 14 + size
    if size == 40:
        begins += {_BITFIELDS: 12, _ALPHA_BITFIELDS: 16}.get(compression, 0)
    colours = 0
    if depth <= 8:
        colours = 2**depth
        if size == 12:  # these have no number of colours, and may have fewer than their bits can tell
            colours = min(colours, max(0, offset - begins) // _entry_bytes(size))
        elif size >= 40:
            colours = int.from_bytes(data[46:50], "little") or colours
        if not 0 < colours <= 2**depth:
            raise BadImage(f"a palette of {colours} colours for {depth} bits", details={"colours": colours})
        begins += colours * _entry_bytes(size)
    if offset < begins:
        raise BadImage(
            f"the rows begin at byte {offset}, within the header or its palette, which end at {begins}",
            details={"offset": offset, "least": begins},
        )
    return colours


def _palette_mode(data: bytes, size: int, colours: int) -> str:
    """Pillow's word for the samples: a palette that is a plain ramp of grays counts as gray."""
    ramp = _TWO_GRAYS if colours == 2 else _GRAYS[:colours]
    entry = _entry_bytes(size)
    palette = np.frombuffer(data[14 + size : 14 + size + entry * len(ramp)], np.uint8)
    gray = len(palette) == entry * len(ramp) and bool((palette.reshape(-1, entry)[:, :3] == ramp[:, None]).all())
    return "P" if not gray else "1" if colours == 2 else "L"


def _colour_mode(data: bytes, size: int, depth: int, compression: int) -> str:
    with_alpha = compression in (_BITFIELDS, _ALPHA_BITFIELDS) and size >= 56 and data[66:70] != b"\0\0\0\0"
    return "RGBA" if with_alpha and depth == 32 else "RGB"


def _entry_bytes(size: int) -> int:
    return 3 if size == 12 else 4


def _check_body(data: bytes, header: BmpHeader, depth: int, said_bytes: int) -> None:
    if header.run_lengths:
        if len(data) > _MAX_RUN_LENGTH_BYTES:
            raise UnsupportedMedia(
                f"a run-length coded BMP of {len(data)} bytes; up to {_MAX_RUN_LENGTH_BYTES} are read",
                details={"bytes": len(data), "limit": _MAX_RUN_LENGTH_BYTES},
            )
        return
    width, height = header.source.width_px, header.source.height_px
    rows_bytes = (width * depth + 31) // 32 * 4 * height
    needed = header.offset + rows_bytes
    if needed > len(data):
        raise TruncatedImage(
            f"the BMP is cut: its rows need {needed} bytes, the file has {len(data)}",
            details={"bytes": len(data), "needed": needed},
        )
    # Some writers leave out what pads the rows, pad the file, or count the whole file.
    least, most = (width * depth + 7) // 8 * height, rows_bytes + 3
    if said_bytes and said_bytes != len(data) and not least <= said_bytes <= most:
        raise BadImage(
            f"{width} x {height} pixels of {depth} bits are {rows_bytes} bytes of rows, the header says {said_bytes}",
            details={"bytes": said_bytes, "needed": rows_bytes},
        )


def _check_indices(data: bytes, header: BmpHeader) -> None:
    """See that rows of whole or half bytes name no colour beyond the palette."""
    source, depth = header.source, header.source.bits
    if header.run_lengths or not header.colours or depth not in (4, 8) or header.colours >= 2**depth:
        return
    stride = (source.width_px * depth + 31) // 32 * 4
    rows = np.frombuffer(data, np.uint8, stride * source.height_px, header.offset).reshape(-1, stride)
    indices = rows if depth == 8 else np.stack([rows >> 4, rows & 15], axis=-1).reshape(len(rows), -1)
    _refuse_beyond(int(indices[:, : source.width_px].max(initial=0)), header)


def _refuse_beyond(highest: int, header: BmpHeader) -> None:
    if highest >= header.colours:
        raise BadImage(
            f"index {highest} is beyond the palette of {header.colours}",
            details={"index": highest, "palette": header.colours},
        )


def _truncated(what: str, size: int) -> TruncatedImage:
    return TruncatedImage(f"the BMP is cut: {what} ({size} bytes)", details={"bytes": size})
