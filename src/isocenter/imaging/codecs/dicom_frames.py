"""Planes of a DICOM file: the one of a classic file, or those that functional groups describe (PS3.3 C.7.6.16)."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np

from isocenter.core.errors import BadGeometry, BadImage, MissingGeometry
from isocenter.imaging.codecs.dicom import ImageFile, Plane
from isocenter.imaging.codecs.dicom_values import image_type, number, numbers, require, stated, text
from isocenter.imaging.codecs.volume_grid import FARTHEST_MM, farthest_corner_mm

_UNIT_LIMIT: Final = 1e-3
_LONGEST_MM: Final = 1e4
_RESCALE: Final = ("RescaleSlope", "RescaleIntercept")
_CLASSIC_KINDS: Final = (
    ("echo", "EchoNumbers"),
    ("echo_time", "EchoTime"),
    ("time", "TemporalPositionIdentifier"),
    ("b_value", "DiffusionBValue"),
    ("direction", "DiffusionGradientOrientation"),
    ("trigger", "TriggerTime"),
    ("acquisition", "AcquisitionNumber"),
)
# group, attribute
_FRAME_KINDS: Final = (
    ("component", "MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("echo_time", "MREchoSequence", "EffectiveEchoTime"),
    ("time", "FrameContentSequence", "TemporalPositionIndex"),
    ("b_value", "MRDiffusionSequence", "DiffusionBValue"),
    ("trigger", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("acquisition", "FrameContentSequence", "FrameAcquisitionNumber"),
)
_SCALE: Final = "PixelValueTransformationSequence"
_MEASURES: Final = "PixelMeasuresSequence"
_FRAME_TYPES: Final = (
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "XRay3DFrameTypeSequence",
)


def planes_of(dataset: Any, file: ImageFile) -> list[Plane]:
    """Every plane of a file, in its order.

    Raises:
        MissingGeometry, BadGeometry: a plane has no place, or an impossible one.
        BadImage: the frames are described wrongly.
    """
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        if file.frames != 1:
            raise MissingGeometry(
                f"file {file.part.number} holds {file.frames} frames and does not say where each lies",
                details={"file": file.part.number, "frames": file.frames},
            )
        return [_classic(dataset, file)]
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != file.frames:
        raise BadImage(
            f"file {file.part.number} describes {len(groups)} frames and announces {file.frames}",
            details={"file": file.part.number, "described": len(groups), "announced": file.frames},
        )
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
    _refuse_half_scaled(dataset, file, [*groups], shared[0])
    file = _measured(file, groups[0], shared[0])
    return [_frame(dataset, file, index, groups[index], shared[0]) for index in range(file.frames)]


def _measured(file: ImageFile, first: Any, shared: Any) -> ImageFile:
    """With the thickness and the step of its slices, which stand beside their pixel spacing (PS3.3 C.7.6.16.2.1)."""
    found = first.get(_MEASURES) or shared.get(_MEASURES)
    if not found:
        return file
    step_mm, thickness_mm = stated(found[0], "SpacingBetweenSlices", file.part), number(found[0], "SliceThickness")
    return replace(
        file,
        step_mm=file.step_mm if step_mm is None else step_mm,
        thickness_mm=file.thickness_mm if thickness_mm is None else thickness_mm,
    )


def _refuse_half_scaled(dataset: Any, file: ImageFile, groups: list[Any], shared: Any) -> None:
    """See that every frame says how it is scaled, or none.

    Raises:
        BadImage: some do; or the file does, where frames should.
    """
    scaled = sum(bool(each.get(_SCALE) or shared.get(_SCALE)) for each in groups)
    if 0 < scaled < len(groups):
        raise BadImage(
            f"{scaled} of {len(groups)} frames of file {file.part.number} say how they are scaled, the others do not",
            details={"file": file.part.number, "scaled": scaled, "frames": len(groups)},
        )
    whole = [stated(dataset, keyword, file.part) for keyword in _RESCALE]
    if not scaled and (whole[0] not in (None, 1.0) or whole[1] not in (None, 0.0)):
        raise BadImage(
            f"file {file.part.number} is scaled as a whole, where each of its frames should say so",
            details={"file": file.part.number, "tags": [*_RESCALE]},
        )


def _classic(dataset: Any, file: ImageFile) -> Plane:
    kinds = tuple((name, text(dataset, keyword)) for name, keyword in _CLASSIC_KINDS)
    return _plane(
        file,
        0,
        (dataset, dataset, dataset),
        values=dataset,
        number_=int(number(dataset, "InstanceNumber") or 0),
        stack="",
        types=file.image_type,
        kinds=kinds,
    )


def _frame(dataset: Any, file: ImageFile, index: int, own: Any, shared: Any) -> Plane:
    def group(name: str) -> Any:
        """An item of the frame, else the one that all frames share."""
        found = own.get(name) or shared.get(name)
        return found[0] if found else {}

    types = next((found for name in _FRAME_TYPES if (found := image_type(group(name).get("FrameType")))), ())
    gradient = group("MRDiffusionSequence").get("DiffusionGradientDirectionSequence")
    direction = text(gradient[0], "DiffusionGradientOrientation") if gradient else ""
    kinds = (
        *((name, text(group(each), keyword)) for name, each, keyword in _FRAME_KINDS),
        ("direction", direction),
        ("instance", text(dataset, "InstanceNumber")),
    )
    return _plane(
        file,
        index,
        (group("PlanePositionSequence"), group("PlaneOrientationSequence"), group(_MEASURES)),
        values=group(_SCALE),
        number_=int(number(dataset, "InstanceNumber") or 0),
        stack=text(group("FrameContentSequence"), "StackID"),
        types=types or file.image_type,
        kinds=kinds,
    )


def _plane(
    file: ImageFile,
    index: int,
    place: tuple[Any, Any, Any],
    *,
    values: Any,
    number_: int,
    stack: str,
    types: tuple[str, ...],
    kinds: tuple[tuple[str, str], ...],
) -> Plane:
    position = require(numbers(place[0], "ImagePositionPatient", 3), "ImagePositionPatient", file.part)
    directions = require(numbers(place[1], "ImageOrientationPatient", 6), "ImageOrientationPatient", file.part)
    between_rows, between_columns = require(numbers(place[2], "PixelSpacing", 2), "PixelSpacing", file.part)
    if not (0 < between_rows < _LONGEST_MM and 0 < between_columns < _LONGEST_MM):
        raise BadGeometry(
            f"file {file.part.number} has pixels of {between_rows:g} x {between_columns:g} mm",
            details={"file": file.part.number, "spacing_mm": [between_rows, between_columns]},
        )
    along_row, along_column = _right_angled(directions, file)
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(along_row, between_columns)
    affine[:3, 1] = np.multiply(along_column, between_rows)
    affine[:3, 3] = position
    if (far := farthest_corner_mm((file.columns, file.rows, 1), affine)) > FARTHEST_MM:
        raise BadGeometry(
            f"file {file.part.number} has a corner {far:g} mm from the origin, at most {FARTHEST_MM:g} mm are read",
            details={"file": file.part.number, "farthest_mm": far, "limit_mm": FARTHEST_MM},
        )
    slope, intercept = (stated(values, keyword, file.part) for keyword in _RESCALE)
    if slope == 0:
        raise BadImage(f"file {file.part.number} multiplies its pixels by 0", details={"file": file.part.number})
    return Plane(
        file=file,
        index=index,
        number=number_,
        position_mm=(position[0], position[1], position[2]),
        along_row=along_row,
        along_column=along_column,
        spacing_mm=(between_rows, between_columns),
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        scaled=(slope is not None, intercept is not None),
        stack=stack,
        image_type=types,
        kinds=(("type", "\\".join(types[2:])), *kinds),
    )


def _right_angled(
    directions: tuple[float, ...], file: ImageFile
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Both directions, of exactly unit length.

    Raises:
        BadGeometry: they are not unit vectors at right angles (PS3.3 C.7.6.2.1.1).
    """
    first, second = directions[:3], directions[3:]
    lengths = math.hypot(*first), math.hypot(*second)
    leaning = abs(sum(a * b for a, b in zip(first, second, strict=True)))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), leaning) > _UNIT_LIMIT:
        raise BadGeometry(
            f"file {file.part.number} names directions of length {lengths[0]:.4g} and {lengths[1]:.4g}, "
            f"{leaning:.4g} off right angles",
            details={"file": file.part.number, "lengths": [*lengths], "off_right_angle": leaning},
        )
    (a, b, c), (d, e, f) = (_unit(each, length) for each, length in ((first, lengths[0]), (second, lengths[1])))
    return (a, b, c), (d, e, f)


def _unit(vector: tuple[float, ...], length: float) -> Iterator[float]:
    return (each / length for each in vector)
