"""The picture that people look at first."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from isocenter.cli.contact_sheet import draw, fit, shorten, thumbnail, to_eight_bits
from isocenter.cli.outcome import Outcome, failed
from isocenter.cli.phantoms import encode

LABELS = ("Glioma", "No Tumor")
FONT = ImageFont.load_default(size=14)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "a.png"
    Image.fromarray(np.arange(64 * 48, dtype=np.uint32).reshape(48, 64).astype(np.uint8)).save(file)
    return file


def answer(file: Path, label: str = "Glioma", confidence: float = 0.9, **more: Any) -> Outcome:
    odds = dict.fromkeys(LABELS, 0.5)
    given = {"prediction": label, "confidence": confidence, "probabilities": odds, "model": "brain", "version": 1}
    return Outcome(file, answer={**given, "warnings": [], **more})


def test_a_sheet_grows_by_rows_and_not_beyond_six_columns(image: Path) -> None:
    sizes = {count: draw([answer(image)] * count).size for count in (1, 4, 6, 7, 13)}
    assert sizes[1] == sizes[4]
    assert sizes[6][0] == sizes[7][0] == sizes[13][0] > sizes[4][0]
    assert sizes[13][1] - sizes[7][1] == sizes[7][1] - sizes[6][1] > 0


def test_a_sheet_is_capped(image: Path) -> None:
    assert draw([answer(image)] * 9, max_tiles=6).size == draw([answer(image)] * 6).size


@pytest.mark.parametrize("confidence", [0.0, 1e-9, 0.5, 1.0], ids=str)
def test_every_confidence_can_be_drawn(confidence: float, image: Path) -> None:
    assert draw([answer(image, confidence=confidence)]).mode == "RGB"


def test_what_cannot_be_read_is_a_tile_all_the_same(image: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff and no more")
    outcomes = [answer(image), failed(broken, "bad_image", "broken " * 80), failed(tmp_path / "gone", "x", "")]
    assert draw(outcomes).size == draw([answer(image)] * 3).size


def test_a_sheet_of_refusals_only_can_be_drawn(tmp_path: Path) -> None:
    assert draw([failed(tmp_path / "gone.png", "unreadable_file", "No such file or directory")]).mode == "RGB"


def test_many_labels_and_long_ones_stay_on_the_sheet(image: Path) -> None:
    odds = {f"a label of some length {number}": 0.0 for number in range(40)}
    warnings = [{"code": "a_rather_long_code_for_a_warning", "message": ""}] * 3
    label = next(iter(odds))
    assert draw([answer(image, label, probabilities=odds, warnings=warnings)]).size == draw([answer(image)]).size


def test_a_thumbnail_keeps_the_aspect(image: Path) -> None:
    small = thumbnail(image, 32)
    assert small is not None
    assert small.size == (32, 24)
    assert fit(Image.new("L", (5000, 1)), 32).size == (32, 1)


def test_deep_pixels_are_shown_between_two_percentiles() -> None:
    pixels = np.linspace(100, 3000, 10_000).reshape(100, 100).astype(np.uint16)
    pixels[0, 0] = 65_535
    shown = to_eight_bits(pixels)
    assert shown.dtype == np.uint8
    assert shown.max() == 255
    assert 120 < np.median(shown) < 135


@pytest.mark.parametrize(
    "pixels",
    [np.full((4, 4), 700, np.uint16), np.full((4, 4), np.nan, np.float32), np.array([[np.inf, 0.0]], np.float32)],
    ids=["flat", "nan", "inf"],
)
def test_pixels_that_show_nothing_are_no_error(pixels: Any) -> None:
    assert to_eight_bits(pixels).shape == pixels.shape


def test_a_sixteen_bit_file_has_a_thumbnail(tmp_path: Path) -> None:
    file = tmp_path / "deep.png"
    file.write_bytes(encode(np.arange(1024, dtype=np.uint32).reshape(32, 32).astype(np.uint8), "png16"))
    assert np.asarray(Image.open(io.BytesIO(file.read_bytes()))).dtype == np.uint16
    assert thumbnail(file, 64) is not None


def test_a_long_name_loses_its_middle() -> None:
    assert isinstance(FONT, ImageFont.FreeTypeFont)
    short = shorten("a_study_with_a_very_long_name-0001.png", FONT, 120)
    assert FONT.getlength(short) <= 120
    assert short.startswith("a_st")
    assert short.endswith(".png")
    assert shorten("short.png", FONT, 120) == "short.png"
