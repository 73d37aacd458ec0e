"""The files of a scan: one file, several, a folder or a zip, within limits, and nothing outside of them.

A part is a plain file or its bytes. Its name is asked only for what the file is not (text beside a series), and never
stands in a message: names of files may be names of patients.
"""

import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Final, TypeAlias

from isocenter.core.errors import (
    BadImage,
    MissingImage,
    TooManyBytes,
    TruncatedImage,
    UnsafePath,
    UnsupportedMedia,
)
from isocenter.imaging.limits import VolumeLimits

Source: TypeAlias = (
    "bytes | memoryview | str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, bytes]"
)
"""Bytes of one file, a path of a file or folder, several paths, or the bytes of several files by their names."""

_ZIP: Final = b"PK\x03\x04"
_EMPTY_ZIP: Final = b"PK\x05\x06"
_END_OF_DIRECTORY: Final = b"PK\x05\x06"
_DIRECTORY_BYTES_PER_ENTRY: Final = 1_024
_PLAIN, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True, slots=True)
class Part:
    """One file. `number` counts from 1, in the order of the names; it says in messages which one is meant."""

    number: int
    name: str = field(repr=False)
    size: int
    path: Path | None = field(default=None, repr=False)
    held: bytes | memoryview = field(default=b"", repr=False)
    written_ns: int | None = field(default=None, repr=False)
    """Of a file on the disk: when it was written last, as it was found."""

    def read(self, count: int | None = None) -> bytes:
        """The bytes, or the first of them.

        Raises:
            UnsafePath: it is no plain file any more.
            BadImage: it was written to since it was found.
        """
        if self.path is None:
            return bytes(self.held if count is None else self.held[:count])
        with self.open() as file:
            data = file.read(self.size if count is None else count)
            self._refuse_another(file)
            return data

    def open(self) -> IO[bytes]:
        """The bytes as a file.

        Raises:
            UnsafePath, BadImage: as `read`.
        """
        if self.path is None:
            return BytesIO(self.held)
        file = _open_plain(self.path, self.number)
        try:
            self._refuse_another(file)
        except BadImage:
            file.close()
            raise
        return file

    def _refuse_another(self, file: IO[bytes]) -> None:
        """A header is read before the pixels: of a file that changed in between, they may be of two patients."""
        found = os.fstat(file.fileno())
        if self.written_ns is not None and (found.st_size, found.st_mtime_ns) != (self.size, self.written_ns):
            raise BadImage(
                f"file {self.number} was written to while it was read",
                details={"file": self.number, "bytes": found.st_size, "expected_bytes": self.size},
            )


def parts_of(source: Source, *, limits: VolumeLimits) -> list[Part]:
    """The files of a source, in the order of their names; an archive is unpacked in memory.

    >>> len(parts_of({"b": b"12", "a": b"1"}, limits=VolumeLimits()))
    2

    Raises:
        MissingImage: there is none.
        TooManyBytes: too many bytes or files, or they unpack to too many.
        UnsafePath: an entry leads outside, or is no plain file.
        BadImage, TruncatedImage, UnsupportedMedia: a broken archive, or one of another kind.
    """
    parts = _numbered(_listed(source, limits), limits)
    if not parts:
        raise MissingImage("there is no file in it", details={"files": 0})
    if len(parts) == 1 and parts[0].read(4) in (_ZIP, _EMPTY_ZIP):
        parts = _numbered(_unpacked(parts[0], limits), limits)
        if not parts:
            raise MissingImage("there is no file in the archive", details={"files": 0})
    return parts


def _listed(source: Source, limits: VolumeLimits) -> Iterator[Part]:
    if isinstance(source, bytes | bytearray | memoryview):
        yield Part(0, "", len(source), held=source)
    elif isinstance(source, Mapping):
        yield from (Part(0, name, len(held), held=held) for name, held in source.items())
    elif isinstance(source, str | os.PathLike):
        yield from _at(Path(source), limits)
    else:
        for each in source:
            yield _plain(Path(each), Path(each).name)


def _at(path: Path, limits: VolumeLimits) -> Iterator[Part]:
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise MissingImage("there is no such file or folder, or it may not be read") from exc
    if not real.is_dir():
        yield _plain(real, real.name)
        return
    seen = 0
    for folder, names, files in os.walk(real, onerror=_unreadable):
        for name in (*names, *files):
            if (seen := seen + 1) > limits.max_files:
                _too_many(seen, limits)
            entry = Path(folder, name)
            if entry.is_symlink() and not entry.resolve().is_relative_to(real):
                raise UnsafePath("a link in the folder leads outside of it", details={"entry": seen})
        yield from (_plain(Path(folder, name), str(Path(folder, name).relative_to(real))) for name in files)


def _unreadable(error: OSError) -> None:
    raise MissingImage("a folder in it may not be read") from error


def _plain(path: Path, name: str) -> Part:
    try:
        found = path.stat()
    except OSError as exc:
        raise MissingImage("a file is not there, or may not be read") from exc
    _refuse_special(found.st_mode, "a file")
    return Part(0, name, found.st_size, path=path, written_ns=found.st_mtime_ns)


