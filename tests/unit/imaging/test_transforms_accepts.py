"""A model's bounds on a picture: refused outside, noted near the edge."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from isocenter.core.errors import InputNotAccepted
from isocenter.imaging.image import RasterImage, SourceInfo
from isocenter.imaging.transforms.accepts import Accepts, check


def picture(pixels: npt.NDArray[Any]) -> RasterImage:
    return RasterImage(pixels, SourceInfo("png", "L", pixels.shape[1], pixels.shape[0], 8))


def sized(height: int, width: int) -> RasterImage:
    return picture(np.zeros((height, width), np.uint8))


def with_coloured_pixels(count: int, dtype: str = "uint8") -> RasterImage:
    """100 x 100 grays, the first `count` of them with one channel 9 levels (of 255) above."""
    full = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    pixels = np.full((100, 100, 3), 0.5 * full).astype(dtype)
    pixels[-1, -1] = full
    pixels.reshape(-1, 3)[:count, 1] = np.array(0.5 * full + 9 / 255 * full).astype(dtype)
    return picture(pixels)


@pytest.mark.parametrize(
    ("accepts", "image"),
    [
        pytest.param(Accepts(min_side_px=64), sized(63, 100), id="too small"),
        pytest.param(Accepts(max_side_px=64), sized(10, 65), id="too large"),
        pytest.param(Accepts(max_aspect_ratio=2), sized(201, 100), id="too long"),
        pytest.param(Accepts(color="refuse"), with_coloured_pixels(101), id="coloured"),
    ],
)
def test_outside_is_refused_with_the_measured_value(accepts: Accepts, image: RasterImage) -> None:
    with pytest.raises(InputNotAccepted) as caught:
        check(accepts, image)
    assert caught.value.details["limit"]


@pytest.mark.parametrize(
    ("accepts", "image", "codes"),
    [
        pytest.param(Accepts(), sized(1, 999), [], id="no bounds"),
        pytest.param(Accepts(min_side_px=64, max_side_px=100, max_aspect_ratio=2), sized(64, 100), [], id="on them"),
        pytest.param(Accepts(warn_below_side_px=64), sized(63, 70), ["small_image"], id="small"),
        pytest.param(Accepts(warn_above_aspect_ratio=1.5), sized(100, 151), ["unusual_aspect_ratio"], id="long"),
        pytest.param(Accepts(color="warn"), with_coloured_pixels(101), ["unexpected_color"], id="coloured"),
        pytest.param(Accepts(color="warn"), with_coloured_pixels(100), [], id="one percent is not colour"),
        pytest.param(Accepts(color="warn"), with_coloured_pixels(150, "uint16"), ["unexpected_color"], id="16 bits"),
        pytest.param(Accepts(color="warn"), with_coloured_pixels(150, "float32"), ["unexpected_color"], id="float"),
        pytest.param(Accepts(color="any"), with_coloured_pixels(9999), [], id="any colour"),
        pytest.param(Accepts(color="warn"), sized(9, 9), [], id="gray"),
    ],
)
def test_near_the_edge_is_noted(accepts: Accepts, image: RasterImage, codes: list[str]) -> None:
    assert [note.code for note in check(accepts, image)] == codes


def test_a_typo_in_the_bounds_is_refused() -> None:
    with pytest.raises(ValidationError):
        Accepts.model_validate({"min_side": 64})
    with pytest.raises(ValidationError):
        Accepts(min_side_px=10, max_side_px=5)
