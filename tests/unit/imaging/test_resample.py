"""Resampling means what its definition says, and what other libraries mean up to their rounding."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from image_writers import pattern
from isocenter.imaging.transforms.resample import Axis, banded, dense, fit, grid_of, nearest
from isocenter.imaging.transforms.steps import Resize

SIZES = [(40, 40), (64, 20), (320, 224), (224, 320), (31, 7), (7, 31), (1, 9), (9, 1), (1000, 33)]
FILTERS = [("bilinear", True), ("bilinear", False), ("area", True), ("nearest", False)]


def resize(filter_name: str = "bilinear", *, antialias: bool = True, mode: str = "stretch", size: int = 8) -> Resize:
    return Resize.model_validate(
        {"kind": "resize", "size": [size, size], "mode": mode, "filter": filter_name, "antialias": antialias}
    )


def whole(source: int, target: int) -> Axis:
    return Axis(source, target, target, 0)


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize(("filter_name", "antialias"), FILTERS)
def test_every_target_sample_is_a_weighted_mean(source: int, target: int, filter_name: str, antialias: bool) -> None:
    weights = dense(whole(source, target), resize(filter_name, antialias=antialias))
    assert weights.min() >= 0
    assert np.allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-12)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(FILTERS))
def test_the_band_is_the_whole_matrix(source: int, target: int, how: tuple[str, bool]) -> None:
    axis, step = whole(source, target), resize(how[0], antialias=how[1])
    first, taps = banded(axis, step)
    spread = np.zeros((target, source))
    np.put_along_axis(spread, first[:, None] + np.arange(taps.shape[1]), taps, axis=1)
    assert np.allclose(spread, dense(axis, step), rtol=0, atol=1e-12)


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(FILTERS))
def test_mirroring_the_source_mirrors_the_target(source: int, target: int, how: tuple[str, bool]) -> None:
    if how[0] == "nearest":  # a tie has to go to one side
        return
    weights = dense(whole(source, target), resize(how[0], antialias=how[1]))
    assert np.allclose(weights, weights[::-1, ::-1], rtol=0, atol=1e-9)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_nearest_takes_the_floor_of_the_centre(source: int, target: int) -> None:
    found = nearest(whole(source, target))
    assert found[0] >= 0
    assert found[-1] < source
    assert np.all(np.diff(found) >= 0)
    assert np.array_equal(found, (2 * np.arange(target) + 1) * source // (2 * target))


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bilinear_with_antialias_is_pillows_within_its_rounding(source: int, target: int) -> None:
    image = pattern(np.random.default_rng(1), source, source)
    weights = dense(whole(source, target), resize())
    ours = weights @ image @ weights.T
    pillows = np.array(Image.fromarray(image).resize((target, target), Image.Resampling.BILINEAR))
    assert np.abs(ours - pillows).max() <= 1 + 1e-9


@pytest.mark.parametrize(("source", "target"), [(320, 224), (64, 20), (512, 100)])
def test_bilinear_with_antialias_is_pillows_float_resize(source: int, target: int) -> None:
    image = pattern(np.random.default_rng(2), source, source).astype(np.float32)
    weights = dense(whole(source, target), resize())
    pillows = np.array(Image.fromarray(image).resize((target, target), Image.Resampling.BILINEAR))
    assert np.abs(weights @ image @ weights.T - pillows).max() < 1e-4


@pytest.mark.parametrize(("source", "target"), [(320, 224), (64, 20), (20, 64)])
def test_bilinear_without_antialias_is_opencvs_linear(source: int, target: int) -> None:
    image = pattern(np.random.default_rng(3), source, source).astype(np.float32)
    weights = dense(whole(source, target), resize(antialias=False))
    opencvs = cv2.resize(image, (target, target), interpolation=cv2.INTER_LINEAR)
    assert np.abs(weights @ image @ weights.T - opencvs).max() < 0.02


@pytest.mark.parametrize(("source", "target"), [(320, 224), (64, 20), (100, 50), (512, 100)])
def test_area_is_opencvs_when_shrinking(source: int, target: int) -> None:
    image = pattern(np.random.default_rng(4), source, source).astype(np.float32)
    weights = dense(whole(source, target), resize("area"))
    opencvs = cv2.resize(image, (target, target), interpolation=cv2.INTER_AREA)
    assert np.abs(weights @ image @ weights.T - opencvs).max() < 2e-3


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 512), st.integers(1, 512))
def test_letterbox_shows_all_of_it_and_crop_fills_everything(height: int, width: int, tall: int, wide: int) -> None:
    for mode in ("letterbox", "crop"):
        step = Resize.model_validate({"kind": "resize", "size": [tall, wide], "mode": mode})
        y, x = fit(height, width, step)
        assert (y.target, x.target) == (tall, wide)
        assert y.inner == tall or x.inner == wide
        fits = y.inner <= tall and x.inner <= wide if mode == "letterbox" else y.inner >= tall and x.inner >= wide
        assert fits
        for axis in (y, x):
            before, after = axis.offset, axis.target - axis.inner - axis.offset
            assert after - before in (0, 1)
            shown, place = axis.shown, axis.place
            assert shown.stop - shown.start == place.stop - place.start == min(axis.inner, axis.target)


def test_the_grid_leads_back_to_source_pixels() -> None:
    y, x = fit(100, 200, resize(mode="letterbox", size=64))
    grid = grid_of(y, x)
    assert grid.scale_yx == (0.32, 0.32)
    assert grid.offset_yx == (16.0, 0.0)
    assert grid.source_from_target(16.0, 0.0) == (0.0, 0.0)
    assert grid.source_from_target(48.0, 64.0) == (100.0, 200.0)


def test_the_grid_of_a_crop_starts_inside_the_source() -> None:
    grid = grid_of(*fit(100, 200, resize(mode="crop", size=50)))
    assert grid.source_from_target(0.0, 0.0) == (0.0, 50.0)
