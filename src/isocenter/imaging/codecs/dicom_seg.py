"""DICOM Segmentation (PS3.3 A.51), written by highdicom: a mask beside the series it was found in.

The slices are handed over one by one, whether their files hold one frame or many; what the references say is put
right afterwards. So classic and enhanced series take one way, and positions are those that the files state.
"""

import io
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np

from isocenter import __version__
from isocenter.core.errors import MissingExtra, NotDicom
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import dicom
from isocenter.imaging.codecs.volume_files import Scan

MEDIA_TYPE: Final = "application/dicom"
_NEEDED: Final = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
_MAY_BE_EMPTY: Final = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_KEPT: Final = {*_NEEDED, "PatientID", "PatientName", "IssuerOfPatientID", "AccessionNumber", "StudyID"}
_NOT_COPIED: Final = (
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames", "RequestingService",
)  # fmt: skip
_MR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.4"
_STAND_IN: Final = "2.25."
_SERIES_AFTER: Final = 1000
_LAST_NUMBER: Final = 2**31 - 1
_LONGEST_LO: Final = 64
_LONGEST_DS: Final = 16
# PS3.16: CID 7150 and 7159; CID 7162.
_TISSUE: Final = ("85756007", "SCT", "Tissue")
_ABNORMAL: Final = ("49755003", "SCT", "Morphologically Abnormal Structure")
_LESION: Final = ("52988006", "SCT", "Lesion")
_AI: Final = ("123109", "DCM", "Artificial Intelligence")


@dataclass(frozen=True, slots=True)
class _Reference:
    """What stands for a slice in the file that is written."""

    sop_class: str
    sop_instance: str
    frame: int | None
    """From 1, of a file of several frames."""


def refuse_unreferable(scan: Scan) -> None:
    """See that a segmentation can refer to a scan.

    Raises:
        NotDicom: it is no DICOM series, or does not say what a reference names.
        MissingExtra: highdicom is not installed.
    """
    _highdicom()
    _headers(scan)


def seg_of(
    mask: Array,
    labels: Sequence[str | int],
    scan: Scan,
    *,
    model: str,
    version: int,
    sha256: str,
    findings: Sequence[str | int] = (),
) -> bytes:
    """A Segmentation (BINARY), a segment a label; slices without any voxel are left out, unless all are without.

    Args:
        mask: [i, j, k] of label numbers, 0 is the background; or [K, i, j, k] of 0 and 1, a layer a label.
        labels: of the model, in its order.
        scan: what the mask was found in; the mask is on its grid.
        model: its name, which becomes that of the algorithm.
        version: of the model.
        sha256: of the model's file.
        findings: labels that are coded as lesions; others are coded as tissue. Their names stand beside the codes.

    Raises:
        NotDicom: the scan is no DICOM series, or does not say what a reference names.
        MissingExtra: highdicom is not installed.
        ValueError: the mask is not on the scan's grid.
    """
    if mask.shape[-3:] != scan.volume.geometry.shape:
        raise ValueError(f"a mask of {mask.shape} on a grid of {scan.volume.geometry.shape}")
    library = _highdicom()
    headers = _headers(scan)
    try:
        found = _segmentation(library, mask, labels, scan, headers, model, version, sha256, findings)
        _refer(found, [_reference(header, each.frame) for header, each in zip(headers, scan.slices, strict=True)])
        found.setdefault("ContentCreatorName", "")  # nobody drew it (type 2, PS3.3 10.9)
        file = io.BytesIO()
        found.save_as(file)
    except Exception as exc:  # whatever a library stumbles over in what the series says
        raise NotDicom(f"no DICOM SEG can refer to what the series says ({type(exc).__name__})") from exc
    return file.getvalue()


def _segmentation(
    library: ModuleType,
    mask: Array,
    labels: Sequence[str | int],
    scan: Scan,
    headers: Sequence[Any],
    model: str,
    version: int,
    sha256: str,
    findings: Sequence[str | int],
) -> Any:
    exclusive = mask.ndim == len(scan.volume.geometry.shape)
    named = labels[1:] if exclusive else labels
    pixels = mask.transpose(2, 1, 0) if exclusive else mask.transpose(3, 2, 1, 0)
    segments = [
        _segment(library, number, label, label in findings, model, version, sha256)
        for number, label in enumerate(named, 1)
    ]
    return library.seg.Segmentation(
        source_images=[_stand_in(header, scan, at) for at, header in enumerate(headers)],
        pixel_array=np.ascontiguousarray(pixels),
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=library.UID(),
        series_number=min(_LAST_NUMBER, _SERIES_AFTER + max(0, scan.facts.series_number or 0)),
        sop_instance_uid=library.UID(),
        instance_number=1,
        manufacturer="Isocenter",
        manufacturer_model_name=model[:_LONGEST_LO],
        software_versions=__version__,
        device_serial_number=sha256[:_LONGEST_LO],
        content_label="SEGMENTATION",
        content_description=f"{model} {version}"[:_LONGEST_LO],
        series_description=f"{model} {version}"[:_LONGEST_LO],
        specific_character_set="ISO_IR 192",
    )


def _highdicom() -> ModuleType:
    dicom.pydicom()
    try:
        import highdicom
    except ImportError as exc:
        raise MissingExtra("writing DICOM SEG needs highdicom: pip install 'isocenter[dicom]'") from exc
    dicom.hush("highdicom")
    return highdicom


