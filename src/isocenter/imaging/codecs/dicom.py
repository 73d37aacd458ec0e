"""One DICOM file: what its header says of its planes, without its pixels and without who the patient is.

pydicom parses; every value that is used is checked here. A plane is a slice of a classic file, or a frame of a
multi-frame one (`dicom_frames`).
"""

import logging
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from types import ModuleType
from typing import Any, Final

from isocenter.core.errors import (
    BadImage,
    IsocenterError,
    MissingExtra,
    TruncatedImage,
    UnsupportedMedia,
)
from isocenter.imaging.codecs.dicom_values import digest, image_type, maybe_whole, number, stated, text, whole
from isocenter.imaging.codecs.volume_parts import Part
from isocenter.imaging.limits import VolumeLimits

DEFLATED: Final = "1.2.840.10008.1.2.1.99"
IMPLICIT: Final = "1.2.840.10008.1.2"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
NATIVE: Final = {IMPLICIT, "1.2.840.10008.1.2.1", DEFLATED, BIG_ENDIAN}
COMPRESSED: Final = {
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless, first order",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K lossless",
    "1.2.840.10008.1.2.4.202": "HTJ2K lossless, RPCL",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
}
_NO_SCANS: Final = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "segmentation of surfaces",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation by label map",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "radiotherapy dose",
}
"""Their pixels are labels, or are scaled otherwise (PS3.3 A.51, A.75, A.18)."""
PIXEL_DATA: Final = 0x7FE00010
_OTHER_PIXELS: Final = {0x7FE00008, 0x7FE00009}
_LONG_FORMS: Final = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN"}
_UNDEFINED: Final = 0xFFFFFFFF
_KEYWORDS: Final = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID",
    "PatientName", "Modality", "BodyPartExamined", "Manufacturer", "SeriesNumber", "InstanceNumber", "ImageType",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
    "SliceThickness", "SpacingBetweenSlices", "GantryDetectorTilt", "ImagesInAcquisition", "NumberOfSlices",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "LossyImageCompression", "EchoNumbers", "EchoTime",
    "AcquisitionNumber", "TriggerTime", "TemporalPositionIdentifier", "DiffusionBValue", "DiffusionGradientOrientation",
    "StackID", "ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """The header of one file. Identifiers are kept as digests, to be compared and never shown."""

    part: Part
    syntax: str
    starts_at: int
    """Where the data set begins, behind the file meta information."""
    pixels_at: int
    pixels_bytes: int | None
    """None: of undefined length, as compressed pixels are."""
    sop_class: str
    series_key: str
    has_series_uid: bool
    """Without it, files of one study and series number are one series."""
    patient_key: str
    place_key: str
    """The frame of reference."""
    modality: str
    body_part: str
    manufacturer: str
    series_number: int | None
    image_type: tuple[str, ...]
    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    lossy: bool
    thickness_mm: float | None
    step_mm: float | None
    """SpacingBetweenSlices."""
    tilt_deg: float | None
    announced: int | None
    """ImagesInAcquisition, or NumberOfSlices as PET has it."""
    concatenation: str
    """Of which object it is a part, if that was cut into several files."""
    concatenated: int
    """So many files that object has, at least."""

    @property
    def frame_bytes(self) -> int:
        """One plane as it lies in the file when not compressed."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One slice: where it lies, how its values are scaled, and what tells its volume from others at the same place.

    Directions are unit vectors in LPS: `along_row` is that of growing columns. `spacing_mm` is between rows, then
    between columns, as PixelSpacing says (PS3.3 10.7.1.3). `kinds` are (name, value) of what may differ between the
    volumes of one series.
    """

    file: ImageFile
    index: int
    number: int
    position_mm: tuple[float, float, float]
    along_row: tuple[float, float, float]
    along_column: tuple[float, float, float]
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float
    scaled: tuple[bool, bool]
    """Whether the header says a slope, and an intercept; else they are 1 and 0."""
    stack: str
    image_type: tuple[str, ...]
    kinds: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """A slice of a volume: its file up to the pixels, inflated, and which frame of it, from 0. It names the patient."""

    head: bytes = field(repr=False)
    starts_at: int
    syntax: str
    frame: int
    position_lps_mm: tuple[float, float, float]


def pydicom() -> ModuleType:
    """pydicom, without its warnings: they quote what a file holds.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import pydicom as found
    except ImportError as exc:
        raise MissingExtra("reading DICOM needs pydicom: pip install 'isocenter[dicom]'") from exc
    hush("pydicom")
    found.config.settings.reading_validation_mode = found.config.IGNORE
    return found


