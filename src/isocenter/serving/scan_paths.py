"""Scans on the server's own disk, named by a caller's path: only below folders that the operator opened.

What a path means is settled first, links included, and what it leads to has to lie below a root. Then it is opened
step by step without following any link: whatever is put in its place in between is not read. Nothing is opened that
could block or act on being opened, and nothing is read before its size is known to be within the limits.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from isocenter.core.errors import BadImage, BadSettings, PathNotAllowed, ScanTooLarge, TruncatedImage
from isocenter.imaging.limits import VolumeLimits

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_PATH_BYTES: Final = 4_096
_MAX_DEPTH: Final = 32


@dataclass(frozen=True, slots=True)
class ScanPath:
    """A path as a caller writes it; nothing is known of it."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _File:
    """A plain file below a root: how to come to it, and which one it was when it was looked at."""

    name: str = field(repr=False)
    root: Path
    steps: tuple[str, ...] = field(repr=False)
    size_bytes: int
    identity: tuple[int, int]
    written_ns: int


class ScanRoots:
    """The folders below which callers may name scans; without any, none may be named.

    Raises:
        BadSettings: a root is no folder.
    """

    def __init__(self, roots: Sequence[Path] = (), *, limits: VolumeLimits | None = None) -> None:
        self._roots = tuple(_root(each) for each in roots)
        self._limits = limits or VolumeLimits()

    @property
    def there(self) -> bool:
        """Whether there is any."""
        return bool(self._roots)

    def open(self, text: str) -> Path:
        """See that a path may be read, and say where it leads: a plain file, or a folder of plain files.

        An absolute path, or one that counts from a root. Nothing is read. It may block: not for the event loop.

        Raises:
            PathNotAllowed: it may not; whether there is anything is not told.
            ScanTooLarge: too many bytes or files.
        """
        self._files(text)
        return self._resolved(text)[1]

    def read(self, text: str) -> bytes | dict[str, bytes]:
        """The bytes of a file, or those of all files of a folder by their names.

        Raises:
            PathNotAllowed, ScanTooLarge: see `open`.
            TruncatedImage, BadImage: a file became shorter meanwhile, or was written to.
        """
        files = self._files(text)
        try:
            held = {each.name: _bytes_of(each) for each in files}
        except OSError as error:
            raise _refusal() from error
        return held.get("", held)

    def _files(self, text: str) -> list[_File]:
        root, real = self._resolved(text)
        steps = real.relative_to(root).parts
        try:
            if steps:
                with _folder(root, steps[:-1]) as folder:
                    found = os.stat(steps[-1], dir_fd=folder, follow_symlinks=False)
            if not steps or stat.S_ISDIR(found.st_mode):
                return self._within(self._below(root, steps))
            return self._within(iter([_plain("", root, steps, found)]))
        except OSError as error:
            raise _refusal() from error

    def _resolved(self, text: str) -> tuple[Path, Path]:
        """The root that a path leads below, and where it leads."""
        if not self._roots:
            raise PathNotAllowed(
                "this server reads no scans from its own disk: no folder is named in scans.roots; send the scan itself"
            )
        if not _well_formed(text):
            raise _refusal()
        starts = [Path("/")] if text.startswith("/") else list(self._roots)
        found = {place for start in starts if (place := self._real(start / text)) is not None}
        if len(found) != 1:  # none; or several roots hold one of that name, and which is meant is not guessed
            raise _refusal()
        return found.pop()

    def _real(self, path: Path) -> tuple[Path, Path] | None:
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        root = next((each for each in self._roots if real.is_relative_to(each)), None)
        return None if root is None else (root, real)

    def _below(self, root: Path, top: tuple[str, ...]) -> Iterator[_File]:
        """Every file of a folder and of the folders in it. Links to files are followed where they lead below a root."""
        left = [top]
        seen = 0
        while left:
            at = left.pop()
            if len(at) - len(top) > _MAX_DEPTH:
                raise _refusal()
            with _folder(root, at) as folder, os.scandir(folder) as entries:
                for entry in entries:
                    if (seen := seen + 1) > self._limits.max_files:
                        raise ScanTooLarge(
                            f"the folder holds {seen} entries or more, at most {self._limits.max_files} are read",
                            details={"files": seen, "limit_files": self._limits.max_files},
                        )
                    steps = (*at, entry.name)
                    name = "/".join(steps[len(top) :])
                    if entry.is_symlink():
                        yield self._linked(name, Path(root, *steps))
                    elif entry.is_dir(follow_symlinks=False):
                        left.append(steps)
                    else:
                        yield _plain(name, root, steps, entry.stat(follow_symlinks=False))

    def _linked(self, name: str, link: Path) -> _File:
        place = self._real(link)
        if place is None:
            raise _refusal()
        root, real = place
        return _plain(name, root, real.relative_to(root).parts, real.lstat())

    def _within(self, files: Iterator[_File]) -> list[_File]:
        found: list[_File] = []
        total = 0
        for each in files:
            found.append(each)
            total += each.size_bytes
            if total > self._limits.max_bytes:
                raise ScanTooLarge(
                    f"the scan has {total} bytes or more, at most {self._limits.max_bytes} are read",
                    details={"bytes": total, "limit": self._limits.max_bytes},
                )
        return found


def _root(given: Path) -> Path:
    try:
        real = given.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BadSettings(f"scans.roots names {str(given)!r}, which is not there or may not be read") from error
    if not given.is_absolute() or not real.is_dir():
        raise BadSettings(f"scans.roots names {str(given)!r}; a root is the absolute path of a folder")
    return real


def _well_formed(text: str) -> bool:
    """Whether a text may be a path at all, before the system is asked.

    >>> [_well_formed(text) for text in ("a/b.nii", "/a/b", "", "a/../b", "a\\0b", "\\ud800")]
    [True, True, False, False, False, False]
    """
    try:
        written = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return 0 < len(written) <= _MAX_PATH_BYTES and b"\0" not in written and ".." not in PurePosixPath(text).parts


@contextmanager
def _folder(root: Path, steps: Sequence[str]) -> Iterator[int]:
    """A folder below a root, opened step by step: a link that took the place of a folder is not followed."""
    at = os.open(root, _FOLDER)
    try:
        for step in steps:
            below = os.open(step, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


def _plain(name: str, root: Path, steps: tuple[str, ...], found: os.stat_result) -> _File:
    if not stat.S_ISREG(found.st_mode):
        raise _refusal()
    return _File(name, root, steps, found.st_size, (found.st_dev, found.st_ino), found.st_mtime_ns)


def _bytes_of(file: _File) -> bytes:
    with _folder(file.root, file.steps[:-1]) as folder:
        descriptor = os.open(file.steps[-1], _FILE, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if _plain("", file.root, file.steps, found).identity != file.identity:
            raise _refusal()
        data = opened.read(file.size_bytes)
        written_ns = os.fstat(descriptor).st_mtime_ns
    if len(data) != file.size_bytes:
        raise TruncatedImage(
            f"a file had {file.size_bytes} bytes, and {len(data)} when it was read",
            details={"bytes": len(data), "expected_bytes": file.size_bytes},
        )
    if written_ns != file.written_ns:  # the beginning may be of one scan, and the end of another
        raise BadImage("a file was written to while it was read", details={"bytes": len(data)})
    return data


def _refusal() -> PathNotAllowed:
    """One sentence for all: what lies elsewhere on the disk, and whether it does, is nobody's business."""
    return PathNotAllowed(
        "no scan may be read at this path: it has to lead to a plain file, or to a folder of plain files, "
        "below one of the folders in scans.roots, without '..'"
    )
