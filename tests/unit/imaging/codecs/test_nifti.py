"""NIfTI as nibabel reads it, in LPS; forms, byte orders and lengths that cannot be trusted are refused."""

import gzip
import itertools
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pytest

from isocenter.core.errors import BadInput
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.nifti import SFORM_QFORM_LIMIT
from isocenter.imaging.codecs.volume_files import Pick, describe, read_volume
from isocenter.imaging.geometry import swap_lps_ras
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

LIMITS = VolumeLimits()
SHAPE = (5, 4, 3)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0.0, -20], [0, 0, 4.0, 7], [0, 0, 0, 1]])


def numbers(dtype: str = "<i2", shape: tuple[int, ...] = SHAPE) -> Array:
    return np.random.default_rng(1).integers(0, 100, shape).astype(dtype)


def image(
    voxels: Array | None = None, affine: Array = AFFINE, *, two: bool = False, order: Literal["<", ">"] = "<"
) -> Any:
    library: Any = nibabel
    kind, header = (library.Nifti2Image, library.Nifti2Header) if two else (library.Nifti1Image, library.Nifti1Header)
    voxels = numbers() if voxels is None else voxels
    made = header(endianness=order)
    made.set_data_dtype(voxels.dtype.newbyteorder(order))
    return kind(voxels, affine, made)


def coded(made: Any, **fields: Any) -> bytes:
    """The file, with fields of its header set to anything; qform says the same as sform."""
    if "qform_code" not in fields:
        made.set_qform(made.affine, 1)
    made.set_sform(made.affine, 2)
    data = bytearray(made.to_bytes())
    header = type(made.header)(bytes(data[: made.header.sizeof_hdr]), check=False)
    for name, value in fields.items():
        header.structarr[name] = value
    data[: header.sizeof_hdr] = header.binaryblock
    return bytes(data)


def expected(data: bytes) -> Any:
    kind = nibabel.Nifti2Image if int.from_bytes(data[:4], "little") in (540, 0x1C020000) else nibabel.Nifti1Image
    return kind.from_bytes(data)


def read(data: bytes, pick: Pick | None = None) -> Volume:
    return read_volume(data, limits=LIMITS, pick=pick)


def assert_as_nibabel(volume: Volume, data: bytes) -> None:
    made = expected(data)
    np.testing.assert_allclose(volume.voxels[0], np.asarray(made.dataobj), rtol=1e-6)
    np.testing.assert_allclose(swap_lps_ras(volume.geometry.lps_from_voxel), made.affine, rtol=0, atol=1e-12)
    library: Any = nibabel
    codes = "".join(library.aff2axcodes(made.affine))
    assert volume.geometry.axcodes == codes


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("two", [False, True], ids=["nifti1", "nifti2"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_type_byte_order_and_version_reads_as_nibabel_does(
    dtype: str, two: bool, order: Literal["<", ">"]
) -> None:
    data = coded(image(numbers(dtype), two=two, order=order))
    volume = read(data)
    assert_as_nibabel(volume, data)
    assert volume.voxels.dtype == np.dtype(dtype)  # and native: models know no byte order
    np.testing.assert_array_equal(volume.voxels, read(gzip.compress(data)).voxels)


def orientations() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [
        (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
    ]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 6.4, 1.2), (0.9, 0.7, 5.0)], ids=str)
def test_all_48_orientations_keep_every_voxel_where_nibabel_has_it(spacing: tuple[float, ...]) -> None:
    for axes, signs in orientations():
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, axes] * np.multiply(signs, spacing)
        affine[:3, 3] = (12.0, -30.5, 8.25)
        data = coded(image(affine=affine))
        assert_as_nibabel(read(data), data)


@pytest.mark.parametrize(("slope", "intercept"), [(2.5, -1000.0), (-0.003, 4.0), (1.0, 5.0)], ids=str)
def test_slope_and_intercept_give_float32(slope: float, intercept: float) -> None:
    data = coded(image(), scl_slope=slope, scl_inter=intercept)
    volume = read(data)
    assert volume.voxels.dtype == np.float32
    assert_as_nibabel(volume, data)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf], ids=str)
def test_a_slope_that_scales_nothing_leaves_the_integers(slope: float) -> None:
    assert read(coded(image(), scl_slope=slope, scl_inter=3.0)).voxels.dtype == np.int16


def test_sform_goes_before_qform_and_qform_is_read_alone() -> None:
    turned = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 6], [0, 0, -4.0, 7], [0, 0, 0, 1.0]])
    made = image(affine=turned)
    made.set_qform(turned, 1)
    made.set_sform(None, 0)
    alone = made.to_bytes()
    np.testing.assert_allclose(read(alone).geometry.lps_from_voxel, swap_lps_ras(turned), atol=1e-5)
    assert_as_nibabel(read(alone), alone)


