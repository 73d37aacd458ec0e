"""One small, readable file in every format and mode that is read; the same for the same seed."""

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

import cv2
import numpy as np

from image_writers import (
    Pixels,
    Rng,
    exif_block,
    pattern,
    png_bytes,
    png_chunk,
    png_rows,
    run_length_bmp,
    saved,
    tiff_bytes,
)


def originals(seed: int) -> list[tuple[str, bytes]]:
    """Named files, 160 to 18,000 bytes each."""
    return [*_originals(seed)]


@cache
def _originals(seed: int) -> tuple[tuple[str, bytes], ...]:
    rng = np.random.default_rng([seed, 1])
    gray, rgb = pattern(rng, 40, 56), pattern(rng, 40, 56, 3)
    gray16, rgb16 = pattern(rng, 40, 56, dtype="uint16"), pattern(rng, 40, 56, 3, dtype="uint16")
    return (
        *_jpegs(gray, rgb),
        *_pngs(rng, gray, rgb, gray16, rgb16),
        *_tiffs(rng, gray, rgb, gray16, rgb16),
        *_bmps(gray, rgb),
        *_webps(rng, gray, rgb),
    )


def _jpegs(gray: Pixels, rgb: Pixels) -> Iterator[tuple[str, bytes]]:
    yield "jpeg-gray", saved(gray, "JPEG", quality=90)
    yield "jpeg-420", saved(rgb, "JPEG", quality=85, subsampling=2)
    yield "jpeg-422", saved(rgb, "JPEG", quality=85, subsampling=1)
    yield "jpeg-444", saved(rgb, "JPEG", quality=95, subsampling=0)
    yield "jpeg-progressive", saved(rgb, "JPEG", progressive=True)
    yield "jpeg-gray-progressive", saved(gray, "JPEG", progressive=True)
    yield "jpeg-cmyk", saved(rgb, "JPEG", mode="CMYK")
    yield "jpeg-rgb", saved(rgb, "JPEG", keep_rgb=True)
    for orientation in range(1, 9):
        block = b"Exif\0\0" + exif_block(orientation, "<" if orientation % 2 else ">")
        yield f"jpeg-exif-{orientation}", saved(rgb, "JPEG", exif=block)
    restarts = [cv2.IMWRITE_JPEG_RST_INTERVAL, 4]
    yield "jpeg-restarts", cv2.imencode(".jpg", rgb, restarts)[1].tobytes()
    yield "jpeg-trailing-garbage", saved(gray, "JPEG") + b"appended by a scanner" * 5


