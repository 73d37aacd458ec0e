"""Which files a command line means."""

from pathlib import Path

import pytest

from isocenter.cli.errors import Hopeless
from isocenter.cli.inputs import find_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", "deep/c.tiff", ".hidden/d.png", "odd[1].png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path


def names(found: list[Path], root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in found]


def test_a_folder_means_the_images_in_it_to_the_bottom(folder: Path) -> None:
    assert names(find_files([str(folder)]), folder) == ["a.JPG", "b.png", "deep/c.tiff", "odd[1].png"]


def test_a_named_file_is_asked_about_whatever_it_is_called(folder: Path) -> None:
    assert names(find_files([str(folder / "notes.txt")]), folder) == ["notes.txt"]


def test_a_quoted_pattern_is_a_pattern(folder: Path) -> None:
    assert names(find_files([str(folder / "**" / "*.[pt]*")]), folder) == [
        "b.png",
        "deep/c.tiff",
        "notes.txt",
        "odd[1].png",
    ]


def test_a_file_that_looks_like_a_pattern_is_a_file(folder: Path) -> None:
    assert names(find_files([str(folder / "odd[1].png")]), folder) == ["odd[1].png"]


def test_a_file_meant_twice_is_asked_about_once_in_the_first_place(folder: Path) -> None:
    found = find_files([str(folder / "b.png"), str(folder)])
    assert names(found, folder) == ["b.png", "a.JPG", "deep/c.tiff", "odd[1].png"]


def test_links_are_followed_each_folder_once_and_what_cannot_be_read_is_not_passed_over(folder: Path) -> None:
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "e.png").touch()
    (folder / "images").mkdir()
    (folder / "images" / "linked").symlink_to(folder / "elsewhere")
    (folder / "images" / "gone.png").symlink_to(folder / "not fetched")
    (folder / "images" / "loop.png").symlink_to("loop.png")

    found = ["gone.png", "linked/e.png", "loop.png"]
    assert names(find_files([str(folder / "images")]), folder / "images") == found
    assert names(find_files([str(folder / "deep" / "**" / "*.tiff")]), folder) == ["deep/c.tiff"]
    assert len(find_files([str(folder)])) == 4 + len(found)


def test_a_variable_that_is_not_set_does_not_mean_this_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(Hopeless, match="an empty name"):
        find_files([""])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        pytest.param("nothing.png", "no such file or folder", id="file"),
        pytest.param("*.bmp", "no file matches", id="pattern"),
        pytest.param(".hidden", "no image in", id="folder without images"),
    ],
)
def test_what_means_nothing_is_said(argument: str, said: str, folder: Path) -> None:
    (folder / ".hidden" / "d.png").unlink()
    with pytest.raises(Hopeless, match=said):
        find_files([str(folder / argument)])
