"""An array is taken as a file with the same pixels would be, or refused; nothing about it is guessed."""

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from isocenter.core.errors import (
    BadImage,
    EmptyInput,
    IsocenterError,
    MultiFrameImage,
    NonFinitePixels,
    TooManyPixels,
    UnsupportedMedia,
)
from isocenter.imaging.array import from_array
from isocenter.imaging.codecs.raster import decode
from isocenter.imaging.limits import ImageLimits

LIMITS = ImageLimits()
RAMP = np.arange(40, dtype=np.uint8).reshape(5, 8)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)


def tiff(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("pixels", "file"),
    [
        pytest.param(RAMP, tiff(RAMP), id="gray"),
        pytest.param(COLOUR, tiff(COLOUR), id="colour"),
        pytest.param(
            RAMP.astype(np.uint16) * 900,
            cv2.imencode(".png", RAMP.astype(np.uint16) * 900)[1].tobytes(),
            id="16 bits",
        ),
        pytest.param(RAMP.astype(np.float32) / 7, tiff(RAMP.astype(np.float32) / 7), id="float32"),
    ],
)
def test_an_array_gives_the_pixels_of_its_file(pixels: Any, file: bytes) -> None:
    taken, decoded = from_array(pixels, limits=LIMITS), decode(file, limits=LIMITS)

    assert taken.pixels.dtype == decoded.pixels.dtype
    np.testing.assert_array_equal(taken.pixels, decoded.pixels)
    assert taken.notes == ()


@pytest.mark.parametrize("kind", ["int16", "float16", "float64", ">f4", ">i2"])
def test_other_types_become_float32_where_each_value_survives(kind: str) -> None:
    taken = from_array(RAMP.astype(kind), limits=LIMITS)

    assert taken.pixels.dtype == np.float32
    np.testing.assert_array_equal(taken.pixels, RAMP)


def test_byte_order_and_stride_are_no_part_of_a_picture() -> None:
    wide = np.zeros((10, 16), ">u2")
    wide[::2, ::2] = RAMP

    taken = from_array(wide[::2, ::2], limits=LIMITS)

    assert taken.pixels.dtype == np.uint16
    assert taken.pixels.dtype.isnative
    assert taken.pixels.flags.c_contiguous
    np.testing.assert_array_equal(taken.pixels, RAMP)


def test_nothing_is_copied_that_need_not_be() -> None:
    assert np.shares_memory(from_array(COLOUR, limits=LIMITS).pixels, COLOUR)


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        pytest.param(np.zeros((0, 5), np.uint8), BadImage, id="no rows"),
        pytest.param(np.uint8(7).reshape(()), UnsupportedMedia, id="a number"),
        pytest.param(RAMP[0], UnsupportedMedia, id="a line"),
        pytest.param(RAMP[..., None], UnsupportedMedia, id="an axis of one"),
        pytest.param(np.dstack([COLOUR, RAMP]), UnsupportedMedia, id="four channels: alpha or ink"),
        pytest.param(COLOUR.transpose(2, 0, 1), UnsupportedMedia, id="channels first"),
        pytest.param(COLOUR[:3], UnsupportedMedia, id="three rows of RGB, or three channels of three columns"),
        pytest.param(np.stack([RAMP] * 9), MultiFrameImage, id="a stack of gray"),
        pytest.param(np.stack([COLOUR] * 2), MultiFrameImage, id="a stack of colour"),
        pytest.param(RAMP > 3, UnsupportedMedia, id="bool"),
        pytest.param(RAMP.astype(np.int64), UnsupportedMedia, id="int64"),
        pytest.param(RAMP.astype(np.complex64), UnsupportedMedia, id="complex"),
        pytest.param(RAMP.astype(object), UnsupportedMedia, id="objects"),
        pytest.param(np.ma.masked_less(RAMP, 3), UnsupportedMedia, id="masked"),
        pytest.param(RAMP / 3.0, UnsupportedMedia, id="float64 that float32 does not hold"),
        pytest.param(RAMP * 1e300, UnsupportedMedia, id="float64 beyond float32"),
        pytest.param(np.full((4, 4), 9, np.uint8), EmptyInput, id="constant"),
        pytest.param(np.where(RAMP > 3, RAMP.astype(np.float32), np.nan), NonFinitePixels, id="NaN"),
        pytest.param(np.where(RAMP > 3, RAMP.astype(np.float64), np.inf), NonFinitePixels, id="infinity"),
    ],
)
def test_what_is_ambiguous_or_broken_is_refused(pixels: Any, kind: type[IsocenterError]) -> None:
    with pytest.raises(kind) as refused:
        from_array(pixels, limits=LIMITS)

    assert type(refused.value) is kind


@pytest.mark.parametrize(
    "limits",
    [ImageLimits(max_pixels=39), ImageLimits(max_side_px=7), ImageLimits(max_decoded_bytes=39)],
    ids=["pixels", "side", "bytes"],
)
def test_the_limits_of_files_hold(limits: ImageLimits) -> None:
    with pytest.raises(TooManyPixels):
        from_array(RAMP, limits=limits)
