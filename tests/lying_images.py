"""Files that announce what they do not hold, hold what is not announced, or are something else altogether."""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from PIL import Image

from image_writers import (
    PNG_MAGIC,
    Rng,
    pattern,
    png_bytes,
    png_chunk,
    png_rows,
    run_length_bmp,
    saved,
    tiff_bytes,
    tiff_file,
)


def lies(seed: int) -> list[tuple[str, bytes]]:
    """Named files; the bombs among them are small on disk."""
    return [*_lies(seed)]


@cache
def _lies(seed: int) -> tuple[tuple[str, bytes], ...]:
    rng = np.random.default_rng([seed, 2])
    return (
        *_other_types(rng),
        *_png_lies(rng),
        *_jpeg_lies(rng),
        *_tiff_lies(rng),
        *_bmp_lies(rng),
        *_webp_lies(rng),
        *_empty_ones(rng),
    )


def _other_types(rng: Rng) -> Iterator[tuple[str, bytes]]:
    yield "zero-bytes", b""
    yield "one-byte", b"\xff"
    yield "text", b"Patient is well.\n" * 20
    yield "html", b"<!doctype html><title>502 Bad Gateway</title>"
    yield "json", b'{"inputs": []}'
    yield "gzip", gzip.compress(b"\0" * 1000, mtime=0)
    yield "pdf", b"%PDF-1.7\n1 0 obj\n"
    yield "elf", b"\x7fELF\x02\x01\x01" + bytes(60)
    yield "dicom", bytes(128) + b"DICM" + bytes(60)
    yield "nifti", struct.pack("<I", 348) + bytes(340) + b"n+1\0" + bytes(8)
    yield "gif", b"GIF89a\x01\x00\x01\x00\x80\x00\x00\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
    yield "zip", b"PK\x03\x04" + bytes(26)
    yield "jpeg2000", b"\x00\x00\x00\x0cjP  \r\n\x87\n"
    yield "bigtiff", b"II+\0\x08\0\0\0" + bytes(16)
    yield "nul", bytes(4096)
    for name, magic in _MAGICS:
        yield f"{name}-magic-only", magic
        yield f"{name}-magic-then-garbage", magic + rng.bytes(2000)


_MAGICS = (
    ("jpeg", b"\xff\xd8\xff\xe0"),
    ("png", PNG_MAGIC),
    ("tiff-little", b"II*\0"),
    ("tiff-big", b"MM\0*"),
    ("bmp", b"BM"),
    ("webp", b"RIFF\xd8\x07\0\0WEBPVP8 "),
)


def _png_lies(rng: Rng) -> Iterator[tuple[str, bytes]]:
    rows = png_rows(pattern(rng, 8, 8), 8)
    for width, height in ((2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (30_001, 1), (30_000, 30_000), (8000, 8000), (0, 8)):
        yield f"png-says-{width}x{height}", png_bytes(width, height, 8, 0, rows)
        yield f"png-rgb16-says-{width}x{height}", png_bytes(width, height, 16, 6, rows)
    yield "png-2900x2900-without-pixels", png_bytes(2900, 2900, 8, 0, rows)
    yield "png-bomb-30000", _png_of_zeros(30_000, 30_000)
    yield "png-bomb-8000", _png_of_zeros(8000, 8000)
    yield "png-rows-missing", png_bytes(8, 16, 8, 0, rows)
    yield "png-rows-beyond", png_bytes(8, 4, 8, 0, rows)
    yield "png-filter-9", png_bytes(8, 8, 8, 0, b"\x09" + rows[1:])
    yield "png-colour-5", png_bytes(8, 8, 8, 5, rows)
    yield "png-3-bits", png_bytes(8, 8, 3, 0, rows)
    yield "png-no-palette", png_bytes(8, 8, 8, 3, rows)
    yield "png-index-beyond-palette", png_bytes(8, 8, 8, 3, rows, between=[png_chunk(b"PLTE", b"abcdef")])
    yield "png-interlaced-lie", png_bytes(8, 8, 8, 0, rows, interlace=1)
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000)))
    yield "png-text-bomb", png_bytes(8, 8, 8, 0, rows, between=[bomb])
    profile = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(5_000_000)))
    yield "png-profile-bomb", png_bytes(8, 8, 8, 0, rows, between=[profile])
    animated = png_chunk(b"acTL", struct.pack(">II", 3, 0))
    yield "png-animated", png_bytes(8, 8, 8, 0, rows, between=[animated])
    yield "png-many-chunks", png_bytes(8, 8, 8, 0, rows, between=[png_chunk(b"tEXt", b"")] * 70_000)


