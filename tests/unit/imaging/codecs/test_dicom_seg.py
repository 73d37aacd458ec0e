"""A segmentation lies where its series lies, names it, and holds what the standard asks of it."""

import io
import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_files import AXIAL, SPACING_MM, STEP_MM, Files, coded, enhanced, every, files, slices, voxels
from isocenter.core.errors import NotDicom
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.dicom_seg import refuse_unreferable, seg_of
from isocenter.imaging.codecs.nifti_write import nifti_of
from isocenter.imaging.codecs.released import check_seg
from isocenter.imaging.codecs.volume_files import Pick, Scan, read_scan
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.limits import VolumeLimits
from patience import PATIENCE_S

highdicom: Any = pytest.importorskip("highdicom")

LABELS = ["background", "tumor", "edema"]
SHA256 = "0a" * 32
ORIENTATIONS = [
    pytest.param(directions, id=name, marks=() if name in ("sagittal", "columns to the right") else pytest.mark.slow)
    for name, directions in {
        "axial": AXIAL,
        "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
        "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
        "columns to the right": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        "rows to the front": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
        "oblique": (0.8, 0.6, 0.0, -0.36, 0.48, -0.8),
    }.items()
]


def scan_of(source: Files | Path, volume: int | None = None) -> Scan:
    return read_scan(source, limits=VolumeLimits(), pick=Pick(volume=volume))


def lumps(shape: Sequence[int]) -> Array:
    """Two labels, in a mask that is unlike its mirror images."""
    mask = np.zeros(shape, np.uint8)
    mask[1:3, 2, 3:6] = mask[1, 1:4, 3] = 1
    mask[-1, -1, 0] = 2
    return mask


def written(mask: Array, scan: Scan, labels: Sequence[str] = LABELS, **how: Any) -> bytes:
    data = seg_of(mask, labels, scan, model="brain-tumor", version=3, sha256=SHA256, **how)
    check_seg(data, mask, scan.volume.geometry, labels)
    return data


def opened(data: bytes) -> Any:
    return highdicom.seg.segread(io.BytesIO(data))


def middle_lps_mm(seg: Any, segment: int) -> Array:
    """The mean place of a segment's voxels as highdicom sees it."""
    volume = seg.get_volume(segment_numbers=[segment], combine_segments=True)
    place = np.argwhere(volume.array).mean(axis=0)
    return np.asarray(volume.affine[:3, :3] @ place + volume.affine[:3, 3])


@pytest.mark.parametrize("directions", ORIENTATIONS)
def test_each_label_lies_where_it_was_found(directions: Sequence[float]) -> None:
    scan = scan_of(files(slices(directions=directions)))
    mask = lumps(scan.volume.geometry.shape)

    seg = opened(written(mask, scan))

    assert [str(each.SegmentLabel) for each in seg.SegmentSequence] == ["tumor", "edema"]
    for label in (1, 2):
        inside = scan.volume.geometry.position_lps_mm(np.argwhere(mask == label).mean(axis=0))
        np.testing.assert_allclose(middle_lps_mm(seg, label), inside, atol=1e-5)
        volume = seg.get_volume(segment_numbers=[label], combine_segments=True)
        assert np.count_nonzero(volume.array) == np.count_nonzero(mask == label)


@pytest.mark.slow
@pytest.mark.parametrize("directions", ORIENTATIONS)
def test_each_frame_is_that_of_the_slice_which_it_names(directions: Sequence[float]) -> None:
    source = slices(directions=directions)
    scan = scan_of(files(source))
    mask = np.ones(scan.volume.geometry.shape, np.uint8)

    seg = opened(written(mask, scan, ["background", "all"]))

    by_uid = {each.SOPInstanceUID: each for each in source}
    frames = seg.PerFrameFunctionalGroupsSequence
    assert len(frames) == len(source)
    for frame in frames:
        named = by_uid[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == named.ImagePositionPatient
    shared = seg.SharedFunctionalGroupsSequence[0]
    np.testing.assert_allclose(shared.PlaneOrientationSequence[0].ImageOrientationPatient, directions, atol=1e-8)
    assert tuple(shared.PixelMeasuresSequence[0].PixelSpacing) == SPACING_MM
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == STEP_MM


def test_the_whole_series_is_named_and_its_study_patient_and_place_kept() -> None:
    source = slices()
    scan = scan_of(files(source))

    seg = opened(written(lumps(scan.volume.geometry.shape), scan))

    uids = {(each.SOPClassUID, each.SOPInstanceUID) for each in source}
    series = seg.ReferencedSeriesSequence[0]
    for items in (seg.SourceImageSequence, series.ReferencedInstanceSequence):
        assert {(each.ReferencedSOPClassUID, each.ReferencedSOPInstanceUID) for each in items} == uids
        assert len(items) == len(source)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        item = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) in uids
    first = source[0]
    assert series.SeriesInstanceUID == first.SeriesInstanceUID != seg.SeriesInstanceUID
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert seg[keyword].value == first[keyword].value


