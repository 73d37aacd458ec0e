"""The commands as people run them: real processes, the real model, a real server."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import MODELS, ROOT
from isocenter.cli.phantoms import draw_phantoms
from patience import PATIENCE_S
from serverproc import ServerProcess, running

NAME = "brain-mri-classifier"
# A variable that the server does not know stops it, and those of the tests are such.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ISOCENTER_")}
LABELS = ["Glioma", "Meningioma", "Pituitary", "No Tumor"]


def isocenter(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isocenter", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == check, done.stderr
    return done


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five good files of three formats, and one that is cut."""
    folder = tmp_path_factory.mktemp("slices")
    draw_phantoms(folder, count=2, seed=3_200_000, form="png")
    draw_phantoms(folder, count=1, seed=3_200_002, form="jpg")
    draw_phantoms(folder, count=2, seed=3_200_003, form="png16")
    (folder / "cut.jpg").write_bytes((folder / "pituitary-3200002.jpg").read_bytes()[:900])
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(MODELS) as server:
        yield server


@pytest.fixture(scope="module")
def answers_here(slices: Path) -> list[dict[str, Any]]:
    return json_lines(isocenter("predict", slices, "--models", MODELS, "--json", check=1).stdout)


def test_one_bad_file_never_stops_the_rest(answers_here: list[dict[str, Any]]) -> None:
    assert [Path(each["file"]).name for each in answers_here] == [
        "cut.jpg",
        "glioma-3200000.png",
        "glioma-3200004.png",
        "meningioma-3200001.png",
        "no-tumor-3200003.png",
        "pituitary-3200002.jpg",
    ]
    assert answers_here[0]["error"]["code"] == "truncated_image"
    assert all(list(each["probabilities"]) == LABELS for each in answers_here[1:])


def test_a_server_and_this_process_give_the_same_answers(
    answers_here: list[dict[str, Any]], slices: Path, server: ServerProcess
) -> None:
    url = f"http://127.0.0.1:{server.port}"
    there = json_lines(isocenter("predict", slices, "--url", url, "--json", check=1).stdout)
    assert [each.keys() for each in there] == [each.keys() for each in answers_here]
    for one, other in zip(there, answers_here, strict=True):
        assert one.get("error") == other.get("error")
        assert one.get("prediction") == other.get("prediction")
        assert one.get("warnings") == other.get("warnings")
        # Batch-mates differ from run to run, and with them the last bits.
        assert one.get("probabilities", {}) == pytest.approx(other.get("probabilities", {}), abs=1e-4)


def test_table_csv_and_sheet_come_from_one_run(slices: Path, tmp_path: Path) -> None:
    sheet, table = tmp_path / "sheet.png", tmp_path / "table.csv"
    done = isocenter("predict", slices, "--models", MODELS, "--csv", table, "--contact-sheet", sheet, check=1)
    assert "refused: truncated_image" in done.stdout
    assert "6 files: 5 answered, 1 refused" in done.stdout
    assert "(n=5, 6 at once)" in done.stdout
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert list(rows[0]) == ["file", "prediction", "confidence", "latency_ms", *LABELS, "warnings", "error"]
    assert [bool(row["error"]) for row in rows] == [True, False, False, False, False, False]
    with Image.open(sheet) as image:
        assert image.width > 1500


def test_csv_on_stdout_is_nothing_but_csv(slices: Path) -> None:
    done = isocenter("predict", slices / "glioma-3200000.png", "--models", MODELS, "--csv", "-")
    assert len(list(csv.reader(io.StringIO(done.stdout)))) == 2
    assert "1 file: 1 answered, 0 refused" in done.stderr


@pytest.mark.parametrize("option", ["--csv", "--contact-sheet"])
def test_nothing_is_written_over_an_image_that_is_asked_about(option: str, tmp_path: Path) -> None:
    image, link = tmp_path / "a", tmp_path / "b.png"
    image.write_bytes(b"somebody's scan")
    link.symlink_to(image)
    done = isocenter("predict", link, "--models", MODELS, option, image, check=2)
    assert "nothing is written over it" in done.stderr
    assert image.read_bytes() == b"somebody's scan"


