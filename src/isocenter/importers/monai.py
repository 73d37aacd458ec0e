"""A MONAI bundle: its inference configuration as data, its network as ONNX, TorchScript or weights.

https://docs.monai.io/en/stable/mb_specification.html. Nothing of a bundle is evaluated or unpickled. What it says in
code, or with names that are not known here, is refused with its place in the file.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from isocenter.core.errors import DigestMismatch, ImportRefused
from isocenter.importers.folder import Imported, TensorCase, noise
from isocenter.importers.monai_answer import Answer, answer_of, output_of, refuse_other_ways_back, sliding_of
from isocenter.importers.monai_config import Config, parse, shown
from isocenter.importers.monai_steps import Step, steps_of
from isocenter.importers.monai_weights import Weights, read_weights
from isocenter.importers.package import Package, open_package

CONFIGS: Final = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
METADATA: Final = "configs/metadata.json"
_LARGE_FILES: Final = ("large_files.yml", "large_files.yaml", "large_files.json")
_SIDE_PX: Final = 96
_BATCH: Final = 4
_USERS: Final = {
    "preprocessing": ("dataset::transform", "dataloader::dataset::transform"),
    "inferer": ("evaluator::inferer",),
    "postprocessing": ("evaluator::postprocessing",),
}
"""What MONAI takes each stage from, in the end: `monai/bundle/properties.py`, 1.6."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor as `metadata.json` describes it."""

    key: str
    channels: int
    names: list[str]
    """One a channel, in order; empty if there are none."""
    sides: list[int | None]
    """Voxels; null where the file leaves them open."""


def read(path: Path, *, name: str | None = None, version: int = 1, labels: Sequence[str] = ()) -> Imported:
    """Read a bundle, a folder or a zip.

    Args:
        path: what holds `configs/metadata.json`, `configs/inference.json` (or `.yaml`) and `models/model.onnx`,
            `model.ts` or `model.pt`.
        name: of the model; the bundle's own if left out.
        version: of the model.
        labels: one a channel of the output, where the bundle does not name them; the first of labels that exclude each
            other is the background.

    Raises:
        ImportRefused: it is no bundle, says something in code, or something that is not known here.
        DigestMismatch: the weights are not those that the bundle names.
        MissingExtra: its weights need a library that is not installed.
    """
    with open_package(path, holds=METADATA) as package:
        return _read(package, name, version, list(labels))


def _read(package: Package, name: str | None, version: int, labels: list[str]) -> Imported:
    file = next((each for each in CONFIGS if each in package), None)
    if file is None:
        raise ImportRefused(f"{package.name}: no {CONFIGS[0]} in it")
    config = Config(parse(package.read(file), file=file), file=file)
    metadata = Config(parse(package.read(METADATA), file=METADATA), file=METADATA)
    taken, given = _tensor(metadata, "inputs"), _tensor(metadata, "outputs")
    rank = len(taken.sides)
    _refuse_other_stages(config)
    steps = steps_of(config, "preprocessing", key=taken.key, rank=rank) if "preprocessing" in config else []
    sliding = sliding_of(config, "inferer", rank=rank)
    answer = answer_of(config, "postprocessing", key=given.key, source=taken.key)
    refuse_other_ways_back(answer, steps)
    if rank == 2:
        # MONAI's readers of pictures put x first.
        steps = [{"kind": "transpose", "axes": [1, 0]}, *steps]
    shape = (taken.channels, *_sides(taken, sliding, steps))
    item = noise(shape)
    weights = read_weights(package, config, item=item, outputs=given.channels, any_size=sliding is None)
    _check_digest(package, weights)
    manifest: dict[str, Any] = {
        "schema": 1,
        "name": name or _slug(str(metadata.get("name") or package.name)),
        "version": version,
        "title": _line(metadata.get("name") or metadata.get("task")),
        "description": _line(metadata.get("description")),
        "task": "segmentation",
        "runtime": {"precision": "fp32", **weights.runtime},
        "input": {
            "kind": "image2d" if rank == 2 else "volume3d",
            "tensor": weights.input_name,
            "channels": taken.names or _numbered(taken.channels),
        },
        "steps": steps,
        "output": {
            "tensor": weights.output_name,
            **output_of(answer),
            "labels": _labels(given, answer, labels),
        },
        "batching": {"max_batch_size": _BATCH, "max_queue_delay_ms": 0.0},
        "slo": {"timeout_ms": 600_000.0},
    }
    if sliding is not None:
        manifest["sliding"] = sliding
    notes = [*weights.notes, *_notes(metadata, answer, steps, rank)]
    golden = [TensorCase("noise", item, weights.expected)]
    return Imported(manifest, dict(weights.files), golden, notes, batch_axis_opened=weights.batch_axis_opened)


def _refuse_other_stages(config: Config) -> None:
    """See that what is read here is what MONAI would run: the names are a custom, the references to them decide.

    Raises:
        ImportRefused: the data set or the evaluator is given something else; or nothing says what is done.
    """
    for stage, users in _USERS.items():
        read = config.written_at(stage)
        for user in users:
            taken = config.written_at(user)
            if taken not in (None, read):
                raise config.refusal(
                    user, f"stands at {taken}; it is read where it is called {stage}, and nowhere else"
                )
    if not config.says("preprocessing"):
        raise config.refusal("preprocessing", "is not there; an empty list would say that nothing is done to an image")
    if not config.says("inferer"):
        raise config.refusal("inferer", "is not there; a SimpleInferer would say that the network takes all at once")
    for name in ("prepare_batch", "iteration_update"):
        if config.says(f"evaluator::{name}"):
            raise config.refusal(f"evaluator::{name}", "is a function between the steps and the network")


