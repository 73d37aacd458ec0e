"""Small DICOM series, made here: one head of random voxels, sliced as a scanner would, and then damaged."""

import io
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from isocenter.core.tensor import Array

Files: TypeAlias = dict[str, bytes]
SPACING_MM = (4.0, 6.4)
"""Between rows, between columns: swapped, they show."""
STEP_MM = 2.5
ROWS, COLUMNS, SLICES = 6, 5, 8
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
STUDY, SERIES, PLACE = (generate_uid(entropy_srcs=[name]) for name in ("study", "series", "place"))


def voxels(seed: int = 0, *, low: int = 0, high: int = 4096) -> Array:
    """Slices, rows, columns."""
    return np.random.default_rng(seed).integers(low, high, (SLICES, ROWS, COLUMNS)).astype(np.int16)


def slices(
    stored: Array | None = None, *, directions: Sequence[float] = AXIAL, origin: Sequence[float] = (-7.0, 11.0, 30.0)
) -> list[Dataset]:
    """A classic MR series, a data set for each slice along the normal."""
    stored = voxels() if stored is None else stored
    normal = np.cross(directions[:3], directions[3:])
    found = []
    for at, plane in enumerate(stored):
        each = _common(MRImageStorage, at)
        each.ImagePositionPatient = [round(float(mm), 6) for mm in np.add(origin, at * STEP_MM * normal)]
        each.ImageOrientationPatient = [round(float(mm), 9) for mm in directions]
        each.PixelSpacing = [*SPACING_MM]
        each.SliceThickness = STEP_MM
        each.InstanceNumber = at + 1
        each.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        each.EchoTime = 3.0
        _pixels(each, plane)
        found.append(each)
    return found


def enhanced(stored: Array, *, times: int = 1, stacks: int = 1) -> Dataset:
    """The same scan as one multi-frame file; its frames are not in the order of their positions."""
    each = _common(EnhancedMRImageStorage, 0)
    each.InstanceNumber = 1
    each.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "M"]
    shared, frames, planes = Dataset(), [], []
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [*SPACING_MM], STEP_MM
    orientation.ImageOrientationPatient = [*AXIAL]
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    for stack in range(stacks):
        for at in np.random.default_rng(3).permutation(len(stored)):
            for time in range(times):
                content, position, frame = Dataset(), Dataset(), Dataset()
                content.StackID, content.TemporalPositionIndex = str(stack + 1), time + 1
                position.ImagePositionPatient = [-7.0 + 500 * stack, 11.0, 30.0 + float(at) * STEP_MM]
                frame.FrameContentSequence, frame.PlanePositionSequence = [content], [position]
                frames.append(frame)
                planes.append(stored[at] + time + 10 * stack)
    each.SharedFunctionalGroupsSequence = [shared]
    each.PerFrameFunctionalGroupsSequence = frames
    each.NumberOfFrames = len(frames)
    _pixels(each, np.array(planes, np.int16))
    return each


def coded(dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """The file."""
    dataset.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def files(datasets: Sequence[Dataset]) -> Files:
    """A folder of them, under names that say nothing of their order."""
    names = np.random.default_rng(5).permutation(len(datasets))
    return {f"{name:04d}.dcm": coded(each) for name, each in zip(names, datasets, strict=True)}


def every(change: Callable[[Dataset], Any], datasets: Sequence[Dataset]) -> list[Dataset]:
    """All of them, changed."""
    for each in datasets:
        change(each)
    return [*datasets]


def as_ct(dataset: Dataset) -> None:
    """Another kind of object, of another modality."""
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.Modality = "CT"


def _common(sop_class: UID, at: int) -> Dataset:
    each = Dataset()
    each.file_meta = FileMetaDataset()
    each.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    each.file_meta.MediaStorageSOPClassUID = each.SOPClassUID = sop_class
    each.file_meta.MediaStorageSOPInstanceUID = each.SOPInstanceUID = generate_uid(entropy_srcs=["slice", str(at)])
    each.StudyInstanceUID, each.SeriesInstanceUID, each.FrameOfReferenceUID = STUDY, SERIES, PLACE
    each.PatientID, each.PatientName, each.Modality = "17", "Doe^Jane", "MR"
    each.SeriesNumber = 4
    return each


def _pixels(each: Dataset, stored: Array) -> None:
    each.Rows, each.Columns = stored.shape[-2:]
    each.SamplesPerPixel, each.PhotometricInterpretation = 1, "MONOCHROME2"
    each.BitsAllocated, each.BitsStored, each.HighBit, each.PixelRepresentation = 16, 16, 15, 1
    each.PixelData = stored.astype("<i2").tobytes()
    each["PixelData"].VR = "OW"