def test_the_model_is_named_as_the_algorithm() -> None:
    scan = scan_of(files(slices()))
    seg = opened(written(lumps(scan.volume.geometry.shape), scan, findings=["tumor"]))
    assert seg.SegmentationType == "BINARY"
    for segment in seg.SegmentSequence:
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "brain-tumor")
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("brain-tumor", "3")
        assert SHA256 in algorithm.AlgorithmParameters
    types = [segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for segment in seg.SegmentSequence]
    assert types == ["Lesion", "Tissue"]


def test_nothing_found_is_written_too() -> None:
    scan = scan_of(files(slices()))
    mask = np.zeros(scan.volume.geometry.shape, np.uint8)

    seg = opened(written(mask, scan, ["background", "tumor"]))

    assert not seg.pixel_array.any()
    assert seg.get_volume(combine_segments=True).array.shape == mask.shape[::-1]
    assert [str(each.SegmentLabel) for each in seg.SegmentSequence] == ["tumor"]


def test_labels_that_overlap_are_a_segment_each() -> None:
    scan = scan_of(files(slices()))
    mask = lumps(scan.volume.geometry.shape)
    layers = np.stack([mask > 0, mask == 1, mask == 3]).astype(np.uint8)

    seg = opened(written(layers, scan, ["whole", "core", "none"]))

    assert seg.SegmentsOverlap == "YES"
    assert len(seg.SegmentSequence) == 3


@pytest.mark.parametrize("stack", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_enhanced_series_is_named_by_its_frames(stack: int) -> None:
    source = enhanced(voxels(), stacks=2)
    scan = scan_of({"scan.dcm": coded(source)}, volume=stack)
    classic = scan_of(files(slices()))
    mask = lumps(scan.volume.geometry.shape)

    seg = opened(written(mask, scan))

    for items in (seg.SourceImageSequence, seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence):
        assert [each.ReferencedSOPInstanceUID for each in items] == [source.SOPInstanceUID]
        assert [each.ReferencedSOPClassUID for each in items] == [source.SOPClassUID]
    for frame in seg.PerFrameFunctionalGroupsSequence:
        item = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (
            source.SOPClassUID,
            source.SOPInstanceUID,
        )
        named = source.PerFrameFunctionalGroupsSequence[item.ReferencedFrameNumber - 1]
        place = named.PlanePositionSequence[0].ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == place
        assert named.FrameContentSequence[0].StackID == str(stack + 1)
    assert np.array_equal(seg.pixel_array, opened(written(mask, classic)).pixel_array)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "volume"),
    [
        ("mr_enhanced/dicom/Philips/IM_0027_fMAP.dcm", 0),
        ("mr_enhanced/dicom/Philips/IM_0027_fMAP.dcm", 1),
        ("mr_enhanced/dicom/Siemens/XA10/6_3.dcm", None),
        pytest.param("mr_t1_head/dicom", None, marks=pytest.mark.long),
    ],
    ids=["Philips, first stack", "Philips, second stack", "Siemens XA", "GE, 196 slices"],
)
def test_a_lesion_in_a_real_scan_lies_where_it_was_found(
    path: str, volume: int | None, test_data: Path, tmp_path: Path
) -> None:
    scan = scan_of(test_data / path, volume)
    for mask in (lumps(scan.volume.geometry.shape), np.zeros(scan.volume.geometry.shape, np.uint8)):
        data = written(mask, scan)
        seg = opened(data)
        found = seg.get_volume(segment_numbers=[1], combine_segments=True)
        assert np.count_nonzero(found.array) == np.count_nonzero(mask == 1)
        if mask.any():
            inside = scan.volume.geometry.position_lps_mm(np.argwhere(mask == 1).mean(axis=0))
            np.testing.assert_allclose(middle_lps_mm(seg, 1), inside, atol=1e-3)
        if shutil.which("dciodvfy"):
            assert not [line for line in complaints(data, tmp_path) if "Retired Person Name form" not in line]


