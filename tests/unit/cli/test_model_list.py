"""`isocenter models`: one bad version does not hide the good ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from builders import MANIFEST_DATA
from isocenter.cli import main
from isocenter.cli.models import list_versions
from isocenter.core.errors import BadManifest

RUN = CliRunner()


def put(models: Path, name: str, version: int, *, weights: bool = True, **changes: Any) -> None:
    folder = models / name / str(version)
    folder.mkdir(parents=True)
    data = {**MANIFEST_DATA, "name": name, "version": version, **changes}
    (folder / "model.yaml").write_text(yaml.safe_dump(data))
    if weights:
        (folder / "model.onnx").write_bytes(b"weights")


def test_versions_are_listed_by_name_then_number(tmp_path: Path) -> None:
    for name, version in (("b", 1), ("a", 10), ("a", 9)):
        put(tmp_path, name, version)
    found = list_versions(tmp_path)
    assert [(each["name"], each["version"], each["problem"]) for each in found] == [
        ("a", 9, ""),
        ("a", 10, ""),
        ("b", 1, ""),
    ]
    assert (found[0]["bytes"], found[0]["labels"]) == (7, ["yes", "no"])


def test_a_problem_stands_beside_the_others(tmp_path: Path) -> None:
    put(tmp_path, "good", 1)
    put(tmp_path, "typo", 1, batchng={})
    put(tmp_path, "no-weights", 1, weights=False)
    (tmp_path / "empty").mkdir()
    result = RUN.invoke(main.app, ["models", "--models", str(tmp_path), "--json"])
    problems = {each["name"]: each["problem"] for each in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert problems["good"] == ""
    assert "did you mean 'batching'" in problems["typo"]
    assert problems["no-weights"] == "no file model.onnx"
    assert "no version" in problems["empty"]


def test_a_table_shows_the_same(tmp_path: Path) -> None:
    put(tmp_path, "good", 1)
    result = RUN.invoke(main.app, ["models", "--models", str(tmp_path)])
    assert result.exit_code == 0
    assert all(word in result.stdout for word in ("good", "classification", "yes, no", "onnxruntime", "fp32", "ok"))


@pytest.mark.parametrize("name", ["", "not-there"])
def test_nothing_to_list_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadManifest):
        list_versions(tmp_path / name)
