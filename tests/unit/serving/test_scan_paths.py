"""What a caller may name on the server's own disk, and everything that he may not."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from isocenter.core.errors import BadImage, BadSettings, PathNotAllowed, ScanTooLarge, TruncatedImage
from isocenter.imaging.limits import VolumeLimits
from isocenter.serving import scan_paths
from isocenter.serving.scan_paths import ScanRoots

SECRET = b"nobody's business"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A root with scans, and beside it what must never be read."""
    (tmp_path / "open" / "series" / "deep").mkdir(parents=True)
    (tmp_path / "open-to-others").mkdir()
    (tmp_path / "open" / "brain.nii").write_bytes(b"voxels")
    (tmp_path / "open" / "series" / "1.dcm").write_bytes(b"one")
    (tmp_path / "open" / "series" / "deep" / "2.dcm").write_bytes(b"two")
    (tmp_path / "secret.nii").write_bytes(SECRET)
    (tmp_path / "open-to-others" / "secret.nii").write_bytes(SECRET)
    return tmp_path


@pytest.fixture
def roots(disk: Path) -> ScanRoots:
    return ScanRoots([disk / "open"], limits=VolumeLimits(max_bytes=1_000, max_files=60))


def test_a_file_is_read_by_its_absolute_path_and_by_one_from_the_root(disk: Path, roots: ScanRoots) -> None:
    assert roots.read(str(disk / "open" / "brain.nii")) == b"voxels"
    assert roots.read("brain.nii") == b"voxels"
    assert roots.open("./brain.nii") == (disk / "open" / "brain.nii").resolve()


def test_a_folder_is_read_to_its_bottom(roots: ScanRoots) -> None:
    assert roots.read("series") == {"1.dcm": b"one", "deep/2.dcm": b"two"}


def test_links_are_followed_where_they_stay_below_a_root(disk: Path, roots: ScanRoots) -> None:
    (disk / "open" / "link.nii").symlink_to("series/1.dcm")
    (disk / "open" / "of-links").mkdir()
    (disk / "open" / "of-links" / "a.dcm").symlink_to("../series/1.dcm")
    (disk / "open" / "folder").symlink_to(disk / "open" / "series")

    assert roots.read("link.nii") == b"one"
    assert roots.read("of-links") == {"a.dcm": b"one"}
    assert roots.read("folder/deep") == {"2.dcm": b"two"}


def _link(target: str, *, to_folder: bool = False) -> Callable[[Path], str]:
    def make(disk: Path) -> str:
        (disk / "open" / "link").symlink_to(target.format(disk=disk), target_is_directory=to_folder)
        return "link/secret.nii" if to_folder else "link"

    return make


def _special(kind: str) -> Callable[[Path], str]:
    def make(disk: Path) -> str:
        at = disk / "open" / "special"
        if kind == "fifo":
            os.mkfifo(at)
        elif kind == "socket":
            here = os.open(disk / "open", os.O_RDONLY)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(f"/proc/self/fd/{here}/special")  # the path itself may be too long for a socket
            os.close(here)
        elif kind == "folder of a fifo":
            at.mkdir()
            os.mkfifo(at / "1.dcm")
        elif kind == "folder of a link out":
            at.mkdir()
            (at / "1.dcm").symlink_to(disk / "secret.nii")
        elif kind == "folder of a link to a folder":
            at.mkdir()
            (at / "out").symlink_to(disk / "open-to-others")
        elif kind == "folder of a device":
            at.mkdir()
            (at / "1.dcm").symlink_to("/dev/zero")
        elif kind == "loop":
            at.symlink_to("special2")
            (disk / "open" / "special2").symlink_to("special")
        elif kind == "folder in itself":
            at.mkdir()
            (at / "again").symlink_to("../special")
        elif kind == "deep folders":
            at.joinpath(*["d"] * 40).mkdir(parents=True)
        elif kind == "unreadable":
            at.write_bytes(SECRET)
            at.chmod(0)
        return "special"

    return make


