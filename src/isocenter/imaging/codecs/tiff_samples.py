"""TIFF strips and tiles to samples, all of a picture or a stretch of it: expanded as plain bytes, the rest in NumPy.

LZW, PackBits and Zstandard are expanded by libtiff (through Pillow), shown to it as an 8-bit gray image whose rows are
the bytes of the real rows. Predictor, byte order, packed bits and planes follow here, one meaning each, so no
combination loses bits. What is cut is refused; nothing is ever filled with zeros.
"""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import TiffImagePlugin

from isocenter.core.errors import BadImage, TruncatedImage
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import jpeg, tiff
from isocenter.imaging.codecs.ifd import Readable
from isocenter.imaging.codecs.tiff import TiffHeader
from isocenter.imaging.codecs.tiff_directory import LONG, SHORT, Values, directory

_BY_LIBTIFF = (tiff.LZW, tiff.PACKBITS, tiff.ZSTD)
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # the last byte of the segment says what the colours are
_BEYOND_BYTES = 64
_AS_RGB, _AS_YCBCR = b"\x00", b"\x01"


class Stretch(NamedTuple):
    """From one edge to before another, in pixels."""

    start: int
    stop: int


class _Piece(NamedTuple):
    """A strip, a tile, or a part of a plain strip: where it lies in the file, and its bytes once expanded."""

    offset: int
    packed: int
    needed: int


def samples_of(
    data: Readable, header: TiffHeader, rows: Stretch | None = None, columns: Stretch | None = None
) -> Array:
    """HxWxS of all rows and columns or some, in the machine's byte order, before any meaning is given to them.

    Only strips and tiles that lie there are read.

    Raises:
        TruncatedImage, BadImage: a strip or tile is cut, or is not what the header says.
    """
    rows = rows or Stretch(0, header.source.height_px)
    columns = columns or Stretch(0, header.source.width_px)
    planes = header.channels if header.planar else 1
    per_plane = len(header.blocks) // planes
    samples = header.channels // planes
    read = _tiles if header.tiled else _strips
    parts = [
        read(data, header, header.blocks[plane * per_plane : (plane + 1) * per_plane], samples, rows, columns)
        for plane in range(planes)
    ]
    return parts[0] if planes == 1 else np.concatenate(parts, axis=2)


def _strips(
    data: Readable,
    header: TiffHeader,
    blocks: Sequence[tuple[int, int]],
    samples: int,
    rows: Stretch,
    columns: Stretch,
) -> Array:
    row_bytes = _row_bytes(header, samples)
    height, block_rows = header.source.height_px, header.block_height
    first, last = rows.start // block_rows, -(-rows.stop // block_rows)
    top = first * block_rows
    pieces = []
    for number in range(first, last):
        offset, count = blocks[number]
        start, stop = number * block_rows, min(height, (number + 1) * block_rows)
        if header.compression == tiff.PLAIN:  # a strip may be the whole picture: no more than is asked for
            start, stop = max(start, rows.start), min(stop, rows.stop)
            skipped = (start - number * block_rows) * row_bytes
            offset, count, top = offset + skipped, max(0, count - skipped), rows.start
        pieces.append(_Piece(offset, count, (stop - start) * row_bytes))
    values = _values(data, header, pieces, samples)
    return values.reshape(-1, header.block_width, samples)[
        rows.start - top : rows.stop - top, columns.start : columns.stop
    ]


