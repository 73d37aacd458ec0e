"""A TorchScript file: its tensors are said by a person, and nothing in it runs before it was looked into."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from isocenter.core.errors import BadManifest, ImportRefused
from isocenter.importers.answers import Answers
from isocenter.importers.folder import write_folder

pytest.importorskip("torch")

import torch

import torch_files
from isocenter.importers import inspect_onnx, inspect_torchscript
from isocenter.importers.torchscript_file import read
from isocenter.runtimes.base import SessionOptions
from isocenter.runtimes.registry import open_runtime

SAID = {
    "task": "classification", "labels": "a,b,c,d", "activation": "softmax", "scale": "1/255", "mean": "0", "std": "1",
    "resize": "stretch", "input": "image: float32[3, 16, 16]", "output": "logits: float32[4]",
}  # fmt: skip
CONV_1, CONV_2, LAST = 8 * 8 * 8 * 3 * 9, 8 * 8 * 8 * 8 * 9, 8 * 4
"""Multiply-adds of the classifier: 8 x 8 places, 8 channels, kernels of 3 x 3 over 3 and over 8 channels."""


class Writes(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """Writes a file when it is run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "canary")
        return x.mean(dim=(2, 3))


@pytest.mark.parametrize("said", [{"dtype": "weird"}, {"name": "x: float32[1]; y"}, {"shape": [1e999]}])
def test_a_file_that_says_its_tensors_wrongly_is_refused(tmp_path: Path, said: dict[str, Any]) -> None:
    ports = {side: [dict(each) for each in torch_files.PORTS[side]] for side in ("inputs", "outputs")}
    ports["inputs"][0] |= said
    file = torch_files.write_script(tmp_path / "m.pt", torch_files.classifier(), ports=ports)

    with pytest.raises(ImportRefused, match="names no single input and output"):
        read(file, Answers(SAID), name="lungs")


def plain(folder: Path) -> Path:
    return torch_files.write_script(folder / "m.pt", torch_files.classifier(), ports=None)


def test_a_file_becomes_a_version_byte_for_byte(tmp_path: Path) -> None:
    file = plain(tmp_path)

    written = write_folder(tmp_path / "models", read(file, Answers(SAID), name="lungs"))

    assert written.weights.read_bytes() == file.read_bytes()
    assert written.manifest.runtime.options == {"inputs": SAID["input"], "outputs": SAID["output"]}
    options = SessionOptions(options=dict(written.manifest.runtime.options))
    assert open_runtime("torch").open(written.weights, options).inputs[0].shape == (3, 16, 16)


@pytest.mark.parametrize("flag", ["input", "output"])
def test_tensors_are_asked_for(tmp_path: Path, flag: str) -> None:
    said = {key: text for key, text in SAID.items() if key != flag}
    with pytest.raises(ImportRefused, match=f"nothing is guessed.*--{flag}"):
        read(plain(tmp_path), Answers(said), name="lungs")


def test_a_file_of_isocenter_says_its_tensors_itself(tmp_path: Path) -> None:
    file = torch_files.write_script(tmp_path / "m.pt", torch_files.classifier())
    said = {key: text for key, text in SAID.items() if key not in ("input", "output")}

    written = write_folder(tmp_path / "models", read(file, Answers(said), name="lungs"))

    assert (written.manifest.input.tensor, written.manifest.output.tensor) == ("image", "logits")


@pytest.mark.parametrize("text", ["image", "image: float16[3, 16, 16]", "image: float32[3]; age: float32[1]"])
def test_a_tensor_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ImportRefused, match="--input"):
        read(plain(tmp_path), Answers({**SAID, "input": text}), name="lungs")


def test_a_file_that_does_more_than_compute_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "m.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Writes()), str(file))
    said = Answers({**SAID, "labels": "a,b,c", "output": "logits: float32[3]"})

    with pytest.raises(BadManifest, match="aten::save"):
        write_folder(tmp_path / "models", read(file, said, name="lungs"))
    with pytest.raises(BadManifest, match="aten::save"):
        inspect_torchscript.inspect(file, ports=SAID["input"])
    assert not Path("canary").exists()
    assert list((tmp_path / "models").rglob("*")) == []


def test_a_pickle_is_no_torchscript_file(tmp_path: Path) -> None:
    torch.save(torch_files.classifier().state_dict(), tmp_path / "m.pt")
    with pytest.raises(ImportRefused, match="pickle of weights"):
        read(tmp_path / "m.pt", Answers(SAID), name="lungs")


@pytest.mark.parametrize("known", [True, False], ids=["its own tensors", "tensors that are said"])
def test_its_cost_is_that_done_by_hand(tmp_path: Path, known: bool) -> None:
    file = torch_files.write_script(
        tmp_path / "m.pt", torch_files.classifier(), ports=torch_files.PORTS if known else None
    )

    facts = inspect_torchscript.inspect(file, ports="" if known else SAID["input"])

    assert facts.cost is not None
    assert facts.cost.multiply_adds == CONV_1 + CONV_2 + LAST
    assert "shapes alone" in facts.cost.method
    assert facts.cost.activation_bytes is not None
    # The picture and two outputs of 8 x 8 x 8 at least; half a dozen at most.
    assert 4 * (3 * 256 + 2 * 512) <= facts.cost.activation_bytes <= 4 * (3 * 256 + 6 * 512)
    assert facts.layers == {"fp32": 3}
    assert facts.ops["_convolution"] == 2
    assert str(facts.inputs[0]) == "image float32 [batch x 3 x 16 x 16]"
    # Both convolutions with bias, the norm with its means and its counter, the last layer.
    assert facts.parameters == (8 * 27 + 8) + (4 * 8 + 1) + (8 * 72 + 8) + (32 + 4)


def test_without_its_tensors_the_cost_says_what_is_missing(tmp_path: Path) -> None:
    facts = inspect_torchscript.inspect(plain(tmp_path))
    assert facts.cost is None
    assert "--input" in facts.cost_missing


def test_a_file_saved_in_training_mode_is_odd(tmp_path: Path) -> None:
    network = torch_files.classifier().train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), str(tmp_path / "m.pt"))
    assert any("training mode" in said for said in inspect_torchscript.inspect(tmp_path / "m.pt").warnings)


@pytest.mark.slow
def test_resnet_50_costs_what_its_network_counts_in_both_formats(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from isocenter.networks.count import count
    from isocenter.networks.export import to_onnx
    from isocenter.networks.resnet50 import ResNet50

    network = ResNet50(classes=1000).eval()
    expected = count(network, (3, 224, 224))
    script = torch_files.write_script(tmp_path / "m.pt", network, (3, 64, 64), None)
    to_onnx(network, tmp_path, item_shape=(3, 224, 224), input_name="image")

    for facts in (
        inspect_torchscript.inspect(script, ports="image: float32[3, 224, 224]"),
        inspect_onnx.inspect(tmp_path / "model.onnx"),
    ):
        assert facts.cost is not None
        assert facts.cost.multiply_adds == expected.multiply_adds
        # He et al. 2016, table 1: 3.8e9, with the stride in the 1 x 1; here, as in torchvision, in the 3 x 3: 4.1e9.
        assert facts.cost.multiply_adds == pytest.approx(4.09e9, rel=0.01)
        assert facts.cost.activation_bytes is not None
        assert 5e6 < facts.cost.activation_bytes < 20e6
