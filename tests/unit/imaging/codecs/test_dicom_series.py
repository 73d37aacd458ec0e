"""A DICOM series is one volume in its place, or it is refused with what was measured."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_files import (
    AXIAL,
    COLUMNS,
    ROWS,
    SLICES,
    SPACING_MM,
    STEP_MM,
    Files,
    as_ct,
    coded,
    enhanced,
    every,
    files,
    slices,
    voxels,
)
from isocenter.core.errors import BadInput
from isocenter.imaging.codecs.volume_files import Pick, describe, read_series, read_volume
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

LIMITS = VolumeLimits()
Damage = Callable[[list[Dataset]], Any]


def read(source: Files, pick: Pick | None = None) -> Volume:
    return read_volume(source, limits=LIMITS, pick=pick)


def refused(source: Files, code: str, pick: Pick | None = None) -> BadInput:
    """The refusal of reading; the description says the same, without raising."""
    with pytest.raises(BadInput) as caught:
        read(source, pick)
    assert caught.value.code == code, caught.value
    if pick is None and code not in ("mixed_series", "several_volumes"):
        facts = describe(source, limits=LIMITS)
        said = [series.refusal for series in facts] + [each.refusal for series in facts for each in series.volumes]
        assert code in [each.code for each in said if each]
    return caught.value


def test_a_series_comes_out_in_its_place_whatever_its_files_are_called() -> None:
    volume = read(files(slices()))
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels[0], voxels().transpose(2, 1, 0))
    assert volume.geometry.spacing_mm == (SPACING_MM[1], SPACING_MM[0], STEP_MM)
    assert volume.geometry.axcodes == "LPS"
    assert volume.geometry.position_lps_mm((0, 0, 0)) == (-7.0, 11.0, 30.0)
    assert volume.geometry.position_lps_mm((1, 2, 3)) == (-7.0 + 6.4, 11.0 + 2 * 4.0, 30.0 + 3 * STEP_MM)
    assert volume.notes == ()


def test_instance_numbers_do_not_decide_about_order() -> None:
    def renumber(each: Dataset) -> None:
        each.InstanceNumber = int(np.random.default_rng(each.InstanceNumber).integers(1, 1000))

    np.testing.assert_array_equal(read(files(every(renumber, slices()))).voxels[0], voxels().transpose(2, 1, 0))


def turned_by(axes: tuple[int, int, int], signs: tuple[int, int, int]) -> list[float]:
    matrix = np.eye(3)[list(axes)] * signs
    return [float(each) for each in (*matrix[0], *matrix[1])]


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], ids=str)
def test_every_voxel_keeps_its_millimetres_in_every_orientation(axes: tuple[int, int, int]) -> None:
    for signs in ((1, 1, 1), (1, -1, 1), (-1, 1, 1), (-1, -1, 1)):
        made = slices(directions=turned_by(axes, signs))
        volume = read(files(made))
        for at, each in enumerate(made):
            for row, column in ((0, 0), (ROWS - 1, 2), (3, COLUMNS - 1)):
                # PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1
                position = (
                    np.array(each.ImagePositionPatient, float)
                    + np.array(each.ImageOrientationPatient[:3], float) * column * SPACING_MM[1]
                    + np.array(each.ImageOrientationPatient[3:], float) * row * SPACING_MM[0]
                )
                index = np.linalg.solve(
                    volume.geometry.lps_from_voxel[:3, :3], position - volume.geometry.lps_from_voxel[:3, 3]
                )
                i, j, k = np.rint(index).astype(int)
                np.testing.assert_allclose(index, (i, j, k), atol=1e-6)
                assert volume.voxels[0, i, j, k] == voxels()[at, row, column]


def oblique() -> list[float]:
    x = np.array([0.9, 0.3, -0.1])
    x /= np.linalg.norm(x)
    y = np.cross([0.1, -0.2, 1.0], x)
    return [*map(float, x), *map(float, y / np.linalg.norm(y))]


def test_oblique_slices_of_rounded_numbers_are_a_volume() -> None:
    volume = read(files(slices(directions=[round(each, 5) for each in oblique()])))
    np.testing.assert_allclose(volume.geometry.spacing_mm, (6.4, 4.0, 2.5), rtol=1e-4)


def move(millimetres: tuple[float, float, float]) -> Callable[[Dataset], None]:
    def moved(each: Dataset) -> None:
        each.ImagePositionPatient = [*map(float, np.add(each.ImagePositionPatient, millimetres))]

    return moved


def hair(each: Dataset) -> Dataset:
    beside = slices()[0]
    beside.ImagePositionPatient = [*map(float, np.add(each.ImagePositionPatient, (0, 0, 0.02)))]
    return beside


def tilted(made: list[Dataset], degrees: float) -> list[Dataset]:
    for at, each in enumerate(made):
        move((0.0, float(np.tan(np.radians(degrees)) * STEP_MM * at), 0.0))(each)
    return made


def put(keyword: str, value: Any, at: slice = slice(None)) -> Damage:
    def damage(made: list[Dataset]) -> None:
        for each in made[at]:
            setattr(each, keyword, value)

    return damage


def without(keyword: str, at: slice = slice(None)) -> Damage:
    def damage(made: list[Dataset]) -> None:
        for each in made[at]:
            delattr(each, keyword)

    return damage


def cropped(made: list[Dataset]) -> None:
    made[3].Rows, made[3].PixelData = ROWS - 1, made[3].PixelData[: 2 * COLUMNS * (ROWS - 1)]


ONE = slice(2, 3)
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a slice missing": (lambda made: made.pop(4), "missing_slices"),
    "two neighbours missing": (lambda made: (made.pop(4), made.pop(4)), "missing_slices"),
    "one slice alone": (lambda made: [made.pop() for _ in made[1:]], "missing_slices"),
    "a slice 1.2 % of a gap off": (lambda made: move((0, 0, 0.03))(made[3]), "missing_slices"),
    "every other slice": (
        lambda made: (put("SpacingBetweenSlices", STEP_MM)(made), [made.pop(at) for at in (6, 4, 2, 0)]),
        "missing_slices",
    ),
    "a slice twice": (lambda made: made.append(made[4]), "duplicate_slices"),
    "every slice twice": (lambda made: made.extend(slices()), "duplicate_slices"),
    "two slices a hair apart": (lambda made: made.append(hair(made[3])), "duplicate_slices"),
    "two slices at one place": (
        lambda made: put("ImagePositionPatient", list(made[3].ImagePositionPatient), ONE)(made),
        "duplicate_slices",
    ),
    "tilted 18.5 degrees": (lambda made: tilted(made, 18.5), "gantry_tilt"),
    "tilted 1 degree": (lambda made: tilted(made, 1.0), "gantry_tilt"),
    "slices beside each other": (lambda made: put("ImageOrientationPatient", [0, 0, 1, 1, 0, 0])(made), "gantry_tilt"),
    "a slice aside": (lambda made: move((3.0, 0, 0))(made[3]), "bad_geometry"),
    "a slice turned": (put("ImageOrientationPatient", [0, 1, 0, -1, 0, 0], ONE), "mixed_orientation"),
    "a slice mirrored": (put("ImageOrientationPatient", [-1, 0, 0, 0, 1, 0], ONE), "mixed_orientation"),
    "half of them sagittal": (
        put("ImageOrientationPatient", [0, 1, 0, 0, 0, -1], slice(0, 4)),
        "mixed_orientation",
    ),
    "directions not at right angles": (put("ImageOrientationPatient", [1, 0, 0, 0.5, 0.8, 0]), "bad_geometry"),
    "directions too long": (put("ImageOrientationPatient", [2, 0, 0, 0, 2, 0], ONE), "bad_geometry"),
    "two series": (put("SeriesInstanceUID", generate_uid(), slice(0, 3)), "mixed_series"),
    "a slice without its series": (without("SeriesInstanceUID", ONE), "mixed_series"),
    "two patients": (put("PatientID", "18", slice(0, 3)), "mixed_series"),
    "two modalities": (lambda made: as_ct(made[2]), "mixed_series"),
    "shown in two ways": (put("PhotometricInterpretation", "MONOCHROME1", ONE), "mixed_series"),
    "two origins": (put("FrameOfReferenceUID", generate_uid(), ONE), "mixed_frames_of_reference"),
    "a slice smaller": (cropped, "mixed_sizes"),
    "a slice of other pixels": (put("PixelSpacing", [4.0, 6.5], ONE), "mixed_sizes"),
    "spacing swapped once": (put("PixelSpacing", [6.4, 4.0], ONE), "mixed_sizes"),
    "localizers": (put("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
    "no position": (without("ImagePositionPatient", ONE), "missing_geometry"),
    "no orientation": (without("ImageOrientationPatient"), "missing_geometry"),
    "no spacing": (without("PixelSpacing"), "missing_geometry"),
    "no spacing of one": (without("PixelSpacing", ONE), "missing_geometry"),
    "spacing 0": (put("PixelSpacing", [0, 4.0]), "bad_geometry"),
    "far from the origin": (lambda made: [move((0, 1e15, 0))(each) for each in made], "bad_geometry"),
    "half a position": (put("ImagePositionPatient", [1.0, 2.0], ONE), "bad_geometry"),
    "no rows": (without("Rows", ONE), "bad_image"),
    "no word on signs": (without("PixelRepresentation", ONE), "bad_image"),
    "more rows than pixels": (put("Rows", 4 * ROWS), "truncated_image"),
    "fewer rows than pixels": (put("Rows", ROWS - 2), "bad_image"),
    "more bits than there are": (put("BitsStored", 17, ONE), "bad_image"),
    "more pixels than are allowed": (put("Rows", 65535), "too_many_pixels"),
    "colour": (put("PhotometricInterpretation", "RGB"), "unsupported_media"),
    "no pixels": (without("PixelData", ONE), "truncated_image"),
    "more frames than places": (put("NumberOfFrames", 0x7FFF), "too_many_pixels"),
    "values times 0": (put("RescaleSlope", 0), "bad_image"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_series_is_refused(name: str) -> None:
    damage, code = DAMAGES[name]
    made = slices()
    if code == "too_many_pixels":
        made = made[:1]
    damage(made)
    error = refused(files(made), code) if code != "too_many_pixels" else _within(files(made), code)
    assert "Doe" not in f"{error.message}{error.details}"


def _within(source: Files, code: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        read_volume(source, limits=VolumeLimits(max_voxels=10_000))
    assert caught.value.code == code
    return caught.value


def test_what_is_missing_is_named_with_its_place() -> None:
    made = slices()
    del made[3:5]
    error = refused(files(made), "missing_slices")
    assert error.details["gaps"] == [{"after_mm": 35.0, "before_mm": 42.5, "gap_mm": 7.5, "missing": 2}]
    assert error.details["missing"] == 2


def test_a_tilt_names_the_uneven_gaps_too() -> None:
    made = tilted(slices(), 18.5)
    del made[3]
    error = refused(files(made), "gantry_tilt")
    assert error.details["tilt_deg"] == pytest.approx(18.5)
    assert error.details["gaps_mm"] == [2.5, 5.0]


@pytest.mark.parametrize("keyword", ["ImagesInAcquisition", "NumberOfSlices"])
def test_slices_that_were_announced_and_are_not_there_are_recorded(keyword: str) -> None:
    made = slices()
    put(keyword, SLICES)(made)
    assert [note.code for note in read(files(made[2:])).notes] == ["fewer_slices_than_announced"]


@pytest.mark.parametrize(
    ("kinds", "codes"),
    [
        (["DERIVED", "SECONDARY", "PROJECTION IMAGE", "MIP"], ["projection"]),
        (["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"], []),
    ],
)
def test_a_stack_of_projections_is_read_with_a_note(kinds: list[str], codes: list[str]) -> None:
    made = slices()
    put("ImageType", kinds)(made)
    assert [note.code for note in read(files(made)).notes] == codes


def test_a_gap_in_the_place_of_the_distance_is_not_taken_for_missing_slices() -> None:
    made = slices()
    put("SliceThickness", 2.0)(made)
    put("SpacingBetweenSlices", 0.5)(made)
    assert read(files(made)).geometry.spacing_mm[2] == STEP_MM


def test_one_series_of_two_is_read_when_it_is_named() -> None:
    second = every(lambda each: setattr(each, "SeriesInstanceUID", "1.2.3"), slices(voxels(1)))
    put("SeriesNumber", 9)(second)
    mixed = files(slices()) | {f"other{name}": data for name, data in files(second).items()}
    assert refused(mixed, "mixed_series").details["slices"] == [SLICES, SLICES]
    assert [(each.series, each.series_number) for each in describe(mixed, limits=LIMITS)] == [(1, 4), (2, 9)]
    for number, seed in ((1, 0), (2, 1)):
        np.testing.assert_array_equal(read(mixed, Pick(series=number)).voxels[0], voxels(seed).transpose(2, 1, 0))
    refused(mixed, "several_volumes", Pick(series=3))


@pytest.mark.parametrize("missing", [("SeriesInstanceUID",), ("SeriesInstanceUID", "StudyInstanceUID")], ids=str)
def test_files_without_a_series_are_one_and_that_is_recorded(missing: tuple[str, ...]) -> None:
    made = slices()
    for keyword in missing:
        without(keyword)(made)
    volume = read(files(made))
    np.testing.assert_array_equal(volume.voxels[0], voxels().transpose(2, 1, 0))
    assert [note.code for note in volume.notes] == ["no_series_uid"]


def test_two_numbered_series_without_uids_are_not_merged() -> None:
    made = slices()
    without("SeriesInstanceUID")(made)
    put("SeriesNumber", 9, slice(SLICES // 2, None))(made)
    assert refused(files(made), "mixed_series").details["slices"] == [SLICES // 2, SLICES // 2]
    assert read(files(made), Pick(series=2)).voxels.shape[-1] == SLICES // 2


def test_volumes_of_one_place_are_told_apart_by_what_differs_and_must_be_named() -> None:
    echoes = every(lambda each: setattr(each, "EchoTime", 80.0), slices(voxels(1)))
    for each in echoes:
        each.InstanceNumber += SLICES
    both = files(slices()) | {f"late{name}": data for name, data in files(echoes).items()}
    assert refused(both, "several_volumes").details == {"volumes": 2}
    for volume in (0, 1):
        picked = read(both, Pick(volume=volume))
        np.testing.assert_array_equal(picked.voxels[0], voxels(volume).transpose(2, 1, 0))
    assert [len(each.volumes) for each in describe(both, limits=LIMITS)] == [2]


def test_an_enhanced_copy_is_identical_to_the_classic_one() -> None:
    classic, multi = read(files(slices())), read({"a": coded(enhanced(voxels()))})
    np.testing.assert_array_equal(classic.voxels, multi.voxels)
    np.testing.assert_array_equal(classic.geometry.lps_from_voxel, multi.geometry.lps_from_voxel)


@pytest.mark.parametrize("kinds", [{"times": 3}, {"stacks": 3}], ids=str)
def test_an_enhanced_file_of_several_volumes_says_so(kinds: dict[str, int]) -> None:
    source = {"a": coded(enhanced(voxels(), **kinds))}
    assert refused(source, "several_volumes").details == {"volumes": 3}
    offset = 2 if "times" in kinds else 20
    np.testing.assert_array_equal(read(source, Pick(volume=2)).voxels[0], voxels().transpose(2, 1, 0) + offset)


def test_an_enhanced_file_that_lies_about_its_frames_is_refused() -> None:
    made = enhanced(voxels())
    made.PerFrameFunctionalGroupsSequence = made.PerFrameFunctionalGroupsSequence[:-1]
    refused({"a": coded(made)}, "bad_image")
    made = enhanced(voxels())
    made.NumberOfFrames = SLICES + 1
    refused({"a": coded(made)}, "truncated_image")
    made = enhanced(voxels())
    del made.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    refused({"a": coded(made)}, "missing_geometry")
    made = enhanced(voxels())
    del made.PerFrameFunctionalGroupsSequence
    refused({"a": coded(made)}, "missing_geometry")


def test_facts_name_no_patient() -> None:
    _, facts = read_series(files(slices()), limits=LIMITS)
    assert (facts.modality, facts.files, facts.volumes[0].shape) == ("MR", SLICES, (COLUMNS, ROWS, SLICES))
    said = repr(facts)
    assert not any(each in said for each in ("Doe", "17", str(slices()[0].SeriesInstanceUID)))


def test_axial_is_what_the_others_are_turned_from() -> None:
    assert turned_by((0, 1, 2), (1, 1, 1)) == [*AXIAL]


def test_an_enhanced_file_of_every_other_slice_is_refused_as_a_series_of_files_is() -> None:
    made = enhanced(voxels())
    (measures,) = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    measures.SpacingBetweenSlices = STEP_MM / 2
    source = {"a": coded(made)}

    assert refused(source, "missing_slices").details == {"median_mm": STEP_MM, "announced_mm": STEP_MM / 2}
    assert describe(source, limits=LIMITS)[0].thickness_mm == STEP_MM


@pytest.mark.parametrize("announced", ["InConcatenationTotalNumber", "InConcatenationNumber"])
def test_a_file_of_an_object_that_was_cut_into_several_is_no_volume(announced: str) -> None:
    half = SLICES // 2
    parts = {}
    for number, stored in enumerate((voxels()[:half], voxels()[half:]), 1):
        part = enhanced(stored)
        for frame in part.PerFrameFunctionalGroupsSequence:
            frame.PlanePositionSequence[0].ImagePositionPatient[2] += (number - 1) * half * STEP_MM
        part.ConcatenationUID, part.InConcatenationNumber = "1.2.3", number
        if announced == "InConcatenationTotalNumber":
            part.InConcatenationTotalNumber = 2
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        parts[str(number)] = coded(part)

    np.testing.assert_array_equal(read(parts).voxels[0], voxels().transpose(2, 1, 0))
    assert refused({"2": parts["2"]}, "missing_slices").details == {"files": 1, "announced_files": 2}