def hush(library: str) -> None:
    """Keep a library's warnings and log back, for the whole process: they quote what files hold."""
    modules = rf"{library}(\.|$)"
    if not any(getattr(each[3], "pattern", "") == modules for each in warnings.filters):
        warnings.filterwarnings("ignore", module=modules)
    logging.getLogger(library).setLevel(logging.CRITICAL)


def is_dicom(start: bytes) -> bool:
    """Whether the first bytes (132 or more) are of a DICOM file (PS3.10, 7.1)."""
    return start[128:132] == b"DICM"


def read_planes(part: Part, *, limits: VolumeLimits) -> list[Plane]:
    """The planes of one file; none if it is an object without pixels, as a report or a directory.

    Raises:
        TruncatedImage: it ends before its pixels do.
        MissingGeometry, BadGeometry: a plane has no place, or an impossible one.
        UnsupportedMedia, BadImage, TooManyPixels: as the names say.
        MissingExtra: pydicom is not installed.
    """
    from isocenter.imaging.codecs import dicom_frames

    try:
        dataset, file = _header(part, limits)
        if file is None:
            return []
        return dicom_frames.planes_of(dataset, file)
    except IsocenterError:
        raise
    except MemoryError as exc:
        raise BadImage(f"file {part.number} announces more than fits into memory") from exc
    except Exception as exc:
        raise BadImage(
            f"file {part.number} is broken DICOM ({type(exc).__name__})", details={"file": part.number}
        ) from exc


def slice_headers(planes: Iterable[Plane], *, limits: VolumeLimits) -> tuple[SliceHeader, ...]:
    """What the files of planes hold before their pixels, in the order of the planes; one copy a file."""
    heads: dict[int, bytes] = {}
    found = []
    for plane in planes:
        file = plane.file
        if file.part.number not in heads:
            packed = file.syntax == DEFLATED
            heads[file.part.number] = (
                data_of(file, limits)[: file.pixels_at] if packed else file.part.read(file.pixels_at)
            )
        found.append(SliceHeader(heads[file.part.number], file.starts_at, file.syntax, plane.index, plane.position_mm))
    return tuple(found)


def dataset_of(header: SliceHeader, *, tags: Sequence[int] | None = None) -> Any:
    """The data set of a slice's file up to its pixels, or what it holds of some tags."""
    file = BytesIO(header.head)
    file.seek(header.starts_at)
    implicit, little = header.syntax == IMPLICIT, header.syntax != BIG_ENDIAN
    return pydicom().filereader.read_dataset(
        file, implicit, little, stop_when=lambda tag, _vr, _length: tag >= _first_pixels(), specific_tags=tags
    )


def data_of(file: ImageFile, limits: VolumeLimits) -> bytes:
    """The file's bytes, inflated where its syntax deflates them."""
    data = file.part.read()
    return _inflated(data, file.starts_at, file.part, limits) if file.syntax == DEFLATED else data


