"""nnU-Net's `plans.json` and `dataset.json` as parts of a manifest: steps, windows, labels, and the network to build.

As of nnU-Net 2.8 (`PlansManager`, `DefaultPreprocessor`, `LabelManager`), older plans included. Names of classes and
functions are looked up in tables here; another name is refused, never imported.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from isocenter.core.errors import ImportRefused
from isocenter.importers.monai_config import shown

if TYPE_CHECKING:
    from torch import nn

_OVERLAP, _SIGMA_SCALE = 0.5, 0.125  # of nnUNetPredictor
_COARSE_ABOVE = 3.0  # ANISO_THRESHOLD
_FILTERS: Final = {0: "nearest", 1: "linear", 3: "cubic"}
_RESAMPLING, _NO_RESAMPLING = "resample_data_or_seg_to_shape", "no_resampling_data_or_seg_to_shape"
_PICTURES: Final = ("NaturalImage2DIO",)
_REVERSED: Final = ("SimpleITKIO", "NibabelIO")
"""Readers that give z, y, x of a file whose indices are x, y, z."""
_AS_STORED: Final = ("Tiff3DIO",)
_TURNED: Final = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
_NETWORKS: Final = ("PlainConvUNet", "ResidualEncoderUNet")
_NORMS: Final = {"InstanceNorm": "instance", "BatchNorm": "batch"}
_LEAST_STD = 1e-8
_ABOVE_HALF: Final = float(np.nextafter(np.float32(0.5), np.float32(1)))  # a region is what is above a half there
_MOST_STAGES: Final = 16
_MOST = {"features_per_stage": 4096, "kernel_sizes": 31, "strides": 16}
_MOST_LAYERS: Final = 64
_MOST_VOXELS: Final = 2**27


@dataclass(frozen=True, slots=True)
class Plans:
    """The two files, and which configuration of them is meant."""

    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    name: str

    @property
    def configuration(self) -> dict[str, Any]:
        """With everything that it inherits.

        Raises:
            ImportRefused: there is none of that name, it inherits from itself, or it is a stage of a cascade that takes
                masks of another.
        """
        found: dict[str, Any] = {}
        seen: list[str] = []
        name: Any = self.name
        while name is not None:
            there = _mapping(self.plans, "configurations", "plans.json").get(str(name))
            if name in seen or not isinstance(there, dict):
                raise ImportRefused(f"plans.json: no configuration {shown(name)}, or one that inherits from itself")
            seen.append(name)
            found = there | found
            name = there.get("inherits_from")
        if before := found.get("previous_stage"):
            raise ImportRefused(
                f"configuration {shown(self.name)} takes masks of {shown(before)}: cascades are not read"
            )
        return found

    @property
    def picture(self) -> bool:
        """Whether it takes pictures, not volumes."""
        return self.plans.get("image_reader_writer") in _PICTURES

    @property
    def slices(self) -> bool:
        """Whether a network of pictures takes a volume slice by slice."""
        return not self.picture and len(self.patch) == 2

    @property
    def file_axes(self) -> str:
        """In which order a volume's axes come, if nothing is turned by where they point."""
        return "z, y, x" if self.plans.get("image_reader_writer") in _AS_STORED else "x, y, z"

    @property
    def patch(self) -> list[int]:
        """Voxels that the network takes, along 2 or 3 axes."""
        patch = self.configuration.get("patch_size")
        if not isinstance(patch, list) or len(patch) not in (2, 3) or not all(_is_count(each) for each in patch):
            raise ImportRefused(f"plans.json: patch_size is {shown(patch)}, not 2 or 3 sizes")
        if math.prod(patch) > _MOST_VOXELS:
            raise ImportRefused(f"plans.json: patch_size is {shown(patch)}, the limit is {_MOST_VOXELS} voxels")
        return patch

    @property
    def roi(self) -> list[int]:
        """The same of the array: slices are windows of one voxel along the first axis."""
        return [1, *self.patch] if self.slices else self.patch

    @property
    def channels(self) -> list[str]:
        """Names of the channels, each once."""
        key = "channel_names" if "channel_names" in self.dataset else "modality"
        said = _mapping(self.dataset, key, "dataset.json")
        if not said or not all(str(each).isdecimal() for each in said):
            raise ImportRefused(f"dataset.json: {key} is {shown(said)}, not names by number")
        names = [str(said[number]) for number in sorted(said, key=int)]
        return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names)]


