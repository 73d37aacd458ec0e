"""MONAI's transforms by name become our steps with the same meaning, or are refused by name."""

import contextlib
from typing import Any

import pytest
from pydantic import TypeAdapter

from isocenter.core.errors import ImportRefused
from isocenter.imaging.transforms.arrays.steps import ArraySteps
from isocenter.importers.monai_answer import answer_of, output_of, refuse_other_ways_back, sliding_of
from isocenter.importers.monai_config import Config
from isocenter.importers.monai_steps import known, steps_of

RESIZE = {"kind": "resize", "size": [32, 32, 32], "filter": "area", "align_corners": False}


def read(*transforms: dict[str, Any], rank: int = 3) -> list[dict[str, Any]]:
    found = steps_of(Config({"pre": list(transforms)}, file="f.json"), "pre", key="image", rank=rank)
    TypeAdapter(ArraySteps).validate_python(found)  # a manifest takes them
    return found


def transform(target: str, /, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "keys": "image", **arguments}


MEANINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "orientation": (transform("Orientationd", axcodes="PLS"), {"kind": "orient", "axcodes": "PLS"}),
    "closest canonical": (
        transform("Orientationd", as_closest_canonical=True),
        {"kind": "orient", "axcodes": "RAS"},
    ),
    "spacing": (
        transform("monai.transforms.SpacingD", pixdim=[1.5, -1], dtype="$torch.float32"),
        {"kind": "resample", "spacing_mm": [1.5, None, None], "filter": "linear"},
    ),
    "spacing of the second key": (
        transform("Spacingd", keys=["label", "image"], pixdim=2, mode=["bilinear", "nearest"]),
        {"kind": "resample", "spacing_mm": [2.0, 2.0, 2.0], "filter": "nearest"},
    ),
    "foreground": (
        transform("CropForegroundd", source_key="image", margin=[1, 2, 3], k_divisible=[4, 4, 4], channel_indices=[0]),
        {"kind": "crop_foreground", "channel": 0, "margin": [1, 2, 3], "stay_inside": False, "multiple_of": 4},
    ),
    "pad": (
        transform("SpatialPadd", spatial_size=[64, -1, 64], method="end", mode="replicate"),
        {"kind": "pad_to", "size": [64, None, 64], "method": "end", "mode": "edge", "value": 0.0},
    ),
    "divisible": (
        transform("DivisiblePadd", k=16, constant_values=-1),
        {"kind": "pad_to_multiple", "multiple_of": [16] * 3, "method": "symmetric", "mode": "constant", "value": -1.0},
    ),
    "middle": (transform("CenterSpatialCropd", roi_size=32), {"kind": "center_crop", "size": [32] * 3}),
    "resize": (transform("ResizeDict", spatial_size=32), RESIZE),
    "resize to corners": (
        transform("Resized", spatial_size=32, mode="trilinear", align_corners=True),
        RESIZE | {"filter": "linear", "align_corners": True},
    ),
    "range": (
        transform("ScaleIntensityRanged", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True),
        {"kind": "scale", "low": -57, "high": 164, "to": [0.0, 1.0], "clip": True},
    ),
    "percentiles": (
        transform("ScaleIntensityRangePercentilesd", lower=10, upper=90, b_min=0, b_max=200, relative=True),
        {"kind": "scale", "low": {"percentile": 10}, "high": {"percentile": 90}, "to": [20.0, 180.0], "clip": False,
         "per_channel": False},
    ),
    "min to max": (
        transform("ScaleIntensityd", minv=-1, channel_wise=True),
        {"kind": "scale", "to": [-1.0, 1.0], "per_channel": True},
    ),
    "a factor": (
        transform("ScaleIntensityd", minv=None, maxv=None, factor=-0.5),
        {"kind": "shift_scale", "gain": [0.5]},
    ),
    "normalize": (
        transform("NormalizeIntensityd", nonzero=True, channel_wise=True),
        {"kind": "standardize", "nonzero": True, "per_channel": True, "mean": None, "std": None},
    ),
    "normalize by numbers": (
        transform("NormalizeIntensityd", subtrahend=120.0, divisor=40),
        {"kind": "standardize", "nonzero": False, "per_channel": False, "mean": [120.0], "std": [40]},
    ),
    "threshold": (transform("ThresholdIntensityd", threshold=5, cval=5), {"kind": "clip", "low": 5}),
    "percentiles cut": (
        transform("ClipIntensityPercentilesd", lower=1, upper=None),
        {"kind": "clip", "low": {"percentile": 1}, "per_channel": False},
    ),
    "axes": (transform("Transposed", indices=[0, 3, 2, 1]), {"kind": "transpose", "axes": [2, 1, 0]}),
}  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), MEANINGS.values(), ids=MEANINGS)
def test_a_transform_is_a_step(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(given) == [expected]


def test_what_changes_no_number_is_passed_over() -> None:
    names = (
        "LoadImaged",
        "EnsureChannelFirstd",
        "EnsureTyped",
        "CastToTyped",
        "ToTensord",
        "SelectItemsd",
        "AddChanneld",
    )

    assert read(*(transform(name) for name in names)) == []
    assert len(known()) >= 18


def test_transforms_of_other_keys_are_passed_over() -> None:
    others = transform("RandFlipd", keys="label"), transform("Resized", keys=["label"], spatial_size=3)

    assert read(transform("LoadImaged", keys=["image", "label"]), *others) == []


def test_steps_for_other_keys_only_are_not_taken_for_no_steps() -> None:
    with pytest.raises(ImportRefused, match="pre does nothing with 'image'"):
        read(transform("LoadImaged", keys="scan"), transform("ScaleIntensityd", keys="scan"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": (transform("GaussianSmoothd", sigma=1), r"\(GaussianSmoothd\) is a transform that is not known here"),
    "a function": (transform("Lambdad", func="$lambda x: x"), r"\(Lambdad\) is a transform that is not known here"),
    "an expression": (transform("Spacingd", pixdim="$[1, 1, 1]"), r"pre::0::pixdim is an expression"),
    "keys in code": (transform("Spacingd", keys="$['image']", pixdim=1), "pre::0::keys is an expression"),
    "a foreground in code": (
        transform("CropForegroundd", source_key="image", select_fn="$lambda x: x > 0.5"),
        "pre::0::select_fn is an expression",
    ),
    "a foreground of another": (transform("CropForegroundd", source_key="label"), "source_key"),
    "a spline": (transform("Spacingd", pixdim=1, mode=3), "known are bilinear and nearest"),
    "zeros beyond": (transform("Spacingd", pixdim=1, padding_mode="zeros"), "only border"),
    "diagonal": (transform("Spacingd", pixdim=1, diagonal=True), r"diagonal \(Spacingd\) is True"),
    "half precision": (transform("EnsureTyped", dtype="$torch.float16"), r"dtype .* '\$torch.float16'"),
    "nearest of torch": (transform("Resized", spatial_size=3, mode="nearest"), "'nearest'"),
    "smoothing": (transform("Resized", spatial_size=3, anti_aliasing=True), "anti_aliasing"),
    "longest": (transform("Resized", spatial_size=3, size_mode="longest"), "size_mode"),
    "an argument of tomorrow": (transform("CenterSpatialCropd", roi_size=3, shape="round"), "shape"),
    "lazy": (transform("Spacingd", pixdim=1, lazy=True), "joins resampling steps"),
    "channels moved": (transform("Transposed", indices=[1, 0, 2, 3]), "channels must stay first"),
    "cut below to zero": (transform("ThresholdIntensityd", threshold=5), "only the threshold itself"),
    "half a range": (transform("ScaleIntensityRanged", a_min=0, a_max=1, b_min=0), "both of b_min and b_max"),
    "made of others": (transform("ConcatItemsd", keys=["t1", "t2"], name="image"), "ConcatItemsd.* may write 'image'"),
    "a copy of another": (transform("CopyItemsd", keys="scan", names=["image"]), "CopyItemsd.* may write 'image'"),
    "written over by a function": (
        transform("Lambdad", keys="scan", func="$f", overwrite="image"), "func is an expression"
    ),
    "own code for another": (transform("scripts.own.Flipd", keys="label"), r"\(scripts.own.Flipd\) is a transf"),
    "own code with a known name": (transform("scripts.own.Spacingd", pixdim=1), r"\(scripts.own.Spacingd\) is a"),
    "a word to the reader": (transform("LoadImaged", reverse_indexing=False), r"reverse_indexing \(LoadImaged\)"),
    "a reader in code": (
        transform("LoadImaged", reader={"_target_": "PILReader", "converter": "$lambda x: x"}), "is an expression"
    ),
    "a reader of arrays": (transform("LoadImaged", reader="NumpyReader"), "reader .* is 'NumpyReader'"),
    "no millimetres": (transform("Spacingd", pixdim=[float("nan"), 1, 1]), "not millimetres"),
    "a word for a switch": (transform("ScaleIntensityRanged", a_min=0, a_max=1, clip="false"), "clip .* is 'false'"),
    "a range of words": (transform("ScaleIntensityRanged", a_min=0, a_max="1"), "a_max .* not a number"),
    "a range without a start": (transform("ScaleIntensityRanged", a_max=1), "both of a_min and a_max"),
    "padding of words": (transform("SpatialPadd", spatial_size=3, value="x"), "value .* not a number"),
    "a mode of its own": (transform("Resized", spatial_size=3, mode={"a": 1}), "mode .* known are area"),
    "sides of switches": (transform("CenterSpatialCropd", roi_size=[True, 3, 3]), "not 3 whole numbers"),
    "a switch for each of other keys": (
        transform("Spacingd", pixdim=1, mode=["bilinear", "nearest"]), "2 values for 1 keys"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        read(given)


@pytest.mark.parametrize(
    ("changes", "message"), [({"map_items": True, "weird": 1}, "pre::weird"), ({"_disabled_": True}, "is disabled")]
)
def test_a_compose_of_its_own_is_refused(changes: dict[str, Any], message: str) -> None:
    composed = {"_target_": "Compose", "transforms": [transform("ScaleIntensityd")]} | changes

    with pytest.raises(ImportRefused, match=message):
        steps_of(Config({"pre": composed}, file="f.json"), "pre", key="image", rank=3)


def test_a_picture_has_no_orientation() -> None:
    with pytest.raises(ImportRefused, match="a picture"):
        read(transform("Orientationd", axcodes="RA"), rank=2)


SOFTMAX = transform("Activationsd", keys="pred", softmax=True)
SIGMOID = transform("Activationsd", keys="pred", sigmoid=True)
ARGMAX = transform("AsDiscreted", keys="pred", argmax=True, to_onehot=3)
HALF = transform("AsDiscreted", keys="pred", threshold=0.5)
LINEAR = transform("Invertd", keys="pred", transform="@pre", orig_keys="image", nearest_interp=False)
NEAREST = LINEAR | {"nearest_interp": True}
ANSWERS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "probabilities go back": ([SOFTMAX, LINEAR, ARGMAX], {"activation": "softmax", "back": "probabilities"}),
    "scores go back": ([LINEAR, SOFTMAX, ARGMAX], {"activation": "softmax", "back": "scores"}),
    "scores without activation": ([LINEAR, ARGMAX], {"activation": "softmax", "back": "scores"}),
    "labels go back": ([SOFTMAX, ARGMAX, NEAREST], {"activation": "softmax", "back": "labels"}),
    "nearest probabilities make nearest labels": (
        [SOFTMAX, NEAREST, ARGMAX], {"activation": "softmax", "back": "labels"}
    ),
    "each label for itself": (
        [SIGMOID, LINEAR, HALF], {"activation": "sigmoid", "back": "probabilities", "threshold": 0.5}
    ),
    "nothing goes back": ([SIGMOID, HALF], {"activation": "sigmoid", "back": "labels", "threshold": 0.5}),
    "another tensor": ([SOFTMAX, HALF | {"keys": "loss"}], {"activation": "softmax", "back": "labels"}),
    "what is saved": ([transform("SaveImaged", output_dir="$@x")], {"activation": "none", "back": "labels"}),
}  # fmt: skip


def answered(transforms: list[dict[str, Any]]) -> dict[str, Any]:
    config = Config({"preprocessing": [], "post": [_at_home(each) for each in transforms]}, file="f.json")
    return output_of(answer_of(config, "post", key="pred", source="image"))


def _at_home(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"transform": "@preprocessing"} if given.get("transform") == "@pre" else given


@pytest.mark.parametrize(("transforms", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_the_order_after_the_network_says_what_goes_back(
    transforms: list[dict[str, Any]], expected: dict[str, Any]
) -> None:
    assert answered(transforms) == expected


REFUSED_ANSWERS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "labels between labels": ([SOFTMAX, ARGMAX, LINEAR], "interpolates between labels"),
    "clean-up": ([ARGMAX, transform("KeepLargestConnectedComponentd")], "KeepLargestConnectedComponentd"),
    "a function": ([transform("Activationsd", keys="pred", other="$torch.tanh")], "other is an expression"),
    "an afterthought": ([LINEAR | {"post_func": "$lambda x: x > 1"}], "post_func is an expression"),
    "another transform": ([LINEAR | {"transform": "$@val_transforms"}], "not @preprocessing"),
    "another source": ([LINEAR | {"orig_keys": "label"}], "orig_keys"),
    "twice": ([LINEAR, SOFTMAX, LINEAR], "comes twice"),
    "a threshold of a softmax": ([SOFTMAX, HALF], "exclude each other"),
    "the largest of sigmoids": ([SIGMOID, ARGMAX], "each for itself"),
    "no probability": ([SIGMOID, HALF | {"threshold": 3}], "no probability"),
    "another tensor only": ([SOFTMAX | {"keys": "output"}], "post does nothing with 'pred'"),
    "a word for a switch": ([SIGMOID | {"sigmoid": "true"}, HALF], "sigmoid .* is 'true', neither true nor false"),
    "whole scores": ([SIGMOID, transform("CastToTyped", keys="pred", dtype="$np.uint8"), HALF], "dtype .*uint8"),
    "rounding": ([HALF | {"rounding": "torchrounding"}], "rounding"),
}  # fmt: skip


@pytest.mark.parametrize(("transforms", "message"), REFUSED_ANSWERS.values(), ids=REFUSED_ANSWERS)
def test_masks_that_are_not_made_here_are_refused_by_name(transforms: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        answered(transforms)


@pytest.mark.parametrize(
    ("transforms", "how", "message"),
    [
        ([SOFTMAX, LINEAR, ARGMAX], "area", "undoes Resized by area"),
        ([LINEAR, ARGMAX], "nearest", "undoes Resized by nearest"),
        ([SOFTMAX, ARGMAX, NEAREST], "linear", "nearest_interp"),
        ([SOFTMAX, LINEAR, ARGMAX], "linear", None),
        ([SOFTMAX, ARGMAX], "area", None),
    ],
)
def test_a_resize_goes_back_as_there_or_is_refused(
    transforms: list[dict[str, Any]], how: str, message: str | None
) -> None:
    config = Config({"preprocessing": [], "post": [_at_home(each) for each in transforms]}, file="f.json")
    answer = answer_of(config, "post", key="pred", source="image")

    with pytest.raises(ImportRefused, match=message) if message else contextlib.nullcontext():
        refuse_other_ways_back(answer, [RESIZE | {"filter": how}])


def sliding(component: Any) -> dict[str, Any] | None:
    return sliding_of(Config({"inferer": component}, file="f.json"), "inferer", rank=3)


def test_windows_are_those_of_the_inferer() -> None:
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": 96, "sw_batch_size": 4, "overlap": [0.5] * 3,
               "mode": "gaussian", "device": "$torch.device('cpu')"}  # fmt: skip

    assert sliding(inferer) == {"roi": [96, 96, 96], "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.125}
    assert sliding(inferer | {"roi_size": [-1, -1, -1]}) is None
    assert sliding({"_target_": "SimpleInferer"}) is None


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"_target_": "SliceInferer"}, "is SliceInferer"),
        ("$monai.inferers.SimpleInferer()", "inferer is an expression"),
        ({"_target_": "SlidingWindowInferer", "roi_size": "$@patch"}, "roi_size is an expression"),
        ({"_target_": "SlidingWindowInferer", "roi_size": [96, 96, -1]}, "leaves one axis whole"),
        ({"_target_": "SlidingWindowInferer", "roi_size": 9, "overlap": [0.5, 0.5, 0.25]}, "one number for all axes"),
        ({"_target_": "SlidingWindowInferer", "roi_size": 9, "padding_mode": "reflect"}, "padding_mode"),
        ({"_target_": "SlidingWindowInferer", "roi_size": 9, "cval": -1}, "cval"),
        ({"_target_": "SlidingWindowInferer", "roi_size": 9, "overlap": "0.5"}, "overlap .* is '0.5'"),
        ({"_target_": "scripts.own.SlidingWindowInferer", "roi_size": 9}, "is scripts.own.SlidingWindowInferer"),
        ({"_target_": "SimpleInferer", "_disabled_": True}, "inferer is disabled"),
    ],
)
def test_other_inferers_are_refused_by_name(component: Any, message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        sliding(component)
