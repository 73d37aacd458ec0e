"""MONAI's transforms as steps of a manifest: names are looked up in a table, what is not understood is refused.

MONAI 1.6, `monai/transforms/*/dictionary.py`. What changes nothing of the numbers here (types, devices, channels first)
is passed over: arrays are float32 [C, *spatial] from the start.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from isocenter.importers.monai_config import Arguments, Config, is_number, shown, target

Step: TypeAlias = dict[str, Any]

_FLOAT32: Final = ("", "float32", "torch.float32", "$torch.float32", "$np.float32", "$numpy.float32", "$torch.float")
_FLOAT64: Final = ("float64", "torch.float64", "$torch.float64", "$np.float64", "$numpy.float64")
_PAD_MODES: Final = {"constant": "constant", "edge": "edge", "replicate": "edge", "reflect": "reflect"}
_RESIZE_MODES: Final = {
    "area": "area", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "nearest-exact": "nearest"
}  # fmt: skip
_AXIS_LABELS: Final = [["L", "R"], ["P", "A"], ["I", "S"]]
_READERS_OF_FILES: Final = ("itkreader", "nibabelreader", "nrrdreader", "pilreader", "pydicomreader")
"""Those that put x first, and then y and z, unless told otherwise."""
_ABOUT_METADATA: Final = (
    "meta_keys", "meta_key_postfix", "overwriting", "image_only", "ensure_channel_first", "simple_keys",
    "prune_meta_pattern", "prune_meta_sep", "expanduser", "allow_missing_keys",
)  # fmt: skip


@dataclass(slots=True)
class Reading:
    """What is read into while a list of transforms is gone through."""

    key: str
    """Under which the network's input stands."""
    rank: int
    """Spatial axes."""
    steps: list[Step] = field(default_factory=list)
    number: int = 0
    """Which of a transform's keys it is: some arguments have a value a key."""
    keys: int = 1

    def own(self, args: Arguments, name: str, default: Any = None) -> Any:
        """An argument that may have one value for all keys, or one a key."""
        value = args.take(name, default)
        if not isinstance(value, list):
            return value
        if len(value) != self.keys:
            raise args.refusal(f"has {len(value)} values for {self.keys} keys", name)
        return value[self.number]

    def switch(self, args: Arguments, name: str, default: bool) -> bool:
        """An argument that is true or false, for all keys or one a key."""
        value = self.own(args, name, default)
        if value is not None and not isinstance(value, bool):
            raise args.refusal(f"is {shown(value)}, neither true nor false", name)
        return default if value is None else value

    def sides(self, args: Arguments, name: str) -> list[int | None]:
        """Voxels along each axis; null for those that MONAI leaves as they are (0 or less)."""
        value = args.take(name)
        values = value if isinstance(value, list) else [value] * self.rank
        if len(values) != self.rank or not all(type(each) is int for each in values):
            raise args.refusal(f"is {shown(value)}, not {self.rank} whole numbers", name)
        return [each if each > 0 else None for each in values]


def steps_of(config: Config, place: str, *, key: str, rank: int) -> list[Step]:
    """The steps of a list of transforms, as far as they concern a key.

    Raises:
        ImportRefused: a transform or an argument is not known here, or an expression.
    """
    reading = Reading(key, rank)
    others = concerned = 0
    for where, component in config.components(place):
        args = config.arguments(component, where)
        if _concerns(args, reading):
            concerned += 1
            _read(args, reading)
        else:
            others += 1
    if others and not concerned:
        raise config.refusal(place, f"does nothing with {shown(key)}, the input that the metadata names")
    return reading.steps


def keys_of(args: Arguments) -> list[str]:
    """The keys that a transform works on."""
    keys = args.take("keys", [])
    keys = [keys] if isinstance(keys, str) else keys
    if not isinstance(keys, list) or not all(isinstance(each, str) for each in keys):
        raise args.refusal(f"is {shown(keys)}, not a name or names", "keys")
    return keys


def plain_name(args: Arguments) -> str:
    """`Spacingd`, also where it is spelt `SpacingD` or `SpacingDict`."""
    name = args.target
    for ending in ("Dict", "D", "d"):
        if name.endswith(ending) and len(name) > len(ending):
            return f"{name.removesuffix(ending)}d"
    return name


def check_type(args: Arguments, *names: str, allowed: tuple[str, ...] = _FLOAT32) -> None:
    """See that an element type is float32, or left open. The word is compared, never evaluated."""
    for name in names:
        if (said := args.text(name)) not in allowed:
            raise args.refusal(f"is {shown(said)}; arrays are float32 here", name)


