"""Which images `isocenter segment` is asked about, and where the results of each go."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from isocenter.cli.errors import Hopeless
from isocenter.cli.inputs import find_files


@dataclass(frozen=True, slots=True)
class Place:
    """Where one image has its results."""

    results: Path
    """The path of its results, without a suffix."""
    image: str
    """What the image is called within them: where it lay, its ending included."""


def absent(argument: str) -> bool:
    """Whether a file is named that is not there; what no path can be is not there either.

    Brackets may be part of a name: what stands in a folder that is there, without `*` and `?`, is the name of a file.
    """
    path = Path(argument)
    try:
        if path.exists():
            return False
        named = not {"*", "?"}.intersection(argument) and path.parent.is_dir() and not glob.glob(argument)  # noqa: PTH207
    except (OSError, ValueError):
        return True
    return named or not glob.has_magic(argument)


def meant(arguments: Sequence[str]) -> list[Path]:
    """Every file that is meant, each once. One that is named and absent is among them, if anything else is there.

    Raises:
        Hopeless: all of them are absent, or a folder or pattern means no file.
    """
    if all(map(absent, arguments)):
        return find_files(arguments)
    found: dict[Path, Path] = {}
    for argument in arguments:
        for file in [Path(argument)] if absent(argument) else find_files([argument]):
            found.setdefault(_absolute(file), file)
    return list(found.values())


def outside(files: Sequence[Path], arguments: Iterable[str], out: Path) -> list[Path]:
    """The files that are no results of an earlier run: what lies in `out` counts only if it is named itself.

    Raises:
        Hopeless: there is no other.
    """
    named, results = {_real(Path(argument)) for argument in arguments}, _real(out)

    def is_result(file: Path) -> bool:
        real = _real(file)
        return results in real.parents and real not in named

    images = [file for file in files if not is_result(file)]
    if not images:
        raise Hopeless(f"every image is in {out}, where the results go", hint="--out with another folder")
    return images


def places(files: Sequence[Path], arguments: Iterable[str], out: Path) -> list[Place]:
    """The place of each file's results; no two are the same.

    What was found in a folder, or by a pattern, keeps its place below. Where two folders hold files of one name, their
    own names go before it; within one folder files are told apart by their endings, or by a number.

    >>> named = [Path("a/x.png"), Path("a/x.tif"), Path("a/y.tif")]
    >>> [str(each.results) for each in places(named, [], Path("out"))]
    ['out/x.png', 'out/x.tif', 'out/y']
    >>> [each.image for each in places([Path("a/x.png"), Path("b/x.png")], [], Path("out"))]
    ['a/x.png', 'b/x.png']
    """
    folders = [_absolute(folder) for folder in _folders(arguments)]
    whole = [_absolute(file) for file in files]
    roots = [_root(file, folders) for file in whole]
    below = [file.relative_to(root) for file, root in zip(whole, roots, strict=True)]
    within = _apart(roots, below)
    stems = Counter(_key(place.with_suffix("")) for place in within)
    found: list[Place] = []
    taken: set[str] = set()
    for place in within:
        first = place if stems[_key(place.with_suffix(""))] > 1 else place.with_suffix("")
        chosen, number = first, 2
        while _key(chosen) in taken:
            chosen, number = first.with_name(f"{first.name}-{number}"), number + 1
        taken.add(_key(chosen))
        found.append(Place(out / chosen, place.as_posix().encode("utf-8", "replace").decode()))
    return found


def refuse_replacing(files: Sequence[Path], places: Sequence[Place], suffixes: Iterable[str]) -> None:
    """See that no result takes the place of an image that is asked about: it may be the only one of its kind.

    Raises:
        Hopeless: one would.
    """
    images = {_entry(Path(os.path.realpath(file))): file for file in files} | {_entry(file): file for file in files}
    ends = [*suffixes]
    for place in places:
        for end in ends:
            result = place.results.with_name(place.results.name + end)
            if image := images.get(_entry(result)):
                raise Hopeless(
                    f"a result of {place.image} would take the place of {image}, which is asked about as well",
                    hint="--out with another folder",
                )


def tails(paths: Sequence[Path]) -> list[Path]:
    """The last parts of each path, as few as tell it from the others.

    >>> [str(each) for each in tails([Path("in/a/x.png"), Path("in/b/x.png"), Path("in/b/y.png")])]
    ['a/x.png', 'b/x.png', 'y.png']
    """
    depths = [1] * len(paths)
    while True:
        found = [Path(*path.parts[-depth:]) for path, depth in zip(paths, depths, strict=True)]
        times = Counter(map(_key, found))
        longer = [
            index
            for index, path in enumerate(paths)
            if times[_key(found[index])] > 1 and depths[index] < len(path.parts)
        ]
        if not longer:
            return found
        for index in longer:
            depths[index] += 1


def _apart(roots: Sequence[Path], below: Sequence[Path]) -> list[Path]:
    """The place of each file; no two files are called the same, whatever the names of their folders."""
    before = dict(_told_apart(roots, below))
    while True:
        within = [before.get(root, Path()) / place for root, place in zip(roots, below, strict=True)]
        times = Counter(within)
        alike = {root for root, place in zip(roots, within, strict=True) if times[place] > 1}
        longer = {root: _longer(root, before.get(root, Path())) for root in alike}
        if all(before.get(root) == more for root, more in longer.items()):
            return within
        before |= longer


def _longer(root: Path, end: Path) -> Path:
    """The end of a folder's path with one part more, where there is one."""
    parts = root.relative_to(root.anchor).parts
    return Path(*parts[max(0, len(parts) - len(end.parts) - 1) :])


def _told_apart(roots: Sequence[Path], below: Sequence[Path]) -> Mapping[Path, Path]:
    """What goes before all places of a folder, of those folders whose files would meet there."""
    sharing: dict[str, set[Path]] = {}
    for root, place in zip(roots, below, strict=True):
        sharing.setdefault(_key(place.with_suffix("")), set()).add(root)
    meeting = sorted({root for several in sharing.values() if len(several) > 1 for root in several})
    return dict(zip(meeting, tails([root.relative_to(root.anchor) for root in meeting]), strict=True))


def _folders(arguments: Iterable[str]) -> list[Path]:
    """The folders that are named; of a pattern, what stands before its first part that is one."""
    found = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found.append(path)
        elif not path.exists() and glob.has_magic(argument):
            found.append(Path(*takewhile(lambda part: not glob.has_magic(part), path.parts)))
    return found


def _root(file: Path, folders: Sequence[Path]) -> Path:
    """The outermost folder that it was found in; its own if it was named itself."""
    return min((folder for folder in folders if folder in file.parents), key=_depth, default=file.parent)


def _depth(folder: Path) -> int:
    return len(folder.parts)


def _absolute(path: Path) -> Path:
    """Without `..`: a place below a folder must not lead out of it again. Links stay as they are."""
    return Path(os.path.normpath(path.absolute()))


def _real(path: Path) -> Path:
    """Where links lead; one that leads to itself, which `Path.resolve` refuses, is as good as any name."""
    return Path(os.path.realpath(path))


def _entry(path: Path) -> tuple[str, str]:
    """Which entry of which folder it is, whatever way leads there."""
    return os.path.realpath(path.parent).casefold(), path.name.casefold()


def _key(place: Path) -> str:
    """Two names that some file systems hold for the same are the same."""
    return str(place).casefold()