def _headers(scan: Scan) -> list[Any]:
    """The header of each slice's file: all of the first one, of the others what a reference names."""
    if not scan.slices:
        raise NotDicom(
            f"a DICOM SEG refers to the DICOM series that it was found in; this scan is {scan.facts.format}",
            details={"format": scan.facts.format},
        )
    library = dicom.pydicom()
    wanted = [library.tag.Tag(keyword) for keyword in (*_NEEDED, "PerFrameFunctionalGroupsSequence")]
    read: dict[int, Any] = {}
    found = []
    for at, each in enumerate(scan.slices):
        if (header := read.get(id(each.head))) is None:
            header = read[id(each.head)] = dicom.dataset_of(each, tags=wanted if at else None)
            if missing := [keyword for keyword in _NEEDED if not _said(header, keyword)]:
                raise NotDicom(
                    f"a DICOM SEG refers to what the series does not say: {', '.join(missing)}",
                    details={"missing": missing},
                )
        found.append(header)
    if len({str(header.SOPInstanceUID) for header in read.values()}) < len(read):
        raise NotDicom("files of the series share a SOPInstanceUID: a reference would mean several of them")
    return found


def _said(header: Any, keyword: str) -> bool:
    """Whether a header says something there that can be read: pydicom reads a value when it is first asked for."""
    try:
        return bool(header.get(keyword))
    except Exception:
        return False


def _reference(header: Any, index: int) -> _Reference:
    several = "PerFrameFunctionalGroupsSequence" in header
    return _Reference(str(header.SOPClassUID), str(header.SOPInstanceUID), index + 1 if several else None)


def _stand_in(header: Any, scan: Scan, at: int) -> Any:
    """A slice as a file of its own; the first one says who the patient is, and of which study it is a part."""
    each = type(header)()
    if at == 0:
        for element in _readable(header):
            if not element.tag.is_private and element.keyword not in _NOT_COPIED and _allowed(element):
                each.add(element)
        for keyword in _MAY_BE_EMPTY:
            each.setdefault(keyword, "")
    for keyword in _NEEDED[2:]:
        setattr(each, keyword, header[keyword].value)
    geometry = scan.volume.geometry
    columns, rows, _ = geometry.shape
    along_row, along_column, apart = geometry.spacing_mm
    directions = geometry.lps_from_voxel[:3, :2] / (along_row, along_column)
    each.SOPClassUID, each.SOPInstanceUID = _MR_IMAGE, f"{_STAND_IN}{at + 1}"
    each.Rows, each.Columns = rows, columns
    each.ImagePositionPatient = [_plain(mm) for mm in scan.slices[at].position_lps_mm]
    each.ImageOrientationPatient = [_plain(part) for part in directions.T.ravel()]
    each.PixelSpacing = [_plain(along_column), _plain(along_row)]
    each.SliceThickness = _plain(scan.facts.thickness_mm or apart)
    each.SpacingBetweenSlices = _plain(apart)
    return each


def _readable(header: Any) -> Iterator[Any]:
    """Copies of the elements whose values are what they are said to be; the header stays what it is."""
    for tag in header.keys():  # noqa: SIM118 - a data set is iterated by its values, which are read on the way
        try:
            found = copy(header[tag])
        except Exception:
            continue
        yield found


def _allowed(element: Any) -> bool:
    """Whether a value is one that DICOM allows (PS3.5 6.2); of a sequence, items with others are taken out.

    Names and numbers of the patient and the study are kept as they are: they are what systems look for.
    """
    from pydicom import config, valuerep

    if element.keyword in _KEPT:
        return True
    if element.VR == "SQ":
        element.value = [item for item in element.value if _all_allowed(item)]
        return True
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            valuerep.validate_value(element.VR, value, config.RAISE)
    except ValueError:
        return False
    return True


def _all_allowed(item: Any) -> bool:
    try:
        return all(map(_allowed, item))
    except Exception:
        return False


def _plain(value: float) -> float:
    """The nearest number that fits into the 16 characters of a decimal string (PS3.5 6.2)."""
    digits = 15
    while len(repr(found := float(f"{value:.{digits}g}") + 0.0)) > _LONGEST_DS:
        digits -= 1
    return found


def _segment(
    library: ModuleType, number: int, label: str | int, finding: bool, model: str, version: int, sha256: str
) -> Any:
    coded = library.sr.CodedConcept
    return library.seg.SegmentDescription(
        segment_number=number,
        segment_label=str(label)[:_LONGEST_LO],
        segmented_property_category=coded(*(_ABNORMAL if finding else _TISSUE)),
        segmented_property_type=coded(*(_LESION if finding else _TISSUE)),
        algorithm_type="AUTOMATIC",
        algorithm_identification=library.AlgorithmIdentificationSequence(
            name=model[:_LONGEST_LO],
            version=str(version),
            family=coded(*_AI),
            parameters={"sha256": sha256},
        ),
    )


def _refer(found: Any, references: Sequence[_Reference]) -> None:
    """Put the files of the series in the place of what stood for their slices."""
    of = {f"{_STAND_IN}{number}": reference for number, reference in enumerate(references, 1)}
    for frame in found.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence", ()):
            for item in derivation.SourceImageSequence:
                # Segments of one slice share their items: it may have been named already.
                if reference := of.get(item.ReferencedSOPInstanceUID):
                    _name(item, reference)
                    if reference.frame is not None:
                        item.ReferencedFrameNumber = reference.frame
    files = dict.fromkeys((reference.sop_class, reference.sop_instance) for reference in references)
    for owner, keyword in (
        (found, "SourceImageSequence"),
        (found.ReferencedSeriesSequence[0], "ReferencedInstanceSequence"),
    ):
        items = getattr(owner, keyword)[: len(files)]
        for item, (sop_class, sop_instance) in zip(items, files, strict=True):
            _name(item, _Reference(sop_class, sop_instance, None))
        setattr(owner, keyword, items)


def _name(item: Any, reference: _Reference) -> None:
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference.sop_class, reference.sop_instance
