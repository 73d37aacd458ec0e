"""What a header says of the time that decoding takes, and which headers are read at once."""

import math
import struct
import zlib

import numpy as np
import pytest

from image_writers import pattern, png_bytes, png_chunk, png_rows, saved
from isocenter.imaging.codecs.raster import read_header, soon_read
from isocenter.imaging.limits import ImageLimits

LIMITS = ImageLimits()
RNG = np.random.default_rng(5)
RGB, GRAY = pattern(RNG, 24, 40, 3), pattern(RNG, 24, 40)
RUNS = (
    struct.pack("<2sIHHI", b"BM", 0, 0, 0, 1078)
    + struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, 0, 0, 0, 0, 0)
    + bytes(1024)
    + b"\x08\x01" * 8
)
JPEG, PNG = saved(RGB, "jpeg"), saved(RGB, "png")
IN_BYTES = b"".join(png_chunk(b"IDAT", bytes([byte])) for byte in zlib.compress(png_rows(RGB, 8)))


@pytest.mark.parametrize(
    ("data", "effort_pixels"),
    [
        (saved(RGB, "jpeg"), 24 * 40),
        (saved(GRAY, "jpeg"), 24 * 40),
        (saved(RGB, "jpeg", progressive=True), math.inf),
        (saved(RGB, "jpeg").replace(b"\xff\xda\x00\x0c\x03", b"\xff\xda\x00\x08\x01"), math.inf),
        (saved(RGB, "png"), 4 * 24 * 40),
        (saved(GRAY, "png"), 4 / 3 * 24 * 40),
        (saved(RGB, "bmp"), 24 * 40),
        (RUNS, math.inf),
        (saved(RGB, "webp", lossless=True), math.inf),
        (saved(RGB, "tiff"), math.inf),
    ],
    ids=["jpeg", "gray jpeg", "progressive", "a scan each", "png", "gray png", "bmp", "run-length bmp", "webp", "tiff"],
)
def test_a_header_says_how_long_decoding_takes_or_nothing(data: bytes, effort_pixels: float) -> None:
    assert read_header(data, limits=LIMITS).effort_pixels == effort_pixels


@pytest.mark.parametrize(
    ("data", "soon"),
    [
        (JPEG, True),
        (JPEG[:2] + b"\xff\xfe\x00\x02" * 50 + JPEG[2:], True),
        (JPEG[:2] + b"\xff\xfe\x00\x02" * 70 + JPEG[2:], False),
        (JPEG[:2] + b"\xff" * 70 + JPEG[2:], False),
        (JPEG[:20], True),
        (PNG, True),
        (png_bytes(40, 24, 8, 2, png_rows(RGB, 8), between=[png_chunk(b"tEXt", b"")] * 70), False),
        (png_bytes(40, 24, 8, 2, b"").replace(png_chunk(b"IDAT", zlib.compress(b"")), IN_BYTES), False),
        (PNG[:30], True),
        (saved(RGB, "bmp"), True),
        (saved(RGB, "tiff"), False),
    ],
    ids=[
        "jpeg",
        "jpeg, 50 comments",
        "jpeg, 70 comments",
        "jpeg, 70 fill bytes",
        "cut jpeg",
        "png",
        "png, 70 texts",
        "png, a chunk for each byte",
        "cut png",
        "bmp",
        "tiff",
    ],
)
def test_a_header_of_many_pieces_is_not_read_at_once(data: bytes, soon: bool) -> None:
    assert soon_read(data) is soon


def test_a_jpeg_that_says_often_that_it_holds_several_pictures_is_believed_once() -> None:
    several = b"\xff\xe2\x00\x06MPF\x00"
    notes = read_header(JPEG[:2] + several * 60 + JPEG[2:], limits=LIMITS).notes
    assert [note.code for note in notes] == ["first_picture_of_several"]
