"""Phantom slices as files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from isocenter.cli import main
from isocenter.cli.phantoms import FIRST_SEED
from isocenter.imaging.phantoms import brain_slice

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
