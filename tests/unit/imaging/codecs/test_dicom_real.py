"""Series from scanners, whole and damaged: the same code or the same volume as outside readers and references give."""

import importlib
import io
import stat
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from isocenter.core.errors import BadInput
from isocenter.imaging.codecs.volume_files import Pick, describe, read_volume
from isocenter.imaging.geometry import swap_lps_ras
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

LIMITS = VolumeLimits()
Files: TypeAlias = dict[str, bytes]
Damage: TypeAlias = Callable[[Files], Any]
TAKEN = 12
"""Of the 196 slices, next to each other: what happens to a part happens to the whole."""

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def values_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real headers hold codes that are too long; pydicom, which writes the damaged ones, would warn of them."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)


def read(source: Any, volume: int | None = None) -> Volume:
    return read_volume(source, limits=LIMITS, pick=Pick(volume=volume))


def test_a_t1_of_196_slices_is_what_itk_makes_of_it(test_data: Path) -> None:
    sitk: Any = pytest.importorskip("SimpleITK")
    folder = test_data / "mr_t1_head" / "dicom"
    volume = read(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(volume.voxels[0].transpose(2, 1, 0), sitk.GetArrayFromImage(image))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(volume.geometry.lps_from_voxel, affine, atol=1e-9)
    assert volume.geometry.shape == (256, 256, 196)
    np.testing.assert_allclose(volume.geometry.spacing_mm, (1.0547, 1.0547, 1.2), rtol=1e-12)


def test_a_tilted_gantry_is_refused_with_its_uneven_gaps(test_data: Path) -> None:
    with pytest.raises(BadInput) as caught:
        read(test_data / "ct_gantry_tilt")
    assert caught.value.code == "gantry_tilt"
    assert caught.value.details["tilt_deg"] == pytest.approx(18.5, abs=0.01)
    assert caught.value.details["gaps_mm"] == [1.08, 4.0, 7.0]


REFERENCES = [
    ("Philips/IM_0027_fMAP.dcm", 0, 2, "Philips_WIP_B0_NS_801_e1", None),
    ("Philips/IM_0027_fMAP.dcm", 1, 2, "Philips_WIP_B0_NS_801_e2_fieldmaphz", None),
    *(("Siemens/XA10", time, 4, "Siemens_REST1_w_SMS_PF7-8_6", time) for time in range(4)),
]


@pytest.mark.parametrize(("source", "volume", "count", "reference", "time"), REFERENCES)
def test_enhanced_files_are_split_into_the_volumes_of_the_reference(
    test_data: Path, source: str, volume: int, count: int, reference: str, time: int | None
) -> None:
    path = test_data / "mr_enhanced" / "dicom" / source
    with pytest.raises(BadInput) as caught:
        read(path)
    assert (caught.value.code, caught.value.details) == ("several_volumes", {"volumes": count})
    found = read(path, volume)
    made: Any = nibabel.load(test_data / "mr_enhanced" / "reference" / f"{reference}.nii")
    wanted = np.asarray(made.dataobj) if time is None else np.asarray(made.dataobj)[..., time]
    scale = made.dataobj.slope
    if reference.endswith("e1"):  # its maker scales by a private tag; the standard one is that of the frame
        wanted = wanted * (1.27985347985347 / scale)
    placed = np.linalg.inv(made.affine) @ swap_lps_ras(found.geometry.lps_from_voxel)
    indices = placed[:3, :3] @ np.indices(found.geometry.shape).reshape(3, -1) + placed[:3, 3:]
    np.testing.assert_allclose(indices, np.rint(indices), atol=1e-4)
    values = wanted[tuple(np.rint(indices).astype(int))].reshape(found.geometry.shape)
    np.testing.assert_allclose(found.voxels[0], values, atol=0.01)


@cache
def slices_of(folder: Path) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(folder.glob("*.dcm"))[60 : 60 + TAKEN])


def changed(data: bytes, change: Callable[[Dataset], Any], syntax: UID | None = None) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(data))
    change(dataset)
    if syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        dataset.compress(syntax)
    elif syntax is not None:
        dataset.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def to_all(change: Callable[[Dataset], Any], syntax: UID | None = None) -> Damage:
    def damage(files: Files) -> None:
        files.update({name: changed(data, change, syntax) for name, data in files.items()})

    return damage