def _tiles(
    data: Readable,
    header: TiffHeader,
    blocks: Sequence[tuple[int, int]],
    samples: int,
    rows: Stretch,
    columns: Stretch,
) -> Array:
    tall, wide = header.block_height, header.block_width
    across = -(-header.source.width_px // wide)
    up, down = rows.start // tall, -(-rows.stop // tall)
    left, right = columns.start // wide, -(-columns.stop // wide)
    needed = tall * _row_bytes(header, samples)
    pieces = [
        _Piece(*blocks[row * across + column], needed) for row in range(up, down) for column in range(left, right)
    ]
    values = _values(data, header, pieces, samples).reshape(down - up, right - left, tall, wide, samples)
    joined = values.swapaxes(1, 2).reshape((down - up) * tall, (right - left) * wide, samples)
    inside = joined[
        rows.start - up * tall : rows.stop - up * tall, columns.start - left * wide : columns.stop - left * wide
    ]
    return np.ascontiguousarray(inside)


def _row_bytes(header: TiffHeader, samples: int) -> int:
    return (header.block_width * samples * header.source.bits + 7) // 8


def _values(data: Readable, header: TiffHeader, pieces: Sequence[_Piece], samples: int) -> Array:
    if header.compression == tiff.JPEG:
        return np.concatenate([_from_jpeg(data, header, piece, samples) for piece in pieces])
    stored = _expand(data, header, pieces, _row_bytes(header, samples))
    return _typed(stored, header, header.block_width * samples, samples)


def _typed(stored: Array, header: TiffHeader, columns: int, samples: int) -> Array:
    """Rows of bytes to rows of samples: packed bits, byte order, predictor (TIFF 6.0 section 14; TechNote 3)."""
    bits = header.source.bits
    if bits == 12:
        return _from_twelve(stored)[:, :columns]
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


def _from_twelve(stored: Array) -> Array:
    """Three bytes hold two samples, the most significant bits first; a row begins with a byte."""
    full = np.pad(stored, ((0, 0), (0, -stored.shape[1] % 3))).astype(np.uint16)
    first, middle, last = full[:, 0::3], full[:, 1::3], full[:, 2::3]
    return np.stack([first << 4 | middle >> 4, (middle & 15) << 8 | last], axis=2).reshape(len(stored), -1)


def _expand(data: Readable, header: TiffHeader, pieces: Sequence[_Piece], row_bytes: int) -> Array:
    """The bytes of all rows, strips and tiles one below the other."""
    rows = sum(piece.needed for piece in pieces) // row_bytes
    if header.compression in _BY_LIBTIFF:
        tags = {tiff.WIDTH: [row_bytes], tiff.HEIGHT: [rows], tiff.BITS: [8], tiff.COMPRESSION: [header.compression]}
        tags |= {tiff.PHOTOMETRIC: [1], tiff.SAMPLES: [1], tiff.ROWS_PER_STRIP: [header.block_height]}
        file = write_tiff("<", tags, [data[piece.offset : piece.offset + piece.packed] for piece in pieces])
        with TiffImagePlugin.TiffImageFile(io.BytesIO(file)) as image:
            return np.array(image)
    stored = np.empty((rows, row_bytes), np.uint8)
    flat = stored.reshape(-1)
    at = 0
    for piece in pieces:
        block = _part(data, piece)
        body = (
            block[: piece.needed]
            if header.compression == tiff.PLAIN
            else _inflated(block, piece.needed, header.block_height * row_bytes)
        )
        if len(body) < piece.needed:
            raise TruncatedImage(
                f"the TIFF is cut: a strip or tile holds {len(body)} of {piece.needed} bytes",
                details={"bytes": len(body), "needed": piece.needed},
            )
        flat[at : at + piece.needed] = np.frombuffer(body, np.uint8)
        at += piece.needed
    return stored


def _part(data: Readable, piece: _Piece) -> memoryview:
    """Without a copy where the file is in memory."""
    end = piece.offset + piece.packed
    return memoryview(data)[piece.offset : end] if isinstance(data, bytes) else memoryview(data[piece.offset : end])


def _inflated(block: memoryview, needed: int, full: int) -> bytes:
    """The bytes of a stream that are needed, of the full number of a strip or tile: the last strip may be filled up."""
    inflater = zlib.decompressobj()
    body = inflater.decompress(block, needed)
    # A stream that ends here shows its checksum, and raises. One whose checksum is cut off is taken as it is, but not
    # if it goes on: broken codes do, and nothing else would tell.
    more = b"" if inflater.eof else inflater.decompress(inflater.unconsumed_tail, full - needed + _BEYOND_BYTES)
    if more and not inflater.eof:
        raise BadImage(
            f"a strip or tile goes on beyond its {needed} bytes, and no checksum ends it", details={"needed": needed}
        )
    return body


def _from_jpeg(data: Readable, header: TiffHeader, piece: _Piece, samples: int) -> Array:
    """One strip or tile, made a JPEG of its own by the tables that it shares (TIFF TechNote 2)."""
    rows = piece.needed // _row_bytes(header, samples)
    stream = bytes(_part(data, piece))
    if stream[:2] != b"\xff\xd8" or (header.tables and header.tables[:2] != b"\xff\xd8"):
        raise BadImage("a strip or tile of a TIFF with JPEG compression does not start as a JPEG")
    tables = header.tables[2:].removesuffix(b"\xff\xd9")
    body = stream[2:]
    if header.photometric == tiff.RGB and body[:2] == b"\xff\xe0":  # JFIF would say YCbCr
        body = body[2 + int.from_bytes(body[2:4], "big") :]
    colours = _ADOBE + (_AS_RGB if header.photometric == tiff.RGB else _AS_YCBCR) if samples == 3 else b""
    whole = b"".join((b"\xff\xd8", colours, tables, body))
    found = jpeg.read_header(whole)
    if header.photometric == tiff.RGB and found.subsampled:
        raise BadImage("a TIFF of red, green and blue whose JPEG holds fewer samples of some: they are no such colours")
    size = found.source.height_px, found.source.width_px, found.channels
    if size[1:] != (header.block_width, samples) or not rows <= size[0] <= header.block_height:
        raise BadImage(
            f"a strip or tile holds a JPEG of {size[1]} x {size[0]} pixels and {size[2]} channels,"
            f" {header.block_width} x {rows} and {samples} are announced",
            details={"width_px": size[1], "height_px": size[0], "channels": size[2]},
        )
    return jpeg.decode(whole, found).pixels.reshape(size)[:rows].reshape(rows, -1)


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
    table = {tag: Values(LONG if max(numbers) > 65535 else SHORT, numbers) for tag, numbers in tags.items()}
    table |= {where: Values(LONG, offsets), counts: Values(LONG, [len(block) for block in blocks])}
    odd = at & 1
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at + odd)
    return b"".join((head, *blocks, bytes(odd), directory(table, at + odd, order=order)))
