"""Which scans a cohort has: what is one, what lies beside, what is listed although it is broken."""

import io
import zipfile
from pathlib import Path

import pytest

from dicom_files import files, slices
from isocenter.cli.cohort_find import find_scans, means_scans, zip_of_scans
from isocenter.cli.errors import Hopeless

MHA = b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\n"
MHA += b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementDataFile = LOCAL\n" + bytes(range(8))
SLICES = files(slices())


def write(folder: Path, **contents: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


def zipped(**contents: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return packed.getvalue()


def paths(folder: Path, out: str = "out") -> list[str]:
    return [each.path for each in find_scans([str(folder)], folder / out)]


def test_files_zips_and_folders_of_slices_are_scans(tmp_path: Path) -> None:
    write(tmp_path, **{"head.mha": MHA, "no-suffix": MHA, "two.zip": zipped(**SLICES), "notes.txt": b"words"})
    write(tmp_path / "p1" / "series", **SLICES, **{"readme.txt": b"words", "table.xlsx": b"PK\x03\x04"})
    write(tmp_path / "p2", **{"IM1": SLICES["0000.dcm"], "DICOMDIR": SLICES["0000.dcm"], "beside.mha": MHA})
    assert paths(tmp_path) == ["head.mha", "no-suffix", "p1/series", "p2", "p2/beside.mha", "two.zip"]
    series = next(each for each in find_scans([str(tmp_path)], tmp_path / "out") if each.path == "p1/series")
    assert isinstance(series.source, tuple)
    assert sorted(file.name for file in series.source) == sorted(SLICES)


def test_what_is_broken_is_listed_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, **{"empty.nii.gz": b"", "noise.nrrd": b"noise", "cut.zip": b"PK"})
    write(tmp_path / "p1", **{"slice.dcm": b"cut"})
    (tmp_path / "nowhere.nii").symlink_to(tmp_path / "gone")
    assert paths(tmp_path) == ["cut.zip", "empty.nii.gz", "noise.nrrd", "nowhere.nii", "p1"]


def test_hidden_files_and_results_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, **{"a.mha": MHA, ".b.mha": MHA})
    write(tmp_path / "out" / "deep", **{"a.mask.nii.gz": MHA})
    write(tmp_path / "__MACOSX", **{"._a.mha": MHA})
    assert paths(tmp_path) == ["a.mha"]


def test_a_linked_folder_counts_and_a_circle_ends(tmp_path: Path) -> None:
    write(tmp_path / "real", **{"a.mha": MHA})
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "patient").symlink_to(tmp_path / "real")
    (tmp_path / "cohort" / "again").symlink_to(tmp_path / "cohort")
    assert paths(tmp_path / "cohort") == ["patient/a.mha"]


def test_named_files_have_the_paths_they_have_in_their_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", **{"1.mha": MHA})
    write(tmp_path / "b", **{"2.mha": MHA})
    named = [str(tmp_path / "a" / "1.mha"), str(tmp_path / "b" / "*.mha")]
    assert [each.path for each in find_scans(named, tmp_path / "out")] == ["a/1.mha", "b/2.mha"]
    assert [each.path for each in find_scans(named[:1], tmp_path / "out")] == ["1.mha"]


def test_a_scan_whose_file_changes_is_another_one(tmp_path: Path) -> None:
    write(tmp_path, **{"a.mha": MHA})
    (before,) = find_scans([str(tmp_path)], tmp_path / "out")
    write(tmp_path, **{"a.mha": MHA + b" "})
    (after,) = find_scans([str(tmp_path)], tmp_path / "out")
    assert before.path == after.path
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("named", "said"),
    [
        pytest.param(["nowhere"], "no such file or folder", id="nothing there"),
        pytest.param(["."], "no scan in", id="no scan"),
        pytest.param(["out"], "where the results go", id="results"),
        pytest.param(["*.nii"], "no file matches", id="pattern"),
    ],
)
def test_what_means_nothing_is_said(
    named: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, **{"notes.txt": b"words"}))
    (tmp_path / "out").mkdir()
    with pytest.raises(Hopeless, match=said.replace("*", ".")):
        find_scans(named, Path("out"))


def test_scans_are_told_from_images_and_models(tmp_path: Path) -> None:
    write(
        tmp_path / "images",
        **{"a.png": b"\x89PNG", "b.tif": b"II*\0", "model.zip": zipped(**{"x/data.pkl": b"x" * 600})},
    )
    write(tmp_path / "scans" / "p1", IM1=SLICES["0000.dcm"])
    write(tmp_path / "zips", **{"a.zip": zipped(**SLICES)})
    assert [means_scans([str(tmp_path / name)]) for name in ("images", "scans", "zips", "gone")] == [
        False, True, True, False,
    ]  # fmt: skip
    assert zip_of_scans(tmp_path / "zips" / "a.zip")
    assert not zip_of_scans(tmp_path / "images" / "model.zip")
