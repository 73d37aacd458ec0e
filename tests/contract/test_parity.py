"""A network answers alike in every runtime: five networks, small inputs, alone and in a batch of seven."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("openvino")

import torch

from isocenter.core.tensor import FloatArray
from isocenter.networks.export import answer, to_onnx, to_openvino, to_torchscript
from isocenter.networks.registry import NETWORKS
from isocenter.networks.weights import seeded, settle, unlike_items
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.registry import open_runtime

RELATIVE = 2e-4
"""Of the largest absolute output."""


@dataclass(frozen=True)
class Made:
    """One network with the answers that belong to its inputs."""

    inputs: FloatArray
    answers: FloatArray
    sessions: dict[str, Session]


@pytest.fixture(scope="module", params=["resnet50", "hrnet-w18", "cbam-resunet", "unet2d", "unet3d"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    entry, folder = NETWORKS[str(request.param)], tmp_path_factory.mktemp("network")
    shape = entry.small_shape
    with seeded(1):
        network = entry.build()
    settle(network, unlike_items(shape, seed=1), seed=1)
    network.eval()
    items = np.concatenate([unlike_items(shape, seed=seed).numpy() for seed in (2, 3)])[:7]
    torch.save(network.state_dict(), folder / "weights.pt")
    onnx = to_onnx(network, folder, item_shape=shape, input_name=entry.input_name)
    script = to_torchscript(network, folder, item_shape=shape, input_name=entry.input_name)
    xml, _ = to_openvino(onnx, folder)

    def opened(kind: str, file: Path, **options: str | bool) -> Session:
        return open_runtime(kind).open(file, SessionOptions(options=dict(options)))

    ports = {} if entry.fully_convolutional else {"inputs": f"{entry.input_name}: float32{list(shape)}"}
    sessions = {
        "onnxruntime": opened("onnxruntime", onnx),
        "openvino": opened("openvino", xml),
        "torch script": opened("torch", script),
        "torch eager": opened("torch", folder / "weights.pt", network=entry.name, **ports),
    }
    return Made(items, answer(network, items), sessions)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch script", "torch eager"])
def test_a_runtime_answers_as_torch_does(made: Made, runtime: str, size: int) -> None:
    session = made.sessions[runtime]
    found = session.run({session.inputs[0].name: made.inputs[:size]})["logits"]
    expected = made.answers[:size]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()
    assert session.proof.startswith("fp32: ")
