"""Files that are there as a whole or not at all, whatever kills the process or the machine."""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from isocenter.core.errors import DiskFull, StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def typed(function: Callable[P, T]) -> Callable[P, T]:
    """Tell what the file system refuses as an error of ours, without the path.

    Raises:
        DiskFull: there is no room.
        StoreUnavailable: it cannot be read or written.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            raise refusal_of(error) from None

    return wrapped


def refusal_of(error: OSError) -> DiskFull | StoreUnavailable:
    """An error of the file system in our words: its number is told, the path is not."""
    name = errno.errorcode.get(error.errno or 0, "unknown")
    if error.errno in _FULL:
        return DiskFull("there is no room on the disk of the jobs", details={"errno": name}, retry_after_s=30.0)
    message = f"the folder of the jobs cannot be used: {os.strerror(error.errno or errno.EIO)}"
    return StoreUnavailable(message, details={"errno": name}, retry_after_s=5.0)


@typed
def write_durably(path: Path, data: bytes) -> None:
    """Write a file that is complete as soon as it has its name, and stays.

    Raises:
        DiskFull: there is no room; nothing of it is left.
        StoreUnavailable: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        _write_through(part, data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@typed
def write_folder(folder: Path, files: Mapping[str, bytes | Path]) -> dict[str, int]:
    """Make a folder of files that is complete as soon as it has its name. A path is moved there. Names and bytes.

    Raises:
        DiskFull: there is no room; nothing of it is left.
        StoreUnavailable: it cannot be written.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # of the same attempt, which was never recorded
    part.mkdir(mode=0o700, parents=True)
    sizes = {}
    try:
        for name, given in files.items():
            if isinstance(given, Path):
                shutil.move(given, part / name)
                _sync(part / name)
            else:
                _write_through(part / name, given)
            sizes[name] = (part / name).stat().st_size
        sync_folder(part)
        part.rename(folder)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    sync_folder(folder.parent.parent)
    return sizes


def sync_folder(folder: Path) -> None:
    """See that the names in a folder stay."""
    _sync(folder)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
