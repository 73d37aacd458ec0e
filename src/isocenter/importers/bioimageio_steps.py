"""The processing steps of bioimage.io as ours. What has no equal here is refused by name, with its place.

https://bioimage-io.github.io/spec-bioimage-io, formats 0.4 and 0.5; the arithmetic is that of bioimageio.core.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from isocenter.core.errors import ImportRefused
from isocenter.imaging.postprocess.activation import Activation
from isocenter.importers.bioimageio_axes import Axis

Step: TypeAlias = dict[str, Any]

_EPS: Final = 1e-6
"""What the format adds to a divisor unless it says otherwise."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the output means."""

    activation: Activation = "none"
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class _Op:
    name: str
    arguments: dict[str, Any]
    where: str

    def refusal(self, why: str) -> ImportRefused:
        return ImportRefused(f"{self.where} {self.name}: {why}", details={"operation": self.name})

    def take(self, **defaults: Any) -> dict[str, Any]:
        """Its arguments with defaults; any other one is refused."""
        if unknown := sorted(set(self.arguments) - set(defaults)):
            raise self.refusal(f"argument {unknown[0]!r} is not known here")
        return {**defaults, **self.arguments}


def steps_of(tensor: Mapping[str, Any], axes: Sequence[Axis]) -> list[Step]:
    """`preprocessing` of an input.

    Raises:
        ImportRefused: a step has no equal here.
    """
    found: list[Step] = []
    for op in _operations(tensor, "preprocessing"):
        make = _STEPS.get(op.name)
        if make is None:
            raise op.refusal(f"there is no such step here; there are {', '.join(sorted(_STEPS))}")
        found += make(op, axes)
    return found


def answer_of(tensor: Mapping[str, Any], axes: Sequence[Axis]) -> Answer:
    """`postprocessing` of an output: an activation, then a threshold.

    Raises:
        ImportRefused: it is anything else.
    """
    activation: Activation = "none"
    threshold: float | None = None
    for op in _operations(tensor, "postprocessing"):
        if op.name == "ensure_dtype":
            if threshold is None:
                _ensure_dtype(op, axes)
        elif op.name == "sigmoid" and (activation, threshold) == ("none", None):
            op.take()
            activation = "sigmoid"
        elif op.name == "softmax" and (activation, threshold) == ("none", None):
            if op.take(axis="channel")["axis"] not in ("channel", "c"):
                raise op.refusal("over another axis than the channels")
            activation = "softmax"
        elif op.name == "binarize" and threshold is None and activation != "softmax":
            threshold = _number(op, op.take(threshold=None, axis=None), "threshold")
            if not 0 < threshold < 1:
                raise op.refusal(f"threshold {threshold:g} is not between 0 and 1")
        else:
            raise op.refusal("an output has sigmoid or softmax here, then binarize, and nothing else")
    return Answer(activation, threshold)


def _operations(tensor: Mapping[str, Any], side: str) -> list[_Op]:
    said = tensor.get(side) or []
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        raise ImportRefused(f"{side} is not a list of steps")
    found = []
    for index, each in enumerate(said):
        if set(each) - {"id", "name", "kwargs"} or ("id" in each) == ("name" in each):
            there = ", ".join(map(str, each))[:80]
            raise ImportRefused(
                f"{side}[{index}] has {there or 'nothing'}: a step has its id and kwargs, and nothing else"
            )
        arguments = each.get("kwargs") or {}
        if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
            raise ImportRefused(f"{side}[{index}]: its kwargs are no names with values")
        found.append(_Op(str(each.get("id", each.get("name"))), arguments, f"{side}[{index}]"))
    return found


def _ensure_dtype(op: _Op, axes: Sequence[Axis]) -> list[Step]:
    """Everything is float32 here, so that only other types change anything."""
    del axes
    dtype = op.take(dtype="")["dtype"]
    if dtype not in ("float32", "float64"):
        raise op.refusal(f"values are float32 here; as {dtype} they would be others")
    return []


def _standardize(op: _Op, axes: Sequence[Axis]) -> list[Step]:
    said = op.take(axes=None, eps=_EPS, mode=None, mean=None, std=None)
    if said["mode"] == "fixed":
        if said["eps"] != _EPS:
            raise op.refusal("eps has no equal where mean and std are given")
        return _fixed(_Op(op.name, {key: said[key] for key in ("mean", "std")}, op.where), axes)
    if said["mode"] not in (None, "per_sample") or said["mean"] is not None or said["std"] is not None:
        raise op.refusal(f"mode {said['mode']}: statistics of a whole data set are not those of an image")
    each = _per_channel(op, said["axes"], axes)
    return [{"kind": "standardize", "per_channel": each, "eps": _number(op, said, "eps")}]