def _tensor(metadata: Config, side: str) -> _Tensor:
    place = f"network_data_format::{side}"
    said = metadata.get(place)
    if not isinstance(said, dict) or len(said) != 1:
        there = ", ".join(said) if isinstance(said, dict) else "none"
        raise metadata.refusal(place, f"names {there[:80]}; a model of one input and one output is known here")
    ((key, about),) = said.items()
    channels = about.get("num_channels") if isinstance(about, dict) else None
    if type(channels) is not int or not 1 <= channels <= 4096:
        raise metadata.refusal(f"{place}::{key}::num_channels", f"is {shown(channels)}, not a number of channels")
    sides = about.get("spatial_shape")
    if not isinstance(sides, list) or len(sides) not in (2, 3):
        raise metadata.refusal(f"{place}::{key}::spatial_shape", f"is {shown(sides)}, not 2 or 3 sizes")
    defined = about.get("channel_def") or {}
    if not isinstance(defined, dict) or not all(str(each).isdecimal() for each in defined):
        raise metadata.refusal(f"{place}::{key}::channel_def", f"is {shown(defined)}, not names by number")
    # Names by other numbers than 0, 1, 2, … may belong to any channel.
    counted = sorted(map(int, defined)) == list(range(len(defined)))
    names = [str(defined[each]) for each in sorted(defined, key=int)] if counted else []
    if side == "inputs" and defined and len(names) != channels:
        raise metadata.refusal(
            f"{place}::{key}::channel_def", f"is {shown(defined)}, not a name for each of {channels}"
        )
    return _Tensor(key, channels, names, [each if type(each) is int and each > 0 else None for each in sides])


def _sides(taken: _Tensor, sliding: dict[str, Any] | None, steps: list[Step]) -> tuple[int, ...]:
    """Of one item as the network gets it; of the golden one, where they are open."""
    if sliding is not None:
        return tuple(sliding["roi"])
    sides = list(taken.sides)
    for step in steps:
        if step["kind"] in ("resize", "pad_to", "center_crop"):
            sides = [new or old for new, old in zip(step["size"], sides, strict=True)]
    return tuple(side or _SIDE_PX for side in sides)


def _labels(given: _Tensor, answer: Answer, wanted: list[str]) -> list[str]:
    names = wanted or given.names
    if not wanted and len(names) == given.channels + 1 and names[0].lower() == "background" and not answer.argmax:
        names = names[1:]
    if len(names) != given.channels:
        raise ImportRefused(
            f"the output has {given.channels} channels, {METADATA} names {len(given.names)} of them "
            f"({', '.join(given.names)[:80] or 'none'}): --labels says what they are",
            details={"channels": given.channels, "names": given.names[:16]},
        )
    return names


def _check_digest(package: Package, weights: Weights) -> None:
    """Hold the weights against `large_files.yml`, where a bundle says what was downloaded.

    Raises:
        DigestMismatch: they are others.
    """
    file = next((each for each in _LARGE_FILES if each in package), None)
    if file is None:
        return
    listed = parse(package.read(file), file=file).get("large_files")
    for each in listed if isinstance(listed, list) else []:
        if not isinstance(each, dict) or str(each.get("path", "")).removeprefix("./") != weights.source:
            continue
        kind, named = str(each.get("hash_type") or ""), str(each.get("hash_val") or "").lower()
        if not named:
            continue
        if kind not in ("md5", "sha1", "sha256", "sha512"):
            raise ImportRefused(f"{file}: {weights.source} has a hash of type {shown(kind)}, which is not known here")
        found = hashlib.new(kind, weights.content, usedforsecurity=False).hexdigest()
        if found != named:
            raise DigestMismatch(
                f"{weights.source} has {kind} {found[:12]}…, {file} names {named[:12]}…",
                details={"file": weights.source, "found": found, "named": named},
            )


def _notes(metadata: Config, answer: Answer, steps: list[Step], rank: int) -> list[str]:
    notes = []
    if answer.back is None and any(step["kind"] in ("resample", "resize", "orient") for step in steps):
        notes.append(
            "the bundle leaves its masks on the grid that it computes on; here they go back onto the source's, by "
            "nearest neighbour"
        )
    if not answer.discrete:
        notes.append("the bundle ends with scores; masks are made of them here, as output says")
    if rank == 3 and not any(step["kind"] == "orient" for step in steps):
        notes.append("the bundle does not turn its input: axes are taken in the order in which they come, x, y, z")
    taken: dict[str, dict[str, Any]] = metadata.get("network_data_format::inputs", {})
    modality = next((each.get("modality") for each in taken.values()), None)
    if modality:
        notes.append(f"made for modality {_line(modality)}; nothing checks that yet")
    return notes


def _numbered(channels: int) -> list[str]:
    return ["image"] if channels == 1 else [f"channel-{number}" for number in range(channels)]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64].strip("-._") or "bundle"


def _line(text: object) -> str:
    return " ".join(str(text or "").split())[:500]
