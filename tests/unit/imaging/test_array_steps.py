"""Steps on arrays: what is there has its way back, and what cannot be is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from isocenter.core.errors import EmptyInput, InputNotAccepted
from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.transforms.arrays.axes import AxisMap, banded, resampled
from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline, PreparedVolume
from isocenter.imaging.transforms.arrays.steps import ArraySteps, Filter
from isocenter.imaging.volume import Volume

STEPS: TypeAdapter[Any] = TypeAdapter(ArraySteps)


def prepare(voxels: Array, *steps: dict[str, Any], spacing: tuple[float, ...] | None = None) -> PreparedVolume:
    return ArrayPipeline(STEPS.validate_python(steps))(Volume.of(voxels, spacing_mm=spacing))


def noise(*shape: int) -> FloatArray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


GRID_STEPS: list[dict[str, Any]] = [
    {"kind": "orient", "axcodes": "PIR"},
    {"kind": "transpose", "axes": [2, 0, 1]},
    {"kind": "pad_to", "size": [14, 9, 20]},
    {"kind": "pad_to_multiple", "multiple_of": 8, "mode": "reflect"},
    {"kind": "crop_foreground", "nonzero": True, "margin": 2},
    {"kind": "crop_foreground", "above": -9, "margin": 3, "stay_inside": False, "multiple_of": 4},
]


@given(st.lists(st.sampled_from(GRID_STEPS), max_size=4), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_steps_that_lose_nothing_come_back_exactly(steps: list[dict[str, Any]], seed: int) -> None:
    voxels = np.random.default_rng(seed).integers(1, 200, (2, 7, 6, 9)).astype(np.uint8)

    prepared = prepare(voxels, *steps)
    back = prepared.trail.back(prepared.tensor.astype(np.uint8), labels=True)

    assert np.array_equal(back, voxels)
    assert back.dtype == np.uint8
    assert np.array_equal(prepared.trail.back(prepared.tensor), voxels)


@given(st.lists(st.sampled_from(GRID_STEPS), max_size=4))
@settings(max_examples=30)
def test_a_voxel_keeps_its_place_in_the_patient(steps: list[dict[str, Any]]) -> None:
    place = np.array([[0, -1.5, 0, 4], [0.2, 0, 2, -7], [-1, 0, 0, 30], [0, 0, 0, 1]])
    voxels = np.zeros((1, 7, 6, 9), np.float32)
    voxels[0, 1:6, 1:5, 2:8] = 1
    voxels[0, 3, 4, 5] = 9
    volume = Volume(voxels, Geometry(voxels.shape[1:], place))

    prepared = ArrayPipeline(STEPS.validate_python(steps))(volume)

    brightest = np.unravel_index(prepared.tensor[0].argmax(), prepared.tensor.shape[1:])
    assert prepared.geometry.shape == prepared.tensor.shape[1:]
    assert np.allclose(prepared.geometry.position_lps_mm(brightest), volume.geometry.position_lps_mm((3, 4, 5)))


def test_what_was_cut_away_is_filled_channel_by_channel() -> None:
    voxels = np.zeros((1, 6, 6), np.float32)
    voxels[0, 2:4, 2:4] = 1
    trail = prepare(voxels, {"kind": "crop_foreground"}).trail

    back = trail.back(np.full((2, 2, 2), 0.5, np.float32), fill=(1.0, 0.0))

    assert trail.leaves_out
    assert back[:, 0, 0].tolist() == [1.0, 0.0]
    assert back[:, 2, 2].tolist() == [0.5, 0.5]


def test_a_ramp_keeps_its_values_where_it_is_resampled() -> None:
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32)[:, None, None], (12, 4, 4))[None]

    prepared = prepare(ramp, {"kind": "resample", "spacing_mm": [0.8, 1, 1]}, spacing=(2.0, 1.0, 1.0))

    assert prepared.tensor.shape[1] == round(11 * 2 / 0.8 + 1)
    positions = [prepared.geometry.position_lps_mm((index, 0, 0))[0] for index in range(prepared.tensor.shape[1])]
    assert np.allclose(prepared.tensor[0, :, 0, 0], np.minimum(np.array(positions) / 2, 11), atol=1e-5)


def test_antialiasing_averages_what_would_be_skipped() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), 32)[:63][None, None, :].repeat(4, axis=1)
    step = {"kind": "resample", "spacing_mm": [1, 3], "extent": "voxels"}

    sharp = prepare(stripes, step).tensor[0, 0, 1:-1]
    smooth = prepare(stripes, {**step, "antialias": True}).tensor[0, 0, 1:-1]

    assert np.ptp(sharp) == 1
    assert np.abs(smooth - 0.5).max() < 0.06


def test_a_spacing_that_is_nearly_the_wanted_one_stays() -> None:
    voxels = noise(1, 5, 6, 7)

    prepared = prepare(voxels, {"kind": "resample", "spacing_mm": [1, 1, 1]}, spacing=(1.0005, 1.0, 0.9995))

    assert np.array_equal(prepared.tensor, voxels)
    assert prepared.trail.undos == ()


CUBIC = [-0.010119, 0.174084, 1.506846, 3.706281, 3.683657, 1.253116, -1.0, 0.772114, 3.356216]
"""scikit-image 0.25: resize([0, 1, 4, 2, -1, 3], (9,), order=3, mode="edge", anti_aliasing=False), clipped as there."""


def test_cubic_is_the_spline_of_scikit_image() -> None:
    source = np.array([[[0, 1, 4, 2, -1, 3]] * 2], np.float32)

    found = resampled(source, [AxisMap(2, 2), AxisMap.edges(6, 9)], ["cubic", "cubic"])

    assert np.allclose(found[0, 0], CUBIC, atol=2e-6)


def test_cubic_passes_through_the_samples_and_keeps_within_their_range() -> None:
    source = noise(2, 9, 11)

    doubled = resampled(source, [AxisMap(9, 17, 0.5), AxisMap(11, 21, 0.5)], ["cubic", "cubic"])

    assert np.allclose(doubled[:, ::2, ::2], source, atol=1e-5)
    for channel, was in zip(doubled, source, strict=True):
        assert was.min() <= channel.min() <= channel.max() <= was.max()


@pytest.mark.parametrize("spacing", [(5.0, 1.0, 1.0), (1.0, 1.0, 1.0)], ids=["source", "target"])
def test_a_coarse_axis_goes_by_nearest_neighbour_both_ways(spacing: tuple[float, ...]) -> None:
    new = [1.0, 0.5, 0.5] if spacing[0] > 1 else [5.0, 1.0, 1.0]
    step = {"kind": "resample", "spacing_mm": new, "filter": "cubic", "extent": "voxels", "coarse_above": 3}
    levels = np.arange(10, dtype=np.float32)[:, None, None] * np.ones((1, 8, 8), np.float32)

    prepared = prepare(levels[None], step, spacing=spacing)

    assert set(np.unique(prepared.tensor)) <= set(range(10))
    assert set(np.unique(prepared.trail.back(prepared.tensor))) <= set(range(10))


def test_the_coarse_axis_is_that_of_the_grid_it_comes_from() -> None:
    """Thick along the last axis, brought to thick along the first one: nearest neighbour there, then the first back."""
    step = {"kind": "resample", "spacing_mm": [4, 1, 1], "filter": "linear", "extent": "voxels", "coarse_above": 3}
    ramp = np.arange(8, dtype=np.float32)[:, None, None] * np.ones((1, 8, 2), np.float32)

    prepared = prepare(ramp[None], step, spacing=(1.0, 1.0, 4.0))
    back = prepared.trail.back(prepared.tensor)

    assert prepared.tensor[0, :, 0, 0].tolist() == [1.5, 5.5], "linearly"
    assert back[0, :, 0, 0].tolist() == [1.5] * 4 + [5.5] * 4, "by nearest neighbour"


@pytest.mark.parametrize(("have", "size", "found"), [(3.6000001, 5, 5), (4.5, 10, 13), (0.7008, 512, 513)])
def test_a_size_is_what_nnunet_makes_of_it(have: float, size: int, found: int) -> None:
    """round(have / new * size), however near to the wanted spacing, and however near to a half."""
    new = 0.7 if have < 1 else 3.5999999046325684
    step = {"kind": "resample", "spacing_mm": [new, None], "extent": "voxels"}

    assert prepare(noise(1, size, 2), step, spacing=(have, 1.0)).tensor.shape == (1, found, 2)


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from(["linear", "area", "cubic"]), st.booleans(), st.booleans()
)
def test_weights_add_up_to_one_and_stay_inside(
    source: int, target: int, how: Filter, antialias: bool, centres: bool
) -> None:
    along = AxisMap.centres(source, target) if centres else AxisMap.edges(source, target)

    first, weights = banded(along, how, antialias=antialias)

    assert weights.shape[0] == target
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-9)
    assert first.min() >= 0
    assert first.max() + weights.shape[1] <= source


def test_long_axes_take_no_square_matrix() -> None:
    picture = noise(1, 4, 20_000)

    assert prepare(picture, {"kind": "resize", "size": [4, 10_000]}).tensor.shape == (1, 4, 10_000)


def test_intensity_steps_leave_what_was_given_alone() -> None:
    voxels = noise(2, 5, 6, 7)
    before = voxels.copy()

    prepare(
        voxels,
        {"kind": "standardize", "nonzero": True, "per_channel": True},
        {"kind": "scale", "clip": True},
        {"kind": "clip", "high": 0.5},
        {"kind": "shift_scale", "gain": [2, 3], "offset": [1]},
    )

    assert np.array_equal(voxels, before)


@pytest.mark.parametrize(
    ("step", "found"),
    [
        ({"kind": "shift_scale", "gain": [2], "offset": [0.5]}, [0.5, 4.5, 8.5]),
        ({"kind": "clip", "low": 1, "high": 3}, [1, 2, 3]),
        ({"kind": "clip", "high": {"percentile": 50}}, [0, 2, 2]),
        ({"kind": "scale", "low": 0, "high": 8, "to": [0, 4]}, [0, 1, 2]),
        ({"kind": "scale", "low": {"percentile": 25}, "high": {"percentile": 75}}, [-0.5, 0.5, 1.5]),
        ({"kind": "scale", "eps": 4.0}, [0, 0.25, 0.5]),
        ({"kind": "standardize", "mean": [2], "std": [4]}, [-0.5, 0, 0.5]),
        ({"kind": "standardize", "eps": 1e9}, [0, 0, 0]),
        ({"kind": "standardize", "nonzero": True}, [0, -1, 1]),
    ],
)
def test_values_become_what_the_step_says(step: dict[str, Any], found: list[float]) -> None:
    assert np.allclose(prepare(np.array([[[0, 2, 4]]], np.int16), step).tensor[0, 0], found, atol=1e-6)


def test_where_all_is_alike_nothing_is_divided_by_nothing() -> None:
    seven = np.full((1, 3, 3), 7, np.float32)

    assert (prepare(seven, {"kind": "scale", "to": [2, 5]}).tensor == 2).all()
    assert (prepare(seven, {"kind": "standardize"}).tensor == 0).all()
    assert (prepare(np.zeros((1, 3, 3)), {"kind": "standardize", "nonzero": True}).tensor == 0).all()


def test_channels_are_selected_in_order() -> None:
    voxels = noise(3, 4, 5)

    assert np.array_equal(prepare(voxels, {"kind": "select_channels", "channels": [2, 0]}).tensor, voxels[[2, 0]])


@pytest.mark.parametrize(
    ("step", "kind", "says"),
    [
        ({"kind": "orient", "axcodes": "RAS"}, InputNotAccepted, "no orientation"),
        ({"kind": "resample", "spacing_mm": [1, 1, 1]}, InputNotAccepted, "3 spatial axes, the input has 2"),
        ({"kind": "select_channels", "channels": [2]}, InputNotAccepted, "there are 2"),
        ({"kind": "shift_scale", "gain": [1, 2, 3]}, InputNotAccepted, "2 channels and 3 values of gain"),
        ({"kind": "crop_foreground", "channel": 4}, InputNotAccepted, "channel 4"),
        ({"kind": "crop_foreground", "above": 1000}, EmptyInput, "no foreground"),
    ],
)
def test_a_step_that_cannot_take_it_says_why(step: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        prepare(noise(2, 8, 9), step)


@pytest.mark.parametrize(
    "steps",
    [
        [{"kind": "orient", "axcodes": "RAA"}],
        [{"kind": "orient", "axcodes": "RA"}],
        [{"kind": "transpose", "axes": [0, 0, 1]}],
        [{"kind": "resample", "spacing_mm": [0, 1, 1]}],
        [{"kind": "resize", "size": [4, 4], "filter": "area", "align_corners": True}],
        [{"kind": "scale", "low": 3, "high": 3}],
        [{"kind": "clip"}],
        [{"kind": "clip", "low": "middle"}],
        [{"kind": "standardize", "std": [0]}],
        [{"kind": "pad_to", "size": [4, 4]}, {"kind": "center_crop", "size": [4, 4, 4]}],
        [{"kind": "guess"}],
    ],
)
def test_steps_that_mean_nothing_are_no_manifest(steps: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        STEPS.validate_python(steps)
