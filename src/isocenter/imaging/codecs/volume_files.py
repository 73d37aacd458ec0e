"""The one door for scans: a file, a folder, several files or a zip become one checked volume, or a typed refusal."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeAlias

from isocenter.core.errors import (
    BadImage,
    BadInput,
    Detail,
    IsocenterError,
    MissingImage,
    MixedSeries,
    SeveralVolumes,
    TooManyPixels,
    TruncatedImage,
    UnsupportedMedia,
)
from isocenter.imaging.codecs import dicom, dicom_series, metaimage, nifti, nrrd
from isocenter.imaging.codecs.dicom import COMPRESSED, Plane, SliceHeader, slice_headers
from isocenter.imaging.codecs.volume_grid import pick_volume, volume_notes
from isocenter.imaging.codecs.volume_parts import Part, Source, parts_of
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.image import Note
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

Format: TypeAlias = Literal["dicom", "nifti", "nrrd", "metaimage"]
_BESIDE: Final = {
    ".txt", ".md", ".json", ".xml", ".csv", ".tsv", ".html", ".pdf", ".jpg", ".jpeg", ".png", ".bval", ".bvec", ".yaml",
    ".yml", ".log", ".ini", ".db", ".sha256", ".md5",
}  # fmt: skip
_BESIDE_NAMES: Final = {"license", "readme", "notice", "version", "lockfile", "thumbs.db", "desktop.ini"}
_START_BYTES: Final = 540
_PREAMBLE_BYTES: Final = 132
_LISTED: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """Which of several is meant. Nothing is picked by itself where there are several.

    `series` counts from 1 in the order of `describe`; `volume` from 0 within the series or file.
    """

    series: int | None = None
    volume: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why something would be refused: the words of the typed error."""

    code: str
    message: str
    details: dict[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFacts:
    """One volume of a series: its grid if it has one, what was or would be recorded, and why it would be refused."""

    volume: int
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    axcodes: str = ""
    slices: int = 0
    notes: tuple[Note, ...] = ()
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFacts:
    """What a series, or a file that is one, holds. Nothing in it says who the patient is.

    `refusal` is what would stop any volume of it; `volumes` have their own.
    """

    series: int
    format: Format
    files: int
    modality: str = ""
    body_part: str = ""
    manufacturer: str = ""
    series_number: int | None = None
    encodings: tuple[str, ...] = ()
    thickness_mm: float | None = None
    volumes: tuple[VolumeFacts, ...] = ()
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Parts by what they are."""

    whole: tuple[tuple[Format, Part], ...]
    """Files that are a scan each."""
    planes: tuple[Plane, ...]
    broken: tuple[BadInput, ...]
    beside: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A volume, what is known of its series, and what a DICOM object that refers to it needs of its files."""

    volume: Volume
    facts: SeriesFacts
    slices: tuple[SliceHeader, ...] = ()
    """Of DICOM only: one a slice, in the order of the volume. They hold identifiers, and no pixels."""
    patient_key: str = field(default="", repr=False)
    """A digest, to be compared and never shown; empty where the format, or the series, does not say."""
    place_key: str = field(default="", repr=False)
    """Of the frame of reference: positions in two of them cannot be compared (PS3.3 C.7.4.1)."""


def read_volume(source: Source, *, limits: VolumeLimits, pick: Pick | None = None) -> Volume:
    """Read one scan: voxels [1, i, j, k] in the index order of nibabel, ITK and MONAI, their place in LPS.

    DICOM becomes float32, indices are column, row, slice. Others keep their type where the header does not scale.

    Raises:
        BadVolume: one of its kinds: slices missing, doubled or mixed, a tilted gantry, no place, several volumes.
        BadInput: others of its kinds; no other exception leaves here, whatever the bytes are.
        MissingExtra: a DICOM file, and pydicom or what unpacks its pixels is not installed.
    """
    return read_series(source, limits=limits, pick=pick)[0]


def read_series(source: Source, *, limits: VolumeLimits, pick: Pick | None = None) -> tuple[Volume, SeriesFacts]:
    """As `read_volume`, with what is known of the series.

    Raises:
        BadInput, MissingExtra: as `read_volume`.
    """
    try:
        return _read_series(source, limits, pick or Pick())
    except IsocenterError:
        raise
    except Exception as exc:
        raise _unforeseen(exc) from exc


def read_scan(source: Source, *, limits: VolumeLimits, pick: Pick | None = None) -> Scan:
    """As `read_series`, with what a segmentation in DICOM needs of the files.

    Raises:
        BadInput, MissingExtra: as `read_volume`.
    """
    try:
        volume, facts, stack = _read_stack(source, limits, pick or Pick())
        if stack is None:
            return Scan(volume=volume, facts=facts)
        file = stack.planes[0].file  # one patient and one frame of reference: a series of others is refused
        slices = slice_headers(stack.planes, limits=limits)
        return Scan(volume=volume, facts=facts, slices=slices, patient_key=file.patient_key, place_key=file.place_key)
    except IsocenterError:
        raise
    except Exception as exc:
        raise _unforeseen(exc) from exc


def _read_series(source: Source, limits: VolumeLimits, asked: Pick) -> tuple[Volume, SeriesFacts]:
    return _read_stack(source, limits, asked)[:2]


def _read_stack(
    source: Source, limits: VolumeLimits, asked: Pick
) -> tuple[Volume, SeriesFacts, dicom_series.Stack | None]:
    found = _found(parts_of(source, limits=limits), limits)
    if found.broken:
        raise found.broken[0]
    series = dicom_series.by_series(found.planes)
    count = len(series) + len(found.whole)
    number = _picked_series(count, asked.series, found, series)
    aside = _aside_note(found.beside)
    if number > len(series):
        kind, part = found.whole[number - len(series) - 1]
        volume = _READERS[kind].read(part, limits=limits, volume=asked.volume)
        return replace(volume, notes=(*volume.notes, *aside)), _file_facts(number, kind, part, limits), None
    planes = series[number - 1]
    volumes = dicom_series.volumes_of(planes)
    picked = pick_volume(len(volumes), asked.volume)
    stack = dicom_series.stack_of(volumes[picked])
    volume, _ = dicom_series.voxels_of(stack, limits=limits)
    notes = (*volume.notes, *volume_notes(len(volumes), picked), *aside)
    return replace(volume, notes=notes), _series_facts(number, planes), stack


def describe(source: Source, *, limits: VolumeLimits) -> list[SeriesFacts]:
    """What is in a source and what would be refused, and why; pixels are not decoded.

    Raises:
        BadInput: there is nothing, or it may not be opened at all: limits, unsafe paths, a broken archive.
        MissingExtra: a DICOM file, and pydicom is not installed.
    """
    try:
        return _describe(source, limits)
    except IsocenterError:
        raise
    except Exception as exc:
        raise _unforeseen(exc) from exc


def _describe(source: Source, limits: VolumeLimits) -> list[SeriesFacts]:
    found = _found(parts_of(source, limits=limits), limits)
    facts = [_series_facts(number, planes) for number, planes in enumerate(dicom_series.by_series(found.planes), 1)]
    facts += [
        _file_facts(number, kind, part, limits) for number, (kind, part) in enumerate(found.whole, len(facts) + 1)
    ]
    return facts + [
        SeriesFacts(series=number, format="dicom", files=1, refusal=_refusal(error))
        for number, error in enumerate(found.broken, len(facts) + 1)
    ]


def begins_as_scan(path: Path) -> bool:
    """Whether a file begins as one of the formats that are read; archives are not looked into."""
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
        part = Part(1, path.name, path.stat().st_size, path=path)
        return (
            dicom.is_dicom(start)
            or nrrd.starts_as_nrrd(start)
            or metaimage.starts_as_metaimage(start)
            or (nifti.starts_as_nifti(part))
        )
    except (OSError, BadInput):
        return False


_READERS: Final = {"nifti": nifti, "nrrd": nrrd, "metaimage": metaimage}


def _found(parts: Sequence[Part], limits: VolumeLimits) -> _Found:
    whole: list[tuple[Format, Part]] = []
    planes: list[Plane] = []
    broken: list[BadInput] = []
    beside = 0
    for part in parts:
        start = part.read(_START_BYTES)
        if dicom.is_dicom(start):
            try:
                of_part = dicom.read_planes(part, limits=limits)
            except BadInput as error:
                broken.append(error)
                continue
            planes += of_part
            beside += not of_part
        elif nifti.starts_as_nifti(part):
            whole.append(("nifti", part))
        elif nrrd.starts_as_nrrd(start):
            whole.append(("nrrd", part))
        elif metaimage.starts_as_metaimage(start):
            whole.append(("metaimage", part))
        elif _beside(part.name) and len(parts) > 1:
            beside += 1
        else:
            broken.append(_unknown(part, start, alone=len(parts) == 1))
    if not (whole or planes or broken):
        raise MissingImage(f"{beside} files, none of them a scan", details={"files": beside})
    return _Found(whole=tuple(whole), planes=tuple(planes), broken=tuple(broken), beside=beside)


def _unforeseen(exc: Exception) -> BadInput:
    """What a parser stumbles over is broken input, whatever it was."""
    if isinstance(exc, MemoryError):
        return TooManyPixels("the scan does not fit into memory")
    return BadImage(f"the scan is broken ({type(exc).__name__})")


def _beside(name: str) -> bool:
    """Whether a file that is no scan may lie beside one, by its name."""
    path = PurePosixPath(name.replace("\\", "/"))
    hidden = any(step.startswith(".") or step == "__MACOSX" for step in path.parts)
    return hidden or path.suffix.lower() in _BESIDE or path.name.lower() in _BESIDE_NAMES


def _unknown(part: Part, start: bytes, alone: bool) -> BadInput:
    if not part.size and alone:
        return MissingImage("the file has 0 bytes", details={"bytes": 0})
    if part.size < _PREAMBLE_BYTES and not alone:
        return TruncatedImage(
            f"file {part.number} has {part.size} bytes, too few for any slice",
            details={"file": part.number, "bytes": part.size},
        )
    kind = "a compressed file that is no NIfTI" if start[:2] == b"\x1f\x8b" else "unknown data"
    return UnsupportedMedia(
        f"file {part.number} is {kind}; scans are read from DICOM, NIfTI, NRRD and MetaImage",
        details={"file": part.number, "read": ["dicom", "nifti", "nrrd", "metaimage"]},
    )


def _picked_series(count: int, asked: int | None, found: _Found, series: Sequence[Sequence[Plane]]) -> int:
    sizes = [len(planes) for planes in series]
    if asked is None and count != 1:
        kind = MixedSeries if len(series) > 1 else SeveralVolumes
        said = ", ".join(f"{size} slices" for size in sizes) or "one file each"
        raise kind(
            f"{count} series ({said}): which one is meant must be said, as series 1 to {count}",
            details={"series": count, "slices": sizes},
        )
    if asked is not None and not 1 <= asked <= count:
        raise SeveralVolumes(f"series {asked} of {count}: they count from 1", details={"series": count, "asked": asked})
    return asked or 1


def _aside_note(count: int) -> tuple[Note, ...]:
    if not count:
        return ()
    return (Note("files_left_aside", f"{count} files beside the scan hold no voxels and were left aside"),)


def _refusal(error: BadInput) -> Refusal:
    return Refusal(code=error.code, message=error.message, details=error.details)


def _series_facts(number: int, planes: Sequence[Plane]) -> SeriesFacts:
    first = planes[0].file
    syntaxes = dict.fromkeys(COMPRESSED.get(plane.file.syntax, "not compressed") for plane in planes)
    facts = SeriesFacts(
        series=number,
        format="dicom",
        files=len({plane.file.part.number for plane in planes}),
        modality=first.modality,
        body_part=first.body_part,
        manufacturer=first.manufacturer,
        series_number=first.series_number,
        encodings=tuple(syntaxes),
        thickness_mm=first.thickness_mm,
    )
    try:
        volumes = dicom_series.volumes_of(planes)
    except BadInput as error:
        return replace(facts, refusal=_refusal(error))
    return replace(facts, volumes=tuple(_stack_facts(at, volume) for at, volume in enumerate(volumes)))


def _stack_facts(at: int, planes: Sequence[Plane]) -> VolumeFacts:
    try:
        stack = dicom_series.stack_of(planes)
    except BadInput as error:
        return VolumeFacts(volume=at, slices=len(planes), refusal=_refusal(error))
    return _grid_facts(at, stack.geometry, stack.notes)


def _grid_facts(at: int, geometry: Geometry, notes: tuple[Note, ...]) -> VolumeFacts:
    return VolumeFacts(
        volume=at,
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        axcodes=geometry.axcodes,
        slices=geometry.shape[-1],
        notes=notes,
    )


def _file_facts(number: int, kind: Format, part: Part, limits: VolumeLimits) -> SeriesFacts:
    facts = SeriesFacts(series=number, format=kind, files=1)
    try:
        header = _READERS[kind].peek(part, limits=limits)
        grids = tuple(_grid_facts(at, header.geometry, header.notes) for at in range(min(header.volumes, _LISTED)))
    except BadInput as error:
        return replace(facts, refusal=_refusal(error))
    return replace(facts, volumes=grids)