def _open_plain(path: Path, number: int) -> IO[bytes]:
    """Open without waiting for the other end of a pipe, and see that it is a plain file."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as exc:
        raise MissingImage(f"file {number} may not be read", details={"file": number}) from exc
    try:
        _refuse_special(os.fstat(descriptor).st_mode, f"file {number}")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_special(mode: int, said: str) -> None:
    if not stat.S_ISREG(mode):
        raise UnsafePath(f"{said} is a folder, a device, a pipe or a socket: plain files are read")


def _numbered(parts: Iterable[Part], limits: VolumeLimits) -> list[Part]:
    found: list[Part] = []
    total = 0
    for part in parts:
        found.append(part)
        total += part.size
        if len(found) > limits.max_files:
            _too_many(len(found), limits)
        if part.path is not None or part.number == 0:
            limits.check_bytes(total)
    found.sort(key=lambda part: part.name)
    return [replace(each, number=number) for number, each in enumerate(found, 1)]


def _too_many(count: int, limits: VolumeLimits) -> None:
    raise TooManyBytes(
        f"{count} files or more, at most {limits.max_files} are read",
        details={"files": count, "limit_files": limits.max_files},
    )


def _unpacked(archive: Part, limits: VolumeLimits) -> Iterator[Part]:
    with archive.open() as file:
        _check_directory(file, archive.size, limits)
        try:
            with zipfile.ZipFile(file) as packed:
                infos = packed.infolist()
                _check_entries(infos, archive.size, limits)
                for number, info in enumerate(infos, 1):
                    if not info.is_dir():
                        held = _entry(packed, info, number)
                        yield Part(-number, info.filename, len(held), held=held)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, OSError) as exc:
            raise BadImage(f"the archive is broken ({_said(exc)})", details={"bytes": archive.size}) from exc
        except (NotImplementedError, RuntimeError) as exc:
            raise UnsupportedMedia("an archive of a kind that is not unpacked") from exc


def _check_directory(file: IO[bytes], size: int, limits: VolumeLimits) -> None:
    """The directory's size before it is read: a list of millions of entries fills the memory by itself."""
    file.seek(max(0, size - 65_557))
    tail = file.read()
    at = tail.rfind(_END_OF_DIRECTORY)
    if at < 0 or len(tail) - at < 22:
        raise TruncatedImage("the archive ends before its directory does", details={"bytes": size})
    count = int.from_bytes(tail[at + 10 : at + 12], "little")
    listed = int.from_bytes(tail[at + 12 : at + 16], "little")
    if count > limits.max_files or listed > limits.max_files * _DIRECTORY_BYTES_PER_ENTRY:
        _too_many(count, limits)
    file.seek(0)


def _check_entries(infos: Sequence[zipfile.ZipInfo], size: int, limits: VolumeLimits) -> None:
    if len(infos) > limits.max_files:
        _too_many(len(infos), limits)
    total = 0
    for number, info in enumerate(infos, 1):
        if not _inside(info.orig_filename) or not _inside(info.filename):
            raise UnsafePath(f"entry {number} of the archive leads outside of it", details={"entry": number})
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnsafePath(f"entry {number} of the archive is a link or a device", details={"entry": number})
        if info.flag_bits & 0x41:
            raise UnsupportedMedia(f"entry {number} of the archive is encrypted", details={"entry": number})
        if info.compress_type not in (_PLAIN, _DEFLATED):
            raise UnsupportedMedia(
                f"entry {number} of the archive is packed in way {info.compress_type}; plain and deflate are read",
                details={"entry": number, "compression": info.compress_type},
            )
        total += info.file_size
        limits.check_unpacked(total, size)


def _inside(name: str) -> bool:
    r"""Whether a name stays in its folder, here and on Windows.

    >>> [_inside(name) for name in ("a/b.dcm", "../b", "/b", "a/../../b", "..\\b", "C:b", "a\0b")]
    [True, False, False, False, False, False, False]
    """
    windows = PureWindowsPath(name)
    steps = {*PurePosixPath(name).parts, *windows.parts}
    return not ("\0" in name or ".." in steps or windows.drive or windows.root or name.startswith("/"))


def _entry(packed: zipfile.ZipFile, info: zipfile.ZipInfo, number: int) -> bytes:
    """Never more bytes than the directory announced: those were checked."""
    try:
        with packed.open(info) as file:
            held = file.read(info.file_size)
    except EOFError as exc:
        raise TruncatedImage(f"entry {number} of the archive is cut", details={"entry": number}) from exc
    except (zipfile.BadZipFile, OSError, ValueError, ArithmeticError) as exc:
        raise BadImage(f"entry {number} of the archive is broken", details={"entry": number}) from exc
    except Exception as exc:
        if type(exc).__module__ != "zlib":
            raise
        raise BadImage(f"entry {number} of the archive is broken", details={"entry": number}) from exc
    if len(held) != info.file_size:
        raise TruncatedImage(
            f"entry {number} of the archive has {len(held)} bytes, {info.file_size} are announced",
            details={"entry": number, "bytes": len(held), "announced_bytes": info.file_size},
        )
    return held


def _said(exc: Exception) -> str:
    """What a library said, without what it may have quoted of a file."""
    return type(exc).__name__
