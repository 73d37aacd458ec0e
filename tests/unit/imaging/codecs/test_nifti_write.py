"""Masks come back on exactly the grid of their scan: by nibabel, by ITK, and by our own reader."""

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from isocenter.core.tensor import Array
from isocenter.imaging.codecs.nifti_write import nifti_of
from isocenter.imaging.codecs.volume_files import Pick, read_volume
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.limits import VolumeLimits
from scan_masks import ALL_48, SHAPE, SPACINGS_MM, lumps, pointing, turned

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def by_nibabel(data: bytes) -> Any:
    library: Any = nibabel
    return library.Nifti1Image.from_bytes(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)


def middles_lps_mm(mask: Array, lps_from_voxel: Array) -> list[list[float]]:
    """Of each label: the mean place of its voxels."""
    places = [np.argwhere(mask == label).mean(axis=0) for label in np.unique(mask[mask > 0])]
    return [(lps_from_voxel[:3, :3] @ place + lps_from_voxel[:3, 3]).tolist() for place in places]


@pytest.mark.parametrize(
    "spacing_mm",
    [
        pytest.param(each, id=str(each), marks=pytest.mark.slow if at else ())
        for at, each in enumerate(SPACINGS_MM[::-1])
    ],
)
@pytest.mark.parametrize("axcodes", ALL_48)
def test_a_mask_lies_where_it_lay_for_nibabel(axcodes: str, spacing_mm: tuple[float, float, float]) -> None:
    source = pointing("LPS", spacing_mm)
    mask, geometry = turned(lumps(), source, axcodes)

    image = by_nibabel(nifti_of(mask, geometry))

    assert np.array_equal(np.asanyarray(image.dataobj), mask)
    np.testing.assert_allclose(image.affine, RAS_FROM_LPS @ geometry.lps_from_voxel, atol=2e-6)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
    found = middles_lps_mm(np.asanyarray(image.dataobj), RAS_FROM_LPS @ image.affine)
    np.testing.assert_allclose(found, middles_lps_mm(lumps(), source.lps_from_voxel), atol=1e-5)


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "PIR", "SAL"])
def test_a_mask_lies_where_it_lay_for_itk(axcodes: str, tmp_path: Path) -> None:
    sitk: Any = pytest.importorskip("SimpleITK")
    mask, geometry = turned(lumps(), pointing("LPS"), axcodes)
    (tmp_path / "mask.nii.gz").write_bytes(nifti_of(mask, geometry))

    image = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))

    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), mask)
    for index in np.ndindex(2, 2, 2):
        corner = [int(each * (size - 1)) for each, size in zip(index, SHAPE, strict=True)]
        corner = [min(each, size - 1) for each, size in zip(corner, mask.shape, strict=True)]
        np.testing.assert_allclose(
            image.TransformIndexToPhysicalPoint(corner), geometry.position_lps_mm(corner), atol=1e-4
        )


@pytest.mark.parametrize("turn", range(20))
def test_oblique_grids_agree_in_both_forms_or_leave_the_second_out(turn: int) -> None:
    random = np.random.default_rng(turn)
    # Half of them are turned by less than float32 shows well.
    axes = np.linalg.qr(np.eye(3) + random.normal(size=(3, 3)) * (1.0 if turn % 2 else 10.0 ** -random.uniform(2, 6)))[
        0
    ]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * random.uniform(0.4, 5, 3), random.uniform(-200, 200, 3)
    geometry = Geometry(SHAPE, affine)

    data = nifti_of(lumps(), geometry)

    image = by_nibabel(data)
    np.testing.assert_allclose(image.affine, RAS_FROM_LPS @ affine, atol=2e-5)
    form, code = image.get_qform(coded=True)
    if code:
        far = np.array([*SHAPE, 1.0])
        assert np.abs((form - image.get_sform()) @ far).max() < 0.1
    assert read_volume(data, limits=VolumeLimits()).geometry.same_place(geometry)


def test_axes_that_hardly_lean_have_a_qform_beside_them_for_itk(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 2.0 * math.tan(math.radians(0.05))
    geometry = Geometry((64, 64, 48), affine)
    data = nifti_of(np.zeros(geometry.shape, np.uint8), geometry)
    assert int(by_nibabel(data).header["qform_code"]) == 1
    assert read_volume(data, limits=VolumeLimits()).geometry.same_place(geometry)

    sitk: Any = pytest.importorskip("SimpleITK")
    (tmp_path / "mask.nii.gz").write_bytes(data)
    far = sitk.ReadImage(str(tmp_path / "mask.nii.gz")).TransformIndexToPhysicalPoint((63, 63, 47))
    np.testing.assert_allclose(far, geometry.position_lps_mm((63, 63, 47)), atol=0.1)


def test_axes_that_lean_have_no_qform() -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 2] = 0.4
    image = by_nibabel(nifti_of(lumps(), Geometry(SHAPE, affine)))
    assert int(image.header["qform_code"]) == 0
    np.testing.assert_allclose(image.affine, RAS_FROM_LPS @ affine, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("compress", [True, False])
def test_layers_are_volumes_behind_each_other(dtype: type, compress: bool) -> None:
    layers: Array = (np.random.default_rng(0).random((3, *SHAPE)) * 200).astype(dtype)

    data = nifti_of(layers, pointing("RAS"), compress=compress)

    assert (data[:2] == b"\x1f\x8b") is compress
    image = by_nibabel(data)
    assert image.get_data_dtype() == dtype
    assert np.array_equal(np.asanyarray(image.dataobj), layers.transpose(1, 2, 3, 0))
    volume = read_volume(data, limits=VolumeLimits(), pick=Pick(volume=2))
    assert np.array_equal(volume.voxels[0], layers[2])
    assert volume.geometry.same_place(pointing("RAS"))


def test_one_mask_is_always_one_file() -> None:
    assert nifti_of(lumps(), pointing("LAS")) == nifti_of(np.asfortranarray(lumps()), pointing("LAS"))


@pytest.mark.parametrize(
    "name",
    [
        "anatomical.nii",
        "example_nifti2.nii.gz",
        "example_ct_sm.nii.gz",
        pytest.param("chris_t1.nii.gz", marks=pytest.mark.slow),
        pytest.param("MR_Gd.nii.gz", marks=pytest.mark.slow),
    ],
)
def test_a_mask_of_a_real_scan_has_its_grid_to_the_last_bit(name: str, test_data: Path) -> None:
    file = test_data / "nifti" / name
    library: Any = nibabel
    source = library.load(file)
    volumes = source.shape[3] if len(source.shape) == 4 else 1
    scan = read_volume(file, limits=VolumeLimits(), pick=Pick(volume=0 if volumes > 1 else None))

    image = by_nibabel(nifti_of(np.zeros(scan.geometry.shape, np.uint8), scan.geometry))

    assert image.shape == source.shape[:3]
    assert np.array_equal(image.affine, source.affine.astype(np.float32))


@pytest.mark.parametrize(
    ("voxels", "shape"),
    [
        (np.zeros((2, 3, 4), np.int64), (2, 3, 4)),
        (np.zeros((2, 3, 4), np.uint8), (2, 3, 5)),
        (np.zeros((4, 5), np.uint8), (4, 5)),
    ],
    ids=["64 bits", "another grid", "a picture"],
)
def test_what_is_no_mask_on_its_grid_is_not_written(voxels: Array, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not written as NIfTI"):
        nifti_of(voxels, Geometry.of(shape))
