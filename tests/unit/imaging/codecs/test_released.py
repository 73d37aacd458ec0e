"""What was written wrongly is never released: each way in which masks went wrong elsewhere is noticed."""

import gzip
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_files import files, slices
from isocenter.core.errors import OutputMismatch
from isocenter.imaging.codecs.dicom_seg import seg_of
from isocenter.imaging.codecs.nifti_write import nifti_of
from isocenter.imaging.codecs.released import check_nifti, check_seg
from isocenter.imaging.codecs.volume_files import Scan, read_scan
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.limits import VolumeLimits
from scan_masks import lumps, pointing

LABELS = ["background", "tumor", "edema"]
GRID = pointing("LPS")


def mirrored(axis: int) -> Geometry:
    """The grid as who forgets to turn LPS and RAS writes it."""
    affine = GRID.lps_from_voxel.copy()
    affine[axis] *= -1
    return Geometry(GRID.shape, affine)


def elsewhere(shift_mm: float) -> Geometry:
    affine = GRID.lps_from_voxel.copy()
    affine[2, 3] += shift_mm
    return Geometry(GRID.shape, affine)


def test_what_was_written_well_is_released() -> None:
    check_nifti(nifti_of(lumps(), GRID), lumps(), GRID)
    check_nifti(nifti_of(lumps() * 0, GRID), lumps() * 0, GRID)
    layers = np.random.default_rng(0).random((2, *GRID.shape), dtype=np.float32)
    check_nifti(nifti_of(layers, GRID), layers, GRID)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (lambda: nifti_of(lumps()[::-1], GRID), "voxels of the NIfTI"),
        (lambda: nifti_of(np.roll(lumps(), 1, axis=2), GRID), "voxels of the NIfTI"),
        (lambda: nifti_of(lumps() * 0, GRID), "voxels of the NIfTI"),
        (lambda: nifti_of(lumps(), mirrored(0)), "from its place"),
        (lambda: nifti_of(lumps(), mirrored(1)), "from its place"),
        (lambda: nifti_of(lumps(), elsewhere(0.1)), "from its place"),
        (lambda: nifti_of(lumps(), GRID)[:-30], "cannot be read"),
        (lambda: b"", "cannot be read"),
    ],
    ids=["mirrored voxels", "a slice too far", "empty", "x turned", "y turned", "0.1 mm off", "cut", "nothing"],
)
def test_a_nifti_that_is_not_what_was_found_is_noticed(written: Callable[[], bytes], said: str) -> None:
    with pytest.raises(OutputMismatch, match=said):
        check_nifti(written(), lumps(), GRID)


def test_a_layer_too_few_is_noticed() -> None:
    layers = np.stack([lumps() == 1, lumps() == 2]).astype(np.uint8)
    with pytest.raises(OutputMismatch):
        check_nifti(nifti_of(layers[:1], GRID), layers, GRID)


@pytest.fixture(scope="module")
def scan() -> Scan:
    pytest.importorskip("highdicom")
    return read_scan(files(slices()), limits=VolumeLimits())


@pytest.fixture(scope="module")
def seg(scan: Scan) -> bytes:
    return seg_of(mask_of(scan), LABELS, scan, model="small", version=1, sha256="0" * 64)


def mask_of(scan: Scan) -> Any:
    mask = np.zeros(scan.volume.geometry.shape, np.uint8)
    mask[1:3, 2, 3:6], mask[4, 4, 4] = 1, 2
    return mask


def changed(data: bytes, change: Callable[[Any], object]) -> bytes:
    found = pydicom.dcmread(io.BytesIO(data))
    change(found)
    file = io.BytesIO()
    found.save_as(file)
    return file.getvalue()


def test_a_seg_that_was_written_well_is_released(scan: Scan, seg: bytes) -> None:
    check_seg(seg, mask_of(scan), scan.volume.geometry, LABELS)


def move(found: Any, axis: int, by_mm: float) -> None:
    for frame in found.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        place[axis] = float(place[axis]) + by_mm


def turn(found: Any) -> None:
    place = found.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    place.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def swap_spacings(found: Any) -> None:
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = measures.PixelSpacing[::-1]


def swap_segments(found: Any) -> None:
    for frame in found.PerFrameFunctionalGroupsSequence:
        number = frame.SegmentIdentificationSequence[0]
        number.ReferencedSegmentNumber = 3 - number.ReferencedSegmentNumber


def rename(found: Any) -> None:
    found.SegmentSequence[0].SegmentLabel = "liver"


def lose_pixels(found: Any) -> None:
    found.PixelData = bytes(len(found.PixelData))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: move(found, 2, 2.5), "voxels of the DICOM SEG"),
        (lambda found: move(found, 0, 3.5), "from its place"),
        (lambda found: move(found, 2, 1000.0), "cannot be read"),
        (turn, "from its place"),
        (swap_spacings, "from its place"),
        (swap_segments, "voxels of the DICOM SEG"),
        (rename, "names 2 segments otherwise"),
        (lose_pixels, "voxels of the DICOM SEG"),
        (lambda found: found.pop("PixelData"), "cannot be read"),
    ],
    ids=["next slice", "half a voxel aside", "far away", "turned", "spacings", "segments", "a name", "pixels", "none"],
)
def test_a_seg_that_is_not_what_was_found_is_noticed(
    scan: Scan, seg: bytes, change: Callable[[Any], object], said: str
) -> None:
    with pytest.raises(OutputMismatch, match=said):
        check_seg(changed(seg, change), mask_of(scan), scan.volume.geometry, LABELS)


def test_gzip_of_anything_else_is_noticed() -> None:
    with pytest.raises(OutputMismatch):
        check_nifti(gzip.compress(b"nothing"), lumps(), GRID)
