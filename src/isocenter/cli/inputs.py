"""Which files a command line means: files, folders and patterns, in order and each only once."""

import glob
import os
from collections.abc import Iterable, Iterator
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
    arguments = [*arguments]
    refuse_nameless(arguments)
    found: dict[Path, None] = {}
    for argument in arguments:
        found.update(dict.fromkeys(_files_of(argument)))
    return list(found)


def refuse_nameless(arguments: Iterable[str]) -> None:
    """See that every argument names something: a variable of a shell that is not set does not mean this folder.

    Raises:
        Hopeless: one is empty.
    """
    if not all(arguments):
        raise Hopeless("an empty name means no file or folder", hint="a dot for this folder")


def _files_of(argument: str) -> list[Path]:
    path = Path(argument)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = list(_images_below(path, set()))
        if not inside:
            raise Hopeless(
                f"no image in {argument}: nothing there ends in {', '.join(SUFFIXES)}", hint="another folder"
            )
        return inside
    if not glob.has_magic(argument):
        raise Hopeless(f"no such file or folder: {argument}", hint="ls " + (str(path.parent) or "."))
    # `glob` rather than Path.glob: the pattern may be absolute, and `**` should mean what it means in a shell.
    matches = [Path(match) for match in glob.glob(argument, recursive=True)]  # noqa: PTH207
    files = _each_once(match for match in matches if match.is_file() or _leads_nowhere(match))
    if not files:
        raise Hopeless(f"no file matches {argument!r}", hint="the pattern in quotes, with ** for folders in folders")
    return files


def _images_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """The images of a folder, in order; what is hidden is passed over, links are followed, each folder once.

    A link to nowhere that is called an image, and a folder that cannot be read, are there too: to be refused by whoever
    reads them, as what is missing without a word looks as if it had been answered.
    """
    real = Path(os.path.realpath(folder))
    if real in seen:
        return
    seen.add(real)
    try:
        entries = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    except OSError:
        yield folder
        return
    for each in entries:
        if each.is_dir():
            yield from _images_below(each, seen)
        elif each.suffix.lower() in SUFFIXES and (each.is_file() or _leads_nowhere(each)):
            yield each


def _each_once(files: Iterable[Path]) -> list[Path]:
    """Without what is reached again through links, as one that leads back to a folder above; the shortest stays."""
    found: dict[tuple[str, str], Path] = {}
    for file in sorted(files, key=lambda file: (len(file.parts), file)):
        found.setdefault((os.path.realpath(file.parent), file.name), file)
    return sorted(found.values())


def _leads_nowhere(file: Path) -> bool:
    return file.is_symlink() and not file.exists()