def check_float(args: Arguments) -> None:
    """See that scores stay scores."""
    check_type(args, "dtype", allowed=_FLOAT32 + _FLOAT64)


def _concerns(args: Arguments, reading: Reading) -> bool:
    unknown = plain_name(args) not in _READERS and plain_name(args) not in NOTHING_TO_DO
    # A bundle's own code may write wherever it likes.
    if unknown and (args.take("keys") is None or "." in args.target):
        raise args.refusal(f"is a transform that is not known here; known are {', '.join(known())}")
    keys = keys_of(args)
    reading.keys = len(keys)
    reading.number = keys.index(reading.key) if reading.key in keys else 0
    if unknown and reading.key not in keys and reading.key in args.names():
        # ConcatItemsd, CopyItemsd, …: made of other keys, with everything that was done to those.
        raise args.refusal(f"may write {shown(reading.key)}: it is a transform that is not known here")
    return reading.key in keys


def _read(args: Arguments, reading: Reading) -> None:
    name = plain_name(args)
    if name in NOTHING_TO_DO:
        NOTHING_TO_DO[name](args)
        return
    if name not in _READERS:
        raise args.refusal(f"is a transform that is not known here; known are {', '.join(known())}")
    args.ignore("allow_missing_keys")
    if args.switch("lazy", False):
        raise args.refusal("joins resampling steps into one, which is not done here", "lazy")
    step = _READERS[name](args, reading)
    args.done()
    if step:
        reading.steps.append(step)


def _orientation(args: Arguments, reading: Reading) -> Step:
    if reading.rank != 3:
        raise args.refusal("turns a picture, which has no orientation in a patient")
    axcodes = "RAS" if args.switch("as_closest_canonical", False) else args.take("axcodes")
    if not isinstance(axcodes, str):
        raise args.refusal(f"is {shown(axcodes)}, not letters such as RAS", "axcodes")
    if (labels := args.take("labels")) not in (None, _AXIS_LABELS):
        raise args.refusal(f"is {shown(labels)}; only L/R, P/A, I/S are read", "labels")
    return {"kind": "orient", "axcodes": axcodes}


def _spacing(args: Arguments, reading: Reading) -> Step:
    pixdim = args.take("pixdim")
    values = list(pixdim) if isinstance(pixdim, list) else [pixdim]
    if not values or not all(map(is_number, values)):
        raise args.refusal(f"is {shown(pixdim)}, not millimetres", "pixdim")
    values = (values + [values[-1]] * reading.rank)[: reading.rank]
    mode = reading.own(args, "mode", "bilinear")
    if mode not in ("bilinear", "nearest"):
        raise args.refusal(f"is {shown(mode)}; known are bilinear and nearest", "mode")
    if (padding := reading.own(args, "padding_mode", "border")) != "border":
        raise args.refusal(f"is {shown(padding)}; only border is known", "padding_mode")
    for name in ("diagonal", "scale_extent", "recompute_affine"):
        args.only(name, False, default=False)
    for name in ("min_pixdim", "max_pixdim"):
        if args.take(name) is not None:
            raise args.refusal("is not known here", name)
    check_type(args, "dtype", allowed=_FLOAT32 + _FLOAT64)
    args.ignore("align_corners", "ensure_same_shape")  # with border padding they change nothing
    spacing = [float(each) if each > 0 else None for each in values]
    return {"kind": "resample", "spacing_mm": spacing, "filter": "linear" if mode == "bilinear" else "nearest"}


def _crop_foreground(args: Arguments, reading: Reading) -> Step:
    if (source := args.take("source_key")) != reading.key:
        raise args.refusal(f"is {shown(source)}; the foreground of {reading.key!r} itself is meant here", "source_key")
    if (select := args.take("select_fn")) is not None:
        raise args.refusal(f"is {shown(select)}; only values above 0 are known", "select_fn")
    channels = args.take("channel_indices")
    if isinstance(channels, list) and len(channels) == 1:
        (channels,) = channels
    if channels is not None and not isinstance(channels, int):
        raise args.refusal(f"is {shown(channels)}; one channel or all", "channel_indices")
    multiple = args.take("k_divisible", 1)
    if isinstance(multiple, list) and len(set(map(str, multiple))) == 1:
        multiple = multiple[0]
    if type(multiple) is not int:
        raise args.refusal(f"is {shown(multiple)}; one number for all axes", "k_divisible")
    _pad_mode(args, reading, ("constant",))
    if _pad_value(args):
        raise args.refusal("pads with something else than 0")
    args.ignore("start_coord_key", "end_coord_key")
    return {
        "kind": "crop_foreground",
        "channel": channels,
        "margin": args.take("margin", 0),
        "stay_inside": args.switch("allow_smaller", False),
        "multiple_of": multiple,
    }


