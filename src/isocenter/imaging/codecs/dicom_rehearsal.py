"""A small made series is read, and a segmentation of it written: no caller waits for what is done only once.

Loading the libraries and the tables of the standard that they bring takes longer than a scan does.
"""

import contextlib
import io
from typing import Any, Final

import numpy as np

from isocenter.core.errors import MissingExtra
from isocenter.imaging.codecs import dicom
from isocenter.imaging.codecs.dicom_seg import seg_of
from isocenter.imaging.codecs.released import check_seg
from isocenter.imaging.codecs.volume_files import read_scan
from isocenter.imaging.limits import VolumeLimits

_SIDE: Final = 4
_SLICES: Final = 3
_LABELS: Final = ("background", "made")


def rehearse_dicom() -> None:
    """Once through reading and writing. Does nothing where the extra `dicom` is not installed.

    Raises:
        IsocenterError: what is installed does not read or write as it should.
    """
    with contextlib.suppress(MissingExtra):
        scan = read_scan(_series(), limits=VolumeLimits())
        geometry = scan.volume.geometry
        mask = np.zeros(geometry.shape, np.uint8)
        mask[0, 0, 0] = 1
        written = seg_of(mask, _LABELS, scan, model="rehearsal", version=1, sha256="0")
        check_seg(written, mask, geometry, _LABELS)


def _series() -> dict[str, bytes]:
    """Classic MR slices of nobody."""
    library = dicom.pydicom()
    study, series, place = (library.uid.generate_uid() for _ in range(3))
    files: dict[str, bytes] = {}
    for at in range(_SLICES):
        made = _slice(library, at)
        made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = study, series, place
        file = io.BytesIO()
        library.dcmwrite(file, made, enforce_file_format=True)
        files[f"{at}.dcm"] = file.getvalue()
    return files


def _slice(library: Any, at: int) -> Any:
    made = library.Dataset()
    made.file_meta = library.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = library.uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = library.uid.MRImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = library.uid.generate_uid()
    made.PatientID = made.PatientName = ""
    made.Modality, made.SeriesNumber, made.InstanceNumber = "MR", 1, at + 1
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.ImagePositionPatient, made.ImageOrientationPatient = [0, 0, at], [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.SliceThickness = [1, 1], 1
    made.Rows = made.Columns = _SIDE
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
    made.PixelData = bytes(2 * _SIDE * _SIDE)
    made["PixelData"].VR = "OW"
    return made