def _fixed(op: _Op, axes: Sequence[Axis]) -> list[Step]:
    said = op.take(mean=None, std=None, axis=None)
    _refuse_other_axis(op, said["axis"])
    return [{"kind": "standardize", "mean": _numbers(op, said, "mean"), "std": _numbers(op, said, "std")}]


def _scale_linear(op: _Op, axes: Sequence[Axis]) -> list[Step]:
    del axes
    said = op.take(gain=1.0, offset=0.0, axis=None, axes=None)
    _refuse_other_axis(op, said["axis"])
    if said["axes"] not in (None, "c") and isinstance(said["gain"], list):
        raise op.refusal(f"along the axes {said['axes']!r}")
    return [{"kind": "shift_scale", "gain": _numbers(op, said, "gain"), "offset": _numbers(op, said, "offset")}]


def _scale_range(op: _Op, axes: Sequence[Axis]) -> list[Step]:
    said = op.take(
        axes=None, min_percentile=0.0, max_percentile=100.0, eps=_EPS, mode=None, reference_tensor=None
    )  # fmt: skip
    if said["reference_tensor"] is not None:
        raise op.refusal("by the percentiles of another tensor")
    if said["mode"] not in (None, "per_sample"):
        raise op.refusal(f"mode {said['mode']}: percentiles of a whole data set are not those of an image")
    return [
        {
            "kind": "scale",
            "low": {"percentile": _number(op, said, "min_percentile")},
            "high": {"percentile": _number(op, said, "max_percentile")},
            "per_channel": _per_channel(op, said["axes"], axes),
            "eps": _number(op, said, "eps"),
        }
    ]


def _clip(op: _Op, axes: Sequence[Axis]) -> list[Step]:
    said = op.take(min=None, max=None, min_percentile=None, max_percentile=None, axes=None)
    step: Step = {"kind": "clip"}
    for key, bound in (("min", "low"), ("max", "high")):
        if said[key] is not None and said[f"{key}_percentile"] is not None:
            raise op.refusal(f"has both {key} and {key}_percentile")
        if said[key] is not None:
            step[bound] = _number(op, said, key)
        elif said[f"{key}_percentile"] is not None:
            step[bound] = {"percentile": _number(op, said, f"{key}_percentile")}
            step["per_channel"] = _per_channel(op, said["axes"], axes)
    return [step]


_STEPS: Final = {
    "clip": _clip,
    "ensure_dtype": _ensure_dtype,
    "fixed_zero_mean_unit_variance": _fixed,
    "scale_linear": _scale_linear,
    "scale_range": _scale_range,
    "zero_mean_unit_variance": _standardize,
}


def _per_channel(op: _Op, named: object, axes: Sequence[Axis]) -> bool:
    """Whether statistics are taken a channel at a time; all of its voxels have to count.

    With the batch among the axes they are those of one item, as an item is answered for itself here.
    """
    if named is None:
        return False
    words = list(named) if isinstance(named, str) else named
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise op.refusal("axes are not a list of names")
    kinds = {"b": "batch", "c": "channel"}
    found = {kinds.get(word, word) for word in words}
    spatial = {axis.id for axis in axes if axis.kind == "space"}
    if not spatial <= found or not found <= spatial | {"batch", "channel"}:
        raise op.refusal(f"over the axes {', '.join(words)}; here over all of {', '.join(sorted(spatial))}")
    return "channel" not in found


def _refuse_other_axis(op: _Op, axis: object) -> None:
    if axis not in (None, "channel", "c"):
        raise op.refusal(f"along the axis {axis!r}; here along the channels")


def _number(op: _Op, said: Mapping[str, Any], key: str) -> float:
    found = _numbers(op, said, key)
    if len(found) != 1:
        raise op.refusal(f"{key} has {len(found)} values, one a channel has no equal here")
    return found[0]


def _numbers(op: _Op, said: Mapping[str, Any], key: str) -> list[float]:
    value = said[key]
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in found):
        raise op.refusal(f"{key} is {value!r}, not a number")
    return [float(each) for each in found]
