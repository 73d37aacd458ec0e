"""Out of torch: a network as an ONNX file, a TorchScript file or an OpenVINO pair, each held against the network.

An artifact answers as the network does in evaluation mode, for any number of items; its norms and dropouts are frozen,
and that is read back from the file. Nothing of the network is changed: every module comes back in the mode that it was
in.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from isocenter.core.errors import GoldenMismatch
from isocenter.core.tensor import FloatArray
from isocenter.networks.weights import seeded

ONNX_OPSET: Final = 17
OUTPUT_NAME: Final = "logits"
TENSORS_FILE: Final = "isocenter.json"
"""Inside a TorchScript archive: names, element types and shapes of its tensors, which the format has no place for."""
TOLERANCE: Final = 2e-4
"""Of the largest absolute output: how far an fp32 artifact may be from the network."""
CHECKED_BATCHES: Final = (1, 3)
SEED: Final = 20_000
"""Of the noise that artifacts are checked with."""


def to_onnx(
    network: nn.Module,
    folder: Path,
    *,
    item_shape: Sequence[int],
    input_name: str = "image",
    free_sides: bool = False,
) -> Path:
    """Write `model.onnx`, opset 17: float32 [batch, *item_shape] in, `logits` out; the batch axis is free.

    Args:
        item_shape: channels, then sides.
        free_sides: the sides are free as well. Only of fully convolutional networks; sides must still be multiples of
            what the network divides them by.

    Raises:
        GoldenMismatch: the file holds a norm or a dropout that is not frozen.
    """
    file = folder / "model.onnx"
    axes = {0: "batch"} | ({axis: f"side{axis - 1}" for axis in range(2, len(item_shape) + 1)} if free_sides else {})
    with evaluating(network), _not_learning(network), _without_deprecations():
        torch.onnx.export(
            network,
            (torch.zeros(2, *item_shape),),
            str(file),
            # The exporter that traces: the newer one pins the batch axis of some networks and a newer opset.
            dynamo=False,
            opset_version=ONNX_OPSET,
            input_names=[input_name],
            output_names=[OUTPUT_NAME],
            dynamic_axes={input_name: axes, OUTPUT_NAME: axes if free_sides else {0: "batch"}},
        )
    _refuse_training("ONNX", file, _unfrozen_in_onnx(file))
    return file


def to_torchscript(
    network: nn.Module,
    folder: Path,
    *,
    item_shape: Sequence[int],
    input_name: str = "image",
    free_sides: bool = False,
) -> Path:
    """Write `model.pt`: traced, frozen, with the norms folded into the convolutions; batch and sides are free.

    The archive holds `isocenter.json` with the tensors' names, element types and shapes without the batch axis; -1
    marks a free one. The arguments are those of `to_onnx`.

    Raises:
        GoldenMismatch: the file holds a norm or a dropout that is not frozen.
    """
    file = folder / "model.pt"
    with evaluating(network), torch.inference_mode(), _without_deprecations():
        example = torch.zeros(2, *item_shape)
        given = list(network(example).shape[1:])
        # Not checked by running it again: `check` holds it against the network with other inputs and sizes.
        scripted = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))
    _refuse_training("TorchScript", file, _unfrozen_in_torchscript(scripted))
    taken = [item_shape[0], *([-1] * (len(item_shape) - 1))] if free_sides else list(item_shape)
    given = [given[0], *([-1] * (len(given) - 1))] if free_sides else given
    tensors = {
        "inputs": [{"name": input_name, "dtype": "float32", "shape": taken}],
        "outputs": [{"name": OUTPUT_NAME, "dtype": "float32", "shape": given}],
    }
    with _without_deprecations():
        torch.jit.save(scripted, str(file), _extra_files={TENSORS_FILE: json.dumps(tensors)})
    return file


def to_openvino(onnx: Path, folder: Path) -> tuple[Path, Path]:
    """Write `model.xml` and `model.bin` from an ONNX file, weights in fp32 as they are.

    Two files, so two digests: the manifest names the first under `runtime.file`, the second under `runtime.beside`.

    Raises:
        MissingExtra: OpenVINO is not installed.
    """
    from isocenter.runtimes.openvino import openvino_without_telemetry

    openvino: Any = openvino_without_telemetry()
    model = openvino.convert_model(str(onnx))
    file = folder / "model.xml"
    # Left alone, it would halve the weights to fp16: that is a precision that nobody stated.
    openvino.save_model(model, str(file), compress_to_fp16=False)
    return file, file.with_suffix(".bin")


def check(
    network: nn.Module,
    run: Callable[[FloatArray], FloatArray],
    item_shape: Sequence[int],
    *,
    batches: Sequence[int] = CHECKED_BATCHES,
) -> float:
    """Hold an artifact against the network on seeded noise; gives the worst difference, of the largest output.

    Args:
        run: the artifact: a batch [N, *item_shape] to its output.
        batches: numbers of items. More than one shows that the batch axis is free and that nothing in the artifact
            depends on batch-mates, as a norm in training mode would.

    Raises:
        GoldenMismatch: it has another shape, or is farther off than `TOLERANCE`.
    """
    worst = 0.0
    for size in batches:
        batch = noise(size, item_shape)
        expected, found = answer(network, batch), run(batch)
        if found.shape != expected.shape:
            raise GoldenMismatch(f"the export gives {list(found.shape)} at batch {size}, torch {list(expected.shape)}")
        worst = max(worst, float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), 1e-12))
    if not worst <= TOLERANCE:
        raise GoldenMismatch(
            f"the export is off torch by up to {worst:.3g} of the largest output, allowed is {TOLERANCE:g}",
            details={"worst": worst, "limit": TOLERANCE},
        )
    return worst


def noise(items: int, item_shape: Sequence[int]) -> FloatArray:
    """A seeded batch of standard normal values, float32 [items, *item_shape]."""
    return np.random.default_rng(SEED).standard_normal((items, *item_shape), dtype=np.float32)


def answer(network: nn.Module, batch: FloatArray) -> FloatArray:
    """What the network itself says of a batch, in evaluation mode and fp32."""
    with evaluating(network), torch.inference_mode():
        found: FloatArray = network(torch.from_numpy(batch)).numpy()
    return found


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside, and afterwards in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _not_learning(network: nn.Module) -> Iterator[None]:
    """No weight can be learned inside: else a trace keeps what every layer answered, gigabytes for a large picture."""
    learned = [weight for weight in network.parameters() if weight.requires_grad]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learned:
            weight.requires_grad_(True)


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Both ways out are marked as the older ones; nothing newer writes what every runtime here reads."""
    with warnings.catch_warnings(), seeded(0):
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\..*|isocenter\..*")
        warnings.filterwarnings("ignore", message=r".*(torch\.jit|legacy TorchScript-based ONNX).*")
        # A norm looks at its input's shape and raises. What that came to in the trace is held against the network.
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python", category=torch.jit.TracerWarning)
        # An instance norm takes its means from the item in every mode.
        warnings.filterwarnings("ignore", message="ONNX export mode is set to .*operator 'instance_norm'")
        yield


