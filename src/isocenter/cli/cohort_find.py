"""The scans of a cohort: every scan file, every zip and every folder of DICOM is one, by its place in the cohort."""

import glob
import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isocenter.cli.errors import Hopeless
from isocenter.imaging.codecs.dicom import is_dicom
from isocenter.imaging.codecs.metaimage import starts_as_metaimage
from isocenter.imaging.codecs.nifti import starts_as_nifti
from isocenter.imaging.codecs.nrrd import starts_as_nrrd
from isocenter.imaging.codecs.volume_files import begins_as_scan
from isocenter.imaging.codecs.volume_parts import Part

_FILES: Final = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_SLICES: Final = (".dcm", ".ima", ".dicom")
_WHOLE: Final = (*_FILES, ".hdr", ".zip")
"""Names that mean a scan each, so that a file which is cut, or empty, is listed and not passed over."""
_NAMED: Final = (*_WHOLE, *_SLICES)
_BESIDE: Final = (
    ".txt", ".md", ".json", ".xml", ".csv", ".tsv", ".html", ".pdf", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp",
    ".webp", ".bval", ".bvec", ".yaml", ".yml", ".log", ".xlsx", ".docx", ".py", ".sh",
)  # fmt: skip
"""Names of what lies beside scans, and is not looked into."""
_DIRECTORY: Final = "DICOMDIR"
"""PS3.10 8.6: a list of other files."""
_START_BYTES: Final = 4_096
_ENTRIES: Final = 20


@dataclass(frozen=True, slots=True)
class FoundScan:
    """One source of a scan, or of several series."""

    path: str
    """Within the cohort; `.` is the cohort's own folder."""
    source: Path | tuple[Path, ...]
    """A file, or the files of a folder of DICOM."""
    fingerprint: str
    """Of its files: names, sizes, times of change."""


def find_scans(arguments: Iterable[str], out: Path) -> list[FoundScan]:
    """Every scan that is meant, in the order of paths; never what lies in `out`.

    Paths are relative to the folder that is named, or to the one that all arguments have in common. What is hidden is
    passed over; links are followed, each folder once.

    Raises:
        Hopeless: an argument means nothing, or there is no scan.
    """
    named = [path for argument in arguments for path in _meant(argument)]
    results = out.resolve()
    if any(path.is_dir() and path.resolve().is_relative_to(results) for path in named):
        raise Hopeless(f"the scans are in {out}, where the results go", hint="--out with another folder")
    base = _base(named)
    found: dict[str, FoundScan] = {}
    for folder, files in _folders(named, results):
        found.update((each.path, each) for each in _scans_of(folder, files, base))
    if not found:
        said = ", ".join(map(str, named))
        raise Hopeless(f"no scan in {said}", hint="a folder of DICOM, .nii, .nii.gz, .nrrd, .mha or .zip")
    return [found[path] for path in sorted(found)]


def means_scans(arguments: Iterable[str]) -> bool:
    """Whether scans are named: a file that is one by its name or its first bytes, or a folder that holds one."""
    try:
        named = [path for argument in arguments for path in _meant(argument)]
    except Hopeless:  # said again by whoever looks for files
        return False
    return any(_is_scan(file) for _, files in _folders(named, None) for file in files)


def zip_of_scans(path: Path) -> bool:
    """Whether a file is an archive whose first entries hold a scan. Models may be archives as well."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as packed:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            return any(_begins(_start(packed, entry)) for entry in entries[:_ENTRIES])
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):  # the readers say what is wrong with it
        return False


def _meant(argument: str) -> list[Path]:
    path = Path(argument)
    if path.exists():
        return [path]
    if not glob.has_magic(argument):
        raise Hopeless(f"no such file or folder: {argument}", hint="ls " + (str(path.parent) or "."))
    matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))  # noqa: PTH207
    if not matches:
        raise Hopeless(f"no file matches {argument!r}", hint="the pattern in quotes, with ** for folders in folders")
    return matches


def _base(named: list[Path]) -> Path:
    """The folder that paths are relative to."""
    folders = [path if path.is_dir() else path.parent for path in named]
    return Path(os.path.commonpath([Path(os.path.abspath(folder)) for folder in folders]))  # noqa: PTH100 - links stay


def _folders(named: list[Path], results: Path | None) -> Iterator[tuple[Path, list[Path]]]:
    """Folders and their files that are meant, each once, in order."""
    seen: set[Path] = set()
    alone: dict[Path, dict[Path, None]] = {}
    for path in named:
        if path.is_dir():
            yield from _walk(path, results, seen)
        else:
            alone.setdefault(path.parent, {})[path] = None
    yield from ((folder, sorted(files)) for folder, files in alone.items() if folder.resolve() not in seen)


def _walk(folder: Path, results: Path | None, seen: set[Path]) -> Iterator[tuple[Path, list[Path]]]:
    real = folder.resolve()
    if real in seen or (results is not None and real.is_relative_to(results)):
        return
    seen.add(real)
    try:
        entries = sorted(each for each in folder.iterdir() if not each.name.startswith((".", "__MACOSX")))
        folders = [each for each in entries if each.is_dir()]
        # A link to nowhere that is called a scan is listed, and refused by the reader.
        files = [each for each in entries if each.is_file() or (_ends(each, _NAMED) and not each.is_dir())]
    except OSError:
        yield folder, [folder]  # listed, and refused by the reader
        return
    yield folder, files
    for each in folders:
        yield from _walk(each, results, seen)


def _scans_of(folder: Path, files: list[Path], base: Path) -> Iterator[FoundScan]:
    """Every whole scan by itself; the others of the folder together, if one of them is a slice."""
    whole = [file for file in files if _ends(file, _WHOLE) or file == folder]
    taken = set(whole)
    others = [file for file in files if file not in taken and not _ends(file, _BESIDE) and file.name != _DIRECTORY]
    if any(_ends(file, _SLICES) or _is_slice(file) for file in others):
        yield _found(folder, tuple(others), base)
    else:
        whole += [file for file in others if begins_as_scan(file)]
    for file in whole:
        yield _found(file, file, base)


def _found(place: Path, source: Path | tuple[Path, ...], base: Path) -> FoundScan:
    digest = hashlib.sha256()
    for file in source if isinstance(source, tuple) else (source,):
        try:
            facts = file.stat()
            said = f"{file.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0"
        except OSError:
            said = f"{file.name}\0unreadable\0"
        digest.update(said.encode("utf-8", "surrogateescape"))
    path = Path(os.path.abspath(place)).relative_to(base).as_posix()  # noqa: PTH100 - links stay
    return FoundScan(path, source, digest.hexdigest())


def _is_scan(file: Path) -> bool:
    if _ends(file, _BESIDE):
        return False
    return _ends(file, (*_FILES, *_SLICES)) or begins_as_scan(file) or zip_of_scans(file)


def _is_slice(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return is_dicom(stream.read(132))
    except OSError:
        return False


def _begins(start: bytes) -> bool:
    part = Part(1, "", len(start), held=start)
    return is_dicom(start) or starts_as_nrrd(start) or starts_as_metaimage(start) or starts_as_nifti(part)


def _start(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with packed.open(entry) as file:
        return file.read(_START_BYTES)


def _ends(file: Path, names: tuple[str, ...]) -> bool:
    return file.name.lower().endswith(names)