def test_lengths_in_metres_become_millimetres_and_that_is_recorded() -> None:
    volume = read(coded(image(affine=AFFINE / [[1000], [1000], [1000], [1]]), xyzt_units=1))
    np.testing.assert_allclose(volume.geometry.spacing_mm, (2.0, 1.5, 4.0), rtol=1e-5)
    assert [note.code for note in volume.notes] == ["converted_to_mm"]


@pytest.mark.parametrize(("unit", "mm"), [(1, 1000.0), (3, 0.001)], ids=["metres", "micrometres"])
@pytest.mark.parametrize(("apart_mm", "is_read"), [(0.05, True), (0.5, False)])
def test_two_forms_are_compared_in_millimetres(unit: int, mm: float, apart_mm: float, is_read: bool) -> None:
    affine = AFFINE / [[mm], [mm], [mm], [1]]
    elsewhere = [*affine[0, :3], affine[0, 3] + apart_mm / mm]
    data = coded(image(affine=affine), xyzt_units=unit, srow_x=elsewhere)
    if is_read:
        np.testing.assert_allclose(read(data).geometry.spacing_mm, (2.0, 1.5, 4.0), rtol=1e-5)
    else:
        refused(data, "bad_geometry", {"limit_mm": SFORM_QFORM_LIMIT})


def test_a_sheared_grid_is_recorded() -> None:
    affine = AFFINE.copy()
    affine[1, 2] = 1.0
    assert [note.code for note in read(coded(image(affine=affine), qform_code=0)).notes] == ["sheared"]


def test_one_of_several_volumes_is_never_guessed() -> None:
    data = coded(image(numbers(shape=(*SHAPE, 4))))
    refused(data, "several_volumes", {"volumes": 4})
    refused(data, "several_volumes", {"asked": 4}, Pick(volume=4))
    for packed in (data, gzip.compress(data)):
        picked = read(packed, Pick(volume=2))
        np.testing.assert_array_equal(picked.voxels[0], expected(data).dataobj[..., 2])
    assert [note.code for note in picked.notes] == ["volume_picked"]


