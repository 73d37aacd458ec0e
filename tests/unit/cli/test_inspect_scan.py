"""`isocenter inspect` of a scan: series, grids and refusals, and nobody's name."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dicom_files import files, slices
from isocenter.cli.main import app


def inspect(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    for name, data in files(slices()).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_a_folder_of_slices_is_described_without_names(scan: Path) -> None:
    said = " ".join(inspect(scan).stdout.split())
    assert "5 x 6 x 8, 6.4 x 4 x 2.5 mm, LPS" in said
    assert "readable" in said
    assert "Doe" not in said


def test_what_would_be_refused_is_said_and_why(tmp_path: Path) -> None:
    made = slices()
    del made[3]
    for name, data in files(made).items():
        (tmp_path / name).write_bytes(data)
    (series,) = json.loads(inspect(tmp_path, "--json").stdout)
    assert series["volumes"][0]["refusal"]["code"] == "missing_slices"
    assert "refused, missing_slices: 1 of 6 gaps between slices" in " ".join(inspect(tmp_path).stdout.split())