def _refuse_training(format_name: str, file: Path, unfrozen: Sequence[str]) -> None:
    if unfrozen:
        file.unlink(missing_ok=True)
        raise GoldenMismatch(
            f"the {format_name} export is in training mode: {len(unfrozen)} layers are not frozen, first {unfrozen[0]}",
            details={"layers": list(unfrozen[:20])},
        )


def _unfrozen_in_onnx(file: Path) -> list[str]:
    import onnx

    model = onnx.load(str(file))
    onnx.checker.check_model(model)
    found = []
    for node in model.graph.node:
        flags = {each.name: each.i for each in node.attribute}
        training = node.op_type == "BatchNormalization" and flags.get("training_mode", 0) != 0
        if training or (node.op_type == "Dropout" and len(node.input) > 2):
            found.append(node.name or node.op_type)
    return found


def _unfrozen_in_torchscript(scripted: Any) -> list[str]:
    """Norms and dropouts whose flag `training` is set: the sixth input of one, the third of the other."""
    places = {"aten::batch_norm": 5, "aten::dropout": 2, "aten::feature_dropout": 2}
    graph = scripted.inlined_graph  # its nodes live as long as it does
    return [
        kind
        for kind, place in places.items()
        for node in graph.findAllNodes(kind)
        if list(node.inputs())[place].toIValue() is not False
    ]
