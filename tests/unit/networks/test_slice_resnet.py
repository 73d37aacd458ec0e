"""The network keeps its size, its shapes, and its answers when it becomes an ONNX file."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import onnxruntime  # noqa: E402

from isocenter.networks.slice_resnet import SliceResNet, export_onnx  # noqa: E402

MAX_PARAMETERS = 480_000
MAX_BYTES = 2_000_000


@pytest.fixture(scope="module")
def module() -> SliceResNet:
    torch.manual_seed(7)
    network = SliceResNet().train()
    with torch.no_grad():
        # Fresh blocks end in a zero scale; a file with only shortcuts in it would prove little.
        for name, parameter in network.named_parameters():
            if name.endswith("second.1.weight"):
                parameter.fill_(0.7)
        for _ in range(3):
            network(torch.randn(4, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope="module")
def exported(module: SliceResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(module, path)
    return path


def test_the_parameters_stay_within_the_budget(module: SliceResNet) -> None:
    assert sum(parameter.numel() for parameter in module.parameters()) <= MAX_PARAMETERS


@pytest.mark.parametrize("side_px", [128, 160, 224])
def test_one_row_of_logits_per_image(module: SliceResNet, side_px: int) -> None:
    with torch.inference_mode():
        assert module(torch.zeros(2, 3, side_px, side_px)).shape == (2, 4)


def test_a_width_without_a_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="3 widths for 4 stages"):
        SliceResNet(widths=(8, 16, 24))


def test_the_export_is_one_small_file_of_opset_17(exported: Path) -> None:
    model = onnx.load(exported, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert exported.stat().st_size < MAX_BYTES
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_the_export_names_its_tensors_and_frees_the_batch_axis(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    found = [(tensor.name, tensor.shape) for tensor in (*session.get_inputs(), *session.get_outputs())]
    assert found == [("image", ["batch", 3, 224, 224]), ("logits", ["batch", 4])]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_export_answers_as_the_module_does(module: SliceResNet, exported: Path, batch: int) -> None:
    image = np.random.default_rng(batch).normal(size=(batch, 3, 224, 224)).astype(np.float32)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (answered,) = session.run(["logits"], {"image": image})
    with torch.inference_mode():
        expected = module(torch.from_numpy(image)).numpy()
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(answered, expected, atol=1e-4)


def test_the_export_gives_the_module_back_in_its_mode(tmp_path: Path) -> None:
    network = SliceResNet().train()
    export_onnx(network, tmp_path / "model.onnx", side_px=64)
    assert network.training
