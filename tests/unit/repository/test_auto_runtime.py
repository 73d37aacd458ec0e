"""`runtime.kind: auto`: the machine chooses between two runtimes of one file, and says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from builders import MANIFEST_DATA
from isocenter.cli.proofs import prove
from isocenter.importers.folder import Imported, TensorCase, write_folder
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import Manifest, read_manifest
from isocenter.repository.sessions import open_one
from isocenter.runtimes import registry
from isocenter.runtimes.registry import chosen
from segmenters import write_segmenter

RUNTIME = MANIFEST_DATA["runtime"]

pytestmark = pytest.mark.may_block  # writes model folders


def auto(models: Path) -> ModelFolder:
    folder = write_segmenter(models, onnx=True)
    file = folder.path / "model.yaml"
    data = yaml.safe_load(file.read_text())
    data["runtime"]["kind"] = "auto"
    file.write_text(yaml.safe_dump(data))
    return ModelFolder(folder.path, read_manifest(file))


def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed", lambda module: module != "openvino")


@pytest.mark.parametrize(
    ("kind", "volumes", "device", "there", "found"),
    [
        ("auto", True, "cpu", True, "openvino"),
        ("auto", True, "cpu", False, "onnxruntime"),
        ("auto", False, "cpu", True, "onnxruntime"),
        ("auto", True, "cuda:0", True, "onnxruntime"),
        ("torch", True, "cpu", True, "torch"),
    ],
)
def test_volumes_on_a_cpu_are_for_openvino_where_it_is(
    monkeypatch: pytest.MonkeyPatch, kind: str, volumes: bool, device: str, there: bool, found: str
) -> None:
    monkeypatch.setattr(registry, "installed", lambda module: there)

    assert chosen(kind, volumes=volumes, device=device) == found


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"file": "model.xml"}, r"of an \.onnx file, not of model\.xml"),
        ({"precision": "int8"}, "fp32 without options"),
        ({"options": {"arena": False}}, "fp32 without options"),
    ],
)
def test_auto_is_an_onnx_file_in_fp32(changes: dict[str, Any], sentence: str) -> None:
    runtime = {**RUNTIME, "kind": "auto", "file": "model.onnx"}
    Manifest.model_validate({**MANIFEST_DATA, "runtime": runtime})

    with pytest.raises(ValueError, match=sentence):
        Manifest.model_validate({**MANIFEST_DATA, "runtime": {**runtime, **changes}})


def test_a_fallback_names_its_runtime() -> None:
    fallback = {**RUNTIME, "kind": "auto", "file": "model.onnx"}

    with pytest.raises(ValueError, match="a fallback names its runtime"):
        Manifest.model_validate({**MANIFEST_DATA, "fallback": fallback})


def test_what_was_chosen_is_said_and_proven(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder = auto(tmp_path)

    proofs = {each.name: each for each in prove(lambda: folder)}

    assert proofs["manifest"].summary.endswith("openvino (auto) in fp32")
    assert (proofs["manifest"].details["runtime"], proofs["manifest"].details["runtime_stated"]) == ("openvino", "auto")
    assert all(each.ok for each in proofs.values())
    session = open_one(folder)
    assert type(session).__module__ == "isocenter.runtimes.openvino"
    session.close()


def test_without_openvino_the_same_folder_is_served_by_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = auto(tmp_path)
    without_openvino(monkeypatch)

    session = open_one(folder)
    assert type(session).__module__ == "isocenter.runtimes.onnxruntime"
    session.close()
    assert folder.manifest.runtime_in_words == "onnxruntime (auto)"


@pytest.mark.parametrize(
    ("kind", "changes", "written"),
    [
        ("volume3d", {}, "auto"),
        ("volume3d", {"instances": {"device": "cuda:0"}}, "onnxruntime"),
        ("volume3d", {"sliding": {"roi": [8, 8, 8], "sums": "fp16"}}, "onnxruntime"),
        ("image2d", {}, "onnxruntime"),
    ],
    ids=["volumes", "on a GPU", "sums in half precision", "pictures"],
)
def test_what_is_imported_leaves_the_choice_for_volumes_open(
    tmp_path: Path, kind: str, changes: dict[str, Any], written: str
) -> None:
    source = write_segmenter(tmp_path / "source", onnx=True)
    data = yaml.safe_load((source.path / "model.yaml").read_text())
    data |= changes
    data["input"]["kind"] = kind
    if kind == "image2d":
        data["steps"], data["sliding"] = [], {"roi": [8, 8]}
    del data["runtime"]["sha256"]
    case = TensorCase("noise", np.load(source.path / "golden" / "noise.input.npy"), None)

    made = write_folder(tmp_path, Imported(data, {"model.onnx": source.weights}, [case]), proven=False)

    assert made.manifest.runtime.kind == written