def _png_of_zeros(width: int, height: int) -> bytes:
    ihdr = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    packed = _deflated_zeros((width + 1) * height)
    return PNG_MAGIC + ihdr + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def _deflated_zeros(count: int) -> bytes:
    """A zlib stream of zeros, made of one flushed megabyte over and over: no time is spent packing."""
    packer = zlib.compressobj(9, wbits=-15)
    megabyte = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    tail = rest.compress(bytes(count % 2**20)) + rest.flush()
    return b"\x78\xda" + megabyte * (count // 2**20) + tail + struct.pack(">HH", count % 65521, 1)


def _jpeg_lies(rng: Rng) -> Iterator[tuple[str, bytes]]:
    gray, progressive = saved(pattern(rng, 32, 32), "JPEG"), saved(pattern(rng, 32, 32), "JPEG", progressive=True)
    for name, data, marker in (("jpeg", gray, b"\xff\xc0"), ("jpeg-progressive", progressive, b"\xff\xc2")):
        at = data.index(marker) + 5
        for height, width in ((65535, 65535), (7000, 7000), (2000, 2000), (0, 32), (32, 0), (1, 1)):
            yield f"{name}-says-{width}x{height}", data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
        yield f"{name}-12-bits", data[: at - 1] + b"\x0c" + data[at:]
        yield f"{name}-9-components", data[: at + 4] + b"\x09" + data[at + 5 :]
        yield f"{name}-lossless", data.replace(marker, b"\xff\xc3", 1)
        yield f"{name}-arithmetic", data.replace(marker, b"\xff\xc9", 1)
        yield f"{name}-without-end", data[:-2]
    start = progressive.index(b"\xff\xda")
    scan = progressive[start : progressive.index(b"\xff", start + 12)]
    yield "jpeg-a-thousand-scans", progressive[:start] + scan * 1000 + b"\xff\xd9"
    yield "jpeg-many-segments", gray[:2] + b"\xff\xfe\x00\x02" * 5000 + gray[2:]
    loop = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(40)
    yield "jpeg-exif-65535-entries", saved(pattern(rng, 32, 32), "JPEG", exif=loop)


def _tiff_lies(rng: Rng) -> Iterator[tuple[str, bytes]]:
    gray = pattern(rng, 8, 8)
    lies_by_tag: dict[str, dict[int, Sequence[int]]] = {
        "width-huge": {256: [2**31]},
        "width-zero": {256: [0]},
        "height-huge": {257: [2**32 - 1]},
        "both-30000": {256: [30_000], 257: [30_000]},
        "both-5000": {256: [5000], 257: [5000]},
        "strips-of-zero-rows": {278: [0]},
        "strips-too-many": {273: [8] * 3000, 279: [64] * 3000},
        "strips-beyond": {273: [2**31]},
        "strip-of-4-gigabytes": {279: [2**32 - 1]},
        "samples-65535": {277: [65535]},
        "samples-0": {277: [0]},
        "bits-64": {258: [64]},
        "bits-7": {258: [7]},
        "jpeg-inside": {259: [7]},
        "fax-inside": {259: [4]},
        "colour-cielab": {262: [8]},
        "predictor-9": {317: [9], 259: [8]},
        "fill-order-2": {266: [2]},
        "tiles-of-nothing": {322: [0], 323: [0], 324: [8], 325: [64]},
        "tiles-huge": {322: [65_520], 323: [65_520], 324: [8], 325: [64]},
        "float-of-8-bits": {339: [3]},
    }
    for name, tags in lies_by_tag.items():
        yield f"tiff-{name}", tiff_bytes(gray, more=tags)
    yield "tiff-next-is-itself", tiff_bytes(gray, next_offset=8 + 64)
    yield "tiff-next-is-far", tiff_bytes(gray, next_offset=2**32 - 2)
    yield "tiff-two-pages", saved(gray, "TIFF", save_all=True, append_images=[Image.fromarray(gray)])
    yield "tiff-directory-beyond", b"II*\0" + struct.pack("<I", 2**31) + bytes(64)
    yield "tiff-directory-at-0", b"II*\0" + bytes(64)
    yield "tiff-65535-entries", b"II*\0\x08\0\0\0\xff\xff" + bytes(64)
    packed = _deflated_zeros(7000 * 7000)
    base: dict[int, Sequence[int]] = {256: [7000], 257: [7000], 258: [8], 259: [8], 262: [1], 277: [1], 278: [7000]}
    yield "tiff-deflate-bomb-7000", tiff_file("<", base, [packed])
    yield "tiff-deflate-bomb-in-8x8", tiff_file("<", base | {256: [8], 257: [8], 278: [8]}, [packed])
    many = {273: [8] * 4000, 279: [len(packed)] * 4000, 257: [4000], 278: [1]}
    yield "tiff-4000-strips-of-one-bomb", tiff_file("<", base | many, [packed])


def _bmp_lies(rng: Rng) -> Iterator[tuple[str, bytes]]:
    whole = saved(pattern(rng, 8, 8, 3), "BMP")
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (-8, 8),
        (8, -(2**31)),
        (30_000, 30_000),
        (0, 8),
        (8, 0),
        (5000, 5000),
    ):
        yield f"bmp-says-{width}x{height}", whole[:18] + struct.pack("<ii", width, height) + whole[26:]
    yield "bmp-header-of-13", whole[:14] + struct.pack("<I", 13) + whole[18:]
    yield "bmp-7-bits", whole[:28] + struct.pack("<H", 7) + whole[30:]
    yield "bmp-compression-4", whole[:30] + struct.pack("<I", 4) + whole[34:]
    yield "bmp-pixels-beyond", whole[:10] + struct.pack("<I", 2**31) + whole[14:]
    yield "bmp-pixels-in-the-header", whole[:10] + struct.pack("<I", 14) + whole[14:]
    yield "bmp-7-planes", whole[:26] + struct.pack("<H", 7) + whole[28:]
    yield "bmp-rows-of-another-size", whole[:34] + struct.pack("<I", 9 * 24) + whole[38:]
    gray = saved(pattern(rng, 8, 8), "BMP")
    yield "bmp-says-4x4-of-64-bytes", gray[:18] + struct.pack("<ii", 4, 4) + gray[26:]
    yield "bmp-pixels-in-the-palette", gray[:10] + struct.pack("<I", 1070) + gray[14:]
    more = 4 * (300 - 256)
    stretched = gray[:10] + struct.pack("<I", 1078 + more) + gray[14:46] + struct.pack("<I", 300) + gray[50:1078]
    yield "bmp-300-colours", stretched + bytes(more) + gray[1078:]
    without = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 26) + struct.pack("<IHHHH", 12, 8, 8, 1, 8)
    yield "bmp-os2-without-a-palette", without + gray[1078:]
    yield "bmp-index-beyond-the-palette", gray[:46] + struct.pack("<I", 2) + gray[50:]
    yield "bmp-8-bits-without-a-palette", whole[:28] + struct.pack("<H", 8) + whole[30:]
    rle = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 1078) + struct.pack(
        "<IiiHHIIiiII", 40, 5000, 5000, 1, 8, 1, 0, 0, 0, 0, 0
    )
    ramp = b"".join(bytes([index, index, index, 0]) for index in range(20))
    yield "bmp-rle-index-beyond-a-ramp", run_length_bmp(np.full((8, 8), 38, np.uint8), ramp)
    neither = run_length_bmp(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3, b"\0\0\0\0\xff\xff\xff\0")
    yield "bmp-rle-neither-black-nor-white", neither
    yield "bmp-rle-says-5000x5000", rle + bytes(1024) + b"\xff\x01" * 50
    yield "bmp-rle-jumps", rle + bytes(1024) + b"\0\x02\xff\xff" * 200


