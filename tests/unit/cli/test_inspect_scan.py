"""`isocenter inspect` of a scan: series, grids and refusals, and nobody's name."""

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from dicom_files import Files, enhanced, every, files, slices, voxels
from isocenter.cli.errors import Exit
from isocenter.cli.inspect_picture import views_of
from isocenter.cli.main import app
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.volume import Volume


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


def zipped(contents: Files) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in contents.items():
            archive.writestr(f"series/{name}", data)
    return packed.getvalue()


def test_a_zip_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "scan.zip").write_bytes(zipped(files(slices())))
    said = " ".join(inspect(tmp_path / "scan.zip").stdout.split())
    assert "5 x 6 x 8, 6.4 x 4 x 2.5 mm, LPS" in said
    assert "8 slices, 2.5 mm apart" in said


def test_what_is_measured_is_said_of_a_refused_series_as_well(tmp_path: Path) -> None:
    made = slices()
    del made[3]
    for name, data in (files(made) | {"twice.dcm": files(made)["0000.dcm"]}).items():
        (tmp_path / name).write_bytes(data)
    (series,) = json.loads(inspect(tmp_path, "--json").stdout)
    measured = series["volumes"][0]["measured"]
    assert (measured["slices"], measured["uneven"], measured["missing"], measured["doubled"]) == (8, 1, 1, 1)
    assert measured["gap_mm"] == {"median": 2.5, "min": 0.0, "max": 5.0}
    assert "1 gap of 5 mm, about 1 slice missing; 1 doubled" in " ".join(inspect(tmp_path).stdout.split())


def test_names_are_shown_to_who_asks_and_are_in_no_picture(scan: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    assert "PatientName: Doe^Jane" in inspect(scan, "--show-identifiers", "--picture", picture).stdout
    assert b"Doe" not in picture.read_bytes()
    assert "identifiers" not in json.loads(inspect(scan, "--json").stdout)[0]
    assert json.loads(inspect(scan, "--json", "--show-identifiers").stdout)[0]["identifiers"]["PatientID"] == "17"


@pytest.mark.parametrize("arguments", [(), ("--show-identifiers",)], ids=["facts", "identifiers"])
def test_a_header_gives_no_orders_to_the_terminal(arguments: tuple[str, ...], tmp_path: Path) -> None:
    def say(header: Dataset) -> None:
        header.Manufacturer = header.SeriesDescription = "\x1b[2J\x1b]0;all is well\x07"
        header.PatientName = "Doe^Jane\nseries 2: readable"

    with warnings.catch_warnings():  # pydicom's, of what is written here
        warnings.simplefilter("ignore")
        for name, data in files(every(say, slices())).items():
            (tmp_path / name).write_bytes(data)

    said = inspect(tmp_path, *arguments).stdout

    assert [each for each in said.replace("\n", "") if not each.isprintable()] == []
    assert "\\x1b[2J" in "".join(said.split())
    assert not any(line.startswith("series 2") for line in said.splitlines())


def test_a_picture_has_a_band_for_every_volume_and_red_for_a_gap(tmp_path: Path) -> None:
    two = tmp_path / "two"
    two.mkdir()
    made = slices()
    del made[3]
    for name, data in files(made).items():
        (two / name).write_bytes(data)
    stacks = enhanced(voxels(), stacks=2)
    stacks.SeriesInstanceUID, stacks.SeriesNumber = "1.2.3", 9
    (two / "stacks.dcm").write_bytes(files([stacks])["0000.dcm"])
    inspect(two, "--picture", tmp_path / "picture.png")

    with Image.open(tmp_path / "picture.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    refused, readable = 58 + 96 + 16, 58 + 348 + 96 + 16
    assert pixels.shape == (refused + 2 * readable, 1000, 3)
    red = (pixels == (239, 83, 80)).all(axis=-1)
    assert red[60:refused].any()
    assert not red[refused:].any()


def test_the_slices_of_a_picture_are_seen_from_the_feet_and_the_left() -> None:
    place = np.arange(24.0).reshape(1, 2, 3, 4)
    ras = Volume.of(place, geometry=Geometry((2, 3, 4), np.diag([-1.0, -2.0, 3.0, 1.0])))
    axial, coronal, sagittal = views_of(ras)
    assert (axial.spacing_mm, coronal.spacing_mm, sagittal.spacing_mm) == ((2.0, 1.0), (3.0, 1.0), (3.0, 2.0))
    # Indices of RAS grow to the right and to the front: the picture begins at the last of both, above at the head.
    assert axial.pixels[0, 0] == place[0, 1, 2, 2]
    assert coronal.pixels[0, 0] == place[0, 1, 1, 3]
    assert sagittal.pixels[-1, -1] == place[0, 0, 0, 0]


@pytest.mark.parametrize(
    ("data", "code"),
    [pytest.param(b"", "missing_image", id="empty"), pytest.param(b"noise" * 200, "unsupported_media", id="noise")],
)
def test_a_file_that_is_called_a_scan_and_is_none_is_said_to_be(data: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / "head.nii.gz").write_bytes(data)
    assert json.dumps(code) in inspect(tmp_path / "head.nii.gz", "--json").stdout
    assert code in inspect(tmp_path / "head.nii.gz").stdout


def test_a_broken_file_beside_a_series_is_said_to_stop_it(scan: Path) -> None:
    (scan / "cut.dcm").write_bytes(files(slices())["0000.dcm"][:300])
    assert "1 file is broken: while that is so, nothing beside is read either" in inspect(scan).stdout


def test_a_picture_of_no_scan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 600)
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "model.onnx"), "--picture", str(tmp_path / "p.png")])
    assert done.exit_code == Exit.WRONG
    assert "no scan" in done.stderr
