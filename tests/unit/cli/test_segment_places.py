"""Results lie where their images lay, never on one another, never among the images, and are never taken for images."""

from pathlib import Path

import pytest

from isocenter.cli.errors import Hopeless
from isocenter.cli.segment_files import suffixes
from isocenter.cli.segment_places import meant, outside, places, refuse_replacing


def touch(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def results(files: list[Path], *arguments: Path | str) -> list[str]:
    return [str(place.results) for place in places(files, [*map(str, arguments)], Path())]


def test_what_lay_in_a_folder_keeps_its_place(tmp_path: Path) -> None:
    files = touch(tmp_path, "in/a.png", "in/b/a.png", "alone.png")
    assert results(files, tmp_path / "in", tmp_path / "in" / "b") == ["a", "b/a", "alone"]


def test_what_a_pattern_found_keeps_its_place_below_it(tmp_path: Path) -> None:
    files = touch(tmp_path, "in/a/f.png", "in/b/f.png", "in/b/g.png")
    assert results(files, tmp_path / "in" / "**" / "*.png") == ["a/f", "b/f", "b/g"]


def test_folders_whose_files_would_meet_keep_their_names(tmp_path: Path) -> None:
    files = touch(tmp_path, "a/f.png", "b/f.png", "b/deep/g.png", "c/h.png")
    assert results(files, *(tmp_path / name for name in "abc")) == ["a/f", "b/f", "b/deep/g", "h"]


def test_folders_of_one_name_keep_as_much_of_their_paths_as_tells_them_apart(tmp_path: Path) -> None:
    files = touch(tmp_path, "1/plate/f.png", "2/plate/f.tif")
    assert results(files, *(file.parent for file in files)) == ["1/plate/f", "2/plate/f"]


def test_no_two_images_have_one_name_whatever_their_folders_are_called(tmp_path: Path) -> None:
    files = touch(tmp_path, "p/a/x.png", "p/b/x.png", "q/a/x.png")
    found = places(files, [str(files[0]), str(files[1]), str(tmp_path / "q")], Path())
    assert len({place.image for place in found}) == 3
    assert all(str(file).endswith(place.image) for file, place in zip(files, found, strict=True))
    assert [str(place.results) for place in found] == [place.image.removesuffix(".png") for place in found]


def test_no_place_is_outside_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "here/a.png", "there/b.png")
    monkeypatch.chdir(tmp_path / "here")
    assert results([Path("a.png"), Path("../there/b.png")], ".", "../there") == ["a", "b"]


def test_no_result_takes_the_place_of_an_image_that_is_asked_about(tmp_path: Path) -> None:
    """Labels that somebody drew lie beside their image under the very name of ours."""
    files = touch(tmp_path, "a/x.png", "a/x.labels.png")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    arguments = [*map(str, files)]
    with pytest.raises(Hopeless, match=r"x\.png would take the place of .*x\.labels\.png"):
        refuse_replacing(files, places(files, arguments, tmp_path / "link"), suffixes(["labels"]))
    refuse_replacing(files, places(files, arguments, tmp_path / "a"), suffixes(["json"]))
    refuse_replacing(files, places(files, arguments, tmp_path / "out"), suffixes(["labels"]))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1/a.png", "2/a.png", "3/b.png"], ["1/a", "2/a", "b"]),
        (["a.png", "a.tif"], ["a.png", "a.tif"]),
        (["a.png", "A.PNG"], ["a.png", "A.PNG-2"]),
        (["a.png", "a.tif", "a.png.png"], ["a.png", "a.tif", "a.png-2"]),
        (["x.ome.tif", "x.tif"], ["x.ome", "x"]),
    ],
)
def test_no_two_files_have_one_place(names: list[str], expected: list[str]) -> None:
    assert results([Path(name) for name in names]) == expected


def test_results_of_an_earlier_run_are_no_images(tmp_path: Path) -> None:
    image, result = touch(tmp_path, "a.png", "segmented/a.overlay.png")
    out = tmp_path / "segmented"
    assert outside([image, result], [str(tmp_path)], out) == [image]
    assert outside([image, result], [str(tmp_path / "**" / "*.png")], out) == [image]
    with pytest.raises(Hopeless, match="where the results go"):
        outside([image], [str(tmp_path)], tmp_path)


def test_what_is_named_itself_is_an_image_wherever_it_lies(tmp_path: Path) -> None:
    (image,) = touch(tmp_path, "a.png")
    assert outside([image], [str(image)], tmp_path) == [image]
    assert outside([image], [str(tmp_path), str(image)], tmp_path) == [image]


def test_a_named_file_that_is_absent_stays_in_its_turn(tmp_path: Path) -> None:
    first, last = touch(tmp_path, "a.png", "b.png")
    gone = tmp_path / "gone.png"
    assert meant([str(first), str(gone), str(tmp_path)]) == [first, gone, last]


def test_nothing_but_absent_files_means_nothing(tmp_path: Path) -> None:
    with pytest.raises(Hopeless, match=r"no such file or folder: .*gone\.png"):
        meant([str(tmp_path / "gone.png"), str(tmp_path / "too.png")])


@pytest.mark.parametrize("name", ["absent[1].png", "a\0b.png", "a" * 5000 + ".png"])
def test_an_absent_file_of_any_name_costs_the_others_nothing(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "plate[1]"
    folder.mkdir()
    (folder / "x.png").touch()

    assert meant([str(folder / "x.png"), str(folder / name)]) == [folder / "x.png", folder / name]


def test_a_file_that_is_named_in_two_ways_is_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "x.png"
    file.touch()

    assert meant([str(file), str(tmp_path / "a" / ".." / "a" / "x.png"), str(tmp_path / "a")]) == [file]
