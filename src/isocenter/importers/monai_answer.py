"""What a MONAI bundle makes of its network's output: windows, activation, the way back onto the source grid, masks."""

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from isocenter.core.errors import ImportRefused
from isocenter.importers.monai_config import Arguments, Config, is_number, shown
from isocenter.importers.monai_steps import NOTHING_TO_DO, Reading, check_float, keys_of, plain_name

Back: TypeAlias = Literal["probabilities", "scores", "labels"]

_INVERTED: Final = ("@preprocessing", "%preprocessing")


@dataclass(slots=True)
class Answer:
    """As a list of transforms says, in its order."""

    activation: Literal["softmax", "sigmoid", "none"] = "none"
    argmax: bool = False
    threshold: float | None = None
    back: Back | None = None
    """None: nothing brings it back."""

    @property
    def discrete(self) -> bool:
        """Whether it has come to labels."""
        return self.argmax or self.threshold is not None


def sliding_of(config: Config, place: str, *, rank: int) -> dict[str, Any] | None:
    """The manifest's `sliding`; None where the network takes the whole array.

    Raises:
        ImportRefused: no inferer that is known here, or an argument that is not; an expression.
    """
    if place not in config:
        return None
    where, component = config.component(place)
    args = config.arguments(component, where)
    if args.target not in ("SlidingWindowInferer", "SimpleInferer"):
        raise config.refusal(where, f"is {args.target}; known are SlidingWindowInferer and SimpleInferer")
    if args.target == "SimpleInferer":
        args.done()
        return None
    args.ignore("sw_batch_size", "sw_device", "device", "progress", "cache_roi_weight_map", "cpu_thresh")
    args.ignore("buffer_steps", "buffer_dim")
    args.only("padding_mode", "constant", default="constant")
    args.only("with_coord", False, default=False)
    if args.number("cval", 0.0) != 0:
        raise args.refusal("pads with something else than 0", "cval")
    roi = Reading("", rank).sides(args, "roi_size")
    found = {
        "roi": roi,
        "overlap": _same_everywhere(args, "overlap", 0.25),
        "mode": args.only("mode", "constant", "gaussian", default="constant"),
        "sigma_scale": _same_everywhere(args, "sigma_scale", 0.125),
    }
    args.done()
    if all(side is None for side in roi):
        return None
    if None in roi:
        raise args.refusal("leaves one axis whole and cuts another, which is not done here", "roi_size")
    return found


def answer_of(config: Config, place: str, *, key: str, source: str) -> Answer:
    """What becomes of the output `key` of an input `source`.

    Raises:
        ImportRefused: a transform or an argument is not known here, or an expression; or they give masks that are not
            made here.
    """
    answer = Answer()
    if place not in config:
        return answer
    others = concerned = 0
    for where, component in config.components(place):
        args = config.arguments(component, where)
        name = plain_name(args)
        if name in NOTHING_TO_DO:
            # Scores as whole numbers would be others; labels are whole numbers already.
            if name in ("EnsureTyped", "CastToTyped", "ToTensord") and not answer.discrete and key in keys_of(args):
                check_float(args)
            continue
        if name not in ("Activationsd", "AsDiscreted", "Invertd"):
            raise args.refusal("is a transform of masks that is not known here; Activationsd, Invertd, AsDiscreted are")
        keys = keys_of(args)
        if key not in keys:
            others += 1
            continue
        concerned += 1
        reading = Reading(key, 0, number=keys.index(key), keys=len(keys))
        args.ignore("allow_missing_keys")
        {"Activationsd": _activation, "AsDiscreted": _discrete, "Invertd": _inverted}[name](
            args, reading, answer, source
        )
        args.done()
    if others and not concerned:
        raise config.refusal(place, f"does nothing with {shown(key)}, the output that the metadata names")
    _refuse_unknown_masks(config, place, answer)
    return answer


def output_of(answer: Answer) -> dict[str, Any]:
    """The manifest's `output`, but tensor and labels."""
    # The most probable label is the one with the highest score, whether the bundle says softmax or nothing.
    activation = "softmax" if answer.argmax else answer.activation
    found: dict[str, Any] = {"activation": activation, "back": answer.back or "labels"}
    return found if answer.threshold is None else found | {"threshold": answer.threshold}


