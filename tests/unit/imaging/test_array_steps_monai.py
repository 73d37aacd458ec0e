"""The same arguments give MONAI's numbers, MONAI's grid, and its way back."""

import importlib
import warnings
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from isocenter.core.tensor import Array
from isocenter.imaging.geometry import Geometry, swap_lps_ras
from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline, PreparedVolume
from isocenter.imaging.transforms.arrays.steps import ArraySteps
from isocenter.imaging.volume import Volume
from monai_there import applied, array, monai

WITHIN = 1e-5


def rotation(degrees: float, plane: tuple[int, int]) -> Array:
    matrix, radians = np.eye(4), np.deg2rad(degrees)
    first, second = plane
    matrix[first, first] = matrix[second, second] = np.cos(radians)
    matrix[first, second], matrix[second, first] = -np.sin(radians), np.sin(radians)
    return matrix


def placed(spacing: tuple[float, ...], *turns: Array) -> Array:
    affine: Array = np.eye(4)
    for turn in turns:
        affine = affine @ turn
    affine = affine @ np.diag([*spacing, *[1.0] * (3 - len(spacing)), 1.0])
    affine[:3, 3] = (-90.0, 126.5, -72.25)
    return affine


def smooth(shape: tuple[int, ...], channels: int = 2) -> Array:
    """Blobs on a background of zeros, a little noise inside, some values below zero."""
    rng = np.random.default_rng(7)
    where = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    head = (np.sum(where**2, axis=0) < 0.55).astype(np.float32)
    values = [head * (300 + 200 * n + 80 * rng.standard_normal(shape)) - 20 * n * head for n in range(channels)]
    return np.stack(values).astype(np.float32)


MIRROR = np.diag([-1.0, 1.0, -1.0, 1.0])
AXES = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
SPACING = (1.3, 0.9, 2.5)
SHAPE = (23, 30, 17)
VOLUMES = {
    "straight": placed(SPACING),
    "mirrored": placed(SPACING, MIRROR),
    "other axes": placed(SPACING, AXES),
    "oblique": placed(SPACING, rotation(12, (0, 1)), rotation(-20, (1, 2)), MIRROR),
}


def volume(place: str = "oblique", *, channels: int = 2) -> Volume:
    return Volume(smooth(SHAPE, channels), Geometry(SHAPE, VOLUMES[place]))


def picture() -> Volume:
    return Volume(smooth((37, 52), 3), Geometry((37, 52), placed((0.7, 0.7))))


def prepare(given: Volume, *steps: dict[str, Any]) -> PreparedVolume:
    return ArrayPipeline(TypeAdapter(ArraySteps).validate_python(steps))(given)


def assert_same(found: PreparedVolume, theirs: Any) -> None:
    wanted = array(theirs)
    assert found.tensor.shape == wanted.shape
    assert found.tensor.dtype == np.float32
    scale = float(np.abs(wanted).max())
    assert float(np.abs(found.tensor - wanted).max()) <= WITHIN * max(scale, 1.0)
    if len(found.geometry.shape) == 3:
        assert np.allclose(swap_lps_ras(found.geometry.lps_from_voxel), array(theirs.affine), atol=1e-4)


