"""Which files a command line means: files, folders and patterns, in order and each only once."""

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from isocenter.cli.errors import Hopeless

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
"""What counts as an image inside a folder. A file that is named is always asked about, whatever it is called."""


def find_files(arguments: Iterable[str]) -> list[Path]:
    """Every file that is meant.

    Raises:
        Hopeless: one of the arguments means no file.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        found.update(dict.fromkeys(_files_of(argument)))
    return list(found)


def _files_of(argument: str) -> list[Path]:
    path = Path(argument)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and _shown(file, path))
        if not inside:
            raise Hopeless(
                f"no image in {argument}: nothing there ends in {', '.join(SUFFIXES)}", hint="another folder"
            )
        return inside
    if not glob.has_magic(argument):
        raise Hopeless(f"no such file or folder: {argument}", hint="ls " + (str(path.parent) or "."))
    # `glob` rather than Path.glob: the pattern may be absolute, and `**` should mean what it means in a shell.
    matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))  # noqa: PTH207
    files = [match for match in matches if match.is_file()]
    if not files:
        raise Hopeless(f"no file matches {argument!r}", hint="the pattern in quotes, with ** for folders in folders")
    return files


def _shown(file: Path, root: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