def test_a_table_is_not_written_over_an_image(tmp_path: Path) -> None:
    """A shell makes `--csv *.png` the first image, and asks about the others."""
    first, other = tmp_path / "a.png", tmp_path / "b.png"
    for image in (first, other):
        image.write_bytes(b"somebody's scan")
    done = isocenter("predict", "--models", MODELS, "--csv", first, other, check=2)
    assert "the name of an image" in done.stderr
    assert first.read_bytes() == b"somebody's scan"


def test_a_model_that_is_not_there_is_said_once(slices: Path, server: ServerProcess) -> None:
    url = f"http://127.0.0.1:{server.port}"
    for where in (("--models", MODELS), ("--url", url)):
        done = isocenter("predict", slices, *where, "--model", "lungs", check=2)
        assert done.stderr.count("no model is called 'lungs'") == 1
        assert done.stdout == ""


def test_check_proves_the_model_that_is_shipped() -> None:
    found = json.loads(isocenter("check", NAME, "--models", MODELS, "--json").stdout)
    assert [(proof["name"], proof["ok"]) for proof in found["proofs"]] == [
        ("manifest", True),
        ("digest", True),
        ("difference", True),
        ("tensors", True),
        ("golden", True),
        ("precision", True),
        ("preprocessing", True),
        ("batch invariance", True),
        ("warm-up", True),
    ]


def test_check_of_nothing_is_an_error_and_no_failed_proof() -> None:
    done = isocenter("check", "lungs", "--models", MODELS, check=2)
    assert "no model is called 'lungs'" in done.stderr
    assert done.stdout == ""


def test_check_takes_a_folder_too() -> None:
    done = isocenter("check", MODELS / NAME / "1")
    assert all(word in done.stdout for word in ("sha256", "golden", "batch invariance", "items/s"))


def test_a_failing_proof_does_not_hide_the_next(tmp_path: Path) -> None:
    folder = tmp_path / NAME / "1"
    shutil.copytree(MODELS / NAME / "1", folder)
    with (folder / "model.onnx").open("ab") as stream:
        stream.write(b"\n")
    case = min((folder / "golden").glob("*.json"))
    case.write_text(json.dumps({"logits": [9.0, 9.0, 9.0, 9.0]}))
    found = json.loads(isocenter("check", folder, "--json", check=1).stdout)
    failed = {proof["name"]: proof["code"] for proof in found["proofs"] if not proof["ok"]}
    assert failed["digest"] == "digest_mismatch"
    assert found["ok"] is False


def test_models_lists_what_is_shipped() -> None:
    found = json.loads(isocenter("models", "--models", MODELS, "--json").stdout)
    assert {"name": NAME, "version": 1, "labels": LABELS, "problem": ""}.items() <= {
        key: value for key, value in found[0].items() if key in ("name", "version", "labels", "problem")
    }.items()


def test_serve_says_where_it_listens(server: ServerProcess) -> None:
    said = f"Serving 1 model at http://127.0.0.1:{server.port} - POST /predict, docs at /docs"
    until_s = time.monotonic() + PATIENCE_S
    while said not in server.written():  # the log says "ready" a moment before
        assert time.monotonic() < until_s, server.written()


def test_serve_says_why_it_does_not(tmp_path: Path) -> None:
    done = isocenter("serve", "--models", tmp_path / "nothing", "--port", "0", check=2)
    assert "no model repository at" in done.stderr
    assert "→ try:" in done.stderr


def test_doctor_finds_this_installation_healthy() -> None:
    found = json.loads(isocenter("doctor", "--json").stdout)
    assert found["healthy"] is True


def test_version_names_what_it_stands_on() -> None:
    found = json.loads(isocenter("version", "--json").stdout)
    assert list(found) == ["isocenter", "python", "numpy", "onnxruntime", "platform"]
    assert all(found.values())


@pytest.mark.slow
def test_the_demonstration_runs(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(MODELS)
    command = [sys.executable, str(ROOT / "examples" / "demo.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIGTERM: exit code 0" in done.stdout
    assert (tmp_path / "demo-out" / "contact-sheet.png").is_file()
