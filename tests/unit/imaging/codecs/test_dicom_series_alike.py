"""What makes a volume of other values, or of two kinds of slices, and can only be seen by comparing: it is refused."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_files import COLUMNS, ROWS, SLICES, Files, as_ct, coded, enhanced, every, files, slices, voxels
from isocenter.core.errors import BadInput, SeveralVolumes
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.volume_files import Pick, describe, read_volume
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

LIMITS = VolumeLimits()


def read(source: Files) -> Volume:
    return read_volume(source, limits=LIMITS)


def refused(source: Files, code: str, pick: Pick | None = None) -> BadInput:
    """The refusal of reading; the description says the same, without raising."""
    with pytest.raises(BadInput) as caught:
        read_volume(source, limits=LIMITS, pick=pick)
    assert caught.value.code == code, caught.value
    facts = describe(source, limits=LIMITS)
    said = [series.refusal for series in facts] + [each.refusal for series in facts for each in series.volumes]
    assert code in [each.code for each in said if each]
    return caught.value


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept", "SpacingBetweenSlices", "GantryDetectorTilt"])
@pytest.mark.parametrize("value", ["1,5", "-1024 HU", "NaN", "inf", r"1\2"])
def test_a_number_that_is_none_is_not_taken_for_one_that_is_not_there(keyword: str, value: str) -> None:
    """One slice of eight would lie 1024 HU above the others; half of a series would be taken for the whole."""
    made = [coded(each) for each in every(lambda each: each.add_new(keyword, "LO", value), slices()[:1])]
    rest = {str(at): coded(each) for at, each in enumerate(slices()[1:])}
    element = Dataset()
    element.add_new(keyword, "LO", value)
    tag = element[keyword].tag
    said = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
    assert said + b"LO" in made[0]

    assert refused(rest | {"first": made[0].replace(said + b"LO", said + b"DS")}, "bad_image").details["tag"] == keyword


def test_names_tell_patients_apart_that_have_no_number() -> None:
    made = every(lambda each: setattr(each, "PatientID", ""), slices())
    read(files(made))
    made[3].PatientName = "Roe^Jane"
    assert refused(files(made), "mixed_series").details["patients"] == [SLICES - 1, 1]


def displaced(count: int, by_mm: Callable[[int], Any]) -> Files:
    """So many slices of 1 mm, each elsewhere than on the line."""
    stored = np.random.default_rng(0).integers(0, 4096, (count, ROWS, COLUMNS)).astype(np.int16)
    made = slices(stored)
    for at, each in enumerate(made):
        each.ImagePositionPatient = [float(mm) for mm in np.add((-7.0, 11.0, 30.0 + at), by_mm(at))]
        each.SpacingBetweenSlices = each.SliceThickness = 1.0
    return files(made)


@pytest.mark.parametrize("count", [20, 100])
def test_a_slice_lies_beside_the_others_however_many_there_are(count: int) -> None:
    error = refused(displaced(count, lambda at: (0.3 * (at == count // 2), 0, 0)), "bad_geometry")

    assert error.details["slice"] == count // 2 + 1
    assert error.details["aside_mm"] == pytest.approx(0.3)
    assert error.details["limit_mm"] == 0.1


def test_gaps_that_are_each_a_little_off_do_not_add_up() -> None:
    def drift(at: int) -> tuple[float, float, float]:
        return (0, 0, 0.004 * min(at, 100 - at))

    error = refused(displaced(101, drift), "bad_geometry")
    assert error.details["aside_mm"] == pytest.approx(0.2)
    read(displaced(20, drift))


def kind_of(at: int, each: Dataset, keyword: str, values: tuple[Any, Any]) -> None:
    setattr(each, keyword, values[at % 2])


TAKING_TURNS = pytest.mark.parametrize(
    ("keyword", "values", "what"),
    [
        ("EchoTime", (3.0, 90.0), "echo_times"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "image_types"),
        ("DiffusionBValue", (0.0, 1000.0), "b_values"),
    ],
)


@TAKING_TURNS
def test_slices_of_several_kinds_side_by_side_are_no_volume(keyword: str, values: tuple[Any, Any], what: str) -> None:
    made = slices()
    for at, each in enumerate(made):
        kind_of(at, each, keyword, values)

    kinds = refused(files(made), "mixed_series").details[what]
    assert isinstance(kinds, list)
    assert len(kinds) == 2


def two_times(keyword: str, values: Callable[[int, int], Any]) -> Files:
    """Two volumes at one place, and what a tag says in each of them, slice by slice."""
    found: Files = {}
    for time in range(2):
        made = slices(voxels(time))
        for at, each in enumerate(made):
            each.TemporalPositionIdentifier = time + 1
            each.InstanceNumber += time * SLICES
            setattr(each, keyword, values(time, at))
        found |= {f"{time}-{name}": data for name, data in files(made).items()}
    return found


@TAKING_TURNS
def test_nor_are_those_of_one_of_several_volumes(keyword: str, values: tuple[Any, Any], what: str) -> None:
    """Neither as volumes of every slice, nor as twice as many of every other one."""
    kinds = refused(two_times(keyword, lambda _time, at: values[at % 2]), "mixed_series", Pick(volume=0)).details[what]
    assert isinstance(kinds, list)
    assert len(kinds) == 2


def test_volumes_are_told_apart_by_what_leaves_each_of_one_kind() -> None:
    weightings = two_times("DiffusionBValue", lambda time, at: (0.0, 1000.0)[(time + at) % 2])
    for volume in (0, 1):
        picked = read_volume(weightings, limits=LIMITS, pick=Pick(volume=volume)).voxels[0]
        for at in range(SLICES):
            np.testing.assert_array_equal(picked[..., at], voxels((volume + at) % 2)[at].T)


def test_what_a_ct_scanner_adds_to_the_type_of_some_slices_makes_no_other_kind_of_them() -> None:
    made = slices()
    for at, each in enumerate(made):
        as_ct(each)
        kind_of(at, each, "ImageType", (["ORIGINAL", "PRIMARY", "AXIAL", "ADD"], ["ORIGINAL", "PRIMARY", "AXIAL"]))

    assert read(files(made)).voxels.shape[-1] == SLICES
    made[0].ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    refused(files(made), "mixed_series")


def test_echo_times_that_differ_by_rounding_are_one() -> None:
    made = slices()
    for at, each in enumerate(made):
        kind_of(at, each, "EchoTime", (3.0, 3.01))

    assert read(files(made)).voxels.shape[-1] == SLICES


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [("66.4", "segmentation"), ("66.7", "segmentation by label map"), ("30", "parametric map"),
     ("481.2", "radiotherapy dose")],
)  # fmt: skip
def test_what_only_looks_like_a_scan_is_refused(sop_class: str, kind: str) -> None:
    made = enhanced(voxels())
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = UID(f"1.2.840.10008.5.1.4.1.1.{sop_class}")

    with pytest.raises(BadInput, match=f"is a {kind}, and no scan") as caught:
        read({"1": coded(made)})
    assert caught.value.code == "unsupported_media"


def scaled(frames: Sequence[int], *, whole: bool = False) -> Files:
    """A multi-frame file of which some frames say how they are scaled, or all of it at once."""
    made = enhanced(voxels())
    for at in frames:
        transform = Dataset()
        transform.RescaleSlope, transform.RescaleIntercept = 1.0, -1024.0
        made.PerFrameFunctionalGroupsSequence[at].PixelValueTransformationSequence = [transform]
    if whole:
        made.RescaleSlope, made.RescaleIntercept = 1.0, -1024.0
    return {"1": coded(made)}


def test_frames_are_scaled_all_or_none_and_each_by_its_own_words() -> None:
    refused(scaled(range(SLICES - 1)), "bad_image")
    refused(scaled([], whole=True), "bad_image")
    np.testing.assert_array_equal(
        read(scaled(range(SLICES))).voxels, read({"1": coded(enhanced(voxels()))}).voxels - 1024
    )


@pytest.mark.parametrize("left_out", [("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",), ("RescaleSlope",)])
def test_a_slice_that_lost_its_scaling_is_not_read_beside_scaled_ones(left_out: Sequence[str]) -> None:
    made = slices()
    for each in made:
        each.RescaleSlope, each.RescaleIntercept = 1, -1024
    np.testing.assert_array_equal(read(files(made)).voxels, read(files(slices())).voxels - 1024)
    for keyword in left_out:
        delattr(made[2], keyword)

    assert refused(files(made), "bad_image").details["unlike"] == 1


def with_components(stored: Array, component: Callable[[int], str], *, times: int = 1) -> Files:
    """A multi-frame file whose frame types are all one, and which says magnitude or phase beside them."""
    made = enhanced(stored, times=times)
    for at, frame in enumerate(made.PerFrameFunctionalGroupsSequence):
        kind = Dataset()
        kind.FrameType, kind.ComplexImageComponent = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], component(at)
        frame.MRImageFrameTypeSequence = [kind]
        del frame.FrameContentSequence[0].TemporalPositionIndex
    return {"1": coded(made)}


def test_magnitude_and_phase_are_volumes_each_and_no_volume_together() -> None:
    def taking_turns(at: int) -> str:
        return ("MAGNITUDE", "PHASE")[at % 2]

    refused(with_components(voxels(), taking_turns), "mixed_series")

    both = with_components(voxels(), taking_turns, times=2)
    with pytest.raises(SeveralVolumes):
        read(both)
    magnitude, phase = (read_volume(both, limits=LIMITS, pick=Pick(volume=at)).voxels for at in range(2))
    np.testing.assert_array_equal(phase - 1, magnitude)


def test_a_representation_of_pixels_that_is_none_is_not_taken_for_unsigned() -> None:
    refused(files(every(lambda each: setattr(each, "PixelRepresentation", 2), slices())), "bad_image")
