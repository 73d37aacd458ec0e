"""Phantom slices as files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from isocenter.cli import main
from isocenter.cli.phantoms import FIRST_SEED
from isocenter.imaging.codecs.volume_files import read_volume
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.phantoms import brain_slice
from isocenter.imaging.phantoms_3d import head_scan

RUN = CliRunner()


def test_a_name_says_class_and_seed(tmp_path: Path) -> None:
    result = RUN.invoke(main.app, ["phantoms", "--out", str(tmp_path / "new"), "--count", "4"])
    assert result.exit_code == 0
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        f"glioma-{FIRST_SEED}.png",
        f"meningioma-{FIRST_SEED + 1}.png",
        f"no-tumor-{FIRST_SEED + 3}.png",
        f"pituitary-{FIRST_SEED + 2}.png",
    ]


@pytest.mark.parametrize(
    ("form", "suffix", "dtype", "scale"), [("png", "png", np.uint8, 1), ("png16", "png", np.uint16, 16)]
)
def test_png_keeps_every_pixel(form: str, suffix: str, dtype: type, scale: int, tmp_path: Path) -> None:
    RUN.invoke(main.app, ["phantoms", "--out", str(tmp_path), "--count", "1", "--seed", "1000004", "--format", form])
    found = np.asarray(Image.open(tmp_path / f"glioma-1000004.{suffix}"))
    assert found.dtype == dtype
    assert np.array_equal(found, brain_slice(1000004, label="Glioma").pixels.astype(dtype) * scale)


def test_jpg_is_jpeg(tmp_path: Path) -> None:
    RUN.invoke(main.app, ["phantoms", "--out", str(tmp_path), "--count", "1", "--seed", "4", "--format", "jpg"])
    with Image.open(tmp_path / "glioma-4.jpg") as image:
        assert image.format == "JPEG"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    result = RUN.invoke(main.app, ["phantoms", "--out", str(tmp_path / "file" / "sub")])
    assert result.exit_code == 2
    assert "cannot write to" in result.stderr


@pytest.mark.slow
def test_a_scan_and_its_truth_are_read_back_as_they_were_drawn(tmp_path: Path) -> None:
    asked = ["phantoms", "--kind", "scan", "--out", str(tmp_path / "scans"), "--truth", str(tmp_path / "truth")]
    result = RUN.invoke(main.app, [*asked, "--count", "1", "--seed", "1000006"])
    phantom = head_scan(1000006)
    name = f"several-t1c-{phantom.seed}.nii.gz"

    assert result.exit_code == 0
    for folder, drawn in (("scans", phantom.volume.voxels[0]), ("truth", phantom.truth)):
        found = read_volume(tmp_path / folder / name, limits=VolumeLimits())
        assert np.array_equal(found.voxels[0], drawn)
        assert found.geometry.same_place(phantom.volume.geometry)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--kind", "scan", "--format", "jpg"], "of slices"),
        (["--kind", "scan", "--side-px", "64"], "of slices"),
        (["--truth", "masks"], "of scans"),
        (["--kind", "scan", "--truth", "."], "folder of the scans"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    asked: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUN.invoke(main.app, ["phantoms", "--out", ".", *asked])

    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(tmp_path.iterdir())
