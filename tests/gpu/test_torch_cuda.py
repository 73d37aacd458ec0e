"""torch on a GPU answers as on the CPU, in the precision that is stated; sessions do not wait for each other."""

import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import torch_files
from isocenter.core.errors import OutOfMemory
from isocenter.core.precision import Precision
from isocenter.core.tensor import FloatArray
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.checks import Value
from isocenter.runtimes.torch import Torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

BOUNDS: dict[Precision, float] = {"fp32": 2e-4, "tf32": 5e-3, "fp16": 2e-2, "bf16": 5e-2}
"""Of the largest absolute output."""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return torch_files.write_script(tmp_path / "m.pt", torch_files.classifier(width=64))


def open_on(device: str, file: Path, precision: Precision = "fp32", **options: Value) -> Session:
    return Torch().open(file, SessionOptions(device=device, precision=precision, options=dict(options)))


def images(count: int, *, seed: int = 0) -> dict[str, FloatArray]:
    return {"image": np.random.default_rng(seed).standard_normal((count, *torch_files.IMAGE), dtype=np.float32)}


@pytest.mark.parametrize("options", [{}, {"channels_last": True}, {"cuda_graphs": True}], ids=["", "last", "graphs"])
@pytest.mark.parametrize("precision", BOUNDS)
def test_every_precision_is_seen_and_near_the_reference(
    script: Path, precision: Precision, options: dict[str, Value]
) -> None:
    reference = open_on("cpu", script)
    session = open_on("cuda", script, precision, **options)
    assert session.proof.startswith(f"{precision}: 3 of 3 layers")
    for size in (1, 2, 7, 3, 1):
        expected = reference.run(images(size))["logits"]
        found = session.run(images(size))["logits"]
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= BOUNDS[precision] * np.abs(expected).max()
    session.close()


def test_a_graph_answers_each_batch_anew(script: Path) -> None:
    session = open_on("cuda", script, cuda_graphs=True)
    first = session.run(images(4, seed=1))["logits"]
    kept = first.copy()
    second = session.run(images(4, seed=2))["logits"]
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)
    assert np.array_equal(session.run(images(4, seed=1))["logits"], kept)
    session.close()


def test_sessions_on_several_threads_keep_their_answers_apart(script: Path) -> None:
    sessions = [open_on("cuda", script) for _ in range(4)]
    expected = [session.run(images(3, seed=n))["logits"] for n, session in enumerate(sessions)]
    wrong: list[int] = []

    def work(mine: int) -> None:
        for _ in range(50):
            found = sessions[mine].run(images(3, seed=mine))["logits"]
            if not np.allclose(found, expected[mine], rtol=1e-4, atol=1e-5):
                wrong.append(mine)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for session in sessions:
        session.close()


def test_a_session_that_had_no_memory_goes_on(tmp_path: Path) -> None:
    ports = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [64]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [1]}],
    }
    file = torch_files.write_script(tmp_path / "m.pt", torch_files.large(100), (64,), ports)
    session = open_on("cuda", file)
    share = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory + 0.01
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(OutOfMemory):
            session.run({"x": np.zeros((100_000, 64), np.float32)})
        assert session.run({"x": np.zeros((1, 64), np.float32)})["y"].shape == (1, 1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        session.close()


def test_closing_gives_the_memory_back(tmp_path: Path) -> None:
    ports = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [64]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [1]}],
    }
    file = torch_files.write_script(tmp_path / "m.pt", torch_files.large(100), (64,), ports)
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        session = open_on("cuda", file)
        assert torch.cuda.memory_reserved() - before > 80 * 2**20
        session.close()
        assert torch.cuda.memory_reserved() <= before + 8 * 2**20
