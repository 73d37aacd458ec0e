"""What leaves torch answers as the network did: every network, every format, alone and in a batch, frozen."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from isocenter.core.errors import GoldenMismatch  # noqa: E402
from isocenter.core.tensor import FloatArray, TensorSpec  # noqa: E402
from isocenter.networks import export  # noqa: E402
from isocenter.networks.registry import NETWORKS, NetworkEntry  # noqa: E402
from isocenter.networks.weights import seeded, settle, unlike_items  # noqa: E402
from isocenter.runtimes.base import Session, SessionOptions  # noqa: E402
from isocenter.runtimes.registry import installed, open_runtime  # noqa: E402

FIVE = ("resnet50", "hrnet-w18", "cbam-resunet", "unet2d", "unet3d")
SHORTER = {"hrnet-w18": {"width": 18, "modules": (1, 1, 1)}}
"""With every kind of layer and a third of their number, for tests that are not long."""
LONG = pytest.mark.long
LARGER = ("hrnet-w18", "unet2d")
NEEDS_OPENVINO = pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")
RUNTIMES = ("onnxruntime", "torch", pytest.param("openvino", marks=NEEDS_OPENVINO))


@dataclass
class Exported:
    """One network with random weights, and its files by the runtime that opens them."""

    entry: NetworkEntry
    network: nn.Module
    files: dict[str, Path]

    def open(self, runtime: str) -> Session:
        return open_runtime(runtime).open(self.files[runtime], SessionOptions(precision="fp32", threads=1))

    def off(self, runtime: str, shape: tuple[int, ...], *batches: int) -> float:
        """The worst difference from torch, of the largest absolute output."""
        session = self.open(runtime)

        def run(batch: FloatArray) -> FloatArray:
            return np.array(session.run({self.entry.input_name: batch})["logits"])

        try:
            return export.check(self.network, run, shape, batches=batches)
        finally:
            session.close()


def exported(
    name: str, folder: Path, *, shape: tuple[int, ...] | None = None, free_sides: bool = False, shorter: bool = False
) -> Exported:
    entry = NETWORKS[name]
    if shorter and name in SHORTER:
        entry = replace(entry, options=SHORTER[name])
    with seeded(1):
        network = entry.build()
    settle(network, unlike_items(entry.small_shape, seed=1)[:3], seed=1)
    how: Any = {"item_shape": shape or entry.small_shape, "input_name": entry.input_name, "free_sides": free_sides}
    files = {
        "onnxruntime": export.to_onnx(network, folder, **how),
        "torch": export.to_torchscript(network, folder, **how),
    }
    if installed("openvino"):
        files["openvino"], _ = export.to_openvino(files["onnxruntime"], folder)
    return Exported(entry, network, files)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More would only wait for each other where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FIVE)
def one_of_five(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(request.param, tmp_path_factory.mktemp(request.param), shorter=True)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported("slice-resnet", tmp_path_factory.mktemp("light"))


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_answers_as_torch_does_alone_and_in_a_batch(one_of_five: Exported, runtime: str) -> None:
    assert one_of_five.off(runtime, one_of_five.entry.small_shape, 1, 7) <= 2e-4


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", FIVE)
def test_every_runtime_answers_as_torch_does_at_full_size(name: str, tmp_path: Path) -> None:
    found = exported(name, tmp_path, shape=NETWORKS[name].input_shape)
    batches = (1, 7) if name == "resnet50" else (1,)
    assert all(found.off(runtime, NETWORKS[name].input_shape, *batches) <= 2e-4 for runtime in found.files)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NETWORKS} - {*FIVE} | {*SHORTER}))
def test_every_other_network_does_as_well(name: str, tmp_path: Path) -> None:
    found = exported(name, tmp_path)
    assert all(found.off(runtime, found.entry.small_shape, 1, 7) <= 2e-4 for runtime in found.files)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet3d", "cbam-resunet", *(pytest.param(each, marks=LONG) for each in LARGER)])
def test_free_sides_are_free(name: str, tmp_path: Path) -> None:
    found = exported(name, tmp_path, free_sides=True)
    channels, first, *rest = found.entry.small_shape
    other = (channels, first + found.entry.multiple, *(side + 2 * found.entry.multiple for side in rest))
    for runtime in found.files:
        assert found.off(runtime, other, 1, 2) <= 2e-4
        session = found.open(runtime)
        assert {spec.shape[1:] for spec in (*session.inputs, *session.outputs)} == {(-1,) * len(rest) + (-1,)}
        session.close()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tensors_have_names_and_sizes_in_every_format(light: Exported, runtime: str) -> None:
    session = light.open(runtime)
    float32 = np.dtype(np.float32)
    assert session.inputs == (TensorSpec("image", float32, (3, 64, 64)),)
    assert session.outputs == (TensorSpec("logits", float32, (4,)),)
    session.close()


def test_the_onnx_file_has_opset_17_and_norms_inside_its_convolutions(light: Exported) -> None:
    model = onnx.load(str(light.files["onnxruntime"]))
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    assert {"BatchNormalization", "Dropout"}.isdisjoint(node.op_type for node in model.graph.node)


def test_the_torchscript_file_says_which_tensors_it_has(light: Exported) -> None:
    with zipfile.ZipFile(light.files["torch"]) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("/extra/isocenter.json")]
        said = json.loads(archive.read(name))
    assert said["inputs"] == [{"name": "image", "dtype": "float32", "shape": [3, 64, 64]}]


@NEEDS_OPENVINO
def test_the_openvino_file_keeps_its_weights_in_fp32_and_no_path(light: Exported) -> None:
    text = light.files["openvino"].read_text(encoding="utf-8")
    convolutions = sum(each.weight.numel() for each in light.network.modules() if isinstance(each, nn.Conv2d))
    assert 'element_type="f16"' not in text
    assert light.files["openvino"].with_suffix(".bin").stat().st_size >= 4 * convolutions
    assert str(light.files["openvino"].parent) not in text


class Normed(nn.Module):
    """A norm whose running figures are far from those of any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.norm.running_mean.fill_(3.0)

    def forward(self, image: Any) -> Any:
        return self.drop(self.norm(image)).mean((2, 3))


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_an_export_in_training_mode_is_seen_in_the_onnx_file(tmp_path: Path) -> None:
    file, how = tmp_path / "model.onnx", {"dynamo": False, "opset_version": 17, "do_constant_folding": False}
    with export._without_deprecations():
        torch.onnx.export(
            Normed().train(), (torch.zeros(2, 2, 4, 4),), str(file), training=torch.onnx.TrainingMode.TRAINING, **how
        )
    with pytest.raises(GoldenMismatch, match="the ONNX export is in training mode: 2 layers are not frozen"):
        export._refuse_training("ONNX", file, export._unfrozen_in_onnx(file))
    assert not file.exists()


