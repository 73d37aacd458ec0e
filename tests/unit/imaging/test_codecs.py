"""What each format and mode decodes to, and that both decoders agree bit for bit."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from image_writers import (
    exif_block,
    pattern,
    png_bytes,
    png_chunk,
    png_rows,
    run_length_bmp,
    saved,
    tiff_bytes,
    tiff_file,
)
from isocenter.core.errors import (
    BadImage,
    BadInput,
    EmptyInput,
    MissingImage,
    MultiFrameImage,
    NonFinitePixels,
    TooManyBytes,
    TooManyPixels,
    TruncatedImage,
    UnsupportedMedia,
)
from isocenter.imaging.codecs.pixels import rgb_from_cmyk, times_over_full, upright
from isocenter.imaging.codecs.raster import decode, decode_reference, peek
from isocenter.imaging.image import RasterImage
from isocenter.imaging.limits import ImageLimits
from mutations import lies, originals

LIMITS = ImageLimits()
RNG = np.random.default_rng(20)
GRAY, RGB = pattern(RNG, 24, 40), pattern(RNG, 24, 40, 3)
GRAY16, RGB16 = pattern(RNG, 24, 40, dtype="uint16"), pattern(RNG, 24, 40, 3, dtype="uint16")
REAL = pattern(RNG, 24, 40, dtype="float32")
ALPHA, ALPHA16 = pattern(RNG, 24, 40), pattern(RNG, 24, 40, dtype="uint16")

Pixels = npt.NDArray[Any]


def read(data: bytes) -> RasterImage:
    return decode(data, limits=LIMITS)


def codes(image: RasterImage) -> list[str]:
    return [note.code for note in image.notes]


@pytest.mark.parametrize(("name", "data"), [pytest.param(*case, id=case[0]) for case in originals(4)])
def test_both_decoders_give_the_same_bits(name: str, data: bytes) -> None:
    fast, reference = read(data), decode_reference(data, limits=LIMITS)
    assert fast.pixels.dtype == reference.pixels.dtype
    assert np.array_equal(fast.pixels, reference.pixels)
    assert (fast.source, fast.notes) == (reference.source, reference.notes)


@pytest.mark.parametrize(("name", "data"), [pytest.param(*case, id=case[0]) for case in originals(5)])
def test_the_header_alone_says_the_same_as_the_decoded_image(name: str, data: bytes) -> None:
    image = read(data)
    assert peek(data, limits=LIMITS) == image.source
    assert image.pixels.flags.c_contiguous
    assert image.pixels.dtype in (np.uint8, np.uint16, np.float32)
    assert {image.source.width_px, image.source.height_px} == set(image.pixels.shape[:2])


EXACT: list[tuple[str, bytes, Pixels]] = [
    ("png gray", saved(GRAY, "PNG"), GRAY),
    ("png rgb", saved(RGB, "PNG"), RGB),
    ("png gray 16", png_bytes(40, 24, 16, 0, png_rows(GRAY16, 16)), GRAY16),
    ("png rgb 16 keeps 16 bits", png_bytes(40, 24, 16, 2, png_rows(RGB16, 16)), RGB16),
    ("png 1 bit is 0 and 255", png_bytes(40, 24, 1, 0, png_rows(GRAY >> 7, 1)), (GRAY >> 7) * 255),
    ("png 2 bits go to 0..255", png_bytes(40, 24, 2, 0, png_rows(GRAY >> 6, 2)), (GRAY >> 6) * 85),
    ("png 4 bits go to 0..255", png_bytes(40, 24, 4, 0, png_rows(GRAY >> 4, 4)), (GRAY >> 4) * 17),
    ("tiff 1 bit", tiff_bytes(GRAY >> 7, bits=1), (GRAY >> 7) * 255),
    ("tiff 4 bits", tiff_bytes(GRAY >> 4, bits=4), (GRAY >> 4) * 17),
    ("tiff white is zero", tiff_bytes(GRAY, photometric=0), 255 - GRAY),
    ("tiff white is zero, 16 bits", tiff_bytes(GRAY16, photometric=0), 65535 - GRAY16),
    ("tiff white is zero, big-endian", tiff_bytes(GRAY16, photometric=0, order=">"), 65535 - GRAY16),
    ("tiff rgb 16 big-endian", tiff_bytes(RGB16, order=">"), RGB16),
    ("tiff rgb 16 in planes", tiff_bytes(RGB16, planar=True, rows_per_strip=7), RGB16),
    ("tiff float", tiff_bytes(REAL), REAL),
    ("tiff float big-endian deflate", tiff_bytes(REAL, order=">", compression=8), REAL),
    ("tiff packbits 16", tiff_bytes(GRAY16, compression=32773, rows_per_strip=5), GRAY16),
    ("tiff int16 as float32", tiff_bytes(GRAY16.astype(np.int16)), GRAY16.astype(np.int16).astype(np.float32)),
    ("tiff int32 as float32", tiff_bytes(GRAY16.astype(np.int32) - 9), (GRAY16.astype(np.int32) - 9).astype("f4")),
    ("tiff lzw by Pillow", saved(RGB, "TIFF", compression="tiff_lzw"), RGB),
    ("tiff lzw with predictor", saved(GRAY16, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}), GRAY16),
    ("tiff float predictor", saved(REAL, "TIFF", compression="tiff_adobe_deflate", tiffinfo={317: 3}), REAL),
    ("bmp gray", saved(GRAY, "BMP"), GRAY),
    ("bmp rgb", saved(RGB, "BMP"), RGB),
    ("bmp runs of black and white", run_length_bmp(GRAY >> 7, b"\0\0\0\0\xff\xff\xff\0"), (GRAY >> 7) * 255),
    ("webp lossless", saved(RGB, "WEBP", lossless=True), RGB),
]


@pytest.mark.parametrize(("data", "expected"), [pytest.param(*case[1:], id=case[0]) for case in EXACT])
def test_lossless_files_give_exactly_their_samples(data: bytes, expected: Pixels) -> None:
    pixels = read(data).pixels
    assert pixels.dtype == expected.dtype
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("compression", [5, 8], ids=["lzw", "deflate"])
def test_16_bit_colour_tiffs_by_opencv_keep_16_bits(compression: int) -> None:
    data = cv2.imencode(".tiff", RGB16, [cv2.IMWRITE_TIFF_COMPRESSION, compression])[1].tobytes()
    assert np.array_equal(read(data).pixels, RGB16[..., ::-1])


def test_tiled_tiffs_are_put_together() -> None:
    tiles = [GRAY[:16, :16], GRAY[:16, 16:32], np.pad(GRAY[:16, 32:], ((0, 0), (0, 8)))]
    tiles += [np.pad(GRAY[16:, at : at + 16], ((0, 8), (0, max(0, at + 16 - 40)))) for at in (0, 16, 32)]
    body = np.stack(tiles)
    tags = {322: [16], 323: [16], 324: [8 + 256 * i for i in range(6)], 325: [256] * 6}
    data = tiff_bytes(body.reshape(-1, 16), more={256: [40], 257: [24], **tags})
    assert np.array_equal(read(data).pixels, GRAY)


@pytest.mark.parametrize("side", [4096, 16384, 65536])
def test_a_tile_far_larger_than_its_image_is_refused_before_it_is_unpacked(side: int) -> None:
    body = zlib.compress(bytes(side * min(side, 4096)), 9)
    tags = {259: [8], 322: [side], 323: [side], 324: [8], 325: [len(body)]}
    data = tiff_file("<", {256: [16], 257: [16], 258: [8], 262: [1], 277: [1], 339: [1], **tags}, [body])
    limits = ImageLimits(max_decoded_bytes=4096 * 4095)

    with pytest.raises((TooManyPixels, BadImage)) as refusal:
        decode(data, limits=limits)

    assert refusal.value.details


def test_signed_offsets_are_not_read_from_the_end_of_the_file() -> None:
    data = bytearray(tiff_bytes(GRAY))
    at = data.index(struct.pack("<HHI", 273, 4, 1))
    data[at : at + 12] = struct.pack("<HHIi", 273, 9, 1, -GRAY.size - 40)

    with pytest.raises(BadImage):
        read(bytes(data))


@pytest.mark.parametrize(("tag", "kind"), [(258, 3), (273, 4), (320, 3)])
def test_a_tag_that_announces_a_million_values_is_refused_by_its_count(tag: int, kind: int) -> None:
    data = bytearray(tiff_bytes(GRAY, more={320: [0] * 768}) + bytes(5_000_000))
    at = next(at for at in range(len(data)) if data[at : at + 4] == struct.pack("<HH", tag, kind))
    data[at : at + 12] = struct.pack("<HHII", tag, kind, 1_000_000, 8)

    with pytest.raises(BadImage, match=f"tag {tag} announces 1000000 values, at most"):
        read(bytes(data))


def test_a_jpeg_of_several_pictures_is_read_as_its_first_and_says_so() -> None:
    pictures = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    out = io.BytesIO()
    pictures[0].save(out, "MPO", save_all=True, append_images=pictures[1:])

    image = read(out.getvalue())

    assert codes(image) == ["first_picture_of_several"]
    assert np.array_equal(image.pixels, decode_reference(out.getvalue(), limits=LIMITS).pixels)


def test_alpha_is_composited_over_black_and_noted() -> None:
    image = read(saved(np.dstack([RGB, ALPHA]), "PNG"))
    exact = np.floor(RGB.astype(float) * ALPHA[..., None] / 255 + 0.5)
    assert np.array_equal(image.pixels, exact)
    assert codes(image) == ["alpha_composited"]


def test_16_bit_alpha_is_composited_in_16_bits() -> None:
    rows = png_rows(np.dstack([RGB16, ALPHA16]), 16)
    image = read(png_bytes(40, 24, 16, 6, rows))
    exact = np.floor(RGB16.astype(float) * ALPHA16[..., None] / 65535 + 0.5)
    assert np.array_equal(image.pixels, exact)


def test_an_opaque_alpha_channel_is_not_worth_a_note() -> None:
    image = read(saved(np.dstack([RGB, np.full_like(ALPHA, 255)]), "PNG"))
    assert np.array_equal(image.pixels, RGB)
    assert image.notes == ()


def test_a_palette_becomes_its_colours_even_if_they_are_gray() -> None:
    gray_palette = png_chunk(b"PLTE", bytes(v for i in range(256) for v in (i, i, i)))
    image = read(png_bytes(40, 24, 8, 3, png_rows(GRAY, 8), between=[gray_palette]))
    assert np.array_equal(image.pixels, np.dstack([GRAY] * 3))
    assert codes(image) == ["palette_expanded"]


def test_the_transparent_colour_of_a_png_becomes_black() -> None:
    key = int(GRAY[5, 5])
    image = read(png_bytes(40, 24, 8, 0, png_rows(GRAY, 8), between=[png_chunk(b"tRNS", struct.pack(">H", key))]))
    assert np.array_equal(image.pixels, np.where(key == GRAY, 0, GRAY))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_everyone_does(orientation: int) -> None:
    exif = b"Exif\0\0" + exif_block(orientation)
    data = saved(RGB, "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    found = read(data)
    assert np.array_equal(found.pixels, expected)
    assert codes(found) == ([] if orientation == 1 else ["orientation_applied"])


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind them"])
def test_the_exif_block_of_a_png_counts_wherever_it_stands(behind: bool) -> None:
    chunk = png_chunk(b"eXIf", exif_block(6))
    data = png_bytes(40, 24, 8, 0, png_rows(GRAY, 8), between=[] if behind else [chunk])
    found = read(data.replace(png_chunk(b"IEND", b""), chunk + png_chunk(b"IEND", b"")) if behind else data)
    assert np.array_equal(found.pixels, np.rot90(GRAY, -1))
    assert codes(found) == ["orientation_applied"]


def test_two_exif_blocks_of_a_png_are_one_too_many() -> None:
    chunk = png_chunk(b"eXIf", exif_block(6))
    data = png_bytes(40, 24, 8, 0, png_rows(GRAY, 8), between=[chunk])
    with pytest.raises(BadImage, match="two eXIf chunks"):
        read(data.replace(png_chunk(b"IEND", b""), chunk + png_chunk(b"IEND", b"")))


def test_letters_of_a_text_are_no_exif_block() -> None:
    data = png_bytes(40, 24, 8, 0, png_rows(GRAY, 8))
    end = png_chunk(b"IEND", b"")
    assert codes(read(data.replace(end, png_chunk(b"tEXt", b"a\0....eXIf" + exif_block(6)) + end))) == []


def test_orientation_works_in_16_bits_too() -> None:
    found = read(tiff_bytes(GRAY16, more={274: [6]}))
    assert np.array_equal(found.pixels, np.rot90(GRAY16, -1))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_noted_and_ignored(value: int) -> None:
    found = read(tiff_bytes(GRAY, more={274: [value]}))
    assert np.array_equal(found.pixels, GRAY)
    assert codes(found) == ["orientation_ignored"]


def test_an_inverted_tiff_is_inverted_once_and_noted() -> None:
    assert codes(read(tiff_bytes(GRAY, photometric=0))) == ["inverted"]


def test_bytes_after_the_end_of_a_jpeg_do_not_matter() -> None:
    data = saved(GRAY, "JPEG")
    assert np.array_equal(read(data + b"scanner log").pixels, read(data).pixels)


def test_ink_becomes_light() -> None:
    image = read(saved(RGB, "JPEG", mode="CMYK", quality=100))
    assert np.abs(image.pixels.astype(int) - RGB).mean() < 3
    assert codes(image) == ["ink_converted"]


def test_ink_without_adobes_marker_is_not_guessed() -> None:
    data = saved(RGB, "JPEG", mode="CMYK")
    at = data.index(b"\xff\xee")
    with pytest.raises(UnsupportedMedia, match="inverted"):
        read(data[:at] + data[at + 16 :])


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("zero-bytes", MissingImage),
        ("text", UnsupportedMedia),
        ("gif", UnsupportedMedia),
        ("dicom", UnsupportedMedia),
        ("png-animated", MultiFrameImage),
        ("tiff-two-pages", MultiFrameImage),
        ("webp-animated", MultiFrameImage),
        ("png-bomb-30000", TooManyPixels),
        ("png-bomb-8000", TooManyPixels),
        ("png-says-8000x8000", TooManyPixels),
        ("jpeg-says-7000x7000", TooManyPixels),
        ("webp-lossless-says-16384", TooManyPixels),
        ("tiff-deflate-bomb-7000", TooManyPixels),
        ("tiff-4000-strips-of-one-bomb", BadImage),
        ("jpeg-a-thousand-scans", BadImage),
        ("png-rows-missing", TruncatedImage),
        ("png-rows-beyond", BadImage),
        ("png-index-beyond-palette", BadImage),
        ("bmp-says-5000x5000", TruncatedImage),
        ("bmp-pixels-in-the-header", BadImage),
        ("bmp-pixels-in-the-palette", BadImage),
        ("bmp-7-planes", BadImage),
        ("bmp-rows-of-another-size", BadImage),
        ("bmp-says-4x4-of-64-bytes", BadImage),
        ("bmp-300-colours", BadImage),
        ("bmp-os2-without-a-palette", BadImage),
        ("bmp-index-beyond-the-palette", BadImage),
        ("bmp-8-bits-without-a-palette", BadImage),
        ("bmp-rle-index-beyond-a-ramp", BadImage),
        ("bmp-rle-neither-black-nor-white", BadImage),
        ("jpeg-without-end", TruncatedImage),
        ("jpeg-12-bits", UnsupportedMedia),
        ("constant-png-7", EmptyInput),
        ("constant-rgb-7", EmptyInput),
        ("transparent-png", EmptyInput),
        ("tiff-nan", NonFinitePixels),
        ("tiff-int-not-exact", UnsupportedMedia),
    ],
)
def test_a_lie_is_refused_by_its_name(name: str, error: type[BadInput]) -> None:
    data = dict(lies(0))[name]
    with pytest.raises(error) as caught:
        read(data)
    assert type(caught.value) is error
    assert caught.value.details


def test_not_a_number_says_how_many_and_where() -> None:
    real = REAL.copy()
    real[7, 9] = np.nan
    real[8, 1] = np.inf
    with pytest.raises(NonFinitePixels) as caught:
        read(tiff_bytes(real))
    assert caught.value.details == {"count": 2, "row": 7, "column": 9}


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        pytest.param(ImageLimits(max_bytes=100), TooManyBytes, id="bytes"),
        pytest.param(ImageLimits(max_pixels=24 * 40 - 1), TooManyPixels, id="pixels"),
        pytest.param(ImageLimits(max_side_px=39), TooManyPixels, id="side"),
        pytest.param(ImageLimits(max_decoded_bytes=24 * 40 * 3 - 1), TooManyPixels, id="decoded bytes"),
        pytest.param(ImageLimits(expansion_from_bytes=1, max_expansion=0), TooManyPixels, id="expansion"),
    ],
)
def test_limits_hold_before_decoding(limits: ImageLimits, error: type[BadInput]) -> None:
    with pytest.raises(error):
        peek(saved(RGB, "PNG"), limits=limits)


@pytest.mark.parametrize("name", ["jpeg-gray", "jpeg-420", "jpeg-progressive", "png-rgb", "png-gray-16", "webp-lossy"])
def test_a_file_cut_anywhere_is_refused(name: str) -> None:
    data = dict(originals(0))[name]
    for end in range(1, len(data), 7):
        with pytest.raises(BadInput):
            read(data[:end])


@pytest.mark.parametrize("name", ["tiff-gray-little-plain", "tiff-rgb-16-big-deflate", "bmp-rgb", "bmp-rle8"])
def test_a_raw_file_cut_inside_its_pixels_is_refused(name: str) -> None:
    data = dict(originals(0))[name]
    for end in range(60, len(data) - 1, 97):
        with pytest.raises(BadInput):
            read(data[:end])


def test_damage_under_a_right_crc_is_found_by_the_adler_sum() -> None:
    packed = bytearray(zlib.compress(png_rows(GRAY, 8)))
    packed[-1] ^= 1
    ihdr = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 24, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + ihdr + png_chunk(b"IDAT", bytes(packed)) + png_chunk(b"IEND", b"")
    for way in (decode, decode_reference):
        with pytest.raises(BadImage):
            way(data, limits=LIMITS)


def test_the_library_s_own_words_stay_attached_as_the_cause() -> None:
    data = saved(RGB, "JPEG", quality=95)
    with pytest.raises(BadImage) as caught:
        read(data[:-200] + b"\xff\xd9")
    assert isinstance(caught.value.__cause__, Exception)


@given(st.integers(0, 255), st.integers(0, 255))
def test_parts_of_8_bits_round_half_up(value: int, part: int) -> None:
    assert (
        times_over_full(np.array([value], np.uint8), np.array([part], np.uint8))[0] == (2 * value * part + 255) // 510
    )


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_parts_of_16_bits_round_half_up(value: int, part: int) -> None:
    assert (
        times_over_full(np.array([value], np.uint16), np.array([part], np.uint16))[0]
        == (2 * value * part + 65535) // 131070
    )


def test_ink_converts_as_pillow_does() -> None:
    ink = RNG.integers(0, 256, (50, 50, 4), np.uint8)
    assert np.array_equal(rgb_from_cmyk(ink), np.array(Image.fromarray(ink, "CMYK").convert("RGB")))


@given(st.integers(2, 8))
def test_turning_never_loses_a_pixel(orientation: int) -> None:
    turned, notes = upright(RGB, orientation)
    assert sorted(turned.reshape(-1, 3).tolist()) == sorted(RGB.reshape(-1, 3).tolist())
    assert len(notes) == 1