GRID = [
    pytest.param({"kind": "orient", "axcodes": "RAS"}, "Orientation", {"axcodes": "RAS"}, id="orient RAS"),
    pytest.param({"kind": "orient", "axcodes": "LPS"}, "Orientation", {"axcodes": "LPS"}, id="orient LPS"),
    pytest.param({"kind": "orient", "axcodes": "SRP"}, "Orientation", {"axcodes": "SRP"}, id="orient SRP"),
    pytest.param({"kind": "resample", "spacing_mm": [1, 1, 1]}, "Spacing", {"pixdim": (1, 1, 1)}, id="resample"),
    pytest.param(
        {"kind": "resample", "spacing_mm": [3.1, 0.6, 1.7]}, "Spacing", {"pixdim": (3.1, 0.6, 1.7)}, id="resample both"
    ),
    pytest.param(
        {"kind": "resample", "spacing_mm": [2, 2, None]},
        "Spacing",
        {"pixdim": (2, 2, -1), "align_corners": True},
        id="resample two axes, corners aligned",
    ),
    pytest.param(
        {"kind": "resample", "spacing_mm": [1.7, 0.61, 1.1], "filter": "nearest"},
        "Spacing",
        {"pixdim": (1.7, 0.61, 1.1), "mode": "nearest"},
        id="resample nearest",
    ),
    pytest.param(
        {"kind": "resize", "size": [32, 19, 40]},
        "Resize",
        {"spatial_size": (32, 19, 40), "mode": "trilinear"},
        id="resize",
    ),
    pytest.param(
        {"kind": "resize", "size": [32, 19, 17], "align_corners": True},
        "Resize",
        {"spatial_size": (32, 19, 17), "mode": "trilinear", "align_corners": True},
        id="resize, corners aligned",
    ),
    pytest.param(
        {"kind": "resize", "size": [11, 13, 40], "filter": "area"},
        "Resize",
        {"spatial_size": (11, 13, 40), "mode": "area"},
        id="resize area",
    ),
    pytest.param(
        {"kind": "resize", "size": [11, 47, 17], "filter": "nearest"},
        "Resize",
        {"spatial_size": (11, 47, 17), "mode": "nearest-exact"},
        id="resize nearest",
    ),
    pytest.param({"kind": "crop_foreground"}, "CropForeground", {"allow_smaller": True}, id="crop"),
    pytest.param(
        {"kind": "crop_foreground", "channel": 1, "above": 450, "margin": 3},
        "CropForeground",
        {"allow_smaller": True, "channel_indices": 1, "select_fn": lambda x: x > 450, "margin": 3},
        id="crop one channel",
    ),
    pytest.param(
        {"kind": "crop_foreground", "margin": [6, 0, 9], "stay_inside": False, "multiple_of": 8},
        "CropForeground",
        {"allow_smaller": False, "margin": (6, 0, 9), "k_divisible": 8},
        id="crop beyond the array",
    ),
    pytest.param(
        {"kind": "pad_to", "size": [32, 20, 20]}, "SpatialPad", {"spatial_size": (32, 20, 20)}, id="pad to a size"
    ),
    pytest.param(
        {"kind": "pad_to", "size": [32, None, 20], "method": "end", "value": -5},
        "SpatialPad",
        {"spatial_size": (32, -1, 20), "method": "end", "value": -5},
        id="pad at the end",
    ),
    pytest.param(
        {"kind": "pad_to_multiple", "multiple_of": 16, "mode": "edge"},
        "DivisiblePad",
        {"k": 16, "mode": "edge"},
        id="pad to a multiple",
    ),
    pytest.param(
        {"kind": "pad_to_multiple", "multiple_of": [8, 16, 4], "mode": "reflect"},
        "DivisiblePad",
        {"k": (8, 16, 4), "mode": "reflect"},
        id="pad by reflection",
    ),
    pytest.param(
        {"kind": "center_crop", "size": [10, 11, 40]}, "CenterSpatialCrop", {"roi_size": (10, 11, 40)}, id="middle"
    ),
]


@pytest.mark.parametrize(("step", "name", "arguments"), GRID)
@pytest.mark.parametrize("place", VOLUMES)
def test_the_grid_is_changed_as_there(place: str, step: dict[str, Any], name: str, arguments: dict[str, Any]) -> None:
    assert_same(prepare(volume(place), step), applied(name, volume(place), **arguments))


VALUES = [
    pytest.param(
        {"kind": "scale", "low": -100, "high": 400, "to": [-1, 1], "clip": True},
        "ScaleIntensityRange",
        {"a_min": -100, "a_max": 400, "b_min": -1, "b_max": 1, "clip": True},
        id="range, clipped",
    ),
    pytest.param(
        {"kind": "scale", "low": 57, "high": 164},
        "ScaleIntensityRange",
        {"a_min": 57, "a_max": 164, "b_min": 0, "b_max": 1},
        id="range",
    ),
    pytest.param(
        {"kind": "scale", "low": {"percentile": 5}, "high": {"percentile": 99.5}, "clip": True},
        "ScaleIntensityRangePercentiles",
        {"lower": 5, "upper": 99.5, "b_min": 0, "b_max": 1, "clip": True},
        id="percentiles",
    ),
    pytest.param(
        {"kind": "scale", "low": {"percentile": 2}, "high": {"percentile": 98}, "to": [0, 255], "per_channel": True},
        "ScaleIntensityRangePercentiles",
        {"lower": 2, "upper": 98, "b_min": 0, "b_max": 255, "channel_wise": True},
        id="percentiles by channel",
    ),
    pytest.param({"kind": "scale"}, "ScaleIntensity", {}, id="min to max"),
    pytest.param(
        {"kind": "scale", "to": [-3, 2], "per_channel": True},
        "ScaleIntensity",
        {"minv": -3, "maxv": 2, "channel_wise": True},
        id="min to max by channel",
    ),
    pytest.param({"kind": "standardize"}, "NormalizeIntensity", {}, id="standardize"),
    pytest.param(
        {"kind": "standardize", "nonzero": True, "per_channel": True},
        "NormalizeIntensity",
        {"nonzero": True, "channel_wise": True},
        id="standardize what is not zero, by channel",
    ),
    pytest.param(
        {"kind": "standardize", "mean": [100, 200], "std": [30, 40], "per_channel": True},
        "NormalizeIntensity",
        {"subtrahend": [100.0, 200.0], "divisor": [30.0, 40.0], "channel_wise": True},
        id="given mean and deviation",
    ),
    pytest.param(
        {"kind": "clip", "low": {"percentile": 10}, "high": {"percentile": 90}},
        "ClipIntensityPercentiles",
        {"lower": 10, "upper": 90},
        id="clip",
    ),
]


