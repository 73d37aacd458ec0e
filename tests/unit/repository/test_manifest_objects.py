"""`output.objects`: which manifests may have it, and which labels it may name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import MANIFEST_DATA
from isocenter.core.errors import BadManifest
from isocenter.repository.manifest import Manifest, read_manifest

SEEDS = {"split": "seeds", "seeds": "inside", "inside": ["inside", "border"]}
THREE = {"tensor": "logits", "activation": "softmax", "labels": ["background", "inside", "border"], "objects": SEEDS}


def manifest(folder: Path, output: dict[str, Any], **changes: Any) -> Manifest:
    data = {key: value for key, value in MANIFEST_DATA.items() if key not in ("transforms", "golden")}
    data |= {"task": "segmentation", "input": {"kind": "image2d", "tensor": "image"}, "output": output, **changes}
    file = folder / "model.yaml"
    file.write_text(yaml.safe_dump(data))
    return read_manifest(file)


def test_a_rule_is_read_with_its_defaults(tmp_path: Path) -> None:
    rule = manifest(tmp_path, THREE).output.objects

    assert rule is not None
    assert (rule.split, rule.threshold, rule.connectivity, rule.min_area_px) == ("seeds", 0.5, 4, 0)
    assert rule.inside == ["inside", "border"]


def test_a_model_need_not_find_objects(tmp_path: Path) -> None:
    assert manifest(tmp_path, {**THREE, "objects": None}).output.objects is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"output": {**THREE, "objects": {**SEEDS, "seeds": "middle"}}},
            "names middle, which is none of output.labels",
        ),
        ({"output": {**THREE, "objects": {**SEEDS, "min_area": 3}}}, "did you mean 'min_area_px'"),
        ({"output": {**THREE, "activation": "sigmoid"}}, "inside is one label where labels may overlap"),
        ({"input": {"kind": "volume3d", "tensor": "image"}}, "output.objects is of image2d"),
        ({"task": "tensors"}, "output.objects does not belong there"),
    ],
    ids=["unknown label", "typo", "labels that overlap", "volume", "another task"],
)
def test_a_rule_that_does_not_fit_its_model_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    output = changes.pop("output", THREE)
    with pytest.raises(BadManifest, match=message):
        manifest(tmp_path, output, **changes)
