"""From a file that holds a graph and nothing else to a manifest: what the graph says, and what a person says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from isocenter.core.errors import ImportRefused
from isocenter.importers import answers as q
from isocenter.importers.answers import Answers
from isocenter.importers.folder import TensorCase, noise

_BATCH: Final = {"classification": 16, "segmentation": 4, "tensors": 8}
_IMAGE_AXES, _VOLUME_AXES = 3, 4
_FEW_CHANNELS: Final = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output without its batch axis; None marks an open axis."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """A manifest without `runtime`, a golden case for it, and what a person should know."""

    manifest: dict[str, Any]
    case: TensorCase
    notes: list[str]


def describe(taken: Tensor, given: Tensor, answers: Answers, *, name: str, version: int) -> Described:
    """The manifest of a graph of one input and one output.

    Raises:
        ImportRefused: a question is not answered, or an answer contradicts the graph.
    """
    task = answers.get(q.TASK, str)
    make = {"classification": _classification, "segmentation": _segmentation, "tensors": _tensors}[task]
    parts, shape, notes = make(taken, given, answers)
    manifest = {"schema": 1, "name": name, "version": version, "task": task, **parts}
    manifest["batching"] = {"max_batch_size": _BATCH[task]}
    item = noise(shape)
    notes.append(
        "the golden output is what the file gave here for noise: it shows that an answer changes, not that it is right"
    )
    return Described(manifest, TensorCase("noise", item, None), notes)


def _classification(
    taken: Tensor, given: Tensor, answers: Answers
) -> tuple[dict[str, Any], tuple[int, ...], list[str]]:
    if len(taken.shape) != _IMAGE_AXES or len(given.shape) != 1:
        raise ImportRefused(
            f"a classification model takes [channels, height, width] and gives [labels]; this one takes "
            f"{shown(taken.shape)} and gives {shown(given.shape)}"
        )
    _refuse_channels_last(taken, answers)
    channels = taken.shape[0]
    color = {1: "gray", 3: "rgb"}.get(channels or 0) or answers.get(q.COLOR, str)
    expected = 1 if color == "gray" else 3
    if channels not in (None, expected) or answers.given(q.COLOR, str) not in (None, color):
        raise ImportRefused(f"the graph takes {channels} channels; a picture has 1 (gray) or 3 (rgb)")
    sides = _sides(taken.shape[1:], answers)
    labels = _labels(given.shape[0], answers)
    normalize = {"kind": "normalize", **_scaling(expected, answers)}
    steps: list[dict[str, Any]] = [{"kind": "color", "to": color}]
    steps.append({"kind": "resize", "size": sides, "mode": answers.get(q.RESIZE, str)})
    parts = {
        "input": {"kind": "image2d", "tensor": taken.name},
        "transforms": [*steps, normalize],
        "output": {"tensor": given.name, "activation": answers.get(q.ACTIVATION, str), "labels": labels},
    }
    notes = ["pictures of more than 8 bits are refused until transforms name an intensity window"]
    return parts, (expected, *sides), notes


def _segmentation(taken: Tensor, given: Tensor, answers: Answers) -> tuple[dict[str, Any], tuple[int, ...], list[str]]:
    axes = len(taken.shape)
    if axes not in (_IMAGE_AXES, _VOLUME_AXES) or len(given.shape) != axes:
        raise ImportRefused(
            f"a segmentation model takes and gives [channels, height, width] or one axis more; this one takes "
            f"{shown(taken.shape)} and gives {shown(given.shape)}"
        )
    _refuse_channels_last(taken, answers)
    channels = answers.get(q.CHANNELS, q.words)
    if taken.shape[0] not in (None, len(channels)):
        raise ImportRefused(f"--channels names {len(channels)}, the graph takes {taken.shape[0]}")
    sides = _sides(taken.shape[1:], answers)
    labels = _labels(given.shape[0], answers)
    parts: dict[str, Any] = {
        "input": {"kind": "image2d" if axes == _IMAGE_AXES else "volume3d", "tensor": taken.name, "channels": channels},
        "steps": _shift_and_scale(**_scaling(len(channels), answers)),
        "sliding": {"roi": sides},
        "output": {"tensor": given.name, "activation": answers.get(q.ACTIVATION, str), "labels": labels},
    }
    if (threshold := answers.given(q.THRESHOLD, q.number)) is not None:
        parts["output"]["threshold"] = threshold
    notes = [f"run in windows of {' x '.join(map(str, sides))}: overlap and blending are the defaults of sliding"]
    if axes == _VOLUME_AXES:
        notes.append("no orientation or spacing is set: add steps orient and resample where the model was trained so")
    return parts, (len(channels), *sides), notes


def _tensors(taken: Tensor, given: Tensor, answers: Answers) -> tuple[dict[str, Any], tuple[int, ...], list[str]]:
    del given
    return {"input": {"kind": "tensors"}}, tuple(_sides(taken.shape, answers)), []


def _sides(sides: Sequence[int | None], answers: Answers) -> list[int]:
    """Sizes from the graph; asked for where it leaves them open."""
    if all(side is not None for side in sides):
        found = [side for side in sides if side is not None]
        said = answers.given(q.SIZE, q.size)
    else:
        found = said = answers.get(q.SIZE, q.size)
    if said not in (None, found) or len(found) != len(sides) or not _fits(found, sides):
        raise ImportRefused(f"--size {said}: the graph takes {shown(sides)}", details={"flag": "--size"})
    return found


def _fits(found: Sequence[int], sides: Sequence[int | None]) -> bool:
    return all(want in (None, have) for want, have in zip(sides, found, strict=True))


def _labels(count: int | None, answers: Answers) -> list[str]:
    labels = answers.get(q.LABELS, q.words)
    if count not in (None, len(labels)):
        raise ImportRefused(f"--labels names {len(labels)}, the graph gives {count} values", details={"labels": labels})
    return labels


def _scaling(channels: int, answers: Answers) -> dict[str, Any]:
    mean = q.per_channel(answers.get(q.MEAN, q.numbers), channels, "mean")
    std = q.per_channel(answers.get(q.STD, q.numbers), channels, "std")
    if min(std) <= 0:
        raise ImportRefused(f"--std {std}: above 0, every one", details={"flag": "--std"})
    return {"scale": answers.get(q.SCALE, q.number), "mean": mean, "std": std}


def _shift_and_scale(scale: float, mean: list[float], std: list[float]) -> list[dict[str, Any]]:
    """(x * scale - mean) / std as one gain and one offset a channel; no step where that changes nothing."""
    gain = [scale / each for each in std]
    offset = [-one / other for one, other in zip(mean, std, strict=True)]
    if all(math.isclose(each, 1.0) for each in gain) and not any(offset):
        return []
    return [{"kind": "shift_scale", "gain": gain, "offset": offset}]


def _refuse_channels_last(taken: Tensor, answers: Answers) -> None:
    """Sizes tell where the channels are in all but odd cases; then it is asked."""
    first, last = taken.shape[0], taken.shape[-1]
    if first is not None and first <= _FEW_CHANNELS:
        layout = answers.given(q.LAYOUT, str) or "first"
    elif first is not None and last is not None and last <= _FEW_CHANNELS:
        layout = "last"
    else:
        layout = answers.get(q.LAYOUT, str)
    if layout == "last":
        raise ImportRefused(
            f"the graph takes {shown(taken.shape)}, channels last: export it as [channels, height, width]"
        )


def shown(shape: Sequence[int | None]) -> str:
    """A shape as people write it.

    >>> shown((3, None, 224))
    '[3, ?, 224]'
    """
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