@pytest.mark.parametrize(("step", "name", "arguments"), VALUES)
def test_values_are_changed_as_there(step: dict[str, Any], name: str, arguments: dict[str, Any]) -> None:
    assert_same(prepare(volume(), step), applied(name, volume(), **arguments))


@pytest.mark.parametrize(
    ("step", "name", "arguments"),
    [
        ({"kind": "resample", "spacing_mm": [1.1, 0.4]}, "Spacing", {"pixdim": (1.1, 0.4)}),
        ({"kind": "resize", "size": [64, 20]}, "Resize", {"spatial_size": (64, 20), "mode": "bilinear"}),
        ({"kind": "pad_to_multiple", "multiple_of": 32}, "DivisiblePad", {"k": 32}),
        ({"kind": "crop_foreground", "margin": 2}, "CropForeground", {"margin": 2, "allow_smaller": True}),
    ],
    ids=["resample", "resize", "pad", "crop"],
)
def test_a_picture_is_changed_as_there(step: dict[str, Any], name: str, arguments: dict[str, Any]) -> None:
    assert_same(prepare(picture(), step), applied(name, picture(), **arguments))


CHAIN: list[dict[str, Any]] = [
    {"kind": "orient", "axcodes": "RAS"},
    {"kind": "resample", "spacing_mm": [1.5, 1.5, 2.1]},
    {"kind": "crop_foreground", "margin": 2},
    {"kind": "pad_to_multiple", "multiple_of": 16},
]


@pytest.mark.parametrize("labels", [False, True], ids=["probabilities", "labels"])
@pytest.mark.parametrize("place", VOLUMES)
def test_the_way_back_is_the_one_from_there(place: str, labels: bool) -> None:
    given = volume(place, channels=1)
    prepared = prepare(given, *CHAIN)
    mine: Array = (prepared.tensor > 250).astype(np.uint8) if labels else np.clip(prepared.tensor / 400, 0, 1)

    transforms, torch = monai("transforms"), importlib.import_module("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mode = "nearest" if labels else "bilinear"
        chain = transforms.Compose(
            [
                transforms.Orientation(axcodes="RAS"),
                transforms.Spacing(pixdim=(1.5, 1.5, 2.1), mode=mode),
                transforms.CropForeground(
                    select_fn=(lambda x: x > 0) if not labels else _foreground_as(given), margin=2, allow_smaller=True
                ),
                transforms.DivisiblePad(k=16),
            ]
        )
        theirs = chain(applied("Identity", given))
        assert array(theirs).shape == prepared.tensor.shape
        theirs = theirs.clone()
        theirs[...] = torch.as_tensor(mine.astype(np.float32))
        wanted = array(chain.inverse(theirs))

    found = prepared.trail.back(mine, labels=labels)

    assert found.shape == given.voxels.shape == wanted.shape
    assert found.dtype == (np.uint8 if labels else np.float32)
    off = np.abs(found - wanted)
    assert np.count_nonzero(off > WITHIN) == 0


def _foreground_as(given: Volume) -> Any:
    """The box that linear resampling finds, for a chain that resamples by nearest neighbour."""
    linear = prepare(given, *CHAIN[:2])
    torch = importlib.import_module("torch")
    return lambda _: torch.as_tensor(linear.tensor > 0)
