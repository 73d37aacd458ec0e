"""Image files written by hand, bit by bit, for the formats whose corners no library writes."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[Any]
Rng = np.random.Generator

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def pattern(rng: Rng, height: int, width: int, channels: int = 1, *, dtype: str = "uint8") -> Pixels:
    """Smooth shapes and some noise over the whole range of the type (0 to 1 for floats); HxW for one channel."""
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(channels):
        a, b, c = rng.uniform(3, 20, 3)
        planes.append(0.5 + 0.25 * np.sin(x / a + c) + 0.2 * np.cos(y / b) + rng.normal(0, 0.02, (height, width)))
    unit = np.clip(np.stack(planes, -1), 0, 1)
    if np.dtype(dtype).kind != "f":
        unit = np.round(unit * np.iinfo(dtype).max)
    samples: Pixels = unit.astype(dtype)
    return samples[..., 0] if channels == 1 else samples


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk with the right CRC."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_bytes(
    width: int, height: int, bits: int, colour: int, rows: bytes, *, between: Sequence[bytes] = (), interlace: int = 0
) -> bytes:
    """A PNG from filtered rows (each starts with its filter byte), with chunks between header and pixels."""
    ihdr = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace))
    return PNG_MAGIC + ihdr + b"".join(between) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def png_rows(samples: Pixels, bits: int) -> bytes:
    """Unfiltered PNG rows of HxW or HxWxC samples."""
    height = len(samples)
    if bits == 16:
        packed = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    elif bits == 8:
        packed = samples.astype(np.uint8).reshape(height, -1)
    else:
        packed = pack_bits(samples.reshape(height, -1), bits)
    return np.concatenate([np.zeros((height, 1), np.uint8), packed], axis=1).tobytes()


def pack_bits(values: Pixels, bits: int) -> Pixels:
    """Rows of small numbers to rows of bytes, most significant first, each row padded."""
    spread = (values[..., None].astype(np.uint8) >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
    packed: Pixels = np.packbits(spread.reshape(len(values), -1), axis=1)
    return packed


def tiff_bytes(
    samples: Pixels,
    *,
    order: str = "<",
    bits: int | None = None,
    photometric: int | None = None,
    compression: int = 1,
    rows_per_strip: int | None = None,
    planar: bool = False,
    extra: Sequence[int] = (),
    more: dict[int, Sequence[int]] | None = None,
    next_offset: int = 0,
) -> bytes:
    """A TIFF of HxW or HxWxC samples, written by hand; compression 1 (plain), 8 (deflate) or 32773 (PackBits)."""
    cube = samples.reshape(*samples.shape[:2], -1)
    height, width, channels = cube.shape
    depth = bits or cube.dtype.itemsize * 8
    byte_order = np.dtype(order + cube.dtype.str[1:])
    rows = rows_per_strip or height
    blocks = []
    for plane in np.split(cube, channels, axis=2) if planar else [cube]:
        ordered = plane.astype(byte_order).reshape(height, -1)
        raw = pack_bits(ordered, depth) if depth < 8 else np.ascontiguousarray(ordered).view(np.uint8)
        strips = [raw[top : top + rows] for top in range(0, height, rows)]
        blocks += [_packed_strip(strip, compression) for strip in strips]
    kind = {"u": 1, "i": 2, "f": 3}[cube.dtype.kind]
    tags: dict[int, Sequence[int]] = {
        256: [width],
        257: [height],
        258: [depth] * channels,
        259: [compression],
        262: [photometric if photometric is not None else (2 if channels >= 3 else 1)],
        277: [channels],
        278: [rows],
        284: [2 if planar else 1],
        339: [kind] * channels,
    }
    if extra:
        tags[338] = extra
    return tiff_file(order, tags | (more or {}), blocks, next_offset=next_offset)


def tiff_file(order: str, tags: dict[int, Sequence[int]], blocks: Sequence[bytes], *, next_offset: int = 0) -> bytes:
    """Lay out a one-directory TIFF; strip offsets and counts are added unless the tags already hold them."""
    offsets = [8 + sum(len(block) for block in blocks[:index]) for index in range(len(blocks))]
    table: dict[int, Sequence[int]] = {273: offsets, 279: [len(block) for block in blocks]} | dict(tags)
    body = b"".join(blocks)
    body += b"\0" * (len(body) & 1)
    values_at = 8 + len(body) + 2 + 12 * len(table) + 4
    entries, values = struct.pack(order + "H", len(table)), b""
    for tag, numbers in sorted(table.items()):
        wide = max(numbers) > 65535 or tag in (273, 279)
        packed = struct.pack(f"{order}{len(numbers)}{'I' if wide else 'H'}", *numbers)
        entries += struct.pack(order + "HHI", tag, 4 if wide else 3, len(numbers))
        if len(packed) > 4:
            entries += struct.pack(order + "I", values_at + len(values))
            values += packed + b"\0" * (len(packed) & 1)
        else:
            entries += packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return (
        magic
        + struct.pack(order + "I", 8 + len(body))
        + body
        + entries
        + struct.pack(order + "I", next_offset)
        + values
    )


def saved(samples: Pixels, file_format: str, mode: str | None = None, **options: Any) -> bytes:
    """What Pillow writes."""
    image = Image.fromarray(samples)
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, file_format, **options)
    return out.getvalue()


def exif_block(orientation: int, order: str = "<") -> bytes:
    """An EXIF block (without its "Exif" prefix) that holds one orientation."""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


def _packed_strip(strip: Pixels, compression: int) -> bytes:
    if compression == 8:
        return zlib.compress(strip.tobytes())
    if compression == 32773:
        rows = []
        for row in strip:
            data = row.tobytes()
            pieces = [data[at : at + 128] for at in range(0, len(data), 128)]
            rows += [bytes([len(piece) - 1]) + piece for piece in pieces]
        return b"".join(rows)
    return strip.tobytes()


def run_length_bmp(indices: Pixels, palette: bytes) -> bytes:
    """A BMP of runs of one index each; four bytes a colour."""
    height, width = indices.shape
    runs = b"".join(b"".join(bytes([1, int(v)]) for v in row) + b"\0\0" for row in indices[::-1]) + b"\0\1"
    offset, colours = 54 + len(palette), len(palette) // 4
    start = struct.pack("<2sIHHI", b"BM", offset + len(runs), 0, 0, offset)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, colours, 0)
    return start + header + palette + runs
