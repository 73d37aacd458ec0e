"""Golden cases are pictures, or tensors as the model takes them; nothing is unpickled."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from isocenter.core.clock import SystemClock
from isocenter.core.errors import BadManifest, BatchVariance, GoldenMismatch, SetupError
from isocenter.core.events import Event
from isocenter.engine.lifecycle import State
from isocenter.repository.golden import golden_cases
from isocenter.repository.layout import ModelFolder
from isocenter.repository.load import load, prove
from isocenter.repository.manifest import read_manifest
from model_folders import prepared, scores, write_model
from onnx_writer import Node, Port, write_onnx
from segmenters import ROI, write_segmenter


class Silent:
    def observe(self, event: Event) -> None: ...


def write_adder(models: Path, *, ports: str = "float32", **changes: Any) -> ModelFolder:
    """A `tensors` model of two inputs and two outputs: their sum and their difference."""
    folder = models / "adder" / "1"
    (folder / "golden").mkdir(parents=True)
    file = write_onnx(
        folder / "model.onnx",
        [Node("Add", ["a", "b"], ["sum"]), Node("Sub", ["a", "b"], ["difference"])],
        [Port("a", ("n", 3), ports), Port("b", ("n", 3), ports)],
        [Port("sum", ("n", 3), ports), Port("difference", ("n", 3), ports)],
    )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    data: dict[str, Any] = {
        "schema": 1,
        "name": "adder",
        "version": 1,
        "task": "tensors",
        "runtime": {"kind": "onnxruntime", "file": "model.onnx", "sha256": digest},
        "input": {"kind": "tensors"},
        **changes,
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(data))
    a, b = np.array([1, 2, 3], ports), np.array([4, 4, 4], ports)
    np.savez(folder / "golden" / "one.input.npz", a=a, b=b)
    np.savez(folder / "golden" / "one.output.npz", sum=a + b, difference=a - b)
    return ModelFolder(folder, read_manifest(folder / "model.yaml"))


@pytest.mark.may_block
@pytest.mark.parametrize("ports", ["float32", "int64"])
async def test_a_model_of_several_tensors_is_proven_warmed_and_ready(tmp_path: Path, ports: str) -> None:
    served = await load(write_adder(tmp_path, ports=ports), clock=SystemClock(), observer=Silent())
    try:
        assert served.engine.state is State.READY
        assert set(served.service_s) == {1, 2, 4, 8}
    finally:
        await served.retire(1.0)


def test_every_output_of_it_counts(tmp_path: Path) -> None:
    folder = write_adder(tmp_path)
    np.savez(folder.golden / "one.output.npz", sum=np.array([5, 6, 7], np.float32), difference=np.zeros(3, np.float32))

    with pytest.raises(GoldenMismatch, match="3 of 6 golden values are off"):
        prove(folder)


def test_an_output_that_no_case_names_is_not_proven(tmp_path: Path) -> None:
    folder = write_adder(tmp_path)
    np.savez(folder.golden / "one.output.npz", sum=np.array([5, 6, 7], np.float32))

    with pytest.raises(BadManifest, match="golden case one says nothing of output 'difference', which is answered"):
        prove(folder)


def write_large_and_small(models: Path, nodes: list[Node]) -> ModelFolder:
    """A mask of 40,000 values, and one score of the same input."""
    folder = models / "both" / "1"
    (folder / "golden").mkdir(parents=True)
    ports = [Port("mask", ("n", 1, 200, 200)), Port("score", ("n", 1, 1, 1))]
    file = write_onnx(folder / "model.onnx", nodes, [Port("x", ("n", 1, 200, 200))], ports)
    data = {
        "schema": 1,
        "name": "both",
        "version": 1,
        "task": "tensors",
        "runtime": {
            "kind": "onnxruntime",
            "file": "model.onnx",
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        },
        "input": {"kind": "tensors"},
        "batching": {"max_batch_size": 2},
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(data))
    x = 1 + np.random.default_rng(0).standard_normal((1, 200, 200), dtype=np.float32)
    np.savez(folder / "golden" / "one.input.npz", x=x)
    np.savez(folder / "golden" / "one.output.npz", mask=2 * x, score=x.mean((1, 2), keepdims=True))
    return ModelFolder(folder, read_manifest(folder / "model.yaml"))


def test_a_small_output_does_not_hide_behind_a_large_one(tmp_path: Path) -> None:
    mask = Node("Add", ["x", "x"], ["mask"])
    folder = write_large_and_small(tmp_path, [mask, Node("GlobalAveragePool", ["x"], ["score"])])
    prove(folder)

    golden = dict(np.load(folder.golden / "one.output.npz"))
    np.savez(folder.golden / "one.output.npz", mask=golden["mask"], score=golden["score"] + 1)

    with pytest.raises(GoldenMismatch, match="1 of 40001 golden values are off"):
        prove(folder)


def test_a_small_output_that_depends_on_its_batch_does_not_hide_behind_a_large_one(tmp_path: Path) -> None:
    of_all = Node("ReduceMean", ["x"], ["mean"], {"axes": [0, 1, 2, 3], "keepdims": 1})
    own = Node("GlobalAveragePool", ["x"], ["own"])
    nodes = [Node("Add", ["x", "x"], ["mask"]), of_all, own, Node("Add", ["own", "mean"], ["score"])]
    folder = write_large_and_small(tmp_path, nodes)
    golden = dict(np.load(folder.golden / "one.output.npz"))
    np.savez(folder.golden / "one.output.npz", mask=golden["mask"], score=2 * golden["score"])

    with pytest.raises(BatchVariance):
        prove(folder)


def test_one_output_may_stand_for_all(tmp_path: Path) -> None:
    folder = write_adder(tmp_path, output={"tensor": "difference"})
    np.savez(folder.golden / "one.output.npz", difference=np.array([-3, -2, -1], np.float32))

    prove(folder)


def test_tensors_that_the_model_does_not_take_are_named(tmp_path: Path) -> None:
    folder = write_adder(tmp_path)
    np.savez(folder.golden / "one.input.npz", a=np.zeros(3, np.float32))

    with pytest.raises(SetupError, match=r"golden case one: tensor 'b' is missing"):
        prove(folder)


@pytest.mark.parametrize("which", ["input", "output"])
def test_a_tensor_that_is_named_is_there(tmp_path: Path, which: str) -> None:
    parts: dict[str, Any] = {"input": {"kind": "tensors", "tensor": "c"}, "output": {"tensor": "c"}}

    with pytest.raises(BadManifest, match=rf"{which}.tensor is 'c'"):
        prove(write_adder(tmp_path, **{which: parts[which]}))


@pytest.mark.may_block
async def test_a_segmenter_is_warmed_with_windows_of_its_own_size(tmp_path: Path) -> None:
    folder = write_segmenter(tmp_path, onnx=True)
    case = np.random.default_rng(0).standard_normal((1, 12, 9, 8), dtype=np.float32)
    np.save(folder.golden / "noise.input.npy", case)
    np.save(folder.golden / "noise.output.npy", np.concatenate([-case, case]))

    served = await load(folder, clock=SystemClock(), observer=Silent())
    try:
        probe = served.own._group.probe if served.own is not None else None
        assert probe is not None
        assert probe["x"].shape == (1, *ROI)
    finally:
        await served.retire(1.0)


def test_a_classifier_may_have_golden_tensors_beside_pictures_or_alone(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    np.save(folder.golden / "raw.input.npy", prepared(folder.manifest))
    np.save(folder.golden / "raw.output.npy", np.array(scores(folder.manifest), np.float32))

    assert [case.name for case in golden_cases(folder)] == ["case", "raw"]
    prove(folder)
    (folder.golden / "case.png").unlink()
    prove(folder)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_pickle_is_not_read(tmp_path: Path, suffix: str) -> None:
    folder = write_segmenter(tmp_path)
    for file in folder.golden.iterdir():
        file.unlink()
    objects = np.array([{"a": 1}], object)
    for kind in ("input", "output"):
        file = folder.golden / f"bad.{kind}.{suffix}"
        if suffix == "npy":
            np.save(file, objects, allow_pickle=True)
        else:
            np.savez(file, x=objects)

    with pytest.raises(BadManifest, match=r"golden case bad .* not complete"):
        golden_cases(folder)


def archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def torn(content: bytes, at: int) -> bytes:
    """With one byte turned over."""
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def header(shape: bytes) -> bytes:
    """Of an .npy file without data."""
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + b", }\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


NUMBERS = np.arange(3, dtype=np.float32)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"PK\x03\x04" + b"x" * 50, id="a zip that is none"),
        pytest.param(torn(archive(sum=NUMBERS), 60), id="a zip with a wrong checksum"),
        pytest.param(archive(), id="no output"),
        pytest.param(archive(sum=np.array(["a", "b", "c"])), id="texts"),
        pytest.param(archive(sum=NUMBERS.astype(complex)), id="complex numbers"),
        pytest.param(header(b"(3,)") + NUMBERS.tobytes(), id="one array under the name of several"),
    ],
)
def test_tensors_that_are_broken_are_a_bad_model(tmp_path: Path, content: bytes) -> None:
    folder = write_adder(tmp_path)
    (folder.golden / "one.output.npz").write_bytes(content)

    with pytest.raises(BadManifest, match="golden case one of adder is not complete"):
        golden_cases(folder)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(header(b"(100000, 1000000, 1000)"), id="more numbers than any memory"),
        pytest.param(header(b"(" * 3000 + b")" * 3000), id="a header that is nested"),
        pytest.param(archive(x=NUMBERS), id="several under the name of one array"),
    ],
)
def test_an_array_that_is_broken_is_a_bad_model(tmp_path: Path, content: bytes) -> None:
    folder = write_segmenter(tmp_path)
    next(folder.golden.glob("*.input.npy")).write_bytes(content)

    with pytest.raises(BadManifest, match="not complete"):
        golden_cases(folder)


def test_a_picture_whose_numbers_are_nested_without_end_is_a_bad_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder.golden / "case.json").write_text("[" * 100_000)

    with pytest.raises(BadManifest, match=r"golden case case of .* is not complete"):
        golden_cases(folder)


def test_a_reference_that_is_infinite_proves_nothing(tmp_path: Path) -> None:
    folder = write_adder(tmp_path)
    endless = np.full(3, np.inf, np.float32)
    np.savez(folder.golden / "one.output.npz", sum=endless, difference=-endless)

    with pytest.raises(GoldenMismatch, match="6 of 6 golden values are off"):
        prove(folder)


def test_a_segmenter_without_a_case_is_told_what_one_is(tmp_path: Path) -> None:
    folder = write_segmenter(tmp_path)
    for file in folder.golden.iterdir():
        file.unlink()

    with pytest.raises(BadManifest, match=r"no golden case: expected in golden/ <case>\.input\.npy"):
        golden_cases(folder)
