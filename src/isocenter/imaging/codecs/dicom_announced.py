"""What headers announce of a volume, held against what is there: files, slices, and where they should lie."""

from collections.abc import Collection, Sequence
from typing import Final

from isocenter.core.errors import MissingSlices
from isocenter.imaging.codecs.dicom import ImageFile, Plane
from isocenter.imaging.image import Note

GAP_LIMIT: Final = 0.01
"""Of the median distance between slices."""
TILT_LIMIT_DEG: Final = 0.1
_PROJECTIONS: Final = {"PROJECTION IMAGE", "MIP", "MINIP", "MNIP", "MAX_IP", "MIN_IP"}
"""What makers write into ImageType of slices whose pixels are the brightest, or darkest, of many beside them."""


def refuse_missing_files(files: Collection[ImageFile]) -> None:
    """See that of an object that was cut into several files (a concatenation, PS3.3 C.7.6.16.2.2.4) all are there.

    Raises:
        MissingSlices: they are not. What is left has no gap, and shows a part of the patient only.
    """
    for key in {file.concatenation for file in files if file.concatenation}:
        there = [file for file in files if file.concatenation == key]
        announced = max(file.concatenated for file in there)
        if len(there) < announced:
            raise MissingSlices(
                f"{len(there)} of {announced} files of a multi-frame object that was cut into several",
                details={"files": len(there), "announced_files": announced},
            )


def refuse_every_other(first: ImageFile, median: float) -> None:
    """See that a volume was not evenly thinned: the header still says how far apart the slices were.

    Raises:
        MissingSlices: they are a whole multiple of that apart.
    """
    said, thickness = abs(first.step_mm or 0.0), first.thickness_mm or 0.0
    times = median / said if said > 0 else 1.0
    # Some makers write the gap between slices there, against PS3.3 C.7.6.2: then thickness and gap are the distance.
    between = abs(said - thickness) > GAP_LIMIT * said and abs(said + thickness - median) <= GAP_LIMIT * median
    if times > 1.5 and abs(times - round(times)) <= GAP_LIMIT * times and not between:
        raise MissingSlices(
            f"slices are {median:.4g} mm apart, and {said:.4g} mm by their headers: {round(times) - 1} of "
            f"{round(times)} are missing",
            details={"median_mm": median, "announced_mm": said},
        )


def notes_of(planes: Sequence[Plane]) -> tuple[Note, ...]:
    """What the headers of a volume's slices say that its reader should know."""
    first = planes[0].file
    notes = []
    scales = {(plane.slope, plane.intercept) for plane in planes}
    if len(scales) > 1:
        notes.append(Note("rescaled_per_slice", f"{len(scales)} different slopes and intercepts, each for its slices"))
    if said := sorted({kind for plane in planes for kind in plane.image_type} & _PROJECTIONS):
        notes.append(Note("projection", f"ImageType says {', '.join(said)}: a slice shows more than its own place"))
    if any(plane.file.lossy for plane in planes):
        notes.append(Note("lossy_compression", "the pixels were compressed with loss before they came here"))
    if not first.has_series_uid:
        notes.append(Note("no_series_uid", "the files do not say of which series they are"))
    if first.announced and len(planes) < first.announced:
        notes.append(
            Note(
                "fewer_slices_than_announced", f"{len(planes)} slices; the headers say {first.announced} were acquired"
            )
        )
    if first.tilt_deg and abs(first.tilt_deg) > TILT_LIMIT_DEG:
        notes.append(
            Note("tilt_not_found", f"the header says a gantry tilt of {first.tilt_deg:g} degrees, the positions none")
        )
    return tuple(notes)
