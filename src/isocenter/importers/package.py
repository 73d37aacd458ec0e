"""Reading a few named files out of a model package: a folder or a zip. Nothing else of it is opened or unpacked."""

import lzma
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from isocenter.core.errors import ImportRefused

TEXT_LIMIT_BYTES: Final = 4 * 2**20
"""Of a configuration."""
WEIGHTS_LIMIT_BYTES: Final = 8 * 2**30
_CHUNK_BYTES: Final = 2**20
_UNREADABLE: Final = (
    OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error
)  # fmt: skip
"""What a damaged file can make zipfile raise, whatever is in it."""


class Package(Protocol):
    """Files by their names in the package, with `/` between folders."""

    @property
    def name(self) -> str:
        """What the package itself is called, without ending."""
        ...

    def __contains__(self, file: str) -> bool:
        """Whether there is such a file."""
        ...

    def read(self, file: str, *, limit_bytes: int = TEXT_LIMIT_BYTES) -> bytes:
        """What is in it.

        Raises:
            ImportRefused: no such file, a larger one than the limit, or one that leads out of the package.
        """
        ...


@contextmanager
def open_package(path: Path, *, holds: str) -> Iterator[Package]:
    """A folder or zip that holds a file, at the top or in its only folder.

    Raises:
        ImportRefused: it is neither, or does not hold it.
    """
    if path.is_dir():
        yield _within(Folder(path), holds)
        return
    if not zipfile.is_zipfile(path):
        raise ImportRefused(f"{path.name} is neither a folder nor a zip file")
    with open_zip(path) as archive:
        yield _within(Zip(archive, path.stem), holds)


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip file.

    Raises:
        ImportRefused: it is damaged.
    """
    try:
        return zipfile.ZipFile(path)
    except _UNREADABLE as error:
        raise ImportRefused(f"{path.name} is a damaged zip file: {error}") from error


def read_member(archive: zipfile.ZipFile, member: str | zipfile.ZipInfo, *, limit_bytes: int, package: str) -> bytes:
    """What is in a file of a zip.

    Raises:
        ImportRefused: it is damaged, or larger than the limit.
    """
    content = bytearray()
    name = member if isinstance(member, str) else member.filename
    try:
        with archive.open(member) as stream:
            # The size in the header is only a claim.
            while chunk := stream.read(_CHUNK_BYTES):
                content += chunk
                _refuse_large(package, name, len(content), limit_bytes)
    except _UNREADABLE as error:
        raise ImportRefused(f"{package}: {name} cannot be read out of the zip: {error}") from error
    return bytes(content)


def _within(package: "Folder | Zip", holds: str) -> Package:
    if holds in package:
        return package
    tops = package.folders()
    if len(tops) == 1 and f"{tops[0]}/{holds}" in package:
        return package.below(tops[0])
    raise ImportRefused(f"{package.name}: no {holds} in it")


class Folder:
    """A folder; links that lead out of it are refused."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self.name = self._path.name

    def __contains__(self, file: str) -> bool:
        """Whether there is such a file."""
        try:
            return (self._path / file).is_file()
        except OSError:  # a name that no file can have
            return False

    def place(self, file: str) -> Path:
        """Where a file is.

        Raises:
            ImportRefused: no such file, or one that leads out of the package.
        """
        if file not in self:
            raise ImportRefused(f"{self.name}: no {file} in it")
        path = self._path / file
        if not path.resolve().is_relative_to(self._path):
            raise ImportRefused(f"{self.name}: {file} leads out of the package")
        return path

    def read(self, file: str, *, limit_bytes: int = TEXT_LIMIT_BYTES) -> bytes:
        """What is in a file."""
        path = self.place(file)
        _refuse_large(self.name, file, path.stat().st_size, limit_bytes)
        return path.read_bytes()

    def folders(self) -> list[str]:
        """Folders at the top."""
        return [each.name for each in sorted(self._path.iterdir()) if each.is_dir() and not each.name.startswith(".")]

    def below(self, folder: str) -> "Folder":
        """One of them."""
        return Folder(self._path / folder)


class Zip:
    """A zip file, whose members are read one by one and never unpacked onto the disk."""

    def __init__(self, archive: zipfile.ZipFile, name: str, top: str = "") -> None:
        self._archive = archive
        self._top = top
        self.name = name
        members = [info for info in archive.infolist() if not info.is_dir()]
        self._members = {info.filename: info for info in members}
        self._times = Counter(info.filename for info in members)

    def __contains__(self, file: str) -> bool:
        """Whether there is such a file."""
        return self._top + file in self._members

    def read(self, file: str, *, limit_bytes: int = TEXT_LIMIT_BYTES) -> bytes:
        """What is in a file."""
        info = self._members.get(self._top + file)
        if info is None:
            raise ImportRefused(f"{self.name}: no {file} in it")
        if self._times[info.filename] > 1:  # programs that unpack it disagree on which one counts
            raise ImportRefused(f"{self.name}: {file} stands in it {self._times[info.filename]} times")
        _refuse_large(self.name, file, info.file_size, limit_bytes)
        return read_member(self._archive, info, limit_bytes=limit_bytes, package=self.name)

    def folders(self) -> list[str]:
        """Folders at the top."""
        return sorted({PurePosixPath(name).parts[0] for name in self._members if "/" in name})

    def below(self, folder: str) -> "Zip":
        """One of them."""
        return Zip(self._archive, folder, f"{folder}/")


def _refuse_large(package: str, file: str, size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise ImportRefused(
            f"{package}: {file} has {size_bytes} bytes or more, the limit is {limit_bytes}",
            details={"file": file, "bytes": size_bytes, "limit": limit_bytes},
        )
