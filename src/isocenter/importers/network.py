"""From a network of `isocenter.networks` to all of its model folder: artifact, golden cases, costs, manifest."""

import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from isocenter.core.errors import BadManifest, ImportRefused
from isocenter.core.tensor import FloatArray
from isocenter.imaging.codecs.raster import decode_reference
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.phantoms import CLASSES, brain_slice
from isocenter.imaging.transforms.reference import preprocess
from isocenter.importers.folder import Imported, TensorCase
from isocenter.networks.count import count
from isocenter.networks.export import OUTPUT_NAME, answer, check, noise, to_onnx, to_openvino, to_torchscript
from isocenter.networks.registry import NETWORKS, NetworkEntry
from isocenter.networks.weights import load_state, misfits, read_state, seeded, settle, unlike_items
from isocenter.repository.comparison import cpu_name
from isocenter.repository.integrity import sha256_of
from isocenter.repository.manifest import Manifest
from isocenter.repository.sessions import usable_cores
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.registry import AUTO, chosen, open_runtime

Format: TypeAlias = Literal["onnx", "torchscript", "openvino"]

RUNTIME_OF: Final[dict[str, str]] = {"onnx": "onnxruntime", "torchscript": "torch", "openvino": "openvino"}
"""Which runtime a format is opened by; an ONNX file of volumes is written as `auto` (see `write_folder`)."""
COST_FILE: Final = "cost.json"
_VOLUME_AXES: Final = 4

_GOLDEN_SEEDS: Final = range(2_000_000, 2_000_004)
_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_CHEAP: Final = 50e9
"""Multiply-adds of an item up to which three of them at once are held against torch as well as one."""
_FEWEST_RUNS: Final = 3
_MOST_RUNS: Final = 15
_ENOUGH_S: Final = 1.0
_PATIENCE_S: Final = 10.0
"""Runs that have taken as long together are enough, however few."""
_TOO_LONG_S: Final = 30.0
"""A batch size is not measured if its run must be expected to take longer."""


