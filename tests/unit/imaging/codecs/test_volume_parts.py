"""Folders, lists and archives: what is in them, no more, and nothing outside of them."""

import io
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_files import files, slices, voxels
from isocenter.core.errors import BadImage, BadInput, MissingExtra
from isocenter.imaging.codecs import dicom
from isocenter.imaging.codecs.dicom_series import stack_of, voxels_of
from isocenter.imaging.codecs.volume_files import describe, read_volume
from isocenter.imaging.codecs.volume_parts import parts_of
from isocenter.imaging.limits import VolumeLimits

LIMITS = VolumeLimits()
SCAN = files(slices())


def packed(entries: Mapping[Any, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def refused(source: Any, code: str, limits: VolumeLimits = LIMITS) -> None:
    with pytest.raises(BadInput) as caught:
        read_volume(source, limits=limits)
    assert caught.value.code == code, caught.value


def written(folder: Path) -> Path:
    for name, data in SCAN.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_a_list_a_zip_and_bytes_hold_the_same_scan(tmp_path: Path) -> None:
    folder = written(tmp_path)
    archive = tmp_path.with_suffix(".zip")
    archive.write_bytes(packed({f"deep/er/{name}": data for name, data in SCAN.items()}))
    sources = (
        folder,
        str(folder),
        sorted(folder.iterdir()),
        SCAN,
        archive,
        archive.read_bytes(),
        packed(dict(SCAN), 0),
    )
    for source in sources:
        np.testing.assert_array_equal(read_volume(source, limits=LIMITS).voxels[0].transpose(2, 1, 0), voxels())


def test_pixels_are_not_taken_from_a_file_that_changed_since_its_header_was_read(tmp_path: Path) -> None:
    other = files(slices(voxels(1)))  # of the same places and sizes
    parts = parts_of(written(tmp_path), limits=LIMITS)
    planes = [plane for part in parts for plane in dicom.read_planes(part, limits=LIMITS)]
    for name, data in other.items():
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, ns=(0, 1))  # clocks of file systems may be coarse

    with pytest.raises(BadImage, match=r"file \d+ was written to while it was read"):
        voxels_of(stack_of(planes), limits=LIMITS)


def test_what_lies_beside_a_scan_is_left_aside_and_recorded() -> None:
    beside = {"LICENSE": b"free", "notes.txt": b"hello", ".DS_Store": b"\0", "__MACOSX/._a": b"\0", "ANAT.json": b"{}"}
    volume = read_volume(packed({**SCAN, **beside}), limits=LIMITS)
    assert [note.code for note in volume.notes] == ["files_left_aside"]
    assert "5 files" in volume.notes[0].message


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("0003.dcm", b"", "truncated_image"),
        ("0003.dcm", b"nothing of the kind" * 10, "unsupported_media"),
        ("scan.bin", b"nothing of the kind" * 10, "unsupported_media"),
        ("inner.zip", packed({"a": b"b" * 200, "b": bytes(99)}), "unsupported_media"),
    ],
)
def test_what_should_be_a_slice_and_is_not_is_refused(name: str, data: bytes, code: str) -> None:
    refused(SCAN | {name: data}, code)
    assert any(each.refusal and each.refusal.code == code for each in describe(SCAN | {name: data}, limits=LIMITS))


@pytest.mark.parametrize(
    "name", ["../a.dcm", "a/../../b.dcm", "/etc/passwd", "..\\a.dcm", "C:\\a.dcm", "//host/share/a.dcm", "a/../b.dcm"]
)
def test_an_entry_that_leads_outside_is_refused(name: str) -> None:
    refused(packed({**SCAN, name: b""}), "unsafe_path")


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_an_entry_that_is_no_plain_file_is_refused(mode: int) -> None:
    refused(packed({**SCAN, entry("link", mode | 0o777): b"/etc/passwd"}), "unsafe_path")


def announced(data: bytes, size: int) -> bytes:
    """The first entry announces another size, in its own header and in the directory."""
    changed = bytearray(data)
    directory = data.index(b"PK\x01\x02")
    changed[22:26] = changed[directory + 24 : directory + 28] = size.to_bytes(4, "little")
    return bytes(changed)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zeros": (lambda: packed({"a": bytes(5 * 2**20)}), "too_many_bytes"),
    "many entries of zeros": (lambda: packed({str(at): bytes(2**20) for at in range(5)}), "too_many_bytes"),
    "many entries": (lambda: packed({str(at): b"" for at in range(60)}), "too_many_bytes"),
    "less than it says": (lambda: announced(packed({"a": bytes(100)}), 101), "truncated_image"),
    "more than it says": (lambda: announced(packed({"a": bytes(100)}), 10), "bad_image"),
    "announces 4 GB": (lambda: announced(packed({"a": bytes(100)}), 0xFFFFFFF0), "too_many_bytes"),
    "no directory": (lambda: packed(dict(SCAN))[:-30], "truncated_image"),
    "empty": (lambda: packed({}), "missing_image"),
    "of folders": (lambda: packed({"a/": b"", "b/": b""}), "missing_image"),
    "in another way": (lambda: packed(dict(SCAN), zipfile.ZIP_BZIP2), "unsupported_media"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_lies_are_refused_before_they_are_unpacked(name: str) -> None:
    make, code = BOMBS[name]
    limits = VolumeLimits(max_unpacked_bytes=4 * 2**20, max_files=50, max_expansion=100, expansion_from_bytes=2**20)
    refused(make(), code, limits)


def test_a_small_archive_may_not_unpack_to_five_hundred_times_its_size() -> None:
    refused(packed({"a": bytes(3 * 2**20)}), "too_many_bytes", VolumeLimits(expansion_from_bytes=2**20))


def test_limits_hold_for_folders_too(tmp_path: Path) -> None:
    folder = written(tmp_path)
    refused(folder, "too_many_bytes", VolumeLimits(max_files=7))
    refused(folder, "too_many_bytes", VolumeLimits(max_bytes=5_000))
    refused(SCAN, "too_many_bytes", VolumeLimits(max_bytes=5_000))
    refused(folder / "nothing", "missing_image")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "missing_image")
    refused(b"", "missing_image")


def test_links_out_of_a_folder_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside.dcm", tmp_path / "scan"
    inside.mkdir()
    written(inside)
    (inside / "0003.dcm").rename(outside)
    (inside / "0003.dcm").symlink_to(outside)
    refused(inside, "unsafe_path")
    (inside / "0003.dcm").unlink()
    os.mkfifo(inside / "0003.dcm")
    refused(inside, "unsafe_path")
    refused(inside / "0003.dcm", "unsafe_path")
    refused("/dev/zero", "unsafe_path")
    refused([Path("/dev/zero")], "unsafe_path")


def test_messages_hold_no_names(tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "DOE_JANE.dcm").write_bytes(b"no slice")
    with pytest.raises(BadInput) as caught:
        read_volume(folder, limits=LIMITS)
    assert "DOE" not in f"{caught.value.message}{caught.value.details}"


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(MissingExtra, match=r"isocenter\[dicom\]"):
        dicom.pydicom()
