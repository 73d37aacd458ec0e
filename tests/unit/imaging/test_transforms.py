"""Preprocessing: what the steps may say, what they give, and that the fast one gives it too."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from image_writers import pattern
from isocenter.core.errors import EmptyInput, InputNotAccepted, MissingWindow
from isocenter.imaging.image import RasterImage, SourceInfo
from isocenter.imaging.transforms.fast import TOLERANCE, FastPipeline
from isocenter.imaging.transforms.intensity import bounds, rank
from isocenter.imaging.transforms.reference import ReferencePipeline, preprocess
from isocenter.imaging.transforms.steps import Normalize, Steps, Window

ADAPTER: TypeAdapter[Steps] = TypeAdapter(Steps)
PLAIN = {"kind": "normalize", "scale": 1, "mean": [0], "std": [1]}


def steps(*described: dict[str, Any]) -> Steps:
    return ADAPTER.validate_python(list(described))


def picture(pixels: npt.NDArray[Any]) -> RasterImage:
    mode = "L" if pixels.ndim == 2 else "RGB"
    return RasterImage(pixels, SourceInfo("png", mode, pixels.shape[1], pixels.shape[0], pixels.itemsize * 8))


def deep(rng: np.random.Generator, height: int, width: int, channels: int, dtype: str) -> npt.NDArray[Any]:
    if dtype == "float32":
        real = rng.normal(1000, 300, (height, width, channels)).astype(np.float32)
        return real[..., 0].copy() if channels == 1 else real
    return pattern(rng, height, width, channels, dtype=dtype)


GEOMETRY: list[dict[str, Any] | None] = [
    None,
    {"mode": "stretch", "filter": "bilinear"},
    {"mode": "stretch", "filter": "bilinear", "antialias": False},
    {"mode": "letterbox", "filter": "bilinear", "pad": 17},
    {"mode": "crop", "filter": "bilinear"},
    {"mode": "crop", "filter": "area"},
    {"mode": "letterbox", "filter": "area", "pad": 255},
    {"mode": "letterbox", "filter": "nearest", "pad": 3},
    {"mode": "crop", "filter": "nearest"},
]
SIZES = [(64, 80), (31, 17), (3, 300), (300, 2), (200, 90), (64, 200), (130, 80), (400, 333)]


@pytest.mark.parametrize("geometry", GEOMETRY, ids=lambda g: "-".join(map(str, g.values())) if g else "as-it-is")
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3], ids=["from-gray", "from-rgb"])
@pytest.mark.parametrize("to", ["gray", "rgb"])
def test_fast_agrees_with_the_reference(geometry: dict[str, Any] | None, dtype: str, channels: int, to: str) -> None:
    rng = np.random.default_rng(7)
    count = 1 if to == "gray" else 3
    described: list[dict[str, Any]] = [
        {"kind": "window", "low": {"percentile": 1.5}, "high": "max"},
        {"kind": "color", "to": to},
        {"kind": "normalize", "mean": [0.4, 0.5, 0.6][:count], "std": [0.2, 0.3, 0.25][:count]},
    ]
    if geometry:
        described.insert(2, {"kind": "resize", "size": [64, 80], **geometry})
    chosen = steps(*described)
    fast, reference = FastPipeline(chosen), ReferencePipeline(chosen)
    assert isinstance(chosen[-1], Normalize)
    for height, width in SIZES:
        image = picture(deep(rng, height, width, channels, dtype))
        found, meant = fast(image), reference(image)
        room = np.full_like(found.tensor, np.nan)
        assert fast(image, out=room).tensor is room
        assert np.array_equal(room, found.tensor)
        assert found.tensor.shape == meant.tensor.shape
        assert found.tensor.dtype == meant.tensor.dtype == np.float32
        assert found.tensor.flags.c_contiguous
        difference = np.abs(found.tensor.astype(float) - meant.tensor).max()
        assert difference <= TOLERANCE * chosen[-1].output_range
        assert (found.notes, found.grid) == (meant.notes, meant.grid)
        again = fast(image)
        assert np.array_equal(found.tensor, again.tensor)
        assert not np.shares_memory(found.tensor, again.tensor)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.integers(1, 60), st.sampled_from(GEOMETRY[1:]))
def test_fast_agrees_at_any_size(height: int, width: int, tall: int, wide: int, geometry: dict[str, Any]) -> None:
    chosen = steps({"kind": "resize", "size": [tall, wide], **geometry}, PLAIN)
    image = picture(np.random.default_rng(height * 100 + width).integers(0, 256, (height, width), np.uint8))
    difference = np.abs(FastPipeline(chosen)(image).tensor - preprocess(image, chosen).tensor).max()
    assert difference <= TOLERANCE * 255


def test_8_bits_that_keep_their_size_agree_exactly() -> None:
    image = picture(pattern(np.random.default_rng(1), 50, 60))
    chosen = steps({"kind": "color", "to": "rgb"}, {"kind": "normalize", "mean": [0.1, 0.2, 0.3], "std": [0.3] * 3})
    assert np.array_equal(FastPipeline(chosen)(image).tensor, preprocess(image, chosen).tensor)


def test_threads_share_a_pipeline() -> None:
    chosen = steps(
        {"kind": "color", "to": "rgb"},
        {"kind": "resize", "size": [48, 48], "mode": "letterbox"},
        {"kind": "normalize", "mean": [0.5] * 3, "std": [0.2] * 3},
    )
    rng = np.random.default_rng(3)
    images = [
        picture(pattern(rng, 20 + 7 * (channels + i % 17), 30 + 5 * (i % 13), channels))
        for i, channels in enumerate((1, 3) * 60)
    ]
    fast = FastPipeline(chosen)
    alone = [fast(image).tensor for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: fast(image).tensor, images))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_normalize_is_scale_then_mean_then_std() -> None:
    chosen = steps({"kind": "normalize", "scale": 0.5, "mean": [1], "std": [4]})
    assert preprocess(picture(np.array([[0, 10]], np.uint8)), chosen).tensor.tolist() == [[[-0.25, 1.0]]]


def test_gray_is_the_declared_weighting_unrounded() -> None:
    chosen = steps({"kind": "color", "to": "gray"}, PLAIN)
    tensor = preprocess(picture(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)), chosen).tensor
    assert tensor[0, 0].tolist() == pytest.approx([76.245, 149.685, 29.07], abs=1e-5)


def test_letterbox_pads_in_sample_units() -> None:
    chosen = steps(
        {"kind": "resize", "size": [4, 4], "mode": "letterbox", "pad": 51},
        {"kind": "normalize", "mean": [0.2], "std": [0.1]},
    )
    tensor = FastPipeline(chosen)(picture(np.full((2, 4), 255, np.uint8))).tensor
    assert tensor[0, :, 0].tolist() == pytest.approx([0.0, 8.0, 8.0, 0.0], abs=1e-6)


def test_a_deep_image_without_a_window_is_refused() -> None:
    image = picture(pattern(np.random.default_rng(0), 4, 4, dtype="uint16"))
    for pipeline in (FastPipeline(steps(PLAIN)), ReferencePipeline(steps(PLAIN))):
        with pytest.raises(MissingWindow) as caught:
            pipeline(image)
        assert caught.value.details["bits"] == 16


def test_8_bits_pass_a_window_untouched() -> None:
    chosen = steps({"kind": "window", "low": "min", "high": "max"}, PLAIN)
    prepared = preprocess(picture(np.array([[10, 20]], np.uint8)), chosen)
    assert prepared.tensor.tolist() == [[[10.0, 20.0]]]
    assert prepared.notes == ()


def test_a_window_is_linear_clipped_unrounded_and_recorded() -> None:
    chosen = steps({"kind": "window", "low": {"value": 1000}, "high": {"value": 2000}}, PLAIN)
    prepared = preprocess(picture(np.array([[0, 1000, 1001, 2000, 65535]], np.uint16)), chosen)
    assert prepared.tensor[0, 0].tolist() == pytest.approx([0, 0, 0.255, 255, 255])
    assert [note.code for note in prepared.notes] == ["windowed"]
    assert "low=1000, high=2000" in prepared.notes[0].message


def test_a_window_that_shows_nothing_is_refused_with_both_values() -> None:
    pixels = np.full((20, 20), 500, np.uint16)
    pixels[0, 0] = 900
    chosen = steps({"kind": "window", "low": {"percentile": 5}, "high": {"percentile": 95}}, PLAIN)
    with pytest.raises(EmptyInput) as caught:
        FastPipeline(chosen)(picture(pixels))
    assert caught.value.details == {"low": 500.0, "high": 500.0}


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=60, unique=True), st.floats(0, 60), st.floats(61, 100))
def test_percentiles_are_samples_of_nearest_rank(values: list[int], low: float, high: float) -> None:
    ordered = sorted(values)
    window = Window.model_validate({"kind": "window", "low": {"percentile": low}, "high": {"percentile": high}})
    expected = (ordered[rank(low, len(values))], ordered[rank(high, len(values))])
    for dtype in (np.uint16, np.float32):
        pixels = np.array([values], dtype)
        if expected[1] > expected[0]:
            assert bounds(pixels, window) == expected
        else:
            with pytest.raises(EmptyInput):
                bounds(pixels, window)


def test_colour_for_a_gray_model_needs_a_declared_conversion() -> None:
    image = picture(pattern(np.random.default_rng(0), 4, 4, 3))
    with pytest.raises(InputNotAccepted):
        FastPipeline(steps(PLAIN))(image)


RESIZE = {"kind": "resize", "size": [8, 8]}
BAD: list[tuple[str, list[dict[str, Any]], str]] = [
    ("nothing", [], "required"),
    ("no normalize", [RESIZE], "required"),
    ("normalize first", [PLAIN, RESIZE], "order"),
    ("twice", [RESIZE, RESIZE, PLAIN], "order"),
    ("unknown kind", [{"kind": "flip"}, PLAIN], "flip"),
    ("typo", [{"kind": "resize", "size": [8, 8], "antialiased": True}, PLAIN], "antialiased"),
    ("size of zero", [{"kind": "resize", "size": [0, 8]}, PLAIN], "greater than or equal"),
    ("two means", [{"kind": "normalize", "mean": [0, 0], "std": [1, 1]}], "1 or 3"),
    ("std of zero", [{"kind": "normalize", "mean": [0], "std": [0]}], "greater than 0"),
    ("rgb for one mean", [{"kind": "color", "to": "rgb"}, PLAIN], "takes 1"),
    ("window backwards", [{"kind": "window", "low": {"value": 5}, "high": {"value": 5}}, PLAIN], "not above"),
    ("percentile of 101", [{"kind": "window", "low": {"percentile": 101}, "high": "max"}, PLAIN], "less than or equal"),
]


@pytest.mark.parametrize(("described", "said"), [pytest.param(*case[1:], id=case[0]) for case in BAD])
def test_steps_that_mean_nothing_are_refused_at_load(described: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        steps(*described)


def test_room_of_another_shape_is_left_alone() -> None:
    room = np.zeros((1, 5, 5), np.float32)
    found = FastPipeline(steps(PLAIN))(picture(np.full((4, 5), 7, np.uint8)), out=room)
    assert found.tensor.shape == (1, 4, 5)
    assert not room.any()
