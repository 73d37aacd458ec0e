"""TIFF strips and tiles to samples: expanded as plain bytes, then everything else in NumPy.

LZW and PackBits are expanded by libtiff (through Pillow), shown to it as an 8-bit gray image whose rows are the bytes
of the real rows. Predictor, byte order, packed bits, planes and photometric sense follow here, one meaning each, so no
combination loses bits.
"""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import TiffImagePlugin

from isocenter.core.errors import TruncatedImage, UnsupportedMedia
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import tiff
from isocenter.imaging.codecs.header import Decoded
from isocenter.imaging.codecs.pixels import over_black, rgb_from_cmyk
from isocenter.imaging.codecs.tiff import TiffHeader
from isocenter.imaging.image import Note


def decode(data: bytes, header: TiffHeader) -> Decoded:
    """Every combination the header reader lets through."""
    return _meaning(_samples(data, header), header)


def decode_reference(data: bytes, header: TiffHeader) -> Decoded:
    """Pillow's own reading of the modes that it reads whole; the others as `decode`."""
    mode, bits = header.source.mode, header.source.bits
    gray = header.channels == 1 and header.photometric in (tiff.MIN_IS_WHITE, tiff.MIN_IS_BLACK)
    little_or_plain = header.order == "<" or (bits == 16 and header.photometric == tiff.MIN_IS_BLACK)
    whole = (
        (gray and bits <= 8 and header.sample_format == tiff.UNSIGNED)
        or (gray and mode == "I;16" and little_or_plain)
        or (mode == "F" and bits == 32)
        or (mode in ("RGB", "P", "CMYK") and header.channels == header.colour_channels and bits <= 8)
    )
    # Pillow (13.0) swaps the bytes of big-endian floats twice when libtiff expands them.
    swapped_twice = mode == "F" and header.order == ">" and header.compression != tiff.PLAIN
    if not whole or swapped_twice or header.predictor == 3 or (header.planar and header.tiled):
        return decode(data, header)
    _samples(data, header)  # refuses what is short or broken
    with TiffImagePlugin.TiffImageFile(io.BytesIO(_rewritten(data, header))) as image:
        if mode == "P":
            return Decoded(np.array(image.convert("RGB")), (_palette_note(),))
        if mode == "CMYK":
            return Decoded(np.array(image.convert("RGB")), (_ink_note(),))
        pixels = np.array(image.convert("L") if mode == "1" else image)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if mode == "I;16" and header.photometric == tiff.MIN_IS_WHITE:
        pixels = np.uint16(65535) - pixels
    return Decoded(pixels)


def write_tiff(order: str, tags: Mapping[int, Sequence[int]], blocks: Sequence[bytes], *, tiled: bool = False) -> bytes:
    """A minimal one-page TIFF: these tags, these strips or tiles.

    >>> write_tiff("<", {256: [1], 257: [1], 258: [8], 262: [1]}, [b"x"])[:4]
    b'II*\\x00'
    """
    offsets, at = [], 8
    for block in blocks:
        offsets.append(at)
        at += len(block)
    where, counts = (tiff.TILE_OFFSETS, tiff.TILE_COUNTS) if tiled else (tiff.STRIP_OFFSETS, tiff.STRIP_COUNTS)
    table = dict(tags) | {where: offsets, counts: [len(block) for block in blocks]}
    at += at & 1
    values_at = at + 2 + 12 * len(table) + 4
    entries, values = [struct.pack(order + "H", len(table))], b""
    for tag, numbers in sorted(table.items()):
        kind, code = (4, "I") if tag in (where, counts) or max(numbers) > 65535 else (3, "H")
        packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        entries.append(struct.pack(order + "HHI", tag, kind, len(numbers)))
        if len(packed) > 4:
            entries.append(struct.pack(order + "I", values_at + len(values)))
            values += packed + b"\0" * (len(packed) & 1)
        else:
            entries.append(packed.ljust(4, b"\0"))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    body = b"".join((head, *blocks))
    return b"".join((body, b"\0" * (len(body) & 1), *entries, b"\0\0\0\0", values))