def test_an_export_in_training_mode_is_seen_in_the_torchscript_file() -> None:
    with export._without_deprecations():
        traced = torch.jit.trace(Normed().train(), torch.zeros(2, 2, 4, 4), check_trace=False)
    assert export._unfrozen_in_torchscript(traced) == ["aten::batch_norm", "aten::dropout"]


def test_an_export_in_training_mode_is_seen_in_its_answers() -> None:
    network, forgetful = Normed(), Normed().train()

    def run(batch: FloatArray) -> FloatArray:
        with torch.no_grad():
            found: FloatArray = forgetful(torch.from_numpy(batch)).numpy()
        return found

    with pytest.raises(GoldenMismatch, match="of the largest output, allowed is"):
        export.check(network, run, (2, 4, 4))


def test_a_lost_batch_axis_is_seen(light: Exported) -> None:
    with pytest.raises(GoldenMismatch, match=r"gives \[1, 4\] at batch 3"):
        export.check(light.network, lambda batch: export.answer(light.network, batch[:1]), (3, 64, 64))


def test_every_module_comes_back_in_its_own_mode(tmp_path: Path) -> None:
    network = Normed().train()
    network.norm.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export.to_onnx(network, tmp_path, item_shape=(2, 4, 4))
    export.to_torchscript(network, tmp_path, item_shape=(2, 4, 4))
    assert [network.training, network.norm.training, network.drop.training] == [True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_no_layer_s_answer_is_kept_for_learning_while_a_network_is_written(tmp_path: Path) -> None:
    network = Normed()
    fixed = next(network.parameters())
    fixed.requires_grad_(False)
    kept: list[bool] = []
    network.norm.register_forward_hook(lambda _, __, answer: kept.append(answer.requires_grad))

    export.to_onnx(network, tmp_path, item_shape=(2, 4, 4))

    assert kept
    assert not any(kept)
    assert [weight.requires_grad for weight in network.parameters()] == [
        weight is not fixed for weight in network.parameters()
    ]