def _activation(args: Arguments, reading: Reading, answer: Answer, source: str) -> None:
    if args.take("other") is not None:
        raise args.refusal("is a function of its own; known are sigmoid and softmax", "other")
    chosen = [name for name in ("sigmoid", "softmax") if reading.switch(args, name, False)]
    _first_axis(args)
    if answer.activation != "none" or answer.discrete or len(chosen) > 1:
        raise args.refusal("comes after another one, or after labels")
    if chosen:
        answer.activation = "sigmoid" if chosen[0] == "sigmoid" else "softmax"


def _discrete(args: Arguments, reading: Reading, answer: Answer, source: str) -> None:
    argmax = reading.switch(args, "argmax", False)
    threshold = reading.own(args, "threshold")
    if reading.own(args, "rounding") is not None:
        raise args.refusal("is not known here", "rounding")
    reading.own(args, "to_onehot")  # another way to write the same labels
    args.ignore("keepdim", "dtype")
    _first_axis(args)
    if answer.discrete or (argmax and threshold is not None):
        raise args.refusal("makes labels of labels")
    if threshold is not None and not is_number(threshold):
        raise args.refusal(f"is {shown(threshold)}, not a number", "threshold")
    answer.argmax = argmax
    answer.threshold = None if threshold is None else float(threshold)


def _inverted(args: Arguments, reading: Reading, answer: Answer, source: str) -> None:
    transform = args.written("transform")
    if transform not in _INVERTED:
        raise args.refusal(f"is {shown(transform)}, not @preprocessing", "transform")
    if (original := reading.own(args, "orig_keys", reading.key)) != source:
        raise args.refusal(f"is {shown(original)}, not {source!r}", "orig_keys")
    if args.take("post_func") is not None:
        raise args.refusal("is a function of its own", "post_func")
    args.ignore("meta_keys", "orig_meta_keys", "meta_key_postfix", "to_tensor", "device")
    nearest = reading.switch(args, "nearest_interp", True)
    if answer.back is not None:
        raise args.refusal("comes twice")
    if nearest:
        answer.back = "labels"
    elif answer.discrete:
        raise args.refusal("interpolates between labels; with nearest_interp or before AsDiscreted it would not")
    else:
        answer.back = "scores" if answer.activation == "none" else "probabilities"


def _first_axis(args: Arguments) -> None:
    if args.number("dim", 0) != 0:
        raise args.refusal("is not 0, the axis of the channels", "dim")


def _refuse_unknown_masks(config: Config, place: str, answer: Answer) -> None:
    if answer.threshold is not None and answer.activation == "softmax":
        raise config.refusal(place, "has a threshold on a softmax, whose labels exclude each other: argmax is known")
    if answer.argmax and answer.activation == "sigmoid":
        raise config.refusal(
            place, "has an argmax over a sigmoid, whose labels are each for itself: a threshold is known"
        )
    if answer.threshold is not None and not 0 < answer.threshold < 1:
        raise config.refusal(place, f"has the threshold {answer.threshold:g}, which is no probability")


def _same_everywhere(args: Arguments, name: str, default: float) -> float:
    value = args.take(name, default)
    values = value if isinstance(value, list) else [value]
    if not values or not all(map(is_number, values)) or len(set(values)) != 1:
        raise args.refusal(f"is {shown(value)}; one number for all axes is known", name)
    return float(values[0])


def refuse_other_ways_back(answer: Answer, steps: list[dict[str, Any]]) -> None:
    """See that what MONAI inverts goes back here in the same way.

    Raises:
        ImportRefused: it inverts a resize by another filter than linear.
    """
    filters = {str(step["filter"]) for step in steps if step["kind"] == "resize"}
    if answer.back == "labels" and filters:
        # There it is the nearest to the upper edge of a voxel (torch's "nearest"), not to its middle.
        filters = {"nearest neighbour (nearest_interp)"}
    if answer.back is not None and filters - {"linear"}:
        raise ImportRefused(
            f"postprocessing: Invertd undoes Resized by {', '.join(sorted(filters - {'linear'}))}; only linear is done "
            "here, with nearest_interp false"
        )
