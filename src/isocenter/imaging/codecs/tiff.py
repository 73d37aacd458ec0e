"""TIFF 6.0 and BigTIFF: what a header may say, and which samples it promises.

The file's own tag table never reaches a decoder: its tags are read here, checked, and a minimal table is written anew
(`tiff_blocks`). So metadata cannot mislead, warn or loop.
"""

import re
from dataclasses import dataclass

import numpy as np

from isocenter.core.errors import BadImage, MultiFrameImage, TruncatedImage, UnsupportedMedia
from isocenter.imaging.codecs.header import Header
from isocenter.imaging.codecs.ifd import Directory, Layout, Readable, checked_orientation, read_directory, read_layout
from isocenter.imaging.codecs.ome import pictures_of
from isocenter.imaging.image import Note, SourceInfo

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 273, 274, 277, 278, 279
PLANAR, PREDICTOR, COLORMAP, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES = 284, 317, 320, 338, 339, 347
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 322, 323, 324, 325
SUBFILE, DESCRIPTION, BELOW = 254, 270, 330
_DEPTH, _STK_PLANES = 32997, 33629
ALL_THERE_IS = frozenset({SUBFILE, DESCRIPTION, BELOW, _DEPTH, _STK_PLANES})
"""What `refuse_hidden` looks at."""
REDUCED = 1
_STRUCTURE = (WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES, PLANAR, PREDICTOR, ORIENTATION)
_STRIPS = (STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_COUNTS)
_TILES = (TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS)
_WANTED = frozenset((*_STRUCTURE, *_STRIPS, *_TILES, COLORMAP, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES))

