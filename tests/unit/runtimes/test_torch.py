"""torch computes as stated, with the threads that were asked for, and says what a file must say."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from isocenter.core.errors import BadManifest
from isocenter.core.tensor import TensorSpec
from isocenter.runtimes.base import Session, SessionOptions

pytest.importorskip("torch")

import torch

import torch_files
from isocenter.runtimes import torch as ours
from isocenter.runtimes.torch import Torch, tensor_specs
from isocenter.runtimes.torch_cuda import _Rounding
from patience import PATIENCE_S


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return torch_files.write_script(tmp_path / "m.pt", torch_files.classifier())


def images(count: int) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(0).standard_normal((count, *torch_files.IMAGE), dtype=np.float32)}


def test_layers_are_counted_in_a_run(script: Path) -> None:
    assert Torch().open(script, SessionOptions()).proof == "fp32: 3 of 3 layers; read from a run"


def test_bf16_is_seen_to_be_bf16_and_answers_in_fp32(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "cpu_has_bf16", lambda: True)
    session = Torch().open(script, SessionOptions(precision="bf16"))
    assert session.proof == "bf16: 3 of 3 layers; read from a run"
    answer = session.run(images(2))["logits"]
    expected = Torch().open(script, SessionOptions()).run(images(2))["logits"]
    assert answer.dtype == np.float32
    assert 0 < np.abs(answer - expected).max() < 0.05


def test_bf16_is_refused_where_the_processor_has_none(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "cpu_has_bf16", lambda: False)
    with pytest.raises(BadManifest, match="runtime torch on cpu has no bf16; it has fp32"):
        Torch().open(script, SessionOptions(precision="bf16"))


@pytest.mark.parametrize("precision", ["fp16", "tf32", "int8"])
def test_what_a_processor_never_has_is_refused(script: Path, precision: str) -> None:
    with pytest.raises(BadManifest, match=f"on cpu has no {precision}"):
        Torch().open(script, SessionOptions(precision=precision))  # type: ignore[arg-type]


def test_weights_of_another_type_are_seen(tmp_path: Path) -> None:
    file = torch_files.write_script(tmp_path / "m.pt", torch_files.InDouble())
    with pytest.raises(BadManifest, match="precision is fp32, but 1 of its layers compute in fp64"):
        Torch().open(file, SessionOptions())


def test_a_network_of_open_sides_is_looked_at_in_its_first_run(tmp_path: Path) -> None:
    file = torch_files.write_script(tmp_path / "m.pt", torch_files.classifier(), ports=None)
    options = SessionOptions(options={"inputs": "image: float32[3, -1, -1]", "outputs": "logits: float32[4]"})
    session = Torch().open(file, options)
    assert session.proof == "fp32: to be seen in the first run"
    session.run(images(1))
    assert session.proof == "fp32: 3 of 3 layers; read from a run"


def test_a_file_that_does_not_say_its_tensors_needs_them_said(tmp_path: Path) -> None:
    file = torch_files.write_script(tmp_path / "m.pt", torch_files.classifier(), ports=None)
    with pytest.raises(BadManifest, match=r"options inputs and outputs .* such as 'image: float32\[3, 224, 224\]'"):
        Torch().open(file, SessionOptions())


def test_a_network_that_does_not_give_what_was_said_is_refused(tmp_path: Path) -> None:
    file = torch_files.write_script(tmp_path / "m.pt", torch_files.classifier(), ports=None)
    options = SessionOptions(options={"inputs": "image: float32[3, 16, 16]", "outputs": "logits: float32[5]"})
    with pytest.raises(BadManifest, match=r"gave 'logits' as float32\[1, 4\]"):
        Torch().open(file, options)


def test_tensors_are_said_in_words() -> None:
    image, age = tensor_specs("image: float32[3,-1,-1]; age:int64[]")
    assert image == TensorSpec("image", np.dtype(np.float32), (3, -1, -1))
    assert age == TensorSpec("age", np.dtype(np.int64), ())


@pytest.mark.parametrize("text", ["image", "image: float32", "image: float33[3]", "image: float32[3", "a: uint8[x]"])
def test_words_that_say_no_tensor_are_refused(text: str) -> None:
    with pytest.raises(BadManifest, match="is not a tensor like"):
        tensor_specs(text)


def test_every_session_has_its_own_number_of_threads(script: Path) -> None:
    seen: dict[int, list[int]] = {1: [], 2: []}
    ran = threading.Barrier(2, timeout=PATIENCE_S)

    def work(session: Session, threads: int) -> None:
        for _ in range(3):
            session.run(images(1))
            seen[threads].append(torch.get_num_threads())
            ran.wait()

    workers = [
        threading.Thread(target=work, args=(Torch().open(script, SessionOptions(threads=count)), count))
        for count in seen
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == {1: [1, 1, 1], 2: [2, 2, 2]}


def test_cuda_graphs_need_a_gpu(script: Path) -> None:
    with pytest.raises(BadManifest, match=r"cuda_graphs .* needs a GPU, the device is cpu"):
        Torch().open(script, SessionOptions(options={"cuda_graphs": True}))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(BadManifest, match=r"reads \.pt and \.pt2 files"):
        Torch().open(tmp_path / "m.onnx", SessionOptions())


def test_a_network_without_that_name_is_refused(script: Path) -> None:
    with pytest.raises(BadManifest, match="no network is called 'resnet51'; there are resnet50"):
        Torch().open(script, SessionOptions(options={"network": "resnet51"}))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(torch_files.classifier().state_dict(), tmp_path / "w.pt")
    with pytest.raises(BadManifest, match="the weights are not those of SliceResNet"):
        Torch().open(tmp_path / "w.pt", SessionOptions(options={"network": "slice-resnet"}))


def test_sessions_agree_on_the_rounding_of_a_process() -> None:
    rounding = _Rounding()
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        rounding.join(False)
        rounding.join(False)
        with pytest.raises(BadManifest, match="a session with fp32 is open on a GPU"):
            rounding.join(True)
        rounding.leave(False)
        rounding.leave(False)
        rounding.join(True)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_answers_alike_at_every_size(tmp_path: Path) -> None:
    file = torch_files.write_program(tmp_path / "m.pt2", torch_files.classifier())
    compiled = Torch().open(file, SessionOptions(options={"compile": True}))
    plain = Torch().open(file, SessionOptions())
    for size in (1, 2, 7, 3):
        given = {"input": images(size)["image"]}
        assert np.abs(compiled.run(given)["linear"] - plain.run(given)["linear"]).max() <= 1e-5


def test_a_script_cannot_be_compiled(script: Path) -> None:
    with pytest.raises(BadManifest, match=r"compile .* does not go with TorchScript"):
        Torch().open(script, SessionOptions(options={"compile": True}))