def _said(text: str) -> Callable[[Path], str]:
    return lambda disk: text.format(disk=disk)


HOSTILE = {
    "empty": _said(""),
    "a space": _said(" "),
    "dots": _said(".."),
    "up": _said("../secret.nii"),
    "up from a folder": _said("series/../../secret.nii"),
    "up and back": _said("../open/brain.nii"),
    "up by an absolute path": _said("{disk}/open/../secret.nii"),
    "up at the end": _said("series/.."),
    "escaped dots": _said("..%2fsecret.nii"),
    "backslashes": _said("..\\secret.nii"),
    "absolute outside": _said("{disk}/secret.nii"),
    "a neighbour with the root's name": _said("{disk}/open-to-others/secret.nii"),
    "the folder above": _said("{disk}"),
    "the whole disk": _said("/"),
    "two slashes": _said("//etc/passwd"),
    "passwords": _said("/etc/passwd"),
    "the process": _said("/proc/self/environ"),
    "the process's root": _said("/proc/self/root{disk}/secret.nii"),
    "the process's folder": _said("/proc/self/cwd"),
    "memory": _said("/proc/self/mem"),
    "kernel": _said("/sys/kernel/notes"),
    "device of zeros": _said("/dev/zero"),
    "device of nothing": _said("/dev/null"),
    "device of randomness": _said("/dev/random"),
    "standard input": _said("/dev/stdin"),
    "terminal": _said("/dev/tty"),
    "nothing there": _said("no-such.nii"),
    "nothing there, absolute": _said("{disk}/open/no-such.nii"),
    "a file taken for a folder": _said("brain.nii/x"),
    "home": _said("~/secret.nii"),
    "a variable": _said("$HOME/secret.nii"),
    "address": _said("file://{disk}/secret.nii"),
    "remote address": _said("http://127.0.0.1/secret.nii"),
    "NUL": _said("brain.nii\0.png"),
    "NUL first": _said("\0"),
    "half a character": _said("\ud800"),
    "overlong name": _said("a" * 300),
    "overlong path": _said("a/" * 3_000),
    "very long path": _said("x" * 100_000),
    "link to a file outside": _link("{disk}/secret.nii"),
    "relative link outside": _link("../secret.nii"),
    "link to a folder outside": _link("{disk}/open-to-others", to_folder=True),
    "link to a device": _link("/dev/zero"),
    "link to the process": _link("/proc/self/environ"),
    "link to nothing": _link("no-such"),
    **{
        kind: _special(kind)
        for kind in (
            "fifo", "socket", "folder of a fifo", "folder of a link out", "folder of a link to a folder",
            "folder of a device", "loop", "folder in itself", "deep folders",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_hostile_path_is_read(kind: str, disk: Path, roots: ScanRoots, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HOSTILE[kind](disk)
    opened: list[object] = []
    monkeypatch.setattr(scan_paths, "_bytes_of", opened.append)

    for use in (roots.open, roots.read):
        with pytest.raises(PathNotAllowed) as caught:
            use(text)
        assert str(disk) not in caught.value.message
        assert caught.value.details == {}
    assert opened == []


def test_whether_a_path_exists_elsewhere_is_not_told(disk: Path, roots: ScanRoots) -> None:
    messages = set()
    for text in (str(disk / "secret.nii"), str(disk / "no-such.nii"), "/etc/shadow", "no-such.nii"):
        with pytest.raises(PathNotAllowed) as caught:
            roots.read(text)
        messages.add(caught.value.message)
    assert len(messages) == 1


def test_without_a_root_nothing_may_be_named(disk: Path) -> None:
    roots = ScanRoots()

    assert not roots.there
    with pytest.raises(PathNotAllowed, match=r"scans\.roots"):
        roots.read(str(disk / "open" / "brain.nii"))


def test_a_huge_sparse_file_is_refused_by_its_size(disk: Path, roots: ScanRoots) -> None:
    with (disk / "open" / "sparse.nii").open("wb") as file:
        file.truncate(1 << 40)

    for use in (roots.open, roots.read):
        with pytest.raises(ScanTooLarge, match=r"1099511627776 bytes .* at most 1000 are read"):
            use("sparse.nii")


def test_a_folder_of_too_many_bytes_or_files_is_refused_before_one_is_read(
    disk: Path, roots: ScanRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_paths, "_bytes_of", lambda file: pytest.fail("read"))
    for number in range(3):
        (disk / "open" / "series" / f"{number}.bin").write_bytes(bytes(400))
    with pytest.raises(ScanTooLarge, match="bytes or more, at most 1000"):
        roots.read("series")
    for number in range(61):
        (disk / "open" / "series" / f"{number}.bin").write_bytes(b"")
    with pytest.raises(ScanTooLarge, match="61 entries or more, at most 60"):
        roots.read("series")


@pytest.mark.parametrize("swap", ["link", "other", "fifo", "folder"])
def test_what_is_put_in_a_files_place_after_the_check_is_not_read(
    swap: str, disk: Path, roots: ScanRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real = disk / "open" / "brain.nii", scan_paths._bytes_of

    def late(file: scan_paths._File) -> bytes:
        target.unlink()
        if swap == "link":
            target.symlink_to(disk / "secret.nii")
        elif swap == "other":
            os.link(disk / "secret.nii", target)
        elif swap == "fifo":
            os.mkfifo(target)
        else:
            target.mkdir()
        return real(file)

    monkeypatch.setattr(scan_paths, "_bytes_of", late)
    with pytest.raises(PathNotAllowed):
        roots.read("brain.nii")


def test_a_folder_on_the_way_that_becomes_a_link_is_not_followed(
    disk: Path, roots: ScanRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    (disk / "open-to-others" / "1.dcm").write_bytes(SECRET)
    real = scan_paths._bytes_of

    def late(file: scan_paths._File) -> bytes:
        if not (disk / "open" / "series").is_symlink():
            (disk / "open" / "series").rename(disk / "open" / "elsewhere")
            (disk / "open" / "series").symlink_to(disk / "open-to-others")
        return real(file)

    monkeypatch.setattr(scan_paths, "_bytes_of", late)
    with pytest.raises(PathNotAllowed):
        roots.read("series/1.dcm")


def test_a_file_that_becomes_shorter_meanwhile_says_so(
    disk: Path, roots: ScanRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scan_paths._bytes_of

    def late(file: scan_paths._File) -> bytes:
        os.truncate(disk / "open" / "brain.nii", 2)
        return real(file)

    monkeypatch.setattr(scan_paths, "_bytes_of", late)
    with pytest.raises(TruncatedImage):
        roots.read("brain.nii")


def test_a_file_that_is_written_to_meanwhile_is_not_answered_in_part(
    disk: Path, roots: ScanRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real = disk / "open" / "brain.nii", scan_paths._bytes_of

    def late(file: scan_paths._File) -> bytes:
        target.write_bytes(b"others")  # as long as what was there
        os.utime(target, ns=(0, 1))  # clocks of file systems may be coarse
        return real(file)

    monkeypatch.setattr(scan_paths, "_bytes_of", late)
    with pytest.raises(BadImage, match="written to while it was read"):
        roots.read("brain.nii")


def test_a_name_below_several_roots_is_not_guessed(disk: Path) -> None:
    (disk / "open-to-others" / "brain.nii").write_bytes(b"other voxels")
    roots = ScanRoots([disk / "open", disk / "open-to-others"])

    with pytest.raises(PathNotAllowed):
        roots.read("brain.nii")
    assert roots.read("secret.nii") == SECRET  # a root of its own now, and named once


@pytest.mark.parametrize("root", ["no-such", "open/brain.nii", "relative"])
def test_a_root_that_is_no_folder_is_an_error_of_the_settings(disk: Path, root: str) -> None:
    given = Path(root) if root == "relative" else disk / root
    with pytest.raises(BadSettings, match=r"scans\.roots"):
        ScanRoots([given])