def _pngs(rng: Rng, gray: Pixels, rgb: Pixels, gray16: Pixels, rgb16: Pixels) -> Iterator[tuple[str, bytes]]:
    height, width = gray.shape
    for bits in (1, 2, 4, 8):
        yield f"png-gray-{bits}", png_bytes(width, height, bits, 0, png_rows(gray >> (8 - bits), bits))
    yield "png-gray-16", png_bytes(width, height, 16, 0, png_rows(gray16, 16))
    alpha = pattern(rng, height, width)
    alpha16 = pattern(rng, height, width, dtype="uint16")
    yield "png-gray-alpha", png_bytes(width, height, 8, 4, png_rows(np.dstack([gray, alpha]), 8))
    yield "png-gray-alpha-16", png_bytes(width, height, 16, 4, png_rows(np.dstack([gray16, alpha16]), 16))
    yield "png-rgb", saved(rgb, "PNG")
    yield "png-rgb-16", png_bytes(width, height, 16, 2, png_rows(rgb16, 16))
    yield "png-rgba", saved(np.dstack([rgb, alpha]), "PNG")
    yield "png-rgba-opaque", saved(np.dstack([rgb, np.full_like(alpha, 255)]), "PNG")
    yield "png-rgba-16", png_bytes(width, height, 16, 6, png_rows(np.dstack([rgb16, alpha16]), 16))
    for bits in (1, 2, 4, 8):
        palette = png_chunk(b"PLTE", rng.integers(0, 256, 3 * 2**bits, np.uint8).tobytes())
        clear = png_chunk(b"tRNS", bytes([0, 128]))
        rows = png_rows(gray >> (8 - bits), bits)
        yield f"png-palette-{bits}", png_bytes(width, height, bits, 3, rows, between=[palette])
        yield f"png-palette-{bits}-trns", png_bytes(width, height, bits, 3, rows, between=[palette, clear])
    for bits in (1, 2, 4, 8):
        key = 0 if bits == 1 else int((gray >> (8 - bits))[3, 3])
        clear = png_chunk(b"tRNS", struct.pack(">H", key))
        yield (
            f"png-gray-{bits}-trns",
            png_bytes(width, height, bits, 0, png_rows(gray >> (8 - bits), bits), between=[clear]),
        )
    clear = png_chunk(b"tRNS", struct.pack(">3H", *(int(v) for v in rgb[3, 3])))
    yield "png-rgb-trns", png_bytes(width, height, 8, 2, png_rows(rgb, 8), between=[clear])
    clear = png_chunk(b"tRNS", struct.pack(">3H", *(int(v) for v in rgb16[3, 3])))
    yield "png-rgb-16-trns", png_bytes(width, height, 16, 2, png_rows(rgb16, 16), between=[clear])
    yield "png-exif", png_bytes(width, height, 8, 0, png_rows(gray, 8), between=[png_chunk(b"eXIf", exif_block(6))])
    noise = rng.integers(0, 256, (9, 5), np.uint8)
    yield "png-interlaced", _interlaced(noise)
    text = png_chunk(b"tEXt", b"Comment\0harmless")
    yield "png-text", png_bytes(width, height, 8, 0, png_rows(gray, 8), between=[text])


def _interlaced(gray: Pixels) -> bytes:
    starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = [gray[y::dy, x::dx] for x, y, dx, dy in starts]
    rows = b"".join(png_rows(part, 8) for part in passes if part.size)
    return png_bytes(gray.shape[1], gray.shape[0], 8, 0, rows, interlace=1)