def to_one(change: Callable[[Dataset], Any]) -> Damage:
    def damage(files: Files) -> None:
        files["07.dcm"] = changed(files["07.dcm"], change)

    return damage


def nothing(_: Dataset) -> None:
    pass


def put(**values: Any) -> Callable[[Dataset], Any]:
    def change(dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def without(*keywords: str) -> Callable[[Dataset], Any]:
    def change(dataset: Dataset) -> None:
        for keyword in keywords:
            delattr(dataset, keyword)

    return change


def tilt(dataset: Dataset) -> None:
    x, y, z = map(float, dataset.ImagePositionPatient)
    dataset.ImagePositionPatient = [x, y + 0.1 * x, z]


def shuffle(files: Files) -> None:
    names = [*np.random.default_rng(1).permutation([*files])]
    numbers = iter(np.random.default_rng(2).permutation(500))
    both = dict(zip(map(str, names), files.values(), strict=True))
    files.clear()
    files.update({name: changed(data, put(InstanceNumber=int(next(numbers)))) for name, data in both.items()})


def turn_all(dataset: Dataset) -> None:
    """The whole scan, turned a quarter about z: another place, the same voxels."""
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    directions = np.array(dataset.ImageOrientationPatient, float)
    dataset.ImageOrientationPatient = [*map(float, (*(turn @ directions[:3]), *(turn @ directions[3:])))]
    dataset.ImagePositionPatient = [*map(float, turn @ np.array(dataset.ImagePositionPatient, float))]


def half(dataset: Dataset) -> None:
    dataset.SeriesInstanceUID = generate_uid() if int(dataset.InstanceNumber) % 2 else dataset.SeriesInstanceUID


def invert(dataset: Dataset) -> None:
    dataset.PhotometricInterpretation = "MONOCHROME1"


DAMAGES: dict[str, tuple[Damage, str]] = {
    "drop one": (lambda files: files.pop("07.dcm"), "missing_slices"),
    "drop five": (lambda files: [files.pop(f"{at:02d}.dcm") for at in range(4, 9)], "missing_slices"),
    "drop every other": (lambda files: [files.pop(f"{at:02d}.dcm") for at in range(0, TAKEN, 2)], "missing_slices"),
    "drop all but one": (lambda files: [files.pop(f"{at:02d}.dcm") for at in range(1, TAKEN)], "missing_slices"),
    "duplicate": (lambda files: files.update({"copy.dcm": files["07.dcm"]}), "duplicate_slices"),
    "duplicate renamed": (
        lambda files: files.update({"copy.dcm": changed(files["07.dcm"], put(SOPInstanceUID=generate_uid()))}),
        "duplicate_slices",
    ),
    "shuffle": (shuffle, "same"),
    "tilt": (to_all(tilt), "gantry_tilt"),
    "re-orient one": (to_one(put(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])), "mixed_orientation"),
    "re-orient all": (to_all(turn_all), "same voxels"),
    "mix two series": (to_all(half), "mixed_series"),
    "mix frames of reference": (to_one(put(FrameOfReferenceUID=generate_uid())), "mixed_frames_of_reference"),
    "mix spacings": (to_one(put(PixelSpacing=[1.0547, 1.2])), "mixed_sizes"),
    "truncate pixels": (lambda files: files.update({"07.dcm": files["07.dcm"][:-1000]}), "truncated_image"),
    "truncate to the preamble": (lambda files: files.update({"07.dcm": files["07.dcm"][:132]}), "truncated_image"),
    "truncate to nothing": (lambda files: files.update({"07.dcm": b""}), "truncated_image"),
    "re-encode as RLE": (to_all(nothing, RLELossless), "same"),
    "re-encode as JPEG 2000": (to_all(nothing, JPEG2000Lossless), "same"),
    "re-encode as JPEG-LS": (to_all(nothing, JPEGLSLossless), "same"),
    "re-encode deflated": (to_all(nothing, DeflatedExplicitVRLittleEndian), "same"),
    "re-encode implicit": (to_all(nothing, ImplicitVRLittleEndian), "same"),
    "re-encode inverted": (to_all(invert), "inverted"),
    "strip positions": (to_one(without("ImagePositionPatient")), "missing_geometry"),
    "strip spacing": (to_all(without("PixelSpacing")), "missing_geometry"),
    "strip pixels": (to_one(without("PixelData")), "truncated_image"),
    "strip what is not needed": (
        to_all(without("InstanceNumber", "SliceLocation", "SliceThickness", "SpacingBetweenSlices", "WindowCenter")),
        "same",
    ),
    "lie about rows": (to_all(put(Rows=512)), "truncated_image"),
    "lie about columns": (to_all(put(Columns=128)), "bad_image"),
    "lie about bits": (to_one(put(BitsAllocated=32, BitsStored=32, HighBit=31)), "truncated_image"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_t1_gives_the_right_code_or_the_right_volume(test_data: Path, name: str) -> None:
    whole = {f"{at:02d}.dcm": data for at, data in enumerate(slices_of(test_data / "mr_t1_head" / "dicom"))}
    damage, wanted = DAMAGES[name]
    files = dict(whole)
    damage(files)
    if wanted in ("same", "same voxels", "inverted"):
        expected, found = read(whole), read(files)
        values = -1 - expected.voxels if wanted == "inverted" else expected.voxels
        np.testing.assert_array_equal(found.voxels, values)
        if wanted != "same voxels":
            np.testing.assert_array_equal(found.geometry.lps_from_voxel, expected.geometry.lps_from_voxel)
    else:
        with pytest.raises(BadInput) as caught:
            read(files)
        assert caught.value.code == wanted, caught.value


def zipped(files: Mapping[Any, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def test_a_zipped_t1_is_the_same_and_hostile_entries_are_refused(test_data: Path, tmp_path: Path) -> None:
    whole = {f"{at:02d}.dcm": data for at, data in enumerate(slices_of(test_data / "mr_t1_head" / "dicom"))}
    path = tmp_path / "scan.zip"
    path.write_bytes(zipped(whole))
    np.testing.assert_array_equal(read(path).voxels, read(whole).voxels)
    link = zipfile.ZipInfo("link.dcm")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for hostile, code in (
        (zipped(whole | {"../12.dcm": b""}), "unsafe_path"),
        (zipped(whole | {"/12.dcm": b""}), "unsafe_path"),
        (zipped(whole | {link: b"/etc/passwd"}), "unsafe_path"),
        (zipped(whole | {"zeros.dcm": bytes(8 * 2**20)}), "unsupported_media"),
    ):
        with pytest.raises(BadInput) as caught:
            read(hostile)
        assert caught.value.code == code
    with pytest.raises(BadInput) as caught:
        read_volume(zipped(whole | {"zeros.dcm": bytes(8 * 2**20)}), limits=VolumeLimits(max_unpacked_bytes=2**22))
    assert caught.value.code == "too_many_bytes"


def enhanced_copy(files: Files) -> bytes:
    """The series as an independent library converts it."""
    legacy: Any = importlib.import_module("highdicom.legacy")
    datasets = [pydicom.dcmread(io.BytesIO(data)) for data in files.values()]
    made = legacy.LegacyConvertedEnhancedMRImage(
        datasets,
        series_instance_uid=generate_uid(),
        series_number=99,
        sop_instance_uid=generate_uid(),
        instance_number=1,
    )
    file = io.BytesIO()
    pydicom.dcmwrite(file, made, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_an_enhanced_copy_by_highdicom_is_identical(test_data: Path) -> None:
    whole = {f"{at:02d}.dcm": data for at, data in enumerate(slices_of(test_data / "mr_t1_head" / "dicom"))}
    classic, multi = read(whole), read(enhanced_copy(whole))
    np.testing.assert_array_equal(classic.voxels, multi.voxels)
    np.testing.assert_array_equal(classic.geometry.lps_from_voxel, multi.geometry.lps_from_voxel)


def test_the_description_names_what_would_be_refused(test_data: Path) -> None:
    (t1,) = describe(test_data / "mr_t1_head", limits=LIMITS)
    assert (t1.modality, t1.files, t1.volumes[0].axcodes, t1.volumes[0].refusal) == ("MR", 196, "PIR", None)
    (ct,) = describe(test_data / "ct_gantry_tilt", limits=LIMITS)
    assert ct.volumes[0].refusal is not None
    assert ct.volumes[0].refusal.code == "gantry_tilt"
