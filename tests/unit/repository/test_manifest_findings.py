"""`output.findings`: which manifests may have it, and which labels it may name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import MANIFEST_DATA
from isocenter.core.errors import BadManifest
from isocenter.repository.manifest import Manifest, read_manifest

RULE = {"labels": ["tumor"]}
OUTPUT = {"tensor": "logits", "activation": "softmax", "labels": ["background", "tumor"], "findings": RULE}


def manifest(folder: Path, output: dict[str, Any], **changes: Any) -> Manifest:
    data = {key: value for key, value in MANIFEST_DATA.items() if key not in ("transforms", "golden")}
    data |= {"task": "segmentation", "input": {"kind": "volume3d", "tensor": "image"}, "output": output, **changes}
    file = folder / "model.yaml"
    file.write_text(yaml.safe_dump(data))
    return read_manifest(file)


def test_a_rule_removes_nothing_unless_it_says_so(tmp_path: Path) -> None:
    rule = manifest(tmp_path, OUTPUT).output.findings

    assert rule is not None
    assert (rule.labels, rule.min_volume_ml, rule.min_probability, rule.connectivity) == (["tumor"], 0.0, 0.0, 26)


def test_a_model_need_not_have_findings(tmp_path: Path) -> None:
    assert manifest(tmp_path, {**OUTPUT, "findings": None}).output.findings is None


def test_the_first_of_labels_that_may_overlap_is_no_background(tmp_path: Path) -> None:
    output = {**OUTPUT, "activation": "sigmoid", "labels": ["tumor", "core"]}
    assert manifest(tmp_path, output).output.findings is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": {**OUTPUT, "findings": {"labels": ["edema"]}}}, "names edema, which is none of output.labels"),
        ({"output": {**OUTPUT, "findings": {"labels": ["background"]}}}, "names background, which is the background"),
        ({"output": {**OUTPUT, "findings": {"labels": []}}}, "findings.labels"),
        ({"output": {**OUTPUT, "findings": {"labels": ["tumor", "tumor"]}}}, "labels repeat"),
        ({"output": {**OUTPUT, "findings": {**RULE, "min_volume": 1}}}, "did you mean 'min_volume_ml'"),
        ({"output": {**OUTPUT, "findings": {**RULE, "connectivity": 8}}}, "findings.connectivity"),
        ({"output": {**OUTPUT, "findings": {**RULE, "min_probability": 80}}}, "findings.min_probability"),
        ({"input": {"kind": "image2d", "tensor": "image"}}, "output.findings is of volume3d"),
        ({"task": "tensors"}, "output.findings does not belong there"),
    ],
    ids=["unknown label", "background", "none", "twice", "typo", "neighbours", "per cent", "picture", "another task"],
)
def test_a_rule_that_does_not_fit_its_model_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    output = changes.pop("output", OUTPUT)
    with pytest.raises(BadManifest, match=message):
        manifest(tmp_path, output, **changes)


SOFTMAX = {**OUTPUT, "findings": None}
OVERLAPPING = {"tensor": "logits", "labels": ["tumor", "core"]}


@pytest.mark.parametrize(
    "output", [SOFTMAX, {**SOFTMAX, "activation": "none"}], ids=["softmax", "none and no threshold"]
)
def test_a_threshold_of_the_foreground_is_of_labels_that_exclude_each_other(
    tmp_path: Path, output: dict[str, Any]
) -> None:
    assert manifest(tmp_path, {**output, "foreground_threshold": 0.4}).output.foreground_threshold == 0.4


@pytest.mark.parametrize(
    "output",
    [{**OVERLAPPING, "activation": "sigmoid"}, {**OVERLAPPING, "activation": "none", "threshold": 0.3}],
    ids=["sigmoid", "none and a threshold"],
)
def test_labels_that_overlap_have_a_threshold_each_and_none_of_the_foreground(
    tmp_path: Path, output: dict[str, Any]
) -> None:
    with pytest.raises(BadManifest, match="foreground_threshold goes with labels that exclude each other"):
        manifest(tmp_path, {**output, "foreground_threshold": 0.4})


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 40, "high"])
def test_a_threshold_of_the_foreground_is_a_probability(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadManifest, match="foreground_threshold"):
        manifest(tmp_path, {**SOFTMAX, "foreground_threshold": value})