PLAIN, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS, ZSTD = 1, 5, 7, 8, 32946, 32773, 50000
_COMPRESSIONS = {PLAIN, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS, ZSTD}
_PREDICTED = {LZW, DEFLATE, OLD_DEFLATE, ZSTD}
_OTHER_COMPRESSIONS = {
    2: "CCITT", 3: "CCITT fax 3", 4: "CCITT fax 4", 6: "old JPEG", 34712: "JPEG 2000", 33003: "JPEG 2000",
    33005: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50001: "WebP", 50002: "JPEG XL", 22610: "JPEG XR",
}  # fmt: skip
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, INK, YCBCR = 0, 1, 2, 3, 5, 6
_COLOUR_SAMPLES = {MIN_IS_WHITE: 1, MIN_IS_BLACK: 1, RGB: 3, PALETTE: 1, INK: 4, YCBCR: 3}
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
_DEPTHS = {UNSIGNED: (1, 2, 4, 8, 12, 16, 32), SIGNED: (8, 16, 32), FLOAT: (16, 32, 64)}
_KINDS = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}
PREMULTIPLIED, STRAIGHT = 1, 2
_CUT_SHORT = re.compile(rb'\{"shape":.*"truncated": true', re.DOTALL)
_MAX_SAMPLES = 64
_MAX_TILE_SIDE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffHeader(Header):
    """The checked tags. `blocks` are (offset, bytes) of strips or tiles, plane after plane when `planar`."""

    order: str
    sample_format: int
    compression: int
    photometric: int
    planar: bool
    predictor: int
    extra: tuple[int, ...]
    colormap: tuple[int, ...]
    tiled: bool
    block_height: int
    block_width: int
    blocks: tuple[tuple[int, int], ...]
    tables: bytes = b""
    """Of JPEG: what all strips or tiles have in common."""

    @property
    def stored_px(self) -> int:
        """Pixels that must be unpacked: tiles stand whole, however little of them the image shows."""
        width, height = self.source.width_px, self.source.height_px
        if not self.tiled:
            return width * height
        return -(-width // self.block_width) * self.block_width * (-(-height // self.block_height) * self.block_height)

    @property
    def announced_bytes(self) -> int:
        """The samples as they lie in the file once unpacked."""
        return max(super(TiffHeader, self).announced_bytes, self.stored_px * self.channels * self.source.bits // 8)

    @property
    def decoded_bytes(self) -> int:
        """The samples in memory, those of tiles beyond the image's edge included."""
        return max(super(TiffHeader, self).decoded_bytes, self.stored_px * self.channels * self.dtype.itemsize)

    @property
    def colour_channels(self) -> int:
        """Samples per pixel without alpha and other extras."""
        return _COLOUR_SAMPLES[self.photometric]

    @property
    def dtype(self) -> "np.dtype[np.generic]":
        """Of the samples as stored; packed bits unpack to uint8, 12 of them to uint16."""
        bits = 16 if self.source.bits == 12 else max(self.source.bits, 8)
        return np.dtype(f"{self.order}{_KINDS[self.sample_format]}{bits // 8}")


def read_header(data: bytes) -> TiffHeader:
    """Read and check the one directory."""
    layout = read_layout(data)
    tags = read_directory(data, _WANTED | ALL_THERE_IS, layout=layout)
    if tags.next_offset:
        raise MultiFrameImage("the TIFF holds more than one page", details={"next_offset": tags.next_offset})
    refuse_hidden(tags)
    if tags.one(SUBFILE, 0) & REDUCED and tags.values.get(BELOW):
        raise UnsupportedMedia("a TIFF whose one page is a smaller copy of what lies below it, as a camera's raw files")
    pictures_of(tags.texts.get(DESCRIPTION, b""), 1)
    return _checked(tags, len(data))


def refuse_hidden(first: Directory) -> None:
    """See that the first page, read with `ALL_THERE_IS`, does not stand for a stack of planes.

    Raises:
        UnsupportedMedia: it does. It would be answered for all of them.
    """
    if (planes := first.one(_DEPTH, 1)) > 1:
        raise UnsupportedMedia(f"a TIFF of {planes} planes in one page", details={"planes": planes})
    if _STK_PLANES in first.fractions or _STK_PLANES in first.values:
        raise UnsupportedMedia("a MetaMorph stack, whose planes have no pages; save it as OME-TIFF")
    if _CUT_SHORT.match(first.texts.get(DESCRIPTION, b"")):
        raise UnsupportedMedia("a stack by tifffile whose planes have no pages; write it without `truncate`")


def read_page(data: Readable, layout: Layout, at: int) -> TiffHeader:
    """Read and check one of several directories."""
    return _checked(read_directory(data, _WANTED, layout=layout, at=at), len(data))


def _checked(tags: Directory, size: int) -> TiffHeader:
    samples = tags.one(SAMPLES, 1)
    photometric, compression = tags.one(PHOTOMETRIC), tags.one(COMPRESSION, PLAIN)
    if compression not in _COMPRESSIONS:
        name = _OTHER_COMPRESSIONS.get(compression, f"number {compression}")
        raise UnsupportedMedia(
            f"a TIFF with {name} compression; plain, LZW, deflate, PackBits, JPEG and Zstandard are read",
            details={"compression": compression},
        )
    if photometric not in _COLOUR_SAMPLES or (photometric == YCBCR and compression != JPEG):
        raise UnsupportedMedia(
            f"a TIFF of colour space {photometric}; gray, RGB, palette, CMYK and YCbCr in JPEG are read",
            details={"photometric": photometric},
        )
    if samples < _COLOUR_SAMPLES[photometric]:
        raise BadImage(
            f"{samples} samples per pixel in colour space {photometric}",
            details={"samples": samples, "photometric": photometric},
        )
    if samples > _MAX_SAMPLES:
        raise UnsupportedMedia(
            f"{samples} samples per pixel, up to {_MAX_SAMPLES} are read; save it as OME-TIFF, a page for each channel",
            details={"samples": samples, "limit": _MAX_SAMPLES},
        )
    if (
        photometric == MIN_IS_WHITE
        and samples > 1
        and not {PREMULTIPLIED, STRAIGHT}.intersection(tags.values.get(EXTRA_SAMPLES, ()))
    ):
        raise UnsupportedMedia(
            f"{samples} samples per pixel of which 0 is white; which one is the picture is not guessed",
            details={"samples": samples, "photometric": photometric},
        )
    if tags.one(FILL_ORDER, 1) != 1:
        raise UnsupportedMedia("a TIFF whose bits are stored backwards (FillOrder 2)")
    bits, sample_format = _sample_type(tags, samples, photometric)
    if compression == JPEG:
        _check_jpeg(samples, bits, sample_format, photometric, planar=tags.one(PLANAR, 1) == 2)
    predictor = tags.one(PREDICTOR, 1) if compression in _PREDICTED else 1
    if compression == PACKBITS and tags.one(PREDICTOR, 1) != 1:
        raise UnsupportedMedia("a TIFF of PackBits with a predictor, which some readers undo and others do not")
    _check_predictor(predictor, bits, sample_format)
    orientation, notes = checked_orientation(tags.one(ORIENTATION, 1))
    width, height = tags.one(WIDTH), tags.one(HEIGHT)
    header = TiffHeader(
        source=SourceInfo("tiff", _mode(photometric, sample_format, bits, tags, samples), width, height, bits),
        channels=samples,
        orientation=orientation,
        notes=(*notes, *_notes(photometric)),
        order=tags.order,
        sample_format=sample_format,
        compression=compression,
        photometric=photometric,
        planar=samples > 1 and tags.one(PLANAR, 1) == 2,
        predictor=predictor,
        extra=tags.values.get(EXTRA_SAMPLES, ())[: samples - _COLOUR_SAMPLES[photometric]],
        colormap=_colormap(tags, bits) if photometric == PALETTE else (),
        tiled=TILE_WIDTH in tags.values,
        block_height=_block_height(tags, height),
        block_width=tags.one(TILE_WIDTH) if TILE_WIDTH in tags.values else width,
        blocks=_blocks(tags),
        tables=tags.texts.get(JPEG_TABLES, b""),
    )
    _check_blocks(header, size)
    return header


def _sample_type(tags: Directory, samples: int, photometric: int) -> tuple[int, int]:
    all_bits, all_formats = set(tags.values.get(BITS, (1,))), set(tags.values.get(SAMPLE_FORMAT, (UNSIGNED,)))
    if len(all_bits) != 1 or len(all_formats) != 1:
        raise UnsupportedMedia("a TIFF whose samples differ in bits or type", details={"bits": [*sorted(all_bits)]})
    bits, sample_format = all_bits.pop(), all_formats.pop()
    sample_format = UNSIGNED if sample_format == 4 else sample_format  # 4: "undefined", read as unsigned
    allowed = bits in _DEPTHS.get(sample_format, ())
    if photometric == PALETTE:
        allowed = bits in (1, 2, 4, 8) and sample_format == UNSIGNED
    elif photometric == INK:
        allowed = bits == 8 and sample_format == UNSIGNED
    elif photometric == MIN_IS_WHITE:
        allowed = allowed and sample_format == UNSIGNED and bits in (1, 2, 4, 8, 16)
    if not allowed or (bits in (1, 2, 4, 12) and samples > 1):
        raise UnsupportedMedia(
            f"a TIFF with {samples} samples of {bits} bits, type {sample_format}, in colour space {photometric}",
            details={"bits": bits, "sample_format": sample_format, "photometric": photometric},
        )
    return bits, sample_format


def _check_jpeg(samples: int, bits: int, sample_format: int, photometric: int, *, planar: bool) -> None:
    gray, colour = photometric == MIN_IS_BLACK and samples == 1, photometric in (RGB, YCBCR) and samples == 3
    if planar and photometric == YCBCR:  # no JPEG holds all three, which would say what light they are
        raise UnsupportedMedia("a TIFF with YCbCr in JPEG, a plane for each", details={"photometric": photometric})
    if (bits, sample_format) != (8, UNSIGNED) or not (gray or colour):
        raise UnsupportedMedia(
            f"a TIFF with JPEG of {samples} samples of {bits} bits in colour space {photometric}; 8-bit gray and"
            " colours are read",
            details={"samples": samples, "bits": bits, "photometric": photometric},
        )


def _check_predictor(predictor: int, bits: int, sample_format: int) -> None:
    fits = {1: True, 2: bits >= 8 and bits != 12 and sample_format != FLOAT, 3: sample_format == FLOAT}
    if not fits.get(predictor, False):
        raise UnsupportedMedia(
            f"a TIFF with predictor {predictor} on samples of {bits} bits",
            details={"predictor": predictor, "bits": bits},
        )


def _mode(photometric: int, sample_format: int, bits: int, tags: Directory, samples: int) -> str:
    if photometric in (MIN_IS_WHITE, MIN_IS_BLACK) and samples == 1:
        if sample_format == FLOAT:
            return "F"
        if bits in (12, 16) and sample_format == UNSIGNED:
            return "I;16"
        if bits > 8 or sample_format == SIGNED:
            return "I"
        return "1" if bits == 1 else "L"
    alpha = any(kind in (PREMULTIPLIED, STRAIGHT) for kind in tags.values.get(EXTRA_SAMPLES, ())[:1])
    name = {RGB: "RGB", YCBCR: "RGB", PALETTE: "P", INK: "CMYK"}.get(photometric, "L")
    return name + ("A" if alpha else "")


def _notes(photometric: int) -> tuple[Note, ...]:
    if photometric == MIN_IS_WHITE:
        return (Note("inverted", "the TIFF says that 0 is white; its samples were inverted once"),)
    return ()


def _colormap(tags: Directory, bits: int) -> tuple[int, ...]:
    colours = tags.values.get(COLORMAP, ())
    if len(colours) != 3 * 2**bits:
        raise BadImage(
            f"a palette of {len(colours)} values, {3 * 2**bits} are needed", details={"values": len(colours)}
        )
    return colours


def _block_height(tags: Directory, height: int) -> int:
    block = tags.one(TILE_HEIGHT) if TILE_WIDTH in tags.values else min(tags.one(ROWS_PER_STRIP, height), height)
    if block < 1 and height > 0:
        raise BadImage(f"strips or tiles of {block} rows", details={"rows": block})
    return max(block, 1)


def _blocks(tags: Directory) -> tuple[tuple[int, int], ...]:
    tiled = TILE_WIDTH in tags.values
    offsets = tags.values.get(TILE_OFFSETS if tiled else STRIP_OFFSETS, ())
    counts = tags.values.get(TILE_COUNTS if tiled else STRIP_COUNTS, ())
    if not offsets or len(offsets) != len(counts):
        raise BadImage(
            f"{len(offsets)} strip or tile offsets and {len(counts)} byte counts",
            details={"offsets": len(offsets), "counts": len(counts)},
        )
    return tuple(zip(offsets, counts, strict=True))


def _check_blocks(header: TiffHeader, size: int) -> None:
    width, height = header.source.width_px, header.source.height_px
    if header.tiled and not 1 <= header.block_width <= _MAX_TILE_SIDE:
        raise BadImage(f"tiles of {header.block_width} columns", details={"columns": header.block_width})
    if header.tiled and header.block_height > _MAX_TILE_SIDE:
        raise BadImage(f"tiles of {header.block_height} rows", details={"rows": header.block_height})
    across = -(-width // header.block_width) if header.tiled else 1
    needed = across * -(-height // header.block_height) * (header.channels if header.planar else 1)
    if len(header.blocks) != needed:
        raise BadImage(
            f"{len(header.blocks)} strips or tiles, {needed} are needed for {width} x {height} pixels",
            details={"blocks": len(header.blocks), "needed": needed},
        )
    total = sum(count for _, count in header.blocks)
    for offset, count in header.blocks:
        if offset + count > size:
            raise TruncatedImage(
                f"the TIFF is cut: a strip or tile ends at byte {offset + count} of {size}",
                details={"end": offset + count, "bytes": size},
            )
    if total > size:
        raise BadImage(
            f"strips or tiles of {total} bytes share the {size} bytes of the file",
            details={"block_bytes": total, "bytes": size},
        )