_SETTLING_SEED: Final = 2_001_000
_SETTLING_SIDE_PX: Final = 128
_SETTLING_ITEMS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be made of a network."""

    entry: NetworkEntry
    to: Format
    name: str
    version: int
    labels: tuple[str | int, ...]
    item_shape: tuple[int, ...]
    free_sides: bool = False
    max_batch_size: int = 1
    weights: str = ""
    """Where they come from, in words."""


def recognised(file: Path) -> NetworkEntry:
    """The network that a checkpoint belongs to, by the names and shapes of its tensors.

    Raises:
        ImportRefused: of no network here, or the file is not one that is read.
    """
    state = read_state(file)
    closest: tuple[int, str] | None = None
    for entry in NETWORKS.values():
        own = entry.own_names(state)
        with torch.device("meta"):
            problems = misfits(entry.build(_classes_of(own)), own)
        if not problems:
            return entry
        if closest is None or len(problems) < closest[0]:
            closest = (len(problems), f"{entry.name}, of which {problems[0]}")
    raise ImportRefused(
        f"{file.name} holds the weights of no network here; the closest is {closest[1] if closest else 'none'}"
    )


def _classes_of(state: dict[str, Tensor]) -> int | None:
    head = state.get("head.weight")
    return int(head.shape[0]) if head is not None and head.dim() > 0 else None


def built(
    entry: NetworkEntry, *, weights: Path | None = None, seed: int = 0, labels: Sequence[str | int] | None = None
) -> tuple[nn.Module, tuple[str | int, ...], str]:
    """A network with its weights, its labels, and where the weights come from, in words.

    Args:
        weights: a checkpoint; None draws them from the seed, and settles them on noise (see `settle`).
        labels: one an output. Left out: those of the entry, or numbers if the weights have another count of outputs.

    Raises:
        ImportRefused: the file is refused, or its tensors are not this network's, or are not as many as the labels.
    """
    if weights is None:
        named = tuple(labels or entry.labels)
        with seeded(seed):
            network = entry.build(len(named))
        settle(network, _settling_items(entry, seed), seed=seed)
        return network.eval(), named, f"random, seed {seed}"
    state = entry.own_names(read_state(weights))
    classes = _classes_of(state)
    if labels and classes is not None and len(labels) != classes:
        raise ImportRefused(f"{weights.name} has {classes} outputs, and there are {len(labels)} labels")
    network = entry.build(classes)
    load_state(network, state)
    named = tuple(labels or (entry.labels if classes == len(entry.labels) else range(classes or 0)))
    return network.eval(), named, f"{weights.name}, sha256 {sha256_of(weights)[:12]}…"


def _settling_items(entry: NetworkEntry, seed: int) -> Tensor:
    """Drawn slices for classifiers, which else say the same of all of them; noise for the others."""
    if entry.task != "classification":
        return unlike_items(entry.small_shape, seed=seed)
    numbers = range(_SETTLING_SEED, _SETTLING_SEED + _SETTLING_ITEMS)
    slices = [
        brain_slice(number, label=CLASSES[number % len(CLASSES)], side_px=_SETTLING_SIDE_PX).pixels
        for number in numbers
    ]
    gray = np.stack(slices).astype(np.float32)[:, np.newaxis] / 255
    mean, std = (np.asarray(each, np.float32)[:, np.newaxis, np.newaxis] for each in (_IMAGENET_MEAN, _IMAGENET_STD))
    return torch.from_numpy((gray - mean) / std)


def packaged(
    network: nn.Module, order: Order, scratch: Path, *, now_s: Callable[[], float] = time.perf_counter
) -> Imported:
    """Export into a scratch folder, hold the artifact against the network, and put the model folder's content together.

    The scratch folder must live until the result is written.

    Raises:
        GoldenMismatch: the artifact does not answer as the network does.
        MissingExtra: the format's runtime is not installed.
        BadManifest: a side is no multiple of what the network divides it by.
    """
    _check_sides(order)
    file, beside = _exported(network, order, scratch)
    counted = count(network, order.item_shape)
    kind = AUTO if order.to == "onnx" else RUNTIME_OF[order.to]
    runtime = chosen(kind, volumes=len(order.item_shape) == _VOLUME_AXES, device="cpu")
    threads = usable_cores()
    torch.set_num_threads(threads)
    session = open_runtime(runtime).open(file, SessionOptions(precision="fp32", threads=threads))
    try:
        taken = order.entry.input_name

        def run(batch: FloatArray) -> FloatArray:
            return np.asarray(session.run({taken: batch})[OUTPUT_NAME], np.float32).copy()

        worst = check(network, run, order.item_shape, batches=(1, 3) if counted.multiply_adds <= _CHEAP else (1,))
        if order.free_sides:
            other = (order.item_shape[0], *(side + order.entry.multiple for side in order.item_shape[1:]))
            worst = max(worst, check(network, run, other, batches=(1,)))
        service_s = measured(session, taken, order, now_s=now_s)
    finally:
        session.close()
    manifest = manifest_of(order, file.name, [each.name for each in beside])
    pictures, tensors = _golden(network, order, manifest)
    cost = {
        "runtime": runtime,
        "precision": "fp32",
        "threads": threads,
        "machine": cpu_name(),
        "seconds_per_item": {str(size): round(seconds / size, 6) for size, seconds in service_s.items()},
        "parameters": counted.parameters,
        "multiply_adds": counted.multiply_adds,
    }
    files: dict[str, bytes | Path] = {each.name: each for each in (file, *beside)}
    files |= pictures | {COST_FILE: (json.dumps(cost, indent=2) + "\n").encode()}
    return Imported(
        manifest=manifest,
        files=files,
        golden=tensors,
        notes=[
            f"weights: {order.weights}",
            f"{counted.parameters:,} parameters, {counted.multiply_adds / 1e9:.3g} G multiply-adds an item",
            f"off torch by at most {worst:.1g} of the largest output",
        ],
    )


def _check_sides(order: Order) -> None:
    channels, *sides = order.item_shape
    multiple = order.entry.multiple
    if channels != order.entry.input_shape[0] or len(order.item_shape) != len(order.entry.input_shape):
        raise BadManifest(f"{order.entry.name} takes {list(order.entry.input_shape)}, not {list(order.item_shape)}")
    if any(side % multiple or side < 1 for side in sides):
        raise BadManifest(f"sides of {order.entry.name} are multiples of {multiple}, not {sides}")


def _exported(network: nn.Module, order: Order, scratch: Path) -> tuple[Path, list[Path]]:
    shape, name, free = order.item_shape, order.entry.input_name, order.free_sides
    if order.to == "torchscript":
        return to_torchscript(network, scratch, item_shape=shape, input_name=name, free_sides=free), []
    onnx = to_onnx(network, scratch, item_shape=shape, input_name=name, free_sides=free)
    if order.to == "onnx":
        return onnx, []
    file, weights = to_openvino(onnx, scratch)
    return file, [weights]


def measured(
    session: Session, input_name: str, order: Order, *, now_s: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """Median seconds of a run by batch size, doubling up to the largest, as far as a run does not take too long."""
    found: dict[int, float] = {}
    sizes = [1 << power for power in range(order.max_batch_size.bit_length())]
    for size in sorted({*sizes, order.max_batch_size}):
        if found and max(found.values()) * size / max(found) > _TOO_LONG_S:
            break
        batch = {input_name: noise(size, order.item_shape)}
        session.run(batch)
        taken: list[float] = []
        while _wants_more(taken):
            started_s = now_s()
            session.run(batch)
            taken.append(now_s() - started_s)
        found[size] = statistics.median(taken)
    return found


def _wants_more(taken_s: Sequence[float]) -> bool:
    if len(taken_s) < _FEWEST_RUNS:
        return sum(taken_s) < _PATIENCE_S
    return len(taken_s) < _MOST_RUNS and sum(taken_s) < _ENOUGH_S


def manifest_of(order: Order, file: str, beside: Sequence[str]) -> dict[str, Any]:
    """The content of `model.yaml`; digests are filled in where it is written."""
    entry = order.entry
    runtime: dict[str, Any] = {"kind": RUNTIME_OF[order.to], "file": file, "precision": "fp32"}
    if beside:
        runtime["beside"] = [{"file": name} for name in beside]
    found: dict[str, Any] = {
        "schema": 1,
        "name": order.name,
        "version": order.version,
        "title": entry.title,
        "description": f"{entry.title} ({entry.paper}). Weights: {order.weights}.",
        "task": entry.task,
        "runtime": runtime,
        "input": {"kind": "image2d" if entry.input_name == "image" else "volume3d", "tensor": entry.input_name},
        **_preprocessing(order),
        "output": {"tensor": OUTPUT_NAME, "activation": entry.activation, "labels": list(order.labels)},
        "batching": {"max_batch_size": order.max_batch_size},
    }
    if entry.task == "segmentation":
        found["input"]["channels"] = ["red", "green", "blue"] if entry.input_name == "image" else ["mri"]
        if entry.activation == "sigmoid":
            found["output"]["threshold"] = 0.5
    return found


def _preprocessing(order: Order) -> dict[str, Any]:
    """How a picture or a volume becomes the network's input, unless the manifest is changed afterwards."""
    sides = list(order.item_shape[1:])
    if order.entry.task == "classification":
        steps: list[dict[str, Any]] = [
            {"kind": "color", "to": "rgb"},
            {"kind": "resize", "size": sides, "mode": "stretch", "filter": "bilinear", "antialias": True},
            {"kind": "normalize", "mean": list(_IMAGENET_MEAN), "std": list(_IMAGENET_STD)},
        ]
        return {"transforms": steps}
    if order.entry.input_name == "image":
        # Samples of 0..255, so mean and deviation are ImageNet's times 255.
        mean, std = ([round(255 * each, 3) for each in values] for values in (_IMAGENET_MEAN, _IMAGENET_STD))
        steps = [
            {"kind": "resize", "size": sides, "antialias": True},
            {"kind": "standardize", "mean": mean, "std": std},
        ]
        return {"steps": steps}
    steps = [{"kind": "standardize", "nonzero": True, "per_channel": True}]
    return {"steps": steps, "sliding": {"roi": sides, "overlap": 0.25, "mode": "gaussian"}}


def _golden(
    network: nn.Module, order: Order, manifest: dict[str, Any]
) -> tuple[dict[str, bytes | Path], list[TensorCase]]:
    """Pictures with the network's own logits for a classifier; noise and the network's own output for the others."""
    if order.entry.task != "classification":
        batch = noise(1, order.item_shape)
        return {}, [TensorCase("case-1", batch[0], answer(network, batch)[0])]
    placeholder = {"runtime": {**manifest["runtime"], "sha256": "0" * 64, "beside": []}}
    steps = Manifest.model_validate({**manifest, **placeholder}).transforms
    files: dict[str, bytes | Path] = {}
    for number, seed in enumerate(_GOLDEN_SEEDS, 1):
        picture = io.BytesIO()
        Image.fromarray(brain_slice(seed).pixels).save(picture, "png")
        item = preprocess(decode_reference(picture.getvalue(), limits=ImageLimits()), steps).tensor
        logits = answer(network, item[np.newaxis])[0]
        files[f"golden/case-{number}.png"] = picture.getvalue()
        files[f"golden/case-{number}.json"] = json.dumps({"logits": [round(float(x), 6) for x in logits]}).encode()
    return files, []
