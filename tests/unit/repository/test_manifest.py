"""A manifest is plain data; what is wrong in it is said by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import MANIFEST_DATA
from isocenter.core.errors import BadManifest
from isocenter.repository.manifest import read_manifest

RUNTIME, OUTPUT = MANIFEST_DATA["runtime"], MANIFEST_DATA["output"]


def write(folder: Path, changes: dict[str, Any]) -> Path:
    data = {**MANIFEST_DATA, **changes}
    file = folder / "model.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
    return file


def test_what_is_left_out_takes_the_documented_default(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, {}))

    assert manifest.batching.max_batch_size == 8
    assert manifest.runtime.precision == "fp32"
    assert manifest.golden.misses_per_million == 100
    assert manifest.instances.weight == 1.0
    assert manifest.batching.max_queue_bytes == 256 * 2**20
    assert manifest.fallback is None


def test_a_fallback_names_its_file_and_says_what_it_is(tmp_path: Path) -> None:
    part = {**RUNTIME, "file": "spare.onnx", "device": "cpu", "threads": 2}
    fallback = read_manifest(write(tmp_path, {"fallback": part})).fallback

    assert fallback is not None
    assert (fallback.file, fallback.threads) == ("spare.onnx", 2)
    assert fallback.label == "onnxruntime fp32 on cpu"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"batchings": {}}, r"batchings: unknown key \(did you mean 'batching'\?\)", id="misspelt section"),
        pytest.param({"batching": {"max_batchsize": 4}}, "did you mean 'max_batch_size'", id="misspelt key"),
        pytest.param({"schema": 2}, "schema", id="another schema"),
        pytest.param({"version": "3"}, "version", id="a version in quotes"),
        pytest.param({"name": "../lungs"}, "name", id="a name that is a path"),
        pytest.param({"task": "guessing"}, "task", id="unknown task"),
        pytest.param({"transforms": None}, "transforms", id="no transforms"),
        pytest.param({"runtime": {**RUNTIME, "file": "../other.onnx"}}, "inside", id="a file elsewhere"),
        pytest.param({"runtime": {**RUNTIME, "file": "/etc/passwd"}}, "inside", id="an absolute file"),
        pytest.param({"runtime": {**RUNTIME, "sha256": "abc"}}, "sha256", id="no digest"),
        pytest.param({"runtime": {**RUNTIME, "precision": "fast"}}, "precision", id="unknown precision"),
        pytest.param({"fallback": {**RUNTIME, "file": "../other.onnx"}}, "inside", id="a fallback elsewhere"),
        pytest.param({"fallback": {**RUNTIME, "thread": 1}}, "did you mean 'threads'", id="misspelt key of a fallback"),
        pytest.param({"instances": {"weight": 0}}, "instances.weight", id="no weight"),
        pytest.param({"instances": {"weight": float("inf")}}, "instances.weight", id="all the weight"),
        pytest.param({"batching": {"max_queue_bytes": 0}}, "max_queue_bytes", id="no memory to wait in"),
        pytest.param({"output": {**OUTPUT, "labels": ["a", "a"]}}, "labels repeat", id="labels twice"),
        pytest.param({"output": {**OUTPUT, "activation": "auto"}}, "activation", id="guessed activation"),
        pytest.param({"batching": {"preferred_batch_sizes": [8, 4]}}, "must rise", id="falling sizes"),
        pytest.param({"batching": {"preferred_batch_sizes": [16]}}, "max_batch_size 8", id="sizes above the maximum"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadManifest, match=sentence):
        read_manifest(write(tmp_path, changes))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: [", "not YAML"),
        (b"- 1", "must hold a mapping"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"!!python/object/apply:os.system [echo]", "not YAML"),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    file = tmp_path / "model.yaml"
    file.write_bytes(content)

    with pytest.raises(BadManifest, match=sentence):
        read_manifest(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"model\.yaml"):
        read_manifest(tmp_path / "model.yaml")