def read_plans(plans: bytes, dataset: bytes, configuration: str) -> Plans:
    """Both files.

    Raises:
        ImportRefused: one is not JSON; or they ask for a part of nnU-Net that is not known here.
    """
    found = Plans(_json(plans, "plans.json"), _json(dataset, "dataset.json"), configuration)
    for name, only in (("label_manager", "LabelManager"), ("preprocessor_name", "DefaultPreprocessor")):
        said = found.plans.get(name) if name == "label_manager" else found.configuration.get(name)
        if said not in (None, only):
            raise ImportRefused(f"plans.json: {name} is {shown(said)}; only {only} is known here")
    reader = found.plans.get("image_reader_writer")
    if reader not in (*_PICTURES, *_REVERSED, *_AS_STORED, *_TURNED):
        raise ImportRefused(f"plans.json: image_reader_writer is {shown(reader)}, which is not known here")
    return found


def steps_of(plans: Plans) -> list[dict[str, Any]]:
    """From an array as a file has it (x, y, z; of TIFF z, y, x; of pictures y, x) to what the network takes.

    Raises:
        ImportRefused: a function or a scheme that is not known here.
    """
    configuration = plans.configuration
    rank = 2 if plans.picture else 3
    steps: list[dict[str, Any]] = []
    if plans.plans.get("image_reader_writer") in _TURNED:
        steps.append({"kind": "orient", "axcodes": "SAR"})  # RAS, in the reverse order
    order = plans.plans.get("transpose_forward")
    if not isinstance(order, list) or sorted(map(str, order)) != ["0", "1", "2"] or (plans.picture and order[0] != 0):
        raise ImportRefused(f"plans.json: transpose_forward is {shown(order)}, not an order of axes that is known here")
    axes = [axis - 1 for axis in order[1:]] if plans.picture else order
    if plans.plans.get("image_reader_writer") in _REVERSED:
        axes = [2 - axis for axis in order]
    if axes != sorted(axes):
        steps.append({"kind": "transpose", "axes": axes})
    steps.append({"kind": "crop_foreground", "nonzero": True})
    steps.append({"kind": "normalize_channels", "channels": _schemes(plans, configuration)})
    if resample := _resample(configuration, rank):
        steps.append(resample)
    return steps


def sliding_of(plans: Plans) -> dict[str, Any]:
    """Windows as nnUNetPredictor lays them by default."""
    return {
        "roi": plans.roi, "overlap": _OVERLAP, "mode": "gaussian", "sigma_scale": _SIGMA_SCALE, "rule": "nnunet",
        "sums": "fp16",
    }  # fmt: skip


def output_of(plans: Plans) -> tuple[dict[str, Any], list[str]]:
    """The manifest's `output` but its tensor, and what to say of it.

    Raises:
        ImportRefused: labels that nnU-Net itself would not take, or that leave numbers out.
    """
    said = _mapping(plans.dataset, "labels", "dataset.json")
    labels = {str(name): value for name, value in said.items() if name != "ignore"}
    if any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        return _regions(plans, labels)
    numbers = {name: _number(name, value) for name, value in labels.items()}
    by_number = {number: name for name, number in numbers.items()}
    if sorted(numbers.values()) != list(range(len(labels))) or by_number.get(0) != "background":
        raise ImportRefused(f"dataset.json: labels are {shown(said)}, not the background as 0 and the others from 1 on")
    names = [by_number[number] for number in range(len(labels))]
    return {"activation": "softmax", "back": "scores", "labels": names}, []