def _tiffs(rng: Rng, gray: Pixels, rgb: Pixels, gray16: Pixels, rgb16: Pixels) -> Iterator[tuple[str, bytes]]:
    real = pattern(rng, *rgb.shape[:2], dtype="float32")
    for order, name in (("<", "little"), (">", "big")):
        for compression, how in ((1, "plain"), (8, "deflate"), (32773, "packbits")):
            layout: dict[str, Any] = {"order": order, "compression": compression, "rows_per_strip": 16}
            yield f"tiff-gray-{name}-{how}", tiff_bytes(gray, **layout)
            yield f"tiff-gray-16-{name}-{how}", tiff_bytes(gray16, **layout)
            yield f"tiff-float-{name}-{how}", tiff_bytes(real, **layout)
            yield f"tiff-rgb-{name}-{how}", tiff_bytes(rgb, **layout)
            yield f"tiff-rgb-16-{name}-{how}", tiff_bytes(rgb16, **layout)
    for bits in (1, 2, 4):
        yield f"tiff-gray-{bits}", tiff_bytes(gray >> (8 - bits), bits=bits)
        yield f"tiff-white-{bits}", tiff_bytes(gray >> (8 - bits), bits=bits, photometric=0)
    yield "tiff-white-8", tiff_bytes(gray, photometric=0)
    yield "tiff-white-16", tiff_bytes(gray16, photometric=0)
    yield "tiff-signed-16", tiff_bytes((gray16.astype("int32") - 32768).astype("int16"))
    yield "tiff-int-32", tiff_bytes(gray16.astype("int32") - 32768)
    yield "tiff-uint-32", tiff_bytes(gray16.astype("uint32"))
    yield "tiff-half", tiff_bytes(real.astype("float16"))
    yield "tiff-double", tiff_bytes(real.astype("float64"))
    yield "tiff-planar", tiff_bytes(rgb, planar=True, rows_per_strip=16)
    yield "tiff-planar-16", tiff_bytes(rgb16, planar=True, rows_per_strip=9)
    alpha = pattern(rng, *rgb.shape[:2])
    yield "tiff-rgba", tiff_bytes(np.dstack([rgb, alpha]), extra=[2])
    yield "tiff-rgbx", tiff_bytes(np.dstack([rgb, alpha]), extra=[0])
    yield "tiff-gray-alpha", tiff_bytes(np.dstack([gray, alpha]), extra=[2])
    yield "tiff-premultiplied", tiff_bytes(np.dstack([np.minimum(rgb, alpha[..., None]), alpha]), extra=[1])
    yield "tiff-cmyk", tiff_bytes(np.dstack([rgb, alpha]), photometric=5)
    colours = [int(v) for v in rng.integers(0, 65536, 3 * 256)]
    yield "tiff-palette", tiff_bytes(gray, photometric=3, more={320: colours})
    yield "tiff-palette-4", tiff_bytes(gray >> 4, bits=4, photometric=3, more={320: colours[: 3 * 16]})
    yield "tiff-orientation", tiff_bytes(rgb, more={274: [8]})
    yield "tiff-lzw", saved(gray, "TIFF", compression="tiff_lzw")
    yield "tiff-lzw-rgb-16", cv2.imencode(".tiff", rgb16, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    yield "tiff-lzw-predictor", saved(rgb, "TIFF", compression="tiff_lzw", tiffinfo={317: 2})
    yield "tiff-lzw-16-predictor", saved(gray16, "TIFF", compression="tiff_lzw", tiffinfo={317: 2})
    yield "tiff-deflate-float-predictor", saved(real, "TIFF", compression="tiff_adobe_deflate", tiffinfo={317: 3})
    yield "tiff-written-by-opencv", cv2.imencode(".tiff", rgb)[1].tobytes()


def _bmps(gray: Pixels, rgb: Pixels) -> Iterator[tuple[str, bytes]]:
    yield "bmp-gray", saved(gray, "BMP")
    yield "bmp-rgb", saved(rgb, "BMP")
    yield "bmp-1", saved(gray, "BMP", mode="1")
    yield "bmp-palette", saved(rgb, "BMP", mode="P")
    yield "bmp-rgba", saved(np.dstack([rgb, gray]), "BMP")
    height, width, _ = rgb.shape
    header = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 54)
    top_down = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, 0, 0, 0, 0, 0)
    rows = np.ascontiguousarray(rgb[..., ::-1]).tobytes()
    yield "bmp-top-down", header + top_down + rows
    rgb15 = (rgb[..., 0].astype("u2") >> 3 << 10 | rgb[..., 1].astype("u2") >> 3 << 5 | rgb[..., 2] >> 3).astype("<u2")
    yield "bmp-16", header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 0, 0, 0, 0, 0, 0) + rgb15.tobytes()
    core = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 26) + struct.pack("<IHHHH", 12, width, height, 1, 24)
    yield "bmp-os2", core + rows
    yield "bmp-rle8", run_length_bmp(gray, b"".join(bytes([i, 255 - i, i // 2, 0]) for i in range(256)))
    yield "bmp-rle8-black-and-white", run_length_bmp(gray >> 7, b"\0\0\0\0\xff\xff\xff\0")


def _webps(rng: Rng, gray: Pixels, rgb: Pixels) -> Iterator[tuple[str, bytes]]:
    yield "webp-lossy", saved(rgb, "WEBP", quality=80)
    yield "webp-gray", saved(gray, "WEBP", mode="RGB", quality=80)
    yield "webp-lossless", saved(rgb, "WEBP", lossless=True)
    alpha = pattern(rng, *rgb.shape[:2])
    yield "webp-alpha", saved(np.dstack([rgb, alpha]), "WEBP", quality=80)
    yield "webp-alpha-lossless", saved(np.dstack([rgb, alpha]), "WEBP", lossless=True, exact=True)
    yield "webp-exif", saved(rgb, "WEBP", exif=exif_block(3))