def _webp_lies(rng: Rng) -> Iterator[tuple[str, bytes]]:
    lossy, lossless = saved(pattern(rng, 8, 8, 3), "WEBP"), saved(pattern(rng, 8, 8, 3), "WEBP", lossless=True)
    for side in (16383, 8000, 4000, 0):
        yield f"webp-says-{side}", lossy[:26] + struct.pack("<HH", side, side) + lossy[30:]
    yield "webp-lossless-says-16384", lossless[:21] + struct.pack("<I", 0x0FFFFFFF) + lossless[25:]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (2999).to_bytes(3, "little") * 2
    body = b"WEBP" + canvas + lossy[12:]
    yield "webp-canvas-larger", b"RIFF" + struct.pack("<I", len(body)) + body
    body = b"WEBP" + canvas[:8] + b"\x02" + canvas[9:] + lossy[12:]
    yield "webp-animation-flag", b"RIFF" + struct.pack("<I", len(body)) + body
    yield "webp-size-beyond", lossy[:4] + struct.pack("<I", 2**32 - 2) + lossy[8:]
    frames = [Image.fromarray(pattern(rng, 8, 8, 3)) for _ in range(3)]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=100)
    yield "webp-animated", out.getvalue()
    flat = saved(np.zeros((2000, 2000, 3), np.uint8), "WEBP", lossless=True)
    yield "webp-flat-2000", flat


def _empty_ones(rng: Rng) -> Iterator[tuple[str, bytes]]:
    for value in (0, 7, 255):
        flat = np.full((16, 16), value, np.uint8)
        yield f"constant-png-{value}", saved(flat, "PNG")
        yield f"constant-jpeg-{value}", saved(flat, "JPEG")
        yield f"constant-rgb-{value}", saved(np.dstack([flat, flat * 0 + 9, flat]), "PNG")
    clear = np.dstack([pattern(rng, 16, 16, 3), np.zeros((16, 16), np.uint8)])
    yield "transparent-png", saved(clear, "PNG")
    for name, number in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf)):
        real = pattern(rng, 16, 16, dtype="float32")
        real[3, 5] = number
        yield f"tiff-{name}", tiff_bytes(real)
    yield "tiff-all-nan", tiff_bytes(np.full((8, 8), np.nan, np.float32))
    yield "tiff-int-not-exact", tiff_bytes(np.arange(64, dtype=np.int32).reshape(8, 8) + 2**24)