def _regions(plans: Plans, labels: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Labels that may lie over one another, each a channel."""
    names = [name for name, value in labels.items() if value not in (0, [0])]
    order = plans.dataset.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(names):
        raise ImportRefused(f"dataset.json: regions_class_order is {shown(order)}, not one number a region")
    note = "regions come as one mask each; nnU-Net writes the last one over the others, in the order of the labels"
    return {"activation": "sigmoid", "back": "scores", "threshold": _ABOVE_HALF, "labels": names}, [note]


def build(plans: Plans, *, classes: int) -> "nn.Module":
    """The network of the plans with random weights. torch must be installed.

    Raises:
        ImportRefused: a network, or a part of one, that is not known here.
    """
    from isocenter.networks.plain_conv_unet import OfSlices, PlainConvUNet, ResidualEncoderUNet

    name, said = _architecture(plans.configuration)
    kinds: dict[str, Any] = {"PlainConvUNet": PlainConvUNet, "ResidualEncoderUNet": ResidualEncoderUNet}
    dims = len(plans.patch)
    depth = "convs" if name == "PlainConvUNet" else "blocks"
    stages = said.get("n_stages")
    if not isinstance(stages, int) or not 2 <= stages <= _MOST_STAGES:
        raise ImportRefused(f"plans.json: n_stages is {shown(stages)}, not 2 to {_MOST_STAGES}: {name} cannot be built")
    try:
        arguments = {
            "channels": len(plans.channels),
            "classes": classes,
            "widths": _each(said, "features_per_stage", stages),
            "kernels": _each_size(said, "kernel_sizes", stages, dims),
            "strides": _each_size(said, "strides", stages, dims),
            depth: _each(said, "n_conv_per_stage" if depth == "convs" else "n_blocks_per_stage", stages),
            "decoder_convs": _each(said, "n_conv_per_stage_decoder", stages - 1),
            "bias": bool(said.get("conv_bias", False)),
            "norm": _norm(said, dims),
            "norm_options": said.get("norm_op_kwargs") or {},
            "nonlinearity": _last(said.get("nonlin")),
            "nonlinearity_options": said.get("nonlin_kwargs") or {},
            "nonlinearity_first": bool(said.get("nonlin_first", False)),
        }
        if depth == "blocks":
            arguments["stem_width"] = said.get("stem_channels")
        if _last(said.get("conv_op")) != f"Conv{dims}d":
            raise ValueError(f"conv_op {shown(said.get('conv_op'))}")
        _refuse_others(said, depth)
        made: nn.Module = kinds[name](**arguments)
    except (TypeError, ValueError, KeyError) as error:
        raise ImportRefused(f"plans.json: {name} cannot be built: {str(error)[:200]}") from error
    return OfSlices(made) if plans.slices else made


def _refuse_others(said: Mapping[str, Any], depth: str) -> None:
    if depth == "blocks" and _last(said.get("block", "BasicBlockD")) != "BasicBlockD":
        raise ValueError(f"block {shown(said['block'])}")
    if said.get("bottleneck_channels") is not None or said.get("squeeze_excitation"):
        raise ValueError("bottleneck_channels, squeeze_excitation")


def _architecture(configuration: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The network's name and arguments; of old plans, as `ConfigurationManager` puts them together."""
    if "architecture" in configuration:
        said = _mapping(configuration, "architecture", "plans.json")
        name, arguments = _last(said.get("network_class_name")), said.get("arch_kwargs")
    else:
        name, arguments = str(configuration.get("UNet_class_name")), _old_arguments(configuration)
    if name not in _NETWORKS or not isinstance(arguments, dict):
        raise ImportRefused(f"plans.json: the network {shown(name)} is not known here; {' and '.join(_NETWORKS)} are")
    return name, arguments


def _old_arguments(said: Mapping[str, Any]) -> dict[str, Any]:
    try:
        depth = said["n_conv_per_stage_encoder"]
        dims = len(said["patch_size"])
        base, most = said["UNet_base_num_features"], said["unet_max_num_features"]
        return {
            "n_stages": len(depth),
            "features_per_stage": [min(base * 2**stage, most) for stage in range(len(depth))],
            "conv_op": f"Conv{dims}d",
            "kernel_sizes": said["conv_kernel_sizes"],
            "strides": said["pool_op_kernel_sizes"],
            "n_conv_per_stage": depth,
            "n_blocks_per_stage": depth,
            "n_conv_per_stage_decoder": said["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "nonlin": "LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
    except (KeyError, TypeError) as error:
        raise ImportRefused(f"plans.json: neither an architecture nor what older plans say of one: {error}") from error


def _schemes(plans: Plans, configuration: Mapping[str, Any]) -> list[dict[str, Any]]:
    names, masked = configuration.get("normalization_schemes"), configuration.get("use_mask_for_norm")
    channels = len(plans.channels)
    if not isinstance(names, list) or not isinstance(masked, list) or {len(names), len(masked)} != {channels}:
        raise ImportRefused(f"plans.json: normalization_schemes and use_mask_for_norm are not of {channels} channels")
    return [
        _scheme(plans, str(name), number, bool(mask))
        for number, (name, mask) in enumerate(zip(names, masked, strict=True))
    ]


def _scheme(plans: Plans, name: str, number: int, masked: bool) -> dict[str, Any]:
    match name:
        case "ZScoreNormalization":
            return {"scheme": "z_score", "masked": masked}
        case "NoNormalization":
            return {"scheme": "none"}
        case "RescaleTo01Normalization":
            return {"scheme": "min_max"}
        case "RGBTo01Normalization":
            return {"scheme": "divide", "by": 255.0}
        case "CTNormalization":
            seen = _trained_on(plans, number)
            return {
                "scheme": "training_window",
                "low": seen["percentile_00_5"], "high": seen["percentile_99_5"],
                "mean": seen["mean"], "std": max(seen["std"], _LEAST_STD),
            }  # fmt: skip
    raise ImportRefused(f"plans.json: normalization {shown(name)} is not known here")


def _trained_on(plans: Plans, number: int) -> dict[str, float]:
    for key in ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"):
        if key in plans.plans:
            seen = _mapping(plans.plans, key, "plans.json").get(str(number))
            names = ("percentile_00_5", "percentile_99_5", "mean", "std")
            if isinstance(seen, dict) and all(isinstance(seen.get(name), int | float) for name in names):
                return {name: float(seen[name]) for name in names}
    raise ImportRefused(f"plans.json: no intensities of the training data for channel {number}")


def _resample(configuration: Mapping[str, Any], rank: int) -> dict[str, Any] | None:
    spacing = configuration.get("spacing")
    if not isinstance(spacing, list) or not all(isinstance(each, int | float) and each > 0 for each in spacing):
        raise ImportRefused(f"plans.json: spacing is {shown(spacing)}, not millimetres")
    functions = {side: str(configuration.get(f"resampling_fn_{side}")) for side in ("data", "probabilities")}
    for side, function in functions.items():
        if function not in (_RESAMPLING, _NO_RESAMPLING):
            raise ImportRefused(f"plans.json: resampling_fn_{side} is {shown(function)}, which is not known here")
    if len(set(functions.values())) != 1:
        raise ImportRefused("plans.json: resampling_fn_data and resampling_fn_probabilities differ")
    if functions["data"] == _NO_RESAMPLING or (rank == 2 and set(spacing) == {1}):
        return None
    data, back = (_options(configuration, side) for side in functions)
    if back["order"] != 1 or data["coarse_above"] != back["coarse_above"]:
        raise ImportRefused("plans.json: scores go back by another rule than linearly, or than images are resampled")
    return {
        "kind": "resample",
        "spacing_mm": [None] * (rank - len(spacing)) + [float(each) for each in spacing],
        "filter": _FILTERS[data["order"]],
        "extent": "voxels",
        "coarse_above": data["coarse_above"],
    }


def _options(configuration: Mapping[str, Any], side: str) -> dict[str, Any]:
    given = configuration.get(f"resampling_fn_{side}_kwargs") or {}
    if not isinstance(given, dict):
        raise ImportRefused(f"plans.json: resampling_fn_{side}_kwargs is {shown(given)}, not a mapping")
    said: dict[str, Any] = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": False} | given
    above = said.pop("separate_z_anisotropy_threshold", _COARSE_ABOVE)
    separate = said.pop("force_separate_z")
    wrong = said.pop("is_seg") or said.pop("order_z") != 0 or said["order"] not in [*_FILTERS] or len(said) != 1
    if wrong or separate not in (None, False) or not isinstance(above, int | float):
        raise ImportRefused(f"plans.json: resampling_fn_{side}_kwargs has values that are not known here")
    return {"order": said["order"], "coarse_above": None if separate is False else float(above)}


def _norm(said: Mapping[str, Any], dims: int) -> str:
    name = _last(said.get("norm_op"))
    if not name.endswith(f"{dims}d"):
        raise ValueError(f"norm_op {shown(name)}")
    return _NORMS[name.removesuffix(f"{dims}d")]


def _last(name: object) -> str:
    return str(name).rpartition(".")[2]


def _each(said: Mapping[str, Any], name: str, count: int) -> list[int]:
    value = said[name]
    values = [value] * count if isinstance(value, int) else list(value)
    if not all(_is_count(each, _MOST.get(name, _MOST_LAYERS)) for each in values):
        raise ValueError(f"{name} {shown(values)}")
    return values


def _each_size(said: Mapping[str, Any], name: str, count: int, dims: int) -> list[list[int]]:
    value = said[name]
    values = [value] * count if isinstance(value, int) else list(value)
    sizes = [[each] * dims if isinstance(each, int) else list(each) for each in values]
    if not all(len(each) == dims and all(_is_count(size, _MOST[name]) for size in each) for each in sizes):
        raise ValueError(f"{name} {shown(values)}")
    return sizes


def _is_count(value: object, most: int = _MOST_VOXELS) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _number(name: str, value: Any) -> int:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, int):
        raise ImportRefused(f"dataset.json: label {shown(name)} is {shown(value)}, not a number")
    return value


def _mapping(data: Mapping[str, Any], key: str, file: str) -> dict[str, Any]:
    found = data.get(key)
    if not isinstance(found, dict):
        raise ImportRefused(f"{file}: {key} is {shown(found)}, not a mapping")
    return found


def _json(text: bytes, file: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{file} is not JSON: {str(error)[:80]}") from error
    if not isinstance(found, dict):
        raise ImportRefused(f"{file} holds {type(found).__name__}, not a mapping")
    return found
