"""`isocenter segment` of scans: a cohort in, masks, tables and a page out, and nothing asked twice."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from conftest import ROOT
from dicom_files import files, slices
from isocenter.cli import cohort_here, main
from isocenter.cli.errors import Exit
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.volume_files import read_volume
from isocenter.imaging.limits import VolumeLimits
from isocenter.serving.jobs.store import JobStore
from patience import PATIENCE_S
from segmenters import write_segmenter

RUN = CliRunner()
SIDE = 12
KILLS = 20

pytestmark = pytest.mark.may_block


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    output = {"tensor": "scores", "activation": "softmax", "labels": ["background", "blob"]}
    write_segmenter(folder, output={**output, "findings": {"labels": ["blob"]}})
    return folder


@pytest.fixture(autouse=True)
def a_process_of_many_tests_is_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_here, "tune_process", lambda: None)


def blob(seed: int) -> Array:
    """A cube of ones somewhere in minus ones."""
    voxels = np.full((SIDE, SIDE, SIDE), -1, np.int16)
    at = np.random.default_rng(seed).integers(1, SIDE - 4, 3)
    voxels[tuple(slice(start, start + 3) for start in at)] = 1
    return voxels


def mha(voxels: Array) -> bytes:
    """A file of voxels of 2 mm."""
    size = " ".join(map(str, voxels.shape))
    head = f"ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementType = MET_SHORT\nElementSpacing = 2 2 2\n"
    head += "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementDataFile = LOCAL\n"
    return head.encode() + voxels.astype("<i2").tobytes(order="F")


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as stream:
        return [*csv.DictReader(stream)]


def write_cohort(folder: Path, *, scans: int) -> Path:
    """Scans, of which five are broken."""
    for number in range(scans - 5):
        place = folder / f"site-{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:02d}.mha").write_bytes(mha(blob(number)))
    (folder / "cut.mha").write_bytes(mha(blob(0))[:-7])
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "noise.nrrd").write_bytes(b"noise" * 100)
    for name, made in (("gap", slices()), ("twice", slices())):
        series = [*made[:3], *made[4:]] if name == "gap" else [*made, made[2]]
        (folder / name).mkdir()
        for file, data in files(series).items():
            (folder / name / file).write_bytes(data)
    return folder


BROKEN = {
    "cut.mha": "truncated_image", "empty.nii.gz": "missing_image", "noise.nrrd": "unsupported_media",
    "gap": "missing_slices", "twice": "duplicate_slices",
}  # fmt: skip


@pytest.mark.slow
def test_a_cohort_becomes_masks_tables_and_a_page(models: Path, tmp_path: Path) -> None:
    cohort, out = write_cohort(tmp_path / "cohort", scans=8), tmp_path / "out"
    line = ["segment", str(cohort), "--models", str(models), "--out", str(out)]
    done = RUN.invoke(main.app, [*line, "--json"])
    assert done.exit_code == Exit.NOT_ALL, done.output

    said: list[dict[str, Any]] = [json.loads(each) for each in done.stdout.splitlines()]
    assert {each["path"]: each["error"]["code"] for each in said if each["error"]} == BROKEN
    assert [row["path"] for row in rows(out)] == sorted([*BROKEN, *(f"site-{n}/{n:02d}.mha" for n in range(3))])
    (first,) = (each for each in said if each["path"] == "site-0/00.mha")
    assert (first["present"], first["volume_ml"]) == (True, pytest.approx(27 * 8 / 1000))
    mask = read_volume(out / first["written"]["nifti"], limits=VolumeLimits())
    assert np.array_equal(mask.voxels[0], blob(0) > 0)
    assert first["written"]["montage"] in (out / "index.html").read_text()
    assert (out / first["written"]["montage"]).read_bytes().startswith(b"\x89PNG")

    again = RUN.invoke(main.app, line)
    assert again.exit_code == Exit.NOT_ALL
    assert "8 done before" in again.stdout
    assert "8 scans: 3 answered (3 present, 0 absent), 5 refused" in again.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param(["--threshold", "0.5"], "--threshold: for images", id="an option of images"),
        pytest.param(["--format", "nifti,geojson"], "--format: for images", id="a format of images"),
        pytest.param(["--format", "nifti,svg"], "svg", id="no format"),
        pytest.param(["--model", "nope"], "nope", id="no model", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_begin_is_said_once(more: list[str], said: str, models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(mha(blob(1)))
    line = ["segment", str(tmp_path / "a.mha"), "--models", str(models), "--out", str(tmp_path / "out"), *more]
    done = RUN.invoke(main.app, line)
    assert done.exit_code == Exit.WRONG
    assert said in done.stderr
    assert not any((tmp_path / "out").rglob("*"))


@pytest.mark.slow
@pytest.mark.long
def test_a_cohort_that_is_killed_twenty_times_answers_every_scan_once(models: Path, tmp_path: Path) -> None:
    cohort, out = write_cohort(tmp_path / "cohort", scans=60), tmp_path / "out"
    command = [sys.executable, "-m", "isocenter", "segment", str(cohort), "--models", str(models), "--out", str(out)]
    chance = random.Random(7)
    for _ in range(KILLS):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            scans = chance.randint(0, 2)
            for _ in range(scans):  # told one by one: then it is in the midst of the next one
                process.stderr.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(chance.random() * (0.03 if scans else 1.5))
            os.kill(process.pid, signal.SIGKILL)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == Exit.NOT_ALL, done.stderr

    with JobStore(out / ".isocenter" / "jobs.sqlite") as store:
        assert 60 <= sum(job.attempts for job in store.list()) <= 60 + KILLS  # what was under way, and no more
    found = rows(out)
    assert len({row["path"] for row in found}) == len(found) == 60
    assert {row["path"]: row["code"] for row in found if row["code"]} == BROKEN
    for row in found:
        if row["path"] not in BROKEN:
            mask = read_volume(out / row["mask"], limits=VolumeLimits())
            assert np.array_equal(mask.voxels[0], blob(int(Path(row["path"]).stem)) > 0)
