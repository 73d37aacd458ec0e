"""An int8 version is measured on pictures that it was not calibrated with, and written only within the gate."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import MODELS
from isocenter.cli.phantoms import draw_phantoms
from isocenter.core.errors import GateMissed, GoldenMismatch, ImportRefused, MissingExtra, Unmeasured
from isocenter.importers import quantize as making
from isocenter.importers.quantize import Quantised, edges, quantize, split, write_int8
from isocenter.measure.memory import ProcessMemory
from isocenter.repository.accuracy import check_difference
from isocenter.repository.comparison import distinct
from isocenter.repository.layout import ModelFolder, find
from isocenter.repository.load import prove
from isocenter.repository.sessions import open_one
from model_folders import runtime_part, write_model

NAME = "brain-mri-classifier"


def files(count: int) -> dict[str, Path]:
    return {hashlib.sha256(str(number).encode()).hexdigest(): Path(f"{number}.png") for number in range(count)}


@given(count=st.integers(4, 300))
def test_no_picture_is_on_both_sides_and_none_is_left_out(count: int) -> None:
    parts = split(files(count), least=2)
    assert parts.calibration.keys().isdisjoint(parts.held_out)
    assert parts.calibration | parts.held_out == files(count)
    assert 0 <= len(parts.calibration) - len(parts.held_out) <= 1


def test_the_order_of_files_does_not_change_the_split() -> None:
    backwards = dict(reversed(files(20).items()))
    assert split(files(20), least=2) == split(backwards, least=2)


@pytest.mark.parametrize("count", [0, 63])
def test_too_few_pictures_are_refused(count: int) -> None:
    with pytest.raises(ImportRefused, match=f"{count} different files, 64 are needed"):
        split(files(count), least=32)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"runtime": {**runtime_part(), "precision": "int8"}}, "is int8; int8 is made of fp32"),
        ({}, r"is model\.bin; an ONNX file is needed"),
        ({"runtime": runtime_part(file="model.onnx"), "instances": {"device": "cuda:1"}}, "runs on cuda"),
        (
            {"runtime": runtime_part(file="m.onnx"), "ensemble": {"members": [{"file": "b.onnx", "sha256": "0" * 64}]}},
            "is an ensemble",
        ),
    ],
    ids=["int8", "no ONNX", "a GPU", "an ensemble"],
)
def test_what_cannot_be_quantised_is_said(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    source = write_model(tmp_path, **changes)
    with pytest.raises(ImportRefused, match=f"lungs 1 {sentence}"):
        quantize(tmp_path, source, files(100), to="onnxruntime", version=2)


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r'pip install "isocenter\[quantize\]"'):
        write_int8(tmp_path / "a.onnx", tmp_path / "b.onnx", iter(()))


def chain(path: Path, *, layers: int, channels: int) -> Path:
    """A file with one convolution after the other."""
    onnx = pytest.importorskip("onnx")
    weights = np.random.default_rng(1).normal(size=(channels, channels, 1, 1), scale=channels**-0.5)
    shape = [1, channels, "h", "w"]
    nodes = [
        onnx.helper.make_node("Conv", [f"x{each}", "k"], [f"x{each + 1}"], name=f"c{each}") for each in range(layers)
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info(f"x{layers}", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(weights.astype(np.float32), "k")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_calibration_holds_few_layers_at_once(tmp_path: Path) -> None:
    source = chain(tmp_path / "a.onnx", layers=40, channels=16)
    memory = ProcessMemory()
    item = {"x0": np.random.default_rng(2).normal(size=(16, 256, 256)).astype(np.float32)}
    if not memory.reset_peak():
        pytest.skip("the peak of memory cannot be reset here")
    before = memory.held_bytes()

    write_int8(source, tmp_path / "b.onnx", iter([item]))

    peak = memory.peak_bytes()
    assert before is not None
    assert peak is not None
    assert peak - before < 25 * item["x0"].nbytes  # of 40, and what is imported
    assert not list(tmp_path.glob("ranges*"))
    assert not list(tmp_path.glob("folded*"))


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "a.onnx").write_bytes(b"junk")
    with pytest.raises(ImportRefused, match=r"a\.onnx cannot be quantised"):
        write_int8(tmp_path / "a.onnx", tmp_path / "b.onnx", iter(()))
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


def test_layers_at_the_edges_read_the_input_or_give_the_output() -> None:
    onnx = pytest.importorskip("onnx")
    nodes = [
        onnx.helper.make_node("Sub", ["x", "mean"], ["centred"], name="sub"),
        onnx.helper.make_node("Conv", ["centred", "a"], ["left"], name="left"),
        onnx.helper.make_node("Conv", ["x", "b"], ["right"], name="right"),
        onnx.helper.make_node("Add", ["left", "right"], ["sum"], name="add"),
        onnx.helper.make_node("Conv", ["sum", "c"], ["inner"], name="inner"),
        onnx.helper.make_node("Relu", ["inner"], ["positive"], name="relu"),
        onnx.helper.make_node("Gemm", ["positive", "d"], ["scores"], name="last"),
        onnx.helper.make_node("Softmax", ["scores"], ["y"], name="softmax"),
    ]
    assert edges(onnx.helper.make_graph(nodes, "g", [], [])) == ["left", "right", "last"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Slices that the model was not trained with."""
    return distinct(draw_phantoms(tmp_path_factory.mktemp("slices"), count=64, seed=5_000_000, form="png"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, Path]) -> Quantised:
    """The demonstration model in int8, under a gate that is wide enough for so few pictures."""
    pytest.importorskip("onnx")
    models = tmp_path_factory.mktemp("models")
    return quantize(models, source_in(models, max_abs_dp=0.1), pictures, to="onnxruntime", version=2)