def _samples(data: bytes, header: TiffHeader) -> Array:
    """HxWxS in the machine's byte order, before any meaning is given to them."""
    planes = header.channels if header.planar else 1
    per_plane = len(header.blocks) // planes
    interleaved = header.channels // planes
    parts = [
        _plane(data, header, header.blocks[plane * per_plane : (plane + 1) * per_plane], interleaved)
        for plane in range(planes)
    ]
    return parts[0] if planes == 1 else np.concatenate(parts, axis=2)


def _plane(data: bytes, header: TiffHeader, blocks: Sequence[tuple[int, int]], samples: int) -> Array:
    height, width = header.source.height_px, header.source.width_px
    row_bytes = (header.block_width * samples * header.source.bits + 7) // 8
    rows = header.block_height * len(blocks) if header.tiled else height
    stored = _expand(data, header, blocks, rows, row_bytes)
    values = _typed(stored, header, header.block_width * samples, samples)
    if header.tiled:
        across = -(-width // header.block_width)
        values = values.reshape(-1, across, header.block_height, header.block_width, samples)
        values = values.swapaxes(1, 2).reshape(-1, across * header.block_width, samples)[:height, :width]
        return np.ascontiguousarray(values)
    return values.reshape(height, width, samples)


def _typed(stored: Array, header: TiffHeader, columns: int, samples: int) -> Array:
    """Rows of bytes to rows of samples: packed bits, byte order, predictor (TIFF 6.0 section 14; TechNote 3)."""
    bits = header.source.bits
    if bits < 8:
        shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
        spread: Array = (stored[..., None] >> shifts) & np.uint8(2**bits - 1)
        return spread.reshape(len(stored), -1)[:, :columns]
    if header.predictor == 3:
        stored = np.cumsum(stored.reshape(len(stored), -1, samples), axis=1, dtype=np.uint8).reshape(stored.shape)
        stored = np.ascontiguousarray(stored.reshape(len(stored), bits // 8, columns).swapaxes(1, 2))
        return stored.view(header.dtype.newbyteorder(">"))[..., 0].astype(header.dtype.newbyteorder("="))
    values = stored.view(header.dtype)
    values = values.astype(header.dtype.newbyteorder("="), copy=False)
    if header.predictor == 2:
        unsigned = values.view(f"u{bits // 8}").reshape(len(values), -1, samples)
        summed = np.cumsum(unsigned, axis=1, dtype=unsigned.dtype)  # wraps, as it must
        return summed.view(values.dtype).reshape(values.shape)
    return values


def _expand(data: bytes, header: TiffHeader, blocks: Sequence[tuple[int, int]], rows: int, row_bytes: int) -> Array:
    """The bytes of all rows, strips and tiles one below the other."""
    if header.compression in (tiff.LZW, tiff.PACKBITS):
        tags = {tiff.WIDTH: [row_bytes], tiff.HEIGHT: [rows], tiff.BITS: [8], tiff.COMPRESSION: [header.compression]}
        tags |= {tiff.PHOTOMETRIC: [1], tiff.SAMPLES: [1], tiff.ROWS_PER_STRIP: [header.block_height]}
        file = write_tiff("<", tags, [data[offset : offset + count] for offset, count in blocks])
        with TiffImagePlugin.TiffImageFile(io.BytesIO(file)) as image:
            return np.array(image)
    stored = np.empty((rows, row_bytes), np.uint8)
    flat = stored.reshape(-1)
    at = 0
    for offset, count in blocks:
        needed = min(header.block_height * row_bytes, flat.size - at)
        block = memoryview(data)[offset : offset + count]
        body = block[:needed] if header.compression == tiff.PLAIN else _inflated(block, needed)
        if len(body) < needed:
            raise TruncatedImage(
                f"the TIFF is cut: a strip or tile holds {len(body)} of {needed} bytes",
                details={"bytes": len(body), "needed": needed},
            )
        flat[at : at + needed] = np.frombuffer(body, np.uint8)
        at += needed
    return stored


def _inflated(block: memoryview, needed: int) -> bytes:
    inflater = zlib.decompressobj()
    body = inflater.decompress(block, needed)
    if not inflater.eof:
        inflater.decompress(inflater.unconsumed_tail, 64)  # a stream that ends here shows its checksum, and raises
    return body


def _meaning(samples: Array, header: TiffHeader) -> Decoded:
    colour: Array = samples[..., : header.colour_channels]
    bits = header.source.bits
    notes: tuple[Note, ...] = ()
    if header.photometric == tiff.PALETTE:
        table = (np.array(header.colormap, np.uint16) >> 8).astype(np.uint8).reshape(3, -1).T
        colour, notes = table[colour[..., 0]], (_palette_note(),)
    elif header.photometric == tiff.INK:
        colour, notes = rgb_from_cmyk(colour), (_ink_note(),)
    elif bits < 8:
        colour = colour * np.uint8(255 // (2**bits - 1))
    if header.photometric == tiff.MIN_IS_WHITE:
        colour = np.invert(colour)
    if colour.shape[2] == 1:
        colour = colour[..., 0]
    if header.extra[:1] == (tiff.STRAIGHT,):
        alpha = samples[..., header.colour_channels]
        if alpha.dtype not in (np.uint8, np.uint16) or alpha.dtype != colour.dtype:
            raise UnsupportedMedia(f"a TIFF with alpha on samples of {bits} bits", details={"bits": bits})
        decoded = over_black(colour, alpha)
        return Decoded(decoded.pixels, notes + decoded.notes)
    if header.extra[:1] == (tiff.PREMULTIPLIED,):
        notes += (Note("alpha_composited", "samples already multiplied by alpha were taken as they are, over black"),)
    elif header.channels > header.colour_channels:
        notes += (Note("extra_samples_ignored", "samples beside the colour, of no declared meaning, were ignored"),)
    return Decoded(np.ascontiguousarray(_in_three_types(colour)), notes)


def _in_three_types(values: Array) -> Array:
    """uint8 and uint16 stay; everything else becomes float32 if each value survives."""
    if values.dtype in (np.uint8, np.uint16, np.float32):
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(np.float32)
        exact = narrow.astype(np.float64) == values.astype(np.float64)
    lost = ~exact & np.isfinite(values)
    if lost.any():
        worst = values[lost][0].item()
        raise UnsupportedMedia(
            f"{int(lost.sum())} samples of type {values.dtype} have no exact float32 value, the first is {worst}",
            details={"count": int(lost.sum()), "value": worst},
        )
    return narrow


def _rewritten(data: bytes, header: TiffHeader) -> bytes:
    tags: dict[int, Sequence[int]] = {
        tiff.WIDTH: [header.source.width_px],
        tiff.HEIGHT: [header.source.height_px],
        tiff.BITS: [header.source.bits] * header.channels,
        tiff.COMPRESSION: [header.compression],
        tiff.PHOTOMETRIC: [header.photometric],
        tiff.SAMPLES: [header.channels],
        tiff.PLANAR: [2 if header.planar else 1],
        tiff.SAMPLE_FORMAT: [header.sample_format] * header.channels,
    }
    if header.tiled:
        tags |= {tiff.TILE_WIDTH: [header.block_width], tiff.TILE_HEIGHT: [header.block_height]}
    else:
        tags |= {tiff.ROWS_PER_STRIP: [header.block_height]}
    if header.predictor != 1:
        tags |= {tiff.PREDICTOR: [header.predictor]}
    if header.colormap:
        tags |= {tiff.COLORMAP: header.colormap}
    blocks = [data[offset : offset + count] for offset, count in header.blocks]
    return write_tiff(header.order, tags, blocks, tiled=header.tiled)


def _palette_note() -> Note:
    return Note("palette_expanded", "palette indices were replaced by their colours")


def _ink_note() -> Note:
    return Note("ink_converted", "CMYK ink was converted to RGB without a colour profile")
