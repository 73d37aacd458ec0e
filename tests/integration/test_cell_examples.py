"""The examples for QuPath and napari run without either, and say so if what they made is not what they promise."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from patience import PATIENCE_S

pytestmark = pytest.mark.slow

NAME = "nuclei-segmenter"


def run(example: str, folder: Path) -> str:
    """What an example prints in a folder with the one model that it needs."""
    (folder / "models").mkdir()
    (folder / "models" / NAME).symlink_to(ROOT / "models" / NAME)
    command = [sys.executable, str(ROOT / "examples" / example)]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_qupath_gets_a_picture_cells_and_a_script(tmp_path: Path) -> None:
    """In a folder whose name Groovy would read as something else."""
    folder = tmp_path / "it's $5"
    folder.mkdir()
    assert "40 were drawn" in run("cells_in_qupath.py", folder)
    files = sorted(file.name for file in (folder / "cells-out").iterdir())
    assert files == ["field.geojson", "field.png", "import_cells.groovy"]
    script = (folder / "cells-out" / "import_cells.groovy").read_text()
    assert script.splitlines()[0].endswith(r"/it\'s $5/cells-out/field.geojson')")


def test_napari_gets_its_layers(tmp_path: Path) -> None:
    assert "layers: field (image), cells (labels)" in run("cells_in_napari.py", tmp_path)
