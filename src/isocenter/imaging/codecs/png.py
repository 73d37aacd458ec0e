"""PNG (ISO/IEC 15948): every colour type and depth, 16 bits kept.

The rows are inflated here, once, and must be exactly those that the header announces: CRCs, Adler-32, length, filter
bytes. The decoders then get a file rebuilt around the stored rows, so neither metadata nor damage ever reaches them.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import PngImagePlugin

from isocenter.core.errors import BadImage, MultiFrameImage, TruncatedImage
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.header import FEW_PIECES, Decoded, Header
from isocenter.imaging.codecs.ifd import read_orientation
from isocenter.imaging.codecs.pixels import over_black
from isocenter.imaging.image import Note, SourceInfo

_MAGIC = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 65_536
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGB_ALPHA: 4}
_DEPTHS = {_GRAY: (1, 2, 4, 8, 16), _PALETTE: (1, 2, 4, 8), _RGB: (8, 16), _GRAY_ALPHA: (8, 16), _RGB_ALPHA: (8, 16)}
_MODES = {_GRAY: "L", _RGB: "RGB", _PALETTE: "P", _GRAY_ALPHA: "LA", _RGB_ALPHA: "RGBA"}
# ISO/IEC 15948, 8.2: first column, first row, column step, row step of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_USED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"acTL", b"fdAT")


@dataclass(frozen=True, slots=True, kw_only=True)
class PngHeader(Header):
    """Colour type, and the small chunks before the pixels."""

    colour: int
    palette: bytes
    transparency: bytes | None

    @property
    def effort_pixels(self) -> float:
        """Three bytes take four times as long as a pixel of a JPEG (measured)."""
        return 4 / 3 * self.decoded_bytes


def read_header(data: bytes) -> PngHeader:
    """Read the chunks before the first IDAT."""
    small: dict[bytes, bytes] = {}
    at = len(_MAGIC)
    for _ in range(_MAX_CHUNKS):
        name, start, end = _chunk(data, at)
        if not small and name != b"IHDR":
            raise BadImage(f"the first chunk is {_shown(name)}, not IHDR")
        if name == b"IDAT":
            if data.find(b"eXIf", end) >= 0:
                small |= _late_exif(data, at, early=b"eXIf" in small)
            return _checked(small)
        if name == b"IEND":
            raise BadImage("the image ends without pixels")
        if name in _USED:
            if end + 4 > len(data):
                raise _truncated(f"chunk {_shown(name)} ends beyond the file", len(data))
            _check_crc(data, at, end, name)
            if name in small:
                raise BadImage(f"two {_shown(name)} chunks")
            small[name] = data[start:end]
        elif not name[0] & 0x20:
            raise BadImage(f"unknown critical chunk {_shown(name)}")
        at = end + 4
    raise BadImage(f"more than {_MAX_CHUNKS} chunks", details={"limit": _MAX_CHUNKS})


def few_chunks(data: bytes) -> bool:
    """Whether it has few chunks in all, those of the pixels included, or soon ends."""
    at = len(_MAGIC)
    for _ in range(FEW_PIECES):
        if at + 12 > len(data):
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False


def _late_exif(data: bytes, at: int, *, early: bool) -> dict[bytes, bytes]:
    """The EXIF block behind the pixels, where some programs write it; nothing if those letters are of other chunks."""
    for _ in range(_MAX_CHUNKS):
        name, start, end = _chunk(data, at)
        if name == b"IEND" or end + 4 > len(data):
            return {}
        if name == b"eXIf":
            _check_crc(data, at, end, name)
            if early:
                raise BadImage("two eXIf chunks")
            return {name: data[start:end]}
        at = end + 4
    return {}


def decode(data: bytes, header: PngHeader) -> Decoded:
    """OpenCV for whole bytes, Pillow for packed bits and palettes."""
    whole = _essential(data, header, with_transparency=False)
    if header.colour == _PALETTE:
        return _from_palette(_pillow(whole), header)
    if header.source.bits < 8:
        return _resolve(_pillow(whole), header)
    return _resolve(_opencv(whole, header), header)


def decode_reference(data: bytes, header: PngHeader) -> Decoded:
    """Pillow, except for 16-bit colour or alpha: there Pillow silently keeps 8 bits only."""
    whole = _essential(data, header, with_transparency=False)
    if header.source.bits == 16 and header.colour != _GRAY:
        return _resolve(_opencv(whole, header), header)
    if header.colour != _PALETTE:
        return _resolve(_pillow(whole), header)
    _from_palette(_pillow(whole), header)  # refuses indices beyond the palette
    with PngImagePlugin.PngImageFile(io.BytesIO(_essential(data, header, with_transparency=True))) as image:
        rgba = np.array(image.convert("RGBA"))
    decoded = over_black(rgba[..., :3], rgba[..., 3])
    return Decoded(decoded.pixels, (_palette_note(), *decoded.notes))


def _checked(small: dict[bytes, bytes]) -> PngHeader:
    ihdr = small.get(b"IHDR", b"")
    if len(ihdr) != 13:
        raise BadImage(f"IHDR has {len(ihdr)} bytes, not 13")
    width, height, bits, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", ihdr)
    if bits not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise BadImage(f"IHDR announces colour type {colour} with {bits} bits, which PNG does not have")
    if b"acTL" in small:
        frames = int.from_bytes(small[b"acTL"][:4], "big")
        if frames > 1:
            raise MultiFrameImage(f"the PNG is animated, with {frames} frames", details={"frames": frames})
    palette = small.get(b"PLTE", b"")
    if colour == _PALETTE and not (0 < len(palette) <= 768 and len(palette) % 3 == 0):
        raise BadImage(f"a palette of {len(palette)} bytes", details={"bytes": len(palette)})
    transparency = small.get(b"tRNS") if colour in (_GRAY, _RGB, _PALETTE) else None
    if transparency is not None and colour != _PALETTE and len(transparency) != 2 * _CHANNELS[colour]:
        raise BadImage(f"tRNS has {len(transparency)} bytes, not {2 * _CHANNELS[colour]}")
    if transparency is not None and colour == _PALETTE and len(transparency) > len(palette) // 3:
        raise BadImage(f"tRNS has {len(transparency)} entries for a palette of {len(palette) // 3}")
    orientation, notes = read_orientation(small[b"eXIf"]) if b"eXIf" in small else (1, ())
    return PngHeader(
        source=SourceInfo("png", _mode(colour, bits), width, height, bits),
        channels=_CHANNELS[colour],
        orientation=orientation,
        notes=notes,
        colour=colour,
        palette=palette,
        transparency=transparency,
    )


def _mode(colour: int, bits: int) -> str:
    return {(_GRAY, 16): "I;16", (_GRAY, 1): "1"}.get((colour, bits), _MODES[colour])


def _essential(data: bytes, header: PngHeader, *, with_transparency: bool) -> bytes:
    """The file rebuilt from what makes its pixels, all of it proven."""
    interlace = data[len(_MAGIC) + 8 + 12]
    rows = _inflated(_pixel_chunks(data), header, interlaced=bool(interlace))
    source = header.source
    ihdr = struct.pack(">IIBBBBB", source.width_px, source.height_px, source.bits, header.colour, 0, 0, interlace)
    chunks = [_packed(b"IHDR", ihdr)]
    if header.colour == _PALETTE:
        chunks.append(_packed(b"PLTE", header.palette))
        if with_transparency and header.transparency:
            chunks.append(_packed(b"tRNS", header.transparency))
    return b"".join((_MAGIC, *chunks, _packed(b"IDAT", zlib.compress(rows, 0)), _packed(b"IEND", b"")))


def _pixel_chunks(data: bytes) -> bytes:
    """The bodies of the IDAT run, joined."""
    pixels: list[bytes] = []
    at = len(_MAGIC)
    ended = False
    for _ in range(_MAX_CHUNKS):
        name, start, end = _chunk(data, at)
        if end + 4 > len(data):
            raise _truncated(f"chunk {_shown(name)} ends beyond the file", len(data))
        if name in _USED:
            _check_crc(data, at, end, name)
        if name == b"IEND":
            return pixels[0] if len(pixels) == 1 else b"".join(pixels)
        if name == b"fdAT":
            raise MultiFrameImage("the PNG is animated: it holds a frame beside its image", details={"frames": 2})
        if name == b"IDAT":
            if ended:
                raise BadImage("the pixel chunks are not in one run")
            pixels.append(data[start:end])
        elif pixels:
            ended = True
        at = end + 4
    raise BadImage(f"more than {_MAX_CHUNKS} chunks", details={"limit": _MAX_CHUNKS})


def _inflated(packed: bytes, header: PngHeader, *, interlaced: bool) -> bytes:
    """The filtered rows: as many as announced, not one byte more, with filters that exist."""
    source = header.source
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    shapes: list[tuple[int, int]] = []
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(source.width_px - x) // step_x), -(-(source.height_px - y) // step_y)
        if columns > 0 and rows > 0:
            shapes.append((rows, 1 + (columns * header.channels * source.bits + 7) // 8))
    needed = sum(rows * row_bytes for rows, row_bytes in shapes)
    inflater = zlib.decompressobj()
    body = inflater.decompress(packed, needed + 1)
    if len(body) != needed or not inflater.eof:
        if len(body) > needed:
            raise BadImage(
                f"the PNG holds more rows than the {source.height_px} of its header",
                details={"needed_bytes": needed, "height_px": source.height_px},
            )
        raise TruncatedImage(
            f"the PNG is cut: its pixels inflate to {len(body)} of {needed} bytes",
            details={"bytes": len(body), "needed": needed},
        )
    at = 0
    for rows, row_bytes in shapes:
        filters = np.frombuffer(body, np.uint8, rows * row_bytes, at)[::row_bytes]
        if filters.max() > 4:
            raise BadImage(f"a row is filtered by method {int(filters.max())}, PNG has 0 to 4")
        at += rows * row_bytes
    return body


def _opencv(whole: bytes, header: PngHeader) -> Array:
    """HxW, HxWx3 (RGB), HxWx2 (gray, alpha) or HxWx4 (RGBA)."""
    raw = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise BadImage("the PNG's pixels cannot be decoded")
    source = header.source
    dtype = np.uint16 if source.bits == 16 else np.uint8
    shape = (source.height_px, source.width_px) + {1: (), 2: (4,), 3: (3,), 4: (4,)}[header.channels]
    if raw.shape != shape or raw.dtype != dtype:
        raise BadImage(f"the header announces {shape} samples, {raw.shape} were decoded")
    if header.channels == 1:
        return raw
    if header.channels == 2:
        return raw[..., [0, 3]]
    return cv2.cvtColor(raw, cv2.COLOR_BGR2RGB if header.channels == 3 else cv2.COLOR_BGRA2RGBA)


def _pillow(whole: bytes) -> Array:
    with PngImagePlugin.PngImageFile(io.BytesIO(whole)) as image:
        pixels = np.array(image)
    return pixels.astype(np.uint8) * np.uint8(255) if pixels.dtype == np.bool_ else pixels


def _resolve(samples: Array, header: PngHeader) -> Decoded:
    """Alpha channels and the one transparent colour, over black."""
    if header.colour == _GRAY_ALPHA:
        return over_black(samples[..., 0], samples[..., 1])
    if header.colour == _RGB_ALPHA:
        return over_black(samples[..., :3], samples[..., 3])
    if header.transparency is None:
        return Decoded(samples)
    key = np.frombuffer(header.transparency, ">u2").astype(np.int64)
    if header.source.bits < 8:
        key = key * (255 // (2**header.source.bits - 1))
    transparent = samples == key[0] if samples.ndim == 2 else (samples == key).all(axis=-1)
    alpha = np.where(transparent, 0, np.iinfo(samples.dtype).max).astype(samples.dtype)
    return over_black(samples, alpha)


def _from_palette(indices: Array, header: PngHeader) -> Decoded:
    colours = np.frombuffer(header.palette, np.uint8).reshape(-1, 3)
    highest = int(indices.max())
    if highest >= len(colours):
        raise BadImage(
            f"index {highest} is beyond the palette of {len(colours)}",
            details={"index": highest, "palette": len(colours)},
        )
    rgb = colours[indices]
    if header.transparency is None:
        return Decoded(rgb, (_palette_note(),))
    alpha = np.full(len(colours), 255, np.uint8)
    alpha[: len(header.transparency)] = np.frombuffer(header.transparency, np.uint8)
    decoded = over_black(rgb, alpha[indices])
    return Decoded(decoded.pixels, (_palette_note(), *decoded.notes))


def _chunk(data: bytes, at: int) -> tuple[bytes, int, int]:
    """Name, start and end of the body of the chunk at a byte."""
    if at + 12 > len(data):
        raise _truncated("there is no IEND chunk", len(data))
    length, name = struct.unpack_from(">I4s", data, at)
    return name, at + 8, at + 8 + length


def _check_crc(data: bytes, at: int, end: int, name: bytes) -> None:
    if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
        raise BadImage(f"the checksum of chunk {_shown(name)} at byte {at} is wrong", details={"offset": at})


def _packed(name: bytes, body: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(body)), name, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))))


def _palette_note() -> Note:
    return Note("palette_expanded", "palette indices were replaced by their colours")


def _shown(name: bytes) -> str:
    return repr(name)[1:]


def _truncated(what: str, size: int) -> TruncatedImage:
    return TruncatedImage(f"the PNG is cut: {what} ({size} bytes)", details={"bytes": size})
