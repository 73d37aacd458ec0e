"""NRRD and MetaImage as ITK reads them; detached, placeless and lying headers are refused."""

import gzip
import importlib
import itertools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.errors import BadInput
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.volume_files import Pick, describe, read_volume
from isocenter.imaging.limits import VolumeLimits

LIMITS = VolumeLimits()
VOXELS = np.random.default_rng(4).integers(0, 1000, (3, 4, 5)).astype("<i2")
"""k, j, i: as the bytes lie."""


def itk() -> Any:
    try:
        return importlib.import_module("SimpleITK")
    except ImportError as error:
        return pytest.skip(f"SimpleITK is not installed: {error.name}")


def lps(image: Any) -> Array:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return affine


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "packed"])
@pytest.mark.parametrize("suffix", ["nrrd", "mha", "nii"])
def test_what_itk_writes_is_read_as_itk_reads_it(tmp_path: Path, suffix: str, compressed: bool, dtype: Any) -> None:
    sitk = itk()
    for at, axes in enumerate(itertools.permutations(range(3))):
        image = sitk.GetImageFromArray(VOXELS.astype(dtype))
        direction = np.eye(3)[:, axes] * ((1, -1, 1) if at % 2 else (-1, 1, 1))
        image.SetDirection(direction.ravel().tolist())
        image.SetSpacing((4.0, 6.4, 1.2))
        image.SetOrigin((-10.5, 20.25, 3.0))
        path = tmp_path / f"{at}.{suffix}{'.gz' if compressed and suffix == 'nii' else ''}"
        sitk.WriteImage(image, str(path), compressed)
        volume = read_volume(path, limits=LIMITS)
        np.testing.assert_array_equal(volume.voxels[0].transpose(2, 1, 0), sitk.GetArrayFromImage(sitk.ReadImage(path)))
        np.testing.assert_allclose(volume.geometry.lps_from_voxel, lps(image), atol=1e-5)
        assert volume.voxels.dtype == dtype


def nrrd(data: bytes = VOXELS.tobytes(), **fields: str) -> bytes:
    said = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "5 4 3",
        "space directions": "(2,0,0) (0,3,0) (0,0,4)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(1,2,3)",
    } | {name.replace("_", " "): value for name, value in fields.items()}
    lines = "".join(f"{name}: {value}\n" for name, value in said.items() if value)
    return f"NRRD0004\n# a comment\n{lines}key:=value\n\n".encode() + data


def mha(data: bytes = VOXELS.tobytes(), **fields: str) -> bytes:
    said = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "1 2 3",
        "ElementSpacing": "2 3 4",
        "DimSize": "5 4 3",
        "ElementType": "MET_SHORT",
    } | fields
    last = said.pop("ElementDataFile", "LOCAL")
    lines = "".join(f"{name} = {value}\n" for name, value in said.items() if value)
    return f"{lines}ElementDataFile = {last}\n".encode() + data


def test_both_say_the_same_of_one_scan() -> None:
    for data in (nrrd(), mha(), nrrd(gzip.compress(VOXELS.tobytes()), encoding="gzip"),
                 mha(zlib.compress(VOXELS.tobytes()), CompressedData="True")):  # fmt: skip
        volume = read_volume(data, limits=LIMITS)
        np.testing.assert_array_equal(volume.voxels[0].transpose(2, 1, 0), VOXELS)
        assert volume.geometry.spacing_mm == (2.0, 3.0, 4.0)
        assert volume.geometry.position_lps_mm((0, 0, 0)) == (1.0, 2.0, 3.0)
        assert volume.geometry.axcodes == "LPS"


def test_big_endian_and_other_spaces() -> None:
    swapped = VOXELS.astype(">i2").tobytes()
    for data in (nrrd(swapped, endian="big"), mha(swapped, BinaryDataByteOrderMSB="True")):
        np.testing.assert_array_equal(read_volume(data, limits=LIMITS).voxels[0].transpose(2, 1, 0), VOXELS)
    assert read_volume(nrrd(space="RAS"), limits=LIMITS).geometry.axcodes == "RAS"
    assert read_volume(nrrd(space="left-anterior-superior"), limits=LIMITS).geometry.axcodes == "LAS"


