"""What `examples/triton` says works: a template, a version put behind a server, golden cases taken from one."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MODELS, ROOT
from isocenter.repository.layout import find, scan
from isocenter.repository.load import prove
from model_folders import png, write_model
from v2_server import Behaviour, HttpV2

EXAMPLE = ROOT / "examples" / "triton"
DEMO = "brain-mri-classifier"


def function(script: str, name: str) -> Any:
    return runpy.run_path(str(EXAMPLE / script))[name]


def test_the_template_is_a_manifest() -> None:
    (folder,) = scan(EXAMPLE / "models")
    manifest = folder.manifest
    assert (manifest.runtime.kind, manifest.batching.preferred_batch_sizes) == ("triton", [4, 8, 16])
    assert manifest.output.labels == ["Glioma", "Meningioma", "Pituitary", "No Tumor"]


def test_a_version_behind_triton_has_its_own_weights_as_its_fallback(tmp_path: Path) -> None:
    shutil.copytree(MODELS, tmp_path / "models")
    made = function("behind_triton.py", "behind_triton")(tmp_path / "models", DEMO, "grpc://127.0.0.1:8001")
    before = find(tmp_path / "models", DEMO, 1).manifest
    assert made.manifest.version == 2
    assert made.manifest.runtime.url == "grpc://127.0.0.1:8001"
    assert made.manifest.fallback is not None
    assert made.manifest.fallback.sha256 == before.runtime.sha256
    assert (made.manifest.transforms, made.manifest.output) == (before.transforms, before.output)


def test_golden_cases_are_what_the_server_answers_and_hold_from_then_on(tmp_path: Path) -> None:
    server = HttpV2(Behaviour())
    part = {"kind": "triton", "url": server.url, "options": {"model": "lungs"}}
    folder = write_model(tmp_path / "models", runtime=part)
    expected = json.loads((folder.golden / "case.json").read_text())["logits"]
    shutil.rmtree(folder.golden)
    (tmp_path / "slice.png").write_bytes(png())
    function("record_golden.py", "record")(tmp_path / "models", "lungs", [tmp_path / "slice.png"])
    kept = json.loads((folder.golden / "slice.json").read_text())["logits"]
    assert kept == pytest.approx(expected, abs=1e-4)
    assert prove(folder) == ""
    server.stop()


def test_the_readme_names_files_that_are_there() -> None:
    text = (EXAMPLE / "README.md").read_text()
    for name in ("behind_triton.py", "record_golden.py", "models/resnet_medical/1/model.yaml"):
        assert name in text
        assert (EXAMPLE / name).exists()
    data = yaml.safe_load((EXAMPLE / "models" / "resnet_medical" / "1" / "model.yaml").read_text())
    assert data["name"] == "resnet_medical"
