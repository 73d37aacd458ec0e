"""A results folder of nnU-Net 2: `plans.json`, `dataset.json`, `fold_*/checkpoint_final.pth`.

Nothing of it is unpickled beyond tensors and numbers, and nothing that it names is imported: the network is built here,
takes the weights, and is exported to ONNX.
"""

import importlib.util
import itertools
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from isocenter.core.errors import ImportRefused, MissingExtra
from isocenter.core.tensor import FloatArray
from isocenter.importers.folder import Imported, TensorCase
from isocenter.importers.nnunet_checkpoint import Checkpoint, read_checkpoint
from isocenter.importers.nnunet_plans import Plans, build, output_of, read_plans, sliding_of, steps_of
from isocenter.importers.package import TEXT_LIMIT_BYTES, Folder

if TYPE_CHECKING:
    from torch import nn

CHECKPOINT: Final = "checkpoint_final.pth"
_FOLD: Final = re.compile(r"fold_(\d+|all)")
_TRAINER: Final = "nnUNetTrainer"
_BATCH: Final = {2: 8, 3: 1}
_SEED: Final = 20_002


def read(path: Path, *, name: str | None = None, version: int = 1, folds: Sequence[str] = ()) -> Imported:
    """Read a results folder, `…/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres`.

    Args:
        path: the folder that holds `plans.json` and `dataset.json`.
        name: of the model; by the dataset and the configuration if left out.
        version: of the model.
        folds: names such as `0` or `all`; as nnU-Net by default: every numbered one that is there. Several answer
            together.

    Raises:
        ImportRefused: it is no such folder, or asks for a part of nnU-Net that is not known here; a checkpoint holds
            more than data.
        MissingExtra: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra('nnU-Net needs torch to be imported, which is not installed: pip install "isocenter[torch]"')
    if not path.is_dir():
        raise ImportRefused(f"{path.name} is no folder; results of nnU-Net are one")
    folder = Folder(path)
    texts = [folder.read(file, limit_bytes=16 * TEXT_LIMIT_BYTES) for file in ("plans.json", "dataset.json")]
    files = [f"fold_{fold}/{CHECKPOINT}" for fold in _folds(path, folds)]
    checkpoints = [read_checkpoint(folder.place(file)) for file in files]
    first = checkpoints[0]
    if any(each.configuration != first.configuration for each in checkpoints):
        raise ImportRefused(f"folds are of different configurations: {', '.join(e.configuration for e in checkpoints)}")
    plans = read_plans(texts[0], texts[1], first.configuration)
    output, notes = output_of(plans)
    steps, sliding = steps_of(plans), sliding_of(plans)
    networks = [
        _network(plans, each, len(output["labels"]), file) for each, file in zip(checkpoints, files, strict=True)
    ]
    flips = _flips(first.mirrored_axes, plans)
    item = np.random.default_rng(_SEED).standard_normal((len(plans.channels), *plans.roi), dtype=np.float32)
    answer = _answer(networks, flips, item)
    weights = {f"model{'' if not n else f'_{n}'}.onnx": _exported(each, item) for n, each in enumerate(networks)}
    manifest: dict[str, Any] = {
        "schema": 1,
        "name": name or _slug(f"{plans.plans.get('dataset_name') or path.name}-{first.configuration}"),
        "version": version,
        "title": f"{plans.plans.get('dataset_name') or 'nnU-Net'}, {first.configuration}",
        "description": _line(plans.dataset.get("description")),
        "license": _line(plans.dataset.get("licence") or plans.dataset.get("license")),
        "task": "segmentation",
        "runtime": {"kind": "onnxruntime", "file": next(iter(weights)), "precision": "fp32"},
        "input": {
            "kind": "image2d" if plans.picture else "volume3d", "tensor": "image", "channels": plans.channels,
        },
        "steps": steps,
        "sliding": sliding,
        "output": {"tensor": "logits", **output},
        "batching": {"max_batch_size": _BATCH[len(plans.patch)], "max_queue_delay_ms": 0.0},
        "slo": {"timeout_ms": 3_600_000.0},
    }  # fmt: skip
    if len(networks) > 1:
        manifest["ensemble"] = {"members": [{"file": file} for file in list(weights)[1:]], "mean_of": "outputs"}
    if flips:
        manifest["augmentation"] = {"flips": flips, "mean_of": "outputs"}
    notes += _notes(first, len(networks))
    if not plans.picture and not any(step["kind"] == "orient" for step in steps):
        notes.append(f"axes are taken as {plans.file_axes}, the order of the file's indices; nothing is turned")
    return Imported(manifest, dict(weights), [TensorCase("noise", item, answer)], notes)


def _folds(path: Path, wanted: Sequence[str]) -> list[str]:
    """Numbered folds that have a checkpoint, in order; `all` if there is no other."""
    there = [each.name for each in path.iterdir() if each.is_dir() and (each / CHECKPOINT).is_file()]
    found = [match[1] for each in there if (match := _FOLD.fullmatch(each))]
    if missing := [fold for fold in wanted if fold not in found]:
        raise ImportRefused(f"{path.name}: no fold_{missing[0]}/{CHECKPOINT} in it")
    if wanted:
        return list(wanted)
    numbered = sorted((fold for fold in found if fold != "all"), key=int)
    if not found:
        raise ImportRefused(f"{path.name}: no fold_*/{CHECKPOINT} in it")
    return numbered or ["all"]


def _network(plans: Plans, checkpoint: Checkpoint, classes: int, file: str) -> "nn.Module":
    import torch

    from isocenter.networks.plain_conv_unet import own_names
    from isocenter.networks.weights import load_state, misfits

    with torch.device("meta"):  # no memory is taken for what plans alone say
        network = build(plans, classes=classes)
    inner: Any = network.network if plans.slices else network
    prefixes = ("module.", "_orig_mod.")
    state = dict(checkpoint.weights)
    while prefix := next((each for each in prefixes if all(name.startswith(each) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    try:
        own = own_names(state)
        if not misfits(inner, own):
            network.to_empty(device="cpu")
        load_state(inner, own)
    except ValueError as error:
        raise ImportRefused(f"{file}: {error}") from error
    return network.eval()


def _flips(axes: Sequence[int], plans: Plans) -> list[list[int]]:
    """Every combination of mirrored axes, as nnUNetPredictor has them; of slices, the axes are the last two."""
    if any(axis >= len(plans.patch) for axis in axes):
        raise ImportRefused(f"axes {list(axes)} are mirrored, the network takes {len(plans.patch)}")
    moved = [axis + (1 if plans.slices else 0) for axis in axes]
    return [list(some) for count in range(1, len(moved) + 1) for some in itertools.combinations(moved, count)]


def _exported(network: "nn.Module", item: FloatArray) -> bytes:
    from isocenter.networks.export import to_onnx

    with tempfile.TemporaryDirectory() as folder:
        return to_onnx(network, Path(folder), item_shape=item.shape, input_name="image").read_bytes()


def _answer(networks: Sequence["nn.Module"], flips: list[list[int]], item: FloatArray) -> FloatArray:
    """The mean over folds and mirrored inputs, by torch: what the exported networks are held against.

    Raises:
        ImportRefused: windows of that size do not fit the strides.
    """
    from isocenter.networks.export import answer

    found = np.zeros((), np.float64)
    for network, axes in itertools.product(networks, [[], *flips]):
        places = tuple(axis + 1 for axis in axes)
        mirrored = np.ascontiguousarray(np.flip(item, places))
        try:
            found = found + np.flip(answer(network, mirrored[None])[0], places)
        except RuntimeError as error:
            raise ImportRefused(
                f"plans.json: the network does not take windows of {list(item.shape[1:])}: {_line(error)[:120]}"
            ) from error
    mean: FloatArray = (found / (len(networks) * (1 + len(flips)))).astype(np.float32)
    return mean


def _notes(checkpoint: Checkpoint, folds: int) -> list[str]:
    notes = []
    if folds > 1:
        notes.append(f"{folds} folds answer together: each window is run {folds} times")
    if checkpoint.mirrored_axes:
        notes.append(f"windows are mirrored along {len(checkpoint.mirrored_axes)} axes for the mean, as nnU-Net does")
    if checkpoint.trainer != _TRAINER:
        notes.append(f"trained by {checkpoint.trainer}: its network is taken to be the one of the plans")
    return notes


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64].strip("-._") or "nnunet"


def _line(text: object) -> str:
    return " ".join(str(text or "").split())[:500]
