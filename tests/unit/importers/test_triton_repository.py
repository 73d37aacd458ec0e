"""A Triton model repository says what the manifest says, in a text that a stock server reads."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from conftest import MODELS
from isocenter.core.errors import BadManifest, SetupError
from isocenter.core.tensor import Array, TensorSpec
from isocenter.importers import triton_repository
from isocenter.importers.triton_repository import TritonConfig, write_triton_repository
from isocenter.repository.layout import find
from isocenter.repository.sessions import open_one
from isocenter.runtimes.synthetic import SyntheticSession
from model_folders import write_model

DEMO = "brain-mri-classifier"
GOLDEN = """\
name: "brain-mri-classifier"
platform: "onnxruntime_onnx"
max_batch_size: 16
input {
  name: "image"
  data_type: TYPE_FP32
  dims: [3, 224, 224]
}
output {
  name: "logits"
  data_type: TYPE_FP32
  dims: [4]
}
dynamic_batching {
  preferred_batch_size: [1, 2, 4, 8, 16]
  max_queue_delay_microseconds: 1000
  default_queue_policy { max_queue_size: 512 }
}
instance_group {
  count: 1
  kind: KIND_CPU
}
model_warmup {
  name: "batch of 1"
  batch_size: 1
  inputs { key: "image" value: { data_type: TYPE_FP32 dims: [3, 224, 224] zero_data: true } }
}
model_warmup {
  name: "batch of 2"
  batch_size: 2
  inputs { key: "image" value: { data_type: TYPE_FP32 dims: [3, 224, 224] zero_data: true } }
}
model_warmup {
  name: "batch of 4"
  batch_size: 4
  inputs { key: "image" value: { data_type: TYPE_FP32 dims: [3, 224, 224] zero_data: true } }
}
model_warmup {
  name: "batch of 8"
  batch_size: 8
  inputs { key: "image" value: { data_type: TYPE_FP32 dims: [3, 224, 224] zero_data: true } }
}
model_warmup {
  name: "batch of 16"
  batch_size: 16
  inputs { key: "image" value: { data_type: TYPE_FP32 dims: [3, 224, 224] zero_data: true } }
}
"""


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_demonstration_model_as_a_repository(tmp_path: Path) -> None:
    made = write_triton_repository(find(MODELS, DEMO), tmp_path)
    assert made == tmp_path / DEMO
    found = files(tmp_path)
    assert set(found) == {f"{DEMO}/config.pbtxt", f"{DEMO}/1/model.onnx"}
    assert found[f"{DEMO}/config.pbtxt"].decode() == GOLDEN
    assert found[f"{DEMO}/1/model.onnx"] == (MODELS / DEMO / "1" / "model.onnx").read_bytes()


def test_behind_isocenter_it_waits_for_nobody(tmp_path: Path) -> None:
    write_triton_repository(find(MODELS, DEMO), tmp_path, max_queue_delay_us=0, instances=2)
    text = (tmp_path / DEMO / "config.pbtxt").read_text()
    assert "max_queue_delay_microseconds: 0\n" in text
    assert "  count: 2\n" in text


def test_devices_threads_and_open_axes() -> None:
    config = TritonConfig(
        name="volume",
        backend_line='platform: "onnxruntime_onnx"',
        inputs=[TensorSpec("x", np.dtype(np.float16), (1, -1, -1, -1))],
        outputs=[TensorSpec("mask", np.dtype(np.uint8), (2, -1, -1, -1)), TensorSpec("age", np.dtype(np.int64), ())],
        max_batch_size=4,
        preferred_batch_sizes=[],
        max_queue_delay_us=0,
        max_queue_size=8,
        instances=2,
        gpu=1,
        warm_up_sizes=[1, 4],
        parameters=[("intra_op_thread_count", "2")],
    )
    text = config.text()
    assert "  kind: KIND_GPU\n  gpus: [1]\n" in text
    assert 'parameters { key: "intra_op_thread_count" value: { string_value: "2" } }\n' in text
    assert "  data_type: TYPE_FP16\n  dims: [1, -1, -1, -1]\n" in text
    assert "  data_type: TYPE_UINT8\n  dims: [2, -1, -1, -1]\n" in text
    assert "  dims: [1]\n  reshape { shape: [] }\n" in text
    assert "model_warmup" not in text
    assert "preferred_batch_size" not in text


def test_names_of_tensors_stay_names() -> None:
    odd = TensorSpec('x"\ndims: 9 name: "é\\', np.dtype(np.float32), (3,))
    config = TritonConfig(
        name="m", backend_line="", inputs=[odd], outputs=[], max_batch_size=1, preferred_batch_sizes=[],
        max_queue_delay_us=0, max_queue_size=1, instances=1, gpu=None, warm_up_sizes=[1],
    )  # fmt: skip

    said = config.text()

    assert '  name: "x\\042\\012dims: 9 name: \\042\\303\\251\\134"\n' in said
    assert 'inputs { key: "x\\042' in said


@pytest.mark.parametrize(
    ("runtime", "line", "wanted"),
    [
        ({"kind": "torch", "file": "net.pt"}, 'platform: "pytorch_libtorch"', {"model.pt"}),
        (
            {"kind": "openvino", "file": "ir/net.xml", "beside": [{"file": "ir/net.bin"}]},
            'backend: "openvino"',
            {"model.xml", "model.bin"},
        ),
        (
            {"kind": "onnxruntime", "file": "onnx/net.onnx", "beside": [{"file": "onnx/weights/net.data"}]},
            'platform: "onnxruntime_onnx"',
            {"model.onnx", "weights/net.data"},
        ),
    ],
    ids=["torchscript", "openvino", "external data"],
)
def test_each_kind_of_file_has_its_backend_and_its_name(
    runtime: dict[str, Any], line: str, wanted: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = SyntheticSession(shape=(3, 8, 8), labels=2)
    monkeypatch.setattr(triton_repository, "open_one", lambda folder: session)
    runtime["sha256"] = digest(b"weights")
    for part in runtime.get("beside", ()):
        part["sha256"] = digest(b"more")
    folder = write_model(tmp_path / "models", runtime=runtime)
    for name, content in [
        (runtime["file"], b"weights"),
        *((part["file"], b"more") for part in runtime.get("beside", ())),
    ]:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_bytes(content)
    model = write_triton_repository(folder, tmp_path / "out")
    assert set(files(model / "1")) == wanted
    said = (model / "config.pbtxt").read_text().splitlines()
    assert line in said
    # Triton's backend for TorchScript refuses an output that is not named by its place.
    places = "__0" if runtime["kind"] == "torch" else ""
    names = [f"{spec.name}{places}" for spec in (*session.inputs, *session.outputs)]
    assert [each for each in said if each.startswith("  name: ") and "batch of" not in each] == [
        f'  name: "{name}"' for name in names
    ]
    assert session.closed


def test_versions_share_a_configuration_and_nothing_is_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_triton_repository(find(MODELS, DEMO), out)
    before = files(out)
    with pytest.raises(SetupError, match="there already"):
        write_triton_repository(find(MODELS, DEMO), out)
    demo = find(MODELS, DEMO)
    second = type(demo)(demo.path, demo.manifest.model_copy(update={"version": 2}))
    with pytest.raises(SetupError, match="one for all versions"):
        write_triton_repository(second, out, max_queue_delay_us=7)
    assert files(out) == before
    write_triton_repository(second, out)
    assert {name for name in files(out) if name not in before} == {f"{DEMO}/2/model.onnx"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"runtime": {"kind": "triton", "url": "http://host:1"}}, "has no file"),
        ({"runtime": {"kind": "torch", "file": "net.pt2", "sha256": "0" * 64}}, "export it to ONNX"),
        ({"runtime": {"kind": "torch", "file": "net.pt", "sha256": "0" * 64, "precision": "bf16"}}, "bf16"),
        (
            {"runtime": {"kind": "torch", "file": "a.pt", "sha256": "0" * 64, "options": {"network": "resnet50"}}},
            "export it to ONNX",
        ),
        ({"ensemble": {"members": [{"file": "b", "sha256": "0" * 64}]}}, "ensemble"),
        ({"augmentation": {"flips": [[0]]}}, "augmentation"),
    ],
    ids=["remote", "exported program", "precision", "bare weights", "ensemble", "augmentation"],
)
def test_what_a_repository_cannot_carry_is_refused(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models", **changes)
    with pytest.raises(BadManifest, match=why):
        write_triton_repository(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_python_backend_runs_onnx_only(tmp_path: Path) -> None:
    runtime = {"kind": "torch", "file": "net.pt", "sha256": "0" * 64}
    with pytest.raises(BadManifest, match="runs ONNX"):
        write_triton_repository(write_model(tmp_path / "models", runtime=runtime), tmp_path / "out", backend="python")


class FakeTriton(ModuleType):
    """What Triton gives a `model.py` to import."""

    class Tensor:
        def __init__(self, name: str, array: Array) -> None:
            self.name, self.array = name, array

        def as_numpy(self) -> Array:
            return self.array

    class InferenceResponse:
        def __init__(self, output_tensors: Sequence[Any]) -> None:
            self.outputs = {tensor.name: tensor.array for tensor in output_tensors}

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Array], name: str) -> "FakeTriton.Tensor":
        return FakeTriton.Tensor(name, request[name])


def test_the_model_py_answers_each_request_with_its_own_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", FakeTriton("triton_python_backend_utils"))
    demo = find(MODELS, DEMO)
    model = write_triton_repository(demo, tmp_path, backend="python")
    assert 'backend: "python"' in (model / "config.pbtxt").read_text()
    file = model / "1" / "model.py"
    names: dict[str, Any] = {"__file__": str(file)}
    exec(compile(file.read_text(), str(file), "exec"), names)
    made = names["TritonPythonModel"]()
    config = {"parameters": {"intra_op_thread_count": {"string_value": "1"}}}
    made.initialize({"model_config": json.dumps(config), "model_instance_kind": "CPU", "model_instance_device_id": "0"})
    requests = [
        {"image": np.random.default_rng(items).standard_normal((items, 3, 224, 224), dtype=np.float32)}
        for items in (2, 1, 3)
    ]
    local = open_one(demo)
    answers = made.execute(requests)
    assert [len(answer.outputs["logits"]) for answer in answers] == [2, 1, 3]
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer.outputs["logits"], local.run(request)["logits"], atol=1e-5)