def _header(part: Part, limits: VolumeLimits) -> tuple[Any, ImageFile | None]:
    library = pydicom()
    data = part.read()
    if len(data) < 132 or not is_dicom(data):
        raise TruncatedImage(f"file {part.number} ends within its preamble", details={"file": part.number})
    file = BytesIO(data)
    file.seek(132)
    meta = library.filereader.read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    syntax = str(meta.get("TransferSyntaxUID", "")).strip()
    if not syntax and file.tell() >= len(data):
        raise TruncatedImage(f"file {part.number} ends within its meta information", details={"file": part.number})
    if not syntax:
        raise BadImage(f"file {part.number} does not say how it is encoded", details={"file": part.number})
    if syntax not in NATIVE and syntax not in COMPRESSED:
        raise UnsupportedMedia(
            f"file {part.number} is encoded as {syntax[:64]}: video and other syntaxes are not read",
            details={"transfer_syntax": syntax[:64]},
        )
    start = file.tell()
    if syntax == DEFLATED:
        data = _inflated(data, start, part, limits)
        file = BytesIO(data)
        file.seek(start)
    implicit, little = syntax == IMPLICIT, syntax != BIG_ENDIAN
    dataset = library.filereader.read_dataset(
        file,
        implicit,
        little,
        stop_when=lambda tag, _vr, _length: tag >= _first_pixels(),
        specific_tags=[library.tag.Tag(keyword) for keyword in _KEYWORDS],
    )
    tag, length, at = _element(data, file.tell(), implicit, little)
    sop_class = str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
    if tag not in (PIXEL_DATA, *_OTHER_PIXELS):
        name = library.uid.UID(sop_class).name
        if "Rows" not in dataset and name != sop_class and "Image Storage" not in name:
            return dataset, None
        raise TruncatedImage(f"file {part.number} holds no pixels", details={"file": part.number})
    if tag != PIXEL_DATA:
        raise UnsupportedMedia(f"file {part.number} holds pixels of floating point; integers are read")
    return dataset, _image_file(
        dataset, part, limits, syntax=syntax, sop_class=sop_class, start=start, at=at, length=length, size=len(data)
    )


def _first_pixels() -> int:
    return min(_OTHER_PIXELS)


def _inflated(data: bytes, start: int, part: Part, limits: VolumeLimits) -> bytes:
    """The bytes with what follows a place unpacked, within limits (PS3.5 A.5)."""
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    allowed = min(limits.max_unpacked_bytes, max(limits.expansion_from_bytes, limits.max_expansion * part.size))
    held = inflating.decompress(data[start:], allowed + 1)
    limits.check_unpacked(len(held), part.size)
    if not inflating.eof:
        raise TruncatedImage(f"file {part.number} ends before its deflated data does", details={"file": part.number})
    return data[:start] + held


def _element(data: bytes, at: int, implicit: bool, little: bool) -> tuple[int, int, int]:
    """Tag, length and place of the value of the element at a byte; tag 0 where the data ends (PS3.5 7.1)."""
    order = "little" if little else "big"
    if len(data) < at + 12:
        return 0, 0, at
    group, element = (int.from_bytes(data[at + step : at + step + 2], order) for step in (0, 2))  # type: ignore[arg-type]
    if implicit:
        return group << 16 | element, int.from_bytes(data[at + 4 : at + 8], "little"), at + 8
    if data[at + 4 : at + 6] in _LONG_FORMS:
        return group << 16 | element, int.from_bytes(data[at + 8 : at + 12], order), at + 12  # type: ignore[arg-type]
    return group << 16 | element, int.from_bytes(data[at + 6 : at + 8], order), at + 8  # type: ignore[arg-type]