@pytest.mark.parametrize("first", [True, False], ids=["interleaved", "one after the other"])
def test_one_of_several_volumes_must_be_named(first: bool) -> None:
    both = np.stack([VOXELS, VOXELS + 1], axis=-1 if first else 0)
    sizes, kinds = ("2 5 4 3", "none (2,0,0) (0,3,0) (0,0,4)") if first else ("5 4 3 2", "(2,0,0) (0,3,0) (0,0,4) none")
    data = nrrd(both.tobytes(), dimension="4", sizes=sizes, space_directions=kinds)
    refused(data, "several_volumes")
    picked = read_volume(data, limits=LIMITS, pick=Pick(volume=1))
    np.testing.assert_array_equal(picked.voxels[0].transpose(2, 1, 0), VOXELS + 1)


def refused(data: bytes, code: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_volume(data, limits=LIMITS)
    assert caught.value.code == code, caught.value


REFUSED = {
    "nrrd, voxels elsewhere": (nrrd(data_file="../secret.raw"), "unsupported_media"),
    "nrrd, text": (nrrd(encoding="ascii"), "unsupported_media"),
    "nrrd, skips": (nrrd(byte_skip="-1"), "unsupported_media"),
    "nrrd, blocks": (nrrd(type="block"), "unsupported_media"),
    "nrrd, a segmentation": (nrrd().replace(b"sizes", b"Segment0_ID:=tumor\nsizes"), "unsupported_media"),
    "nrrd, two axes": (nrrd(dimension="2", sizes="5 4"), "unsupported_media"),
    "nrrd, no space": (nrrd(space=""), "missing_geometry"),
    "nrrd, no directions": (nrrd(space_directions=""), "missing_geometry"),
    "nrrd, no origin": (nrrd(space_origin=""), "missing_geometry"),
    "nrrd, flat": (nrrd(space_directions="(2,0,0) (4,0,0) (0,0,4)"), "bad_geometry"),
    "nrrd, not numbers": (nrrd(space_origin="(a,b,c)"), "bad_geometry"),
    "nrrd, no byte order": (nrrd(endian=""), "bad_image"),
    "nrrd, cut": (nrrd()[:-1], "truncated_image"),
    "nrrd, longer": (nrrd() + b"x", "bad_image"),
    "nrrd, within its header": (nrrd()[:80], "truncated_image"),
    "nrrd, packed and cut": (nrrd(gzip.compress(VOXELS.tobytes())[:-20], encoding="gzip"), "truncated_image"),
    "nrrd, packed and longer": (nrrd(gzip.compress(bytes(999)), encoding="gzip"), "bad_image"),
    "nrrd, too large": (nrrd(sizes="8000 8000 8000"), "too_many_pixels"),
    "nrrd, of size 0": (nrrd(sizes="5 4 0"), "bad_image"),
    "nrrd, a bomb": (nrrd(gzip.compress(bytes(10)), sizes="500 500 500", encoding="gzip"), "too_many_bytes"),
    "nrrd, lengths in pixels": (nrrd(space_units='"pixel" "pixel" "pixel"'), "bad_geometry"),
    "nrrd, lengths of two units": (nrrd(space_units='"mm" "mm" "cm"'), "bad_geometry"),
    "nrrd, two spaces": (nrrd().replace(b"sizes", b"space: RAS\nsizes"), "bad_image"),
    "nrrd, far from the origin": (nrrd(space_origin="(1,1e7,3)"), "bad_geometry"),
    "nrrd, spacings beside directions": (nrrd(spacings="2 3 5"), "bad_image"),
    "nrrd, spacings of two axes": (nrrd(spacings="2 3"), "bad_image"),
    "mha, far from the origin": (mha(Offset="1 2 -1e15"), "bad_geometry"),
    "mha, two byte orders": (mha(ElementByteOrderMSB="True"), "bad_image"),
    "mha, two other byte orders": (mha(BinaryDataByteOrderMSB="T", ElementByteOrderMSB="F"), "bad_image"),
    "mha, two offsets": (mha().replace(b"NDims", b"Offset = 9 9 9\nNDims"), "bad_image"),
    "mha, two matrices": (mha().replace(b"NDims", b"TransformMatrix = -1 0 0 0 1 0 0 0 1\nNDims"), "bad_image"),
    "mha, two sizes": (mha().replace(b"NDims", b"DimSize = 3 4 5\nNDims"), "bad_image"),
    "mha, offset and position": (mha(Position="1 2 4"), "bad_image"),
    "mha, offset and origin": (mha(Origin="-1 -2 3"), "bad_image"),
    "mha, matrix and rotation": (mha(Rotation="0 1 0 1 0 0 0 0 1"), "bad_image"),
    "mha, rotation and orientation": (
        mha(TransformMatrix="", Rotation="0 1 0 1 0 0 0 0 1", Orientation="1 0 0 0 1 0 0 0 1"), "bad_image"
    ),
    "mha, spacing and size": (mha(ElementSize="2 3 9"), "bad_image"),
    "mha, sizes of voxels alone": (mha(ElementSpacing="", ElementSize="2 3 4"), "missing_geometry"),
    "mha, lengths in parsecs": (mha(DistanceUnits="pc"), "bad_geometry"),
    "mha, values scaled": (mha(ElementToIntensityFunctionSlope="2"), "unsupported_media"),
    "mha, values moved": (mha(ElementToIntensityFunctionOffset="-1024"), "unsupported_media"),
    "mha, lengths in directions": (mha(TransformMatrix="2 0 0 0 2 0 0 0 2"), "bad_geometry"),
    "mha, voxels elsewhere": (mha(ElementDataFile="../secret.raw"), "unsupported_media"),
    "mha, a list of files": (mha(ElementDataFile="LIST"), "unsupported_media"),
    "mha, colours": (mha(ElementNumberOfChannels="3"), "unsupported_media"),
    "mha, text": (mha(BinaryData="False"), "unsupported_media"),
    "mha, another type": (mha(ElementType="MET_STRING"), "unsupported_media"),
    "mha, no directions": (mha(TransformMatrix=""), "missing_geometry"),
    "mha, no spacing": (mha(ElementSpacing=""), "missing_geometry"),
    "mha, spacing 0": (mha(ElementSpacing="0 1 1"), "bad_geometry"),
    "mha, not finite": (mha(Offset="nan 0 0"), "bad_geometry"),
    "mha, not numbers": (mha(Offset="a b c"), "bad_image"),
    "mha, cut": (mha()[:-1], "truncated_image"),
    "mha, within its header": (mha()[:60], "truncated_image"),
    "mha, packed and broken": (mha(b"not zlib", CompressedData="True"), "bad_image"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("unit", "mm"), [("mm", 1), ("cm", 10), ("m", 1000), ("um", 0.001), ("\u00b5m", 0.001), ("", 1)]
)
def test_lengths_of_other_units_become_millimetres_and_that_is_recorded(unit: str, mm: float) -> None:
    for data in (nrrd(space_units=" ".join([f'"{unit}"'] * 3)), mha(DistanceUnits=unit)):
        volume = read_volume(data, limits=LIMITS)
        np.testing.assert_allclose(volume.geometry.spacing_mm, np.multiply((2, 3, 4), mm))
        np.testing.assert_allclose(volume.geometry.position_lps_mm((0, 0, 0)), np.multiply((1, 2, 3), mm))
        assert [note.code for note in volume.notes] == ["converted_to_mm"] * (mm != 1)


@pytest.mark.parametrize("flag", ["True", "T", "t", "1"])
def test_flags_are_those_that_metaio_takes_for_true(flag: str) -> None:
    volume = read_volume(mha(VOXELS.astype(">i2").tobytes(), BinaryDataByteOrderMSB=flag), limits=LIMITS)
    np.testing.assert_array_equal(volume.voxels[0].transpose(2, 1, 0), VOXELS)


def test_what_a_header_says_twice_alike_is_said_once() -> None:
    for data in (
        nrrd(spacings="2 3 NaN"),
        mha().replace(b"NDims", b"Offset = 1 2 3\nNDims"),
        mha(ElementByteOrderMSB="False"),
        mha(Position="1.0 2 3"),
        mha(ElementSize="2 3 4.000001", Orientation="1 0 0 0 1 0 0 0 1"),
    ):
        np.testing.assert_array_equal(read_volume(data, limits=LIMITS).voxels[0].transpose(2, 1, 0), VOXELS)


@pytest.mark.parametrize("name", REFUSED)
def test_a_header_that_cannot_be_trusted_is_refused(name: str) -> None:
    data, code = REFUSED[name]
    refused(data, code)


@pytest.mark.parametrize("whole", [nrrd(), mha(), mha(zlib.compress(VOXELS.tobytes()), CompressedData="True")],
                         ids=["nrrd", "mha", "packed"])  # fmt: skip
def test_mutated_files_read_or_are_refused(whole: bytes) -> None:
    rng = np.random.default_rng(9)
    for _ in range(100):
        mutated = bytearray(whole)
        for at in rng.integers(0, len(mutated), rng.integers(1, 5)):
            mutated[at] = rng.integers(0, 256)
        try:
            read_volume(bytes(mutated), limits=LIMITS)
        except BadInput:
            continue
        assert describe(bytes(mutated), limits=LIMITS)[0].refusal is None