TYPE_1 = {
    "SOP Common": ("SOPClassUID", "SOPInstanceUID"),
    "General Study": ("StudyInstanceUID",),
    "Segmentation Series": ("Modality", "SeriesNumber", "SeriesInstanceUID"),
    "Frame of Reference": ("FrameOfReferenceUID",),
    "Enhanced General Equipment": ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"),
    "Image Pixel": ("Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored", "SamplesPerPixel"),
    "Segmentation Image": (
        "ImageType", "InstanceNumber", "ContentLabel", "PhotometricInterpretation", "SegmentationType",
        "SegmentSequence", "LossyImageCompression",
    ),
    "Multi-frame Functional Groups": (
        "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ContentDate", "ContentTime",
        "NumberOfFrames",
    ),
    "Multi-frame Dimension": ("DimensionOrganizationSequence", "DimensionIndexSequence"),
    "Common Instance Reference": ("ReferencedSeriesSequence",),
}  # fmt: skip
TYPE_2 = {
    "Patient": ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    "General Study": ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
    "Frame of Reference": ("PositionReferenceIndicator",),
    "Segmentation Image": ("ContentDescription", "ContentCreatorName"),
}
OF_A_SEGMENT = (
    "SegmentNumber", "SegmentLabel", "SegmentAlgorithmType", "SegmentAlgorithmName",
    "SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence",
)  # fmt: skip


def bare(each: Dataset) -> None:
    for keyword in ("PatientID", "PatientName", "SliceThickness", "SeriesNumber", "Modality"):
        delattr(each, keyword)


def wrong(each: Dataset) -> None:
    """Values that DICOM does not allow."""
    each.PatientBirthDate, each.PatientSex, each.PatientAge = "yesterday", "female", "forty"
    each.PatientID = "x" * 70
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "longer than sixteen", "local", "taken out"
    each.DeidentificationMethodCodeSequence = [code]


def foreign(each: Dataset) -> None:
    each.SpecificCharacterSet = "ISO_IR 100"
    each.PatientName = "Müller^Jürgen"