def _pad_mode(args: Arguments, reading: Reading, known_modes: tuple[str, ...] = tuple(_PAD_MODES)) -> str:
    mode = reading.own(args, "mode", "constant")
    if not isinstance(mode, str) or mode not in known_modes:
        raise args.refusal(f"is {shown(mode)}; known are {', '.join(known_modes)}", "mode")
    return _PAD_MODES[mode]


def _pad_value(args: Arguments) -> float:
    return float(args.number("value", args.number("constant_values", 0.0)))


def _spatial_pad(args: Arguments, reading: Reading) -> Step:
    return {"kind": "pad_to", "size": reading.sides(args, "spatial_size"), **_padding(args, reading)}


def _divisible_pad(args: Arguments, reading: Reading) -> Step:
    multiple = [each or 1 for each in reading.sides(args, "k")]
    return {"kind": "pad_to_multiple", "multiple_of": multiple, **_padding(args, reading)}


def _padding(args: Arguments, reading: Reading) -> Step:
    method = args.only("method", "symmetric", "end", default="symmetric")
    return {"method": method, "mode": _pad_mode(args, reading), "value": _pad_value(args)}


def _center_crop(args: Arguments, reading: Reading) -> Step:
    return {"kind": "center_crop", "size": reading.sides(args, "roi_size")}


def _resize(args: Arguments, reading: Reading) -> Step:
    args.only("size_mode", "all", default="all")
    mode = reading.own(args, "mode", "area")
    if not isinstance(mode, str) or mode not in _RESIZE_MODES:
        raise args.refusal(f"is {shown(mode)}; known are {', '.join(_RESIZE_MODES)}", "mode")
    if reading.switch(args, "anti_aliasing", False):
        raise args.refusal("smooths with a Gaussian, which is not done here", "anti_aliasing")
    args.ignore("anti_aliasing_sigma")
    check_type(args, "dtype")
    aligned = reading.switch(args, "align_corners", False)
    return {
        "kind": "resize",
        "size": reading.sides(args, "spatial_size"),
        "filter": _RESIZE_MODES[mode],
        "align_corners": aligned and _RESIZE_MODES[mode] == "linear",
    }


def _scale_range(args: Arguments, reading: Reading) -> Step:
    low, high = args.number("a_min"), args.number("a_max")
    if low is None or high is None:
        raise args.refusal("needs both of a_min and a_max")
    return {"kind": "scale", "low": low, "high": high, **_target_range(args)}


def _scale_percentiles(args: Arguments, reading: Reading) -> Step:
    low, high = args.number("lower"), args.number("upper")
    if low is None or high is None:
        raise args.refusal("needs both of lower and upper")
    step = {"kind": "scale", "low": {"percentile": low}, "high": {"percentile": high}, **_target_range(args)}
    if args.switch("relative", False):
        bottom, top = step["to"]
        step["to"] = [(top - bottom) * share / 100 + bottom for share in (low, high)]
    return step | {"per_channel": args.switch("channel_wise", False)}


def _target_range(args: Arguments) -> Step:
    check_type(args, "dtype")
    bottom, top, clip = args.number("b_min"), args.number("b_max"), args.switch("clip", False)
    if (bottom is None) != (top is None) or (clip and bottom is None):
        raise args.refusal("needs both of b_min and b_max, or neither and no clip")
    return {"to": [0.0, 1.0] if bottom is None else [float(bottom), float(top)], "clip": clip}


def _scale(args: Arguments, reading: Reading) -> Step:
    check_type(args, "dtype")
    bottom, top, factor = args.number("minv", 0.0), args.number("maxv", 1.0), args.number("factor")
    by_channel = args.switch("channel_wise", False)
    if args.given_null("minv") and args.given_null("maxv"):
        return {"kind": "shift_scale", "gain": [1.0 + (factor or 0.0)]}
    if args.given_null("minv") or args.given_null("maxv"):
        raise args.refusal("needs both of minv and maxv, or neither")
    return {"kind": "scale", "to": [float(bottom), float(top)], "per_channel": by_channel}