def source_in(models: Path, **gate: float) -> ModelFolder:
    """The demonstration model with another gate, as links."""
    shipped, folder = MODELS / NAME / "1", models / NAME / "1"
    folder.mkdir(parents=True)
    for each in ("model.onnx", "golden"):
        (folder / each).symlink_to(shipped / each)
    manifest = yaml.safe_load((shipped / "model.yaml").read_text())
    (folder / "model.yaml").write_text(yaml.safe_dump({**manifest, "gate": gate}))
    return find(models, NAME, 1)


def test_it_becomes_ready_with_what_was_measured(made: Quantised, pictures: dict[str, Path]) -> None:
    found = check_difference(made.folder)
    assert found == made.difference
    assert made.outside == []
    assert (found.items, found.precision, found.reference.runtime) == (32, "int8", "onnxruntime")
    assert found.reference.sha256 == find(MODELS, NAME, 1).manifest.runtime.sha256
    assert found.calibration is not None
    assert found.calibration.items + found.items == len(pictures)
    assert 0 < found.max_abs_dp < 0.1
    assert prove(made.folder) == made.folder.manifest.runtime.sha256


def test_most_layers_compute_in_int8_and_weights_keep_within_7_bits(made: Quantised) -> None:
    onnx = pytest.importorskip("onnx")
    session = open_one(made.folder)
    assert session.proof.startswith("int8: ")
    session.close()
    weights = [
        onnx.numpy_helper.to_array(each)
        for each in onnx.load(str(made.folder.weights)).graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
    ]
    assert len(weights) > 10
    # Above 64, x86 without VNNI cuts sums off: 2 * 255 * 64 is the last that fits into 16 bits.
    assert max(int(np.abs(each.astype(int)).max()) for each in weights) <= 64


def test_its_manifest_is_the_sources_as_far_as_that_goes_on_to_be_true(made: Quantised) -> None:
    old, new = find(MODELS, NAME, 1).manifest, made.folder.manifest
    assert (new.version, new.runtime.file, new.runtime.precision) == (2, "model.onnx", "int8")
    assert (new.transforms, new.output, new.input, new.batching) == (
        old.transforms,
        old.output,
        old.input,
        old.batching,
    )
    assert new.gate.max_abs_dp == 0.1


def test_other_weights_are_not_covered_by_the_measurement(made: Quantised, tmp_path: Path) -> None:
    runtime = made.folder.manifest.runtime.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(Unmeasured, match="is of weights"):
        check_difference(ModelFolder(made.folder.path, made.folder.manifest.model_copy(update={"runtime": runtime})))


def test_golden_answers_that_were_changed_are_found(made: Quantised, tmp_path: Path) -> None:
    copied = ModelFolder(tmp_path, made.folder.manifest)
    for file in made.folder.path.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(made.folder.path)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    prove(copied)
    case = min(copied.golden.glob("*.json"))
    case.write_text(json.dumps({"logits": json.loads(case.read_text())["logits"][::-1]}))
    with pytest.raises(GoldenMismatch, match="after the activation, in int8"):
        prove(copied)


def test_outside_of_the_gate_nothing_is_written_but_when_it_is_asked_for(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    source = source_in(tmp_path, max_abs_dp=1e-6)
    with pytest.raises(GateMissed, match="nothing was written") as raised:
        quantize(tmp_path, source, pictures, to="onnxruntime", version=2)
    assert list(raised.value.details) == ["max_abs_dp"]
    assert [each.name for each in source.path.parent.iterdir()] == ["1"]

    kept = quantize(tmp_path, source, pictures, to="onnxruntime", version=2, keep=True)
    assert [each.name for each in kept.outside] == ["max_abs_dp"]
    with pytest.raises(GateMissed, match="max_abs_dp is"):
        prove(kept.folder)