def refused(data: bytes, code: str, details: dict[str, Any] | None = None, pick: Pick | None = None) -> None:
    with pytest.raises(BadInput) as caught:
        read(data, pick)
    assert caught.value.code == code, caught.value
    assert (details or {}).items() <= caught.value.details.items()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "forms apart at a far corner": ({"dim": [3, 5, 4, 3, 1, 1, 1, 1], "srow_z": [0.03, 0, 4.0, 7]}, "bad_geometry"),
    "both codes are 0": ({"sform_code": 0, "qform_code": 0}, "missing_geometry"),
    "forms 2 mm apart": ({"srow_x": [-2.0, 0, 0, 32]}, "bad_geometry"),
    "forms mirrored": ({"srow_x": [2.0, 0, 0, 30]}, "bad_geometry"),
    "a column of zeros": ({"srow_x": [0, 0, 0, 0], "qform_code": 0}, "bad_geometry"),
    "not finite": ({"srow_x": [np.nan, 0, 0, 0], "qform_code": 0}, "bad_geometry"),
    "a quaternion too long": ({"quatern_b": 2.0, "sform_code": 0, "qform_code": 1}, "bad_geometry"),
    "a qform without lengths": ({"pixdim": 0.0, "sform_code": 0, "qform_code": 1}, "bad_geometry"),
    "no axis": ({"dim": 0}, "bad_image"),
    "a negative axis": ({"dim": [3, 5, -4, 3, 1, 1, 1, 1]}, "bad_image"),
    "axes of time and vectors": ({"dim": [5, 5, 2, 1, 2, 3, 1, 1]}, "unsupported_media"),
    "more voxels than there are": ({"dim": [3, 50, 40, 30, 1, 1, 1, 1]}, "truncated_image"),
    "more voxels than are allowed": ({"dim": [3, 8000, 8000, 8000, 1, 1, 1, 1]}, "too_many_pixels"),
    "a side above the limit": ({"dim": [3, 30000, 1, 1, 1, 1, 1, 1]}, "too_many_pixels"),
    "complex numbers": ({"datatype": 32, "bitpix": 64}, "unsupported_media"),
    "colours": ({"datatype": 128, "bitpix": 24}, "unsupported_media"),
    "bits that do not fit the type": ({"bitpix": 8}, "bad_image"),
    "voxels in the header": ({"vox_offset": 40}, "bad_image"),
    "far from the origin": ({"srow_x": [-2.0, 0, 0, 300000.017], "qform_code": 0}, "bad_geometry"),
    "voxels beyond the end": ({"vox_offset": 4000}, "truncated_image"),
    "a pair of files": ({"magic": b"ni1"}, "unsupported_media"),
    "labels": ({"intent_code": 1002}, "unsupported_media"),
    "adds what is no number": ({"scl_slope": 2.0, "scl_inter": np.inf}, "bad_image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_header_that_cannot_be_trusted_is_refused(name: str) -> None:
    fields, code = REFUSED[name]
    data = coded(image(), **fields)
    refused(data, code)
    refused(gzip.compress(data), code)
    (facts,) = describe(data, limits=LIMITS)
    assert facts.refusal is not None
    assert facts.refusal.code == code


@pytest.mark.parametrize(("two", "first"), [(False, 352), (True, 544)], ids=["nifti1", "nifti2"])
def test_no_byte_before_the_end_of_the_header_is_a_voxel(two: bool, first: int) -> None:
    """The four bytes before say whether extensions follow."""
    for offset in range(first - 4, first):
        data = coded(image(two=two), vox_offset=offset)
        refused(data, "bad_image", {"offset": str(float(offset)), "limit": first})
    data = coded(image(two=two), vox_offset=first)
    assert_as_nibabel(read(data), data)


@pytest.mark.parametrize("time", [0, 8, 16, 24], ids=["none", "seconds", "milliseconds", "microseconds"])
def test_a_unit_that_is_none_of_length_is_not_taken_for_millimetres(time: int) -> None:
    for unit in (0, 2):
        assert read(coded(image(), xyzt_units=time | unit)).notes == ()
    for unit in (4, 5, 6, 7):
        refused(coded(image(), xyzt_units=time | unit), "bad_geometry", {"unit": unit})


def test_every_cut_is_refused() -> None:
    data = coded(image(numbers(shape=(20, 20, 4))))
    packed = gzip.compress(data, mtime=0)
    for at in (360, 400, len(data) - 1):
        refused(data[:at], "truncated_image")
    for at in (len(packed) // 2, len(packed) - 9, len(packed) - 1):
        refused(packed[:at], "truncated_image")
    broken = bytearray(packed)
    broken[-6] ^= 1  # its checksum
    refused(bytes(broken), "bad_image")


def test_a_bomb_is_refused_by_its_header() -> None:
    made = coded(image(), dim=[3, 512, 512, 4, 1, 1, 1, 1])
    bomb = gzip.compress(made[:352] + bytes(2 * 512 * 512 * 4), 9)
    for limits in (VolumeLimits(expansion_from_bytes=2**20), VolumeLimits(max_unpacked_bytes=2**20)):
        with pytest.raises(BadInput) as caught:
            read_volume(bomb, limits=limits)
        assert caught.value.code == "too_many_bytes"
    assert read(bomb).geometry.shape == (512, 512, 4)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_file_that_goes_on_behind_its_voxels_is_refused(packed: bool) -> None:
    data = coded(image()) + bytes(8 * 2**20)
    refused(gzip.compress(data) if packed else data, "bad_image")


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_read_or_are_refused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = coded(image())
    for packed in (False, True):
        for _ in range(100):
            mutated = bytearray(gzip.compress(data, 1) if packed else data)
            for at in rng.integers(0, len(mutated), rng.integers(1, 5)):
                mutated[at] = rng.integers(0, 256)
            try:
                volume = read(bytes(mutated))
            except BadInput:
                continue
            assert volume.voxels.size <= LIMITS.max_voxels


REAL = {
    "chris_t1.nii.gz": None,
    "MR_Gd.nii.gz": None,
    "example_ct_sm.nii.gz": None,
    "example_ct_sm_T300_output.nii.gz": None,
    "anatomical.nii": None,
    "example_nifti2.nii.gz": 1,
    "example4d.nii.gz": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_files_read_as_nibabel_reads_them(test_data: Path, name: str) -> None:
    path, volume = test_data / "nifti" / name, REAL[name]
    made: Any = nibabel.load(path)
    if volume is not None:
        with pytest.raises(BadInput, match="which one is meant"):
            read_volume(path, limits=LIMITS)
    found = read_volume(path, limits=LIMITS, pick=Pick(volume=volume))
    wanted = np.asarray(made.dataobj)[..., volume] if volume is not None else np.asarray(made.dataobj)
    np.testing.assert_allclose(found.voxels[0], wanted, rtol=1e-6)
    np.testing.assert_array_equal(swap_lps_ras(found.geometry.lps_from_voxel), made.affine)
