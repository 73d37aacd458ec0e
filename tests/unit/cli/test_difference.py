"""What was measured is written, shown beside the gate, and decides the exit code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from isocenter.cli import main
from isocenter.cli.difference import images_in
from isocenter.cli.errors import Hopeless
from isocenter.repository.accuracy import check_difference, check_fallback_difference
from isocenter.repository.layout import find
from isocenter.repository.load import prove
from model_folders import png, write_model
from rounding_runtime import rounding as rounding
from rounding_runtime import rounding_part

RUN = CliRunner()
pytestmark = pytest.mark.usefixtures("rounding")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        (folder / f"{number}.png").write_bytes(png(rng.integers(0, 255, (8, 8), dtype=np.uint8)))
    return folder


def asked(models: Path, pictures: Path, *arguments: object, code: int = 0) -> dict[str, Any]:
    command = ["difference", "lungs", "--models", models, "--images", pictures, "--json", *arguments]
    done = RUN.invoke(main.app, [str(word) for word in command])
    assert done.exit_code == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
    return found


def test_the_same_file_in_bf16_becomes_ready_once_it_is_measured(tmp_path: Path, pictures: Path) -> None:
    folder = write_model(tmp_path, runtime=rounding_part(error=0.01))
    found = asked(tmp_path, pictures, "--against", "fp32")
    assert (found["ok"], found["outside"], found["file"]) == (True, [], "difference.json")
    assert found["difference"]["items"] == 40
    assert found["difference"]["reference"] == {
        "runtime": "rounding",
        "precision": "fp32",
        "sha256": folder.manifest.runtime.sha256,
    }
    assert check_difference(folder) is not None
    prove(folder)


def test_outside_of_the_gate_it_is_written_and_not_all_is_well(tmp_path: Path, pictures: Path) -> None:
    write_model(tmp_path, runtime=rounding_part(error=1.0))
    found = asked(tmp_path, pictures, "--against", "fp32", code=1)
    assert (found["ok"], found["outside"]) == (False, ["max_abs_dp", "top1_agreement"])
    assert (tmp_path / "lungs" / "1" / "difference.json").is_file()


def test_too_few_pictures_are_not_enough(tmp_path: Path, pictures: Path) -> None:
    write_model(tmp_path, runtime=rounding_part(), gate={"min_items": 41})
    found = asked(tmp_path, pictures, "--against", "fp32", code=1)
    assert (found["ok"], found["outside"]) == (False, [])


def test_another_version_may_be_the_reference(tmp_path: Path, pictures: Path) -> None:
    write_model(tmp_path, version=1)
    write_model(tmp_path, version=2, runtime=rounding_part(error=0.01))
    found = asked(tmp_path, pictures, "--against", "lungs:1")
    assert (found["version"], found["difference"]["reference"]["runtime"]) == (2, "synthetic")


@pytest.mark.parametrize(
    ("against", "sentence"),
    [
        ("lungs:2", "lungs 2 is bf16; the reference is fp32"),
        ("lungs:x", "the version is a whole number"),
        ("hearts", "no model is called 'hearts'"),
    ],
)
def test_the_reference_is_an_fp32_version(against: str, sentence: str, tmp_path: Path, pictures: Path) -> None:
    write_model(tmp_path, version=2, runtime=rounding_part())
    assert sentence in asked(tmp_path, pictures, "--against", against, code=2)["error"]


def test_fp32_has_no_difference(tmp_path: Path, pictures: Path) -> None:
    write_model(tmp_path)
    assert "is the reference itself" in asked(tmp_path, pictures, "--against", "fp32", code=2)["error"]


def test_a_fallback_is_measured_against_what_it_stands_in_for(tmp_path: Path, pictures: Path) -> None:
    folder = write_model(tmp_path, fallback={**rounding_part(error=0.01), "device": "cpu"})
    found = asked(tmp_path, pictures, "--against", "fp32", "--fallback")
    assert (found["file"], found["difference"]["reference"]["runtime"]) == ("difference.fallback.json", "synthetic")
    assert check_fallback_difference(folder) is not None
    prove(folder)


def test_without_a_fallback_there_is_none_to_measure(tmp_path: Path, pictures: Path) -> None:
    write_model(tmp_path)
    assert "has no fallback" in asked(tmp_path, pictures, "--against", "fp32", "--fallback", code=2)["error"]


def test_people_see_the_figures_beside_the_gate(tmp_path: Path, pictures: Path) -> None:
    write_model(tmp_path, runtime=rounding_part(error=1.0))
    command = ["difference", "lungs", "--models", tmp_path, "--images", pictures, "--against", "fp32"]
    done = RUN.invoke(main.app, [str(word) for word in command])
    rows = {line.split("  ")[0].strip(): line for line in done.stdout.splitlines()}
    assert "≤ 0.02" in rows["max |dp|"]
    assert "OUTSIDE" in rows["max |dp|"]
    assert "ok" in rows["items"]


def test_check_shows_what_was_measured(tmp_path: Path, pictures: Path) -> None:
    write_model(tmp_path, runtime=rounding_part(error=0.01))
    command = ["check", "lungs", "--models", str(tmp_path), "--json"]
    before = json.loads(RUN.invoke(main.app, command).stdout)
    asked(tmp_path, pictures, "--against", "fp32")
    after = json.loads(RUN.invoke(main.app, command).stdout)
    rows = [next(proof for proof in report["proofs"] if proof["name"] == "difference") for report in (before, after)]
    assert [(row["ok"], row["code"]) for row in rows] == [(False, "unmeasured_precision"), (True, "")]
    assert rows[1]["summary"].startswith("bf16 against fp32 on 40 items: max |dp| ")
    assert rows[1]["details"]["difference"]["items"] == 40


def test_golden_outputs_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.input.npy", "a.output.npy", "b.npy", "c.png"):
        (tmp_path / name).touch()
    assert [file.name for file in images_in(tmp_path)] == ["a.input.npy", "b.npy"]


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(Hopeless, match="no such folder"):
        images_in(tmp_path / "nothing")


def test_quantising_says_what_is_missing(tmp_path: Path, pictures: Path) -> None:
    write_model(tmp_path)
    command = ["quantize", "lungs", "--to", "onnxruntime", "--calibration", str(pictures), "--models", str(tmp_path)]
    done = RUN.invoke(main.app, command)
    assert done.exit_code == 2
    assert "is model.bin; an ONNX file is needed" in done.stderr
    assert [each.name for each in find(tmp_path, "lungs").path.parent.iterdir()] == ["1"]