def _image_file(
    dataset: Any,
    part: Part,
    limits: VolumeLimits,
    *,
    syntax: str,
    sop_class: str,
    start: int,
    at: int,
    length: int,
    size: int,
) -> ImageFile:
    if sop_class in _NO_SCANS:
        raise UnsupportedMedia(
            f"file {part.number} is a {_NO_SCANS[sop_class]}, and no scan",
            details={"file": part.number, "kind": _NO_SCANS[sop_class]},
        )
    rows, columns = whole(dataset, "Rows", part), whole(dataset, "Columns", part)
    frames = int(number(dataset, "NumberOfFrames") or 1)
    limits.check_grid((columns, rows, frames))
    samples = whole(dataset, "SamplesPerPixel", part, 1)
    photometric = text(dataset, "PhotometricInterpretation")
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnsupportedMedia(
            f"file {part.number} holds {samples} samples per pixel, {photometric or 'of no stated kind'}; "
            "volumes are read from MONOCHROME1 and MONOCHROME2",
            details={"file": part.number, "samples": samples, "photometric": photometric},
        )
    allocated, stored = whole(dataset, "BitsAllocated", part), whole(dataset, "BitsStored", part)
    high = whole(dataset, "HighBit", part, stored - 1)
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or not stored - 1 <= high < allocated:
        raise BadImage(
            f"file {part.number} stores {stored} of {allocated} bits up to bit {high}",
            details={"file": part.number, "bits_stored": stored, "bits_allocated": allocated, "high_bit": high},
        )
    signed = whole(dataset, "PixelRepresentation", part)
    if signed not in (0, 1):
        raise BadImage(f"file {part.number} has a PixelRepresentation of {signed}", details={"file": part.number})
    if dataset.get("ModalityLUTSequence"):
        raise UnsupportedMedia(
            f"file {part.number} maps its values by a table (Modality LUT); slope and intercept are read"
        )
    has_series_uid = text(dataset, "SeriesInstanceUID") != ""
    file = ImageFile(
        part=part,
        syntax=syntax,
        starts_at=start,
        pixels_at=at,
        pixels_bytes=None if length == _UNDEFINED else length,
        sop_class=sop_class,
        series_key=digest(dataset, "StudyInstanceUID", "SeriesInstanceUID" if has_series_uid else "SeriesNumber"),
        has_series_uid=has_series_uid,
        patient_key=digest(dataset, "PatientID") or digest(dataset, "PatientName"),
        place_key=digest(dataset, "FrameOfReferenceUID"),
        modality=text(dataset, "Modality").upper(),
        body_part=text(dataset, "BodyPartExamined").upper(),
        manufacturer=text(dataset, "Manufacturer"),
        series_number=maybe_whole(dataset, "SeriesNumber"),
        image_type=image_type(dataset.get("ImageType")),
        rows=rows,
        columns=columns,
        frames=frames,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high,
        signed=signed == 1,
        photometric=photometric,
        lossy=text(dataset, "LossyImageCompression") == "01" or syntax.endswith((".50", ".51", ".81", ".91", ".203")),
        thickness_mm=number(dataset, "SliceThickness"),
        step_mm=stated(dataset, "SpacingBetweenSlices", part),
        tilt_deg=stated(dataset, "GantryDetectorTilt", part),
        announced=maybe_whole(dataset, "ImagesInAcquisition") or maybe_whole(dataset, "NumberOfSlices"),
        concatenation=digest(dataset, "ConcatenationUID"),
        concatenated=max(maybe_whole(dataset, f"InConcatenation{each}") or 0 for each in ("Number", "TotalNumber")),
    )
    _check_length(file, size)
    return file


def _check_length(file: ImageFile, size: int) -> None:
    found = {"file": file.part.number, "bytes": size}
    if file.syntax not in NATIVE:
        if file.pixels_bytes is not None:
            raise BadImage(f"file {file.part.number} is compressed, its pixels are not in frames", details=found)
        return
    announced = file.frames * file.frame_bytes
    length = file.pixels_bytes
    if length is None:
        raise BadImage(f"file {file.part.number} is not compressed, its pixels are of undefined length", details=found)
    if min(length, size - file.pixels_at) < announced:
        raise TruncatedImage(
            f"file {file.part.number} holds {min(length, size - file.pixels_at)} bytes of pixels, "
            f"its header announces {announced}",
            details={**found, "pixel_bytes": min(length, size - file.pixels_at), "announced_bytes": announced},
        )
    if length > announced + 1:
        raise BadImage(
            f"file {file.part.number} holds {length} bytes of pixels, its header announces {announced}",
            details={**found, "pixel_bytes": length, "announced_bytes": announced},
        )