CHANGES: dict[str, Callable[[Dataset], None]] = {
    "as it is": lambda each: None,
    "bare": bare,
    "values that are not allowed": wrong,
    "a name in Latin-1": foreign,
}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("empty", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_module_has_what_the_standard_asks(
    change: Callable[[Dataset], None], empty: bool, tmp_path: Path
) -> None:
    scan = scan_of(files(every(change, slices())))
    mask = lumps(scan.volume.geometry.shape) * (not empty)

    data = written(mask, scan, ["background", "tumor", "Ödem"])

    found = pydicom.dcmread(io.BytesIO(data))
    for module, keywords in TYPE_1.items():
        assert [keyword for keyword in keywords if found.get(keyword) in (None, "", [])] == [], module
    for module, keywords in TYPE_2.items():
        assert [keyword for keyword in keywords if keyword not in found] == [], module
    for segment in found.SegmentSequence:
        assert [keyword for keyword in OF_A_SEGMENT if not segment.get(keyword)] == []
    assert found.Modality == "SEG"
    assert str(found.SegmentSequence[1].SegmentLabel) == "Ödem"
    if change is foreign:
        assert str(found.PatientName) == "Müller^Jürgen"
    if change is wrong:
        assert (found.PatientID, found.PatientBirthDate, found.PatientSex) == ("x" * 70, "", "")
        assert "PatientAge" not in found
        assert not found.get("DeidentificationMethodCodeSequence")


@pytest.mark.slow
@pytest.mark.parametrize("directions", ORIENTATIONS)
@pytest.mark.parametrize("empty", [False, True])
def test_dciodvfy_finds_nothing(directions: Sequence[float], empty: bool, tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    scan = scan_of(files(slices(directions=directions)))
    mask = lumps(scan.volume.geometry.shape) * (not empty)
    assert complaints(written(mask, scan), tmp_path) == []


def complaints(data: bytes, folder: Path) -> list[str]:
    """What dciodvfy complains of, but for what a DICOMDIR would need and the series itself does not say."""
    (folder / "seg.dcm").write_bytes(data)
    done = subprocess.run(
        ["dciodvfy", folder / "seg.dcm"], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert "Segmentation" in lines
    return [line for line in lines if line.startswith(("Error", "Warning")) and "DICOMDIR" not in line]


def test_a_nifti_has_no_series_to_refer_to() -> None:
    scan = read_scan(nifti_of(lumps((6, 7, 8)), Geometry.of((6, 7, 8))), limits=VolumeLimits())
    assert scan.slices == ()
    with pytest.raises(NotDicom, match="this scan is nifti"):
        refuse_unreferable(scan)


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_series_without_a_uid_is_refused_before_anything_is_written(keyword: str) -> None:
    source = {f"{at}.dcm": without(coded(each), keyword) for at, each in enumerate(slices())}
    with pytest.raises(NotDicom, match=keyword) as raised:
        refuse_unreferable(scan_of(source))
    assert "Doe" not in str(raised.value)


def without(data: bytes, keyword: str) -> bytes:
    found = pydicom.dcmread(io.BytesIO(data))
    del found[keyword]
    file = io.BytesIO()
    pydicom.dcmwrite(file, found)
    return file.getvalue()


def test_what_the_library_stumbles_over_is_a_refusal_without_names() -> None:
    scan = scan_of(files(slices()))
    lost = replace(scan, slices=tuple(replace(each, position_lps_mm=(math.nan,) * 3) for each in scan.slices))
    with pytest.raises(NotDicom, match="no DICOM SEG can refer") as raised:
        seg_of(lumps(scan.volume.geometry.shape), LABELS, lost, model="small", version=1, sha256=SHA256)
    assert "Doe" not in str(raised.value)


def test_nothing_of_the_patient_shows_where_slices_are_printed() -> None:
    scan = scan_of(files(slices()))
    assert "Doe" not in repr(scan.slices)


def test_slices_that_a_reference_cannot_tell_apart_are_not_referred_to() -> None:
    made = slices()
    for each in made:
        each.SOPInstanceUID = each.file_meta.MediaStorageSOPInstanceUID = made[0].SOPInstanceUID
    with pytest.raises(NotDicom, match="share a SOPInstanceUID"):
        refuse_unreferable(scan_of(files(made)))


def test_the_highest_number_of_a_series_is_followed_by_none() -> None:
    scan = scan_of(files(every(lambda each: setattr(each, "SeriesNumber", 2**31 - 1), slices())))
    assert opened(written(lumps(scan.volume.geometry.shape), scan)).SeriesNumber == 2**31 - 1


UNKNOWN = {"SOPInstanceUID": b"\x08\x00\x18\x00UI", "PatientWeight": b"\x10\x00\x30\x10DS"}


def with_unknown(keyword: str, at: int) -> Files:
    """A series in which a slice has a value of a kind that there is not."""
    made = slices()
    for each in made:
        each.PatientWeight = "70"
    found = {str(number): coded(each) for number, each in enumerate(made)}
    return found | {str(at): found[str(at)].replace(UNKNOWN[keyword], UNKNOWN[keyword][:4] + b"XX", 1)}


@pytest.mark.parametrize("at", [0, 3])
def test_what_cannot_be_read_cannot_be_referred_to_and_is_said_before_the_model_runs(at: int) -> None:
    with pytest.raises(NotDicom, match="SOPInstanceUID"):
        refuse_unreferable(scan_of(with_unknown("SOPInstanceUID", at)))


def test_what_cannot_be_read_and_is_not_needed_is_left_out() -> None:
    scan = scan_of(with_unknown("PatientWeight", 0))
    seg = opened(written(lumps(scan.volume.geometry.shape), scan))

    assert "PatientWeight" not in seg
    assert seg.PatientID == "17"
