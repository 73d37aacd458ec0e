"""A manifest is plain data; what is wrong in it is said by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import MANIFEST_DATA
from isocenter.core.errors import BadManifest
from isocenter.repository.manifest import Manifest, read_manifest
from isocenter.repository.plain_yaml import NotPlain, load_plain

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
        pytest.param({"runtime": {**RUNTIME, "file": "x" * 300}}, "no file can be called", id="a long file name"),
        pytest.param({"runtime": {**RUNTIME, "file": "x/" * 2000}}, "no file can be called", id="a deep file name"),
        pytest.param(
            {"runtime": {**RUNTIME, "file": "a\0b"}}, "no file can be called", id="a file name that ends early"
        ),
        pytest.param({"runtime": {**RUNTIME, "sha256": "abc"}}, "sha256", id="no digest"),
        pytest.param({"runtime": {**RUNTIME, "precision": "fast"}}, "precision", id="unknown precision"),
        pytest.param({"fallback": {**RUNTIME, "file": "../other.onnx"}}, "inside", id="a fallback elsewhere"),
        pytest.param({"fallback": {**RUNTIME, "thread": 1}}, "did you mean 'threads'", id="misspelt key of a fallback"),
        pytest.param({"instances": {"weight": 0}}, "instances.weight", id="no weight"),
        pytest.param({"instances": {"weight": float("inf")}}, "instances.weight", id="all the weight"),
        pytest.param({"batching": {"max_queue_bytes": 0}}, "max_queue_bytes", id="no memory to wait in"),
        pytest.param({"output": {**OUTPUT, "labels": ["a", "a"]}}, "labels repeat", id="labels twice"),
        pytest.param({"output": {**OUTPUT, "labels": ["a", " "]}}, "labels are read by people", id="a blank label"),
        pytest.param({"output": {**OUTPUT, "labels": ["a", "b\n"]}}, "labels are read by people", id="a broken line"),
        pytest.param({"output": {**OUTPUT, "activation": "auto"}}, "activation", id="guessed activation"),
        pytest.param({"batching": {"preferred_batch_sizes": [8, 4]}}, "must rise", id="falling sizes"),
        pytest.param({"batching": {"preferred_batch_sizes": [16]}}, "max_batch_size 8", id="sizes above the maximum"),
        pytest.param({"golden": {"absolute": float("inf")}}, "golden.absolute", id="a tolerance without end"),
        pytest.param({"golden": {"relative": float("inf")}}, "golden.relative", id="a relative one without end"),
        pytest.param({"golden": {"misses_per_million": 1_000_000}}, "misses_per_million", id="all may miss"),
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


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("golden: {absolute: 1e-3}\ngolden: {absolute: 1}", "'golden' stands there twice", id="key twice"),
        pytest.param("golden: {relative: 0, relative: 1}", "'relative' stands there twice", id="key twice below"),
        pytest.param("labels: [010]", "010 is no plain whole number", id="octal"),
        pytest.param("max_delay: 1:30", "1:30 is no plain whole number", id="sexagesimal"),
        pytest.param("size: 0x10", "0x10 is no plain whole number", id="hexadecimal"),
        pytest.param("size: 1" + "0" * 5000, "no plain whole number", id="a number of 5,001 digits"),
        pytest.param("built: 2024-02-30", "a value is not what it looks like", id="the 30th of February"),
        pytest.param("[" * 3000, "nested too deeply", id="3,000 lists in each other"),
    ],
)
def test_what_people_and_the_parser_would_read_differently_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(text)

    with pytest.raises(BadManifest, match=sentence):
        read_manifest(file)


def test_what_is_merged_in_may_be_written_over() -> None:
    assert load_plain("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


def test_aliases_stand_for_what_can_be_looked_at() -> None:
    tenfold = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]

    with pytest.raises(NotPlain, match="stand for more than"):
        load_plain("\n".join(["l0: &l0 []", *tenfold]))
    with pytest.raises(NotPlain, match="a part of"):
        load_plain("a: &a [1, {b: *a}]")


def test_a_missing_file_is_named_by_where_it_is_below_the_models(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"lungs/1/model\.yaml: No such file or directory$") as refused:
        read_manifest(tmp_path / "lungs" / "1" / "model.yaml")

    assert str(tmp_path) not in refused.value.message


SEGMENTER: dict[str, Any] = {
    "task": "segmentation",
    "transforms": None,
    "input": {"kind": "volume3d", "tensor": "image", "channels": ["t1", "flair"]},
    "steps": [
        {"kind": "orient", "axcodes": "RAS"},
        {"kind": "resample", "spacing_mm": [1, 1, 1]},
        {"kind": "standardize", "nonzero": True, "per_channel": True},
    ],
    "sliding": {"roi": [96, 96, 64], "overlap": 0.5, "mode": "gaussian"},
    "output": {"tensor": "logits", "activation": "softmax", "labels": ["background", "tumor"]},
}
TENSORS = {"task": "tensors", "transforms": None, "input": {"kind": "tensors"}, "output": None}


@pytest.mark.parametrize("changes", [{}, SEGMENTER, TENSORS], ids=["classification", "segmentation", "tensors"])
def test_a_manifest_survives_its_way_to_another_process(tmp_path: Path, changes: dict[str, Any]) -> None:
    manifest = read_manifest(write(tmp_path, changes))

    assert Manifest.model_validate_json(manifest.model_dump_json(by_alias=True)) == manifest


def test_a_segmenter_says_its_channels_its_steps_and_its_windows(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, SEGMENTER))

    assert manifest.input.channels == ["t1", "flair"]
    assert [step.kind for step in manifest.steps] == ["orient", "resample", "standardize"]
    assert manifest.sliding is not None
    assert (manifest.sliding.roi, manifest.sliding.sigma_scale) == ((96, 96, 64), 0.125)
    assert (manifest.output.threshold, manifest.output.back) == (None, "probabilities")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param(
            {"transforms": MANIFEST_DATA["transforms"]}, "transforms does not belong", id="picture transforms"
        ),
        pytest.param({"input": {"kind": "tensors"}}, "image2d or volume3d, not tensors", id="tensors"),
        pytest.param({"output": None}, "output.labels is missing", id="no output"),
        pytest.param({"sliding": {"roi": [96, 96]}}, "sliding.roi is of 2 spatial axes", id="flat windows"),
        pytest.param({"sliding": {"roi": [9, 9, 9], "overlap": 1}}, "overlap", id="windows that never move on"),
        pytest.param({"sliding": {"roi": [9, 9, 9], "overlaps": 0}}, "did you mean 'overlap'", id="misspelt key"),
        pytest.param({"steps": [{"kind": "orient", "axcode": "RAS"}]}, "did you mean 'axcodes'", id="key of a step"),
        pytest.param({"steps": [{"kind": "spin"}]}, "steps.0", id="unknown step"),
        pytest.param({"steps": [{"kind": "resize", "size": [9, 9]}]}, "resize is of 2 spatial axes", id="flat step"),
        pytest.param({"input": {**SEGMENTER["input"], "channels": ["t1", "t1"]}}, "channels repeat", id="one twice"),
        pytest.param({"input": {**SEGMENTER["input"], "extent_mm": [9, 5]}}, "above the most", id="extent"),
        pytest.param(
            {"output": {**SEGMENTER["output"], "labels": ["tumor"]}}, "background and at least one", id="one label"
        ),
        pytest.param({"output": {**SEGMENTER["output"], "threshold": 0.4}}, "sigmoid or none", id="threshold"),
    ],
)
def test_what_a_segmenter_cannot_be_is_named(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadManifest, match=sentence):
        read_manifest(write(tmp_path, {**SEGMENTER, **changes}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"steps": SEGMENTER["steps"]}, "steps does not belong", id="steps of a classifier"),
        pytest.param({"sliding": {"roi": [9, 9]}}, "sliding does not belong", id="windows of a classifier"),
        pytest.param({"input": {**MANIFEST_DATA["input"], "kind": "volume3d"}}, "image2d, not volume3d", id="volume"),
        pytest.param(
            {"input": {**MANIFEST_DATA["input"], "extent_mm": [5, 9]}}, "extent_mm is of models of volumes", id="extent"
        ),
        pytest.param({**TENSORS, "output": {"labels": ["a"]}}, "output.labels does not belong", id="labels of tensors"),
        pytest.param({**TENSORS, "steps": SEGMENTER["steps"]}, "steps does not belong", id="steps of tensors"),
    ],
)
def test_what_another_task_says_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadManifest, match=sentence):
        read_manifest(write(tmp_path, changes))