def _normalize(args: Arguments, reading: Reading) -> Step:
    check_type(args, "dtype")
    mean, std = args.take("subtrahend"), args.take("divisor")
    by_channel = args.switch("channel_wise", False)
    for name, value in (("subtrahend", mean), ("divisor", std)):
        if isinstance(value, list) != by_channel and value is not None:
            raise args.refusal("goes with channel_wise as a list, without it as one number", name)
        if not all(map(is_number, value if isinstance(value, list) else [value])) and value is not None:
            raise args.refusal(f"is {shown(value)}, not a number", name)
    return {
        "kind": "standardize",
        "nonzero": args.switch("nonzero", False),
        "per_channel": by_channel,
        "mean": mean if isinstance(mean, list | None) else [mean],
        "std": std if isinstance(std, list | None) else [std],
    }


def _threshold(args: Arguments, reading: Reading) -> Step:
    threshold, above, other = args.number("threshold"), args.switch("above", True), args.number("cval", 0.0)
    if other != threshold:
        raise args.refusal(f"is {shown(other)}; only the threshold itself ({shown(threshold)}) is known", "cval")
    return {"kind": "clip", "low" if above else "high": threshold}


def _clip_percentiles(args: Arguments, reading: Reading) -> Step:
    check_type(args, "dtype")
    if args.take("sharpness_factor") is not None:
        raise args.refusal("clips softly, which is not done here", "sharpness_factor")
    bounds = {name: args.number(given) for name, given in (("low", "lower"), ("high", "upper"))}
    limits = {name: {"percentile": value} for name, value in bounds.items() if value is not None}
    return {"kind": "clip", **limits, "per_channel": args.switch("channel_wise", False)}


def _transpose(args: Arguments, reading: Reading) -> Step:
    indices = args.take("indices")
    whole = isinstance(indices, list) and all(type(each) is int for each in indices)
    if not whole or sorted(indices) != list(range(reading.rank + 1)):
        raise args.refusal(f"is {shown(indices)}, not each of {reading.rank + 1} axes once", "indices")
    if indices[0] != 0:
        raise args.refusal(f"is {shown(indices)}: channels must stay first", "indices")
    return {"kind": "transpose", "axes": [each - 1 for each in indices[1:]]}


def _as_they_are(args: Arguments) -> None:
    check_type(args, "dtype")


def _loaded(args: Arguments) -> None:
    """What is told to a reader may change the order of axes, or the samples."""
    check_type(args, "dtype")
    reader = args.take("reader")
    if isinstance(reader, dict) and set(reader) == {"_target_"}:
        reader = target(reader)
    for each in reader if isinstance(reader, list) else [reader]:
        if each is not None and (not isinstance(each, str) or each.lower() not in _READERS_OF_FILES):
            raise args.refusal(f"is {shown(each)}; known are {', '.join(_READERS_OF_FILES)}", "reader")
    args.ignore(*_ABOUT_METADATA)
    args.done()


def _untouched(args: Arguments) -> None:
    """Nothing about it matters."""


_READERS: Final[dict[str, Callable[[Arguments, Reading], Step]]] = {
    "Orientationd": _orientation,
    "Spacingd": _spacing,
    "CropForegroundd": _crop_foreground,
    "SpatialPadd": _spatial_pad,
    "DivisiblePadd": _divisible_pad,
    "CenterSpatialCropd": _center_crop,
    "Resized": _resize,
    "ScaleIntensityRanged": _scale_range,
    "ScaleIntensityRangePercentilesd": _scale_percentiles,
    "ScaleIntensityd": _scale,
    "NormalizeIntensityd": _normalize,
    "ThresholdIntensityd": _threshold,
    "ClipIntensityPercentilesd": _clip_percentiles,
    "Transposed": _transpose,
}

NOTHING_TO_DO: Final[dict[str, Callable[[Arguments], None]]] = {
    "LoadImaged": _loaded,
    "EnsureTyped": _as_they_are,
    "CastToTyped": _as_they_are,
    "ToTensord": _as_they_are,
    "EnsureChannelFirstd": _untouched,
    "AsChannelFirstd": _untouched,
    "AddChanneld": _untouched,
    "SelectItemsd": _untouched,
    "DeleteItemsd": _untouched,
    "Identityd": _untouched,
    "SaveImaged": _untouched,
}
"""Transforms that change no number here, each with what is looked at all the same."""


def known() -> list[str]:
    """The names of all transforms of preprocessing."""
    return sorted({*_READERS, *NOTHING_TO_DO})
