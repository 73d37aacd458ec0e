"""Who and when, as DICOM headers say it: for one who asked for it on his own screen. Never written, never logged."""

from io import BytesIO
from typing import Final

from isocenter.imaging.codecs.dicom import Plane, pydicom
from isocenter.imaging.codecs.dicom_values import text

KEYWORDS: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyDate", "StudyDescription",
    "SeriesDescription", "InstitutionName", "ReferringPhysicianName", "StudyInstanceUID", "SeriesInstanceUID",
)  # fmt: skip


def identifiers_of(plane: Plane) -> dict[str, str]:
    """What the header of a slice's file says of them, by the keywords of DICOM; what it does not say is left out."""
    try:
        library = pydicom()
        header = library.dcmread(
            BytesIO(plane.file.part.read()), stop_before_pixels=True, specific_tags=[*KEYWORDS], force=True
        )
        found = {keyword: text(header, keyword) for keyword in KEYWORDS}
    except Exception:  # a header that was read once, and is broken elsewhere
        return {}
    return {keyword: value for keyword, value in found.items() if value}
