"""Models are found where they must stand, and nowhere else."""

from pathlib import Path

import pytest
import yaml

from builders import MANIFEST_DATA
from isocenter.core.errors import BadManifest, UnknownModel, UnknownVersion
from isocenter.repository.layout import find, scan


def put(models: Path, name: str, version: int, *, says: tuple[str, int] | None = None) -> None:
    folder = models / name / str(version)
    folder.mkdir(parents=True)
    said_name, said_version = says or (name, version)
    (folder / "model.yaml").write_text(yaml.safe_dump({**MANIFEST_DATA, "name": said_name, "version": said_version}))


def test_versions_are_ordered_as_numbers(tmp_path: Path) -> None:
    for version in (10, 9, 1):
        put(tmp_path, "lungs", version)
    put(tmp_path, "hearts", 2)
    (tmp_path / ".git").mkdir()
    (tmp_path / "lungs" / "notes").mkdir()

    assert [(f.manifest.name, f.manifest.version) for f in scan(tmp_path)] == [
        ("hearts", 2),
        ("lungs", 1),
        ("lungs", 9),
        ("lungs", 10),
    ]


def test_the_highest_version_is_meant_if_none_is_named(tmp_path: Path) -> None:
    put(tmp_path, "lungs", 9)
    put(tmp_path, "lungs", 10)

    assert find(tmp_path, "lungs").manifest.version == 10
    assert find(tmp_path, "lungs", 9).manifest.version == 9


@pytest.mark.parametrize("name", ["hearts", "..", "lungs/../lungs", "", "LUNGS"])
def test_a_model_that_is_not_there_is_unknown_and_no_path_leads_out(tmp_path: Path, name: str) -> None:
    put(tmp_path, "lungs", 1)

    with pytest.raises(UnknownModel):
        find(tmp_path, name)


def test_a_version_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    put(tmp_path, "lungs", 1)

    with pytest.raises(UnknownVersion, match=r"has no version 2; there are \[1\]"):
        find(tmp_path, "lungs", 2)


@pytest.mark.parametrize("says", [("hearts", 1), ("lungs", 2)])
def test_a_manifest_that_says_to_be_another_is_refused(tmp_path: Path, says: tuple[str, int]) -> None:
    put(tmp_path, "lungs", 1, says=says)

    with pytest.raises(BadManifest, match="says it is"):
        scan(tmp_path)


def test_an_empty_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="no model in"):
        scan(tmp_path)
    with pytest.raises(BadManifest, match="not a folder"):
        scan(tmp_path / "nowhere")
