"""Channels of one scan: by their names, on one grid, or not at all."""

from typing import Any

import numpy as np
import pytest

import dicom_files
from isocenter.core.errors import BadInput, ChannelsDiffer, InputNotAccepted
from isocenter.imaging.codecs.volume_files import Pick
from isocenter.imaging.limits import VolumeLimits
from isocenter.serving.scan_paths import ScanRoots
from isocenter.serving.scan_reading import Files, ScanReader, by_channel
from scan_files import RAS, SHAPE, blobs, nifti

CHANNELS = ["t1", "t1c", "t2", "flair"]


@pytest.fixture
def reader() -> ScanReader:
    return ScanReader(ScanRoots(), VolumeLimits())


def test_channels_come_in_the_models_order_whatever_order_they_are_sent_in(reader: ScanReader) -> None:
    sent = {name: nifti(blobs(seed)) for seed, name in enumerate(reversed(CHANNELS))}

    found = reader.read(by_channel(sent, CHANNELS, model="tumors"), Pick())

    assert found.volume.channels == tuple(CHANNELS)
    assert list(found.channels) == CHANNELS
    for number, name in enumerate(CHANNELS):
        assert np.array_equal(found.volume.voxels[number], blobs(CHANNELS[::-1].index(name)))


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(dict.fromkeys(CHANNELS[:3], b""), id="one missing"),
        pytest.param(dict.fromkeys([*CHANNELS, "dwi"], b""), id="one too many"),
        pytest.param(dict.fromkeys(["T1", *CHANNELS[1:]], b""), id="another case"),
        pytest.param({}, id="none"),
        pytest.param(b"", id="one scan"),
        pytest.param(Files(dict.fromkeys(CHANNELS, b"")), id="files that are called like channels"),
    ],
)
def test_which_channel_a_scan_is_is_never_guessed(sent: Any) -> None:
    with pytest.raises(InputNotAccepted, match="tumors takes the channels t1, t1c, t2, flair"):
        by_channel(sent, CHANNELS, model="tumors")


def test_a_model_without_names_takes_one_scan() -> None:
    assert by_channel(b"x", [], model="tumors") == {"": b"x"}
    with pytest.raises(InputNotAccepted):
        by_channel({"t1": b"x"}, [], model="tumors")


def _moved(by: float) -> bytes:
    ras = RAS.copy()
    ras[0, 3] += by
    return nifti(blobs(1), ras=ras)


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        pytest.param(nifti(blobs(1)), None, id="the same grid"),
        pytest.param(_moved(0.0005), None, id="within a thousandth"),
        pytest.param(_moved(0.002), ChannelsDiffer, id="moved by 0.002 mm"),
        pytest.param(nifti(blobs(1), ras=RAS @ np.diag([1, 1, 1.01, 1])), ChannelsDiffer, id="other spacing"),
        pytest.param(nifti(blobs(1), ras=RAS[[0, 1, 2, 3]][:, [1, 0, 2, 3]]), ChannelsDiffer, id="turned"),
        pytest.param(nifti(blobs(1, (*SHAPE[:2], 18))), ChannelsDiffer, id="one slice more"),
    ],
)
def test_channels_lie_on_one_grid(reader: ScanReader, other: bytes, kind: type[BadInput] | None) -> None:
    given = {"t1": nifti(), "flair": other}
    if kind is None:
        assert reader.read(given, Pick()).volume.voxels.shape == (2, *SHAPE)
        return
    with pytest.raises(kind, match="flair") as caught:
        reader.read(given, Pick())
    assert caught.value.details["first"] == "t1"


def _series(**changes: str) -> Files:
    made = dicom_files.slices()
    for each in made:
        for keyword, value in changes.items():
            setattr(each, keyword, value)
    return Files(dicom_files.files(made))


@pytest.mark.parametrize(
    ("changes", "differ_in"),
    [
        pytest.param({"PatientID": "18"}, "patients", id="another patient"),
        pytest.param({"FrameOfReferenceUID": "1.2.3"}, "frames of reference", id="another frame of reference"),
        pytest.param({"SeriesInstanceUID": "1.2.4"}, None, id="another series of the patient"),
        pytest.param({"PatientID": "", "PatientName": "", "FrameOfReferenceUID": ""}, None, id="nothing is said"),
    ],
)
def test_channels_on_one_grid_are_of_one_patient_too(
    reader: ScanReader, changes: dict[str, str], differ_in: str | None
) -> None:
    given = {"t1": _series(), "t2": _series(PatientName="Doe^J"), "flair": _series(**changes)}
    if differ_in is None:
        assert reader.read(given, Pick()).volume.channels == ("t1", "t2", "flair")
        return
    with pytest.raises(ChannelsDiffer, match="flair") as caught:
        reader.read(given, Pick())
    assert caught.value.details == {"channel": "flair", "first": "t1", "differ_in": differ_in}


def test_one_scan_given_as_two_channels_is_answered_with_a_note_that_names_them(reader: ScanReader) -> None:
    same = nifti(blobs(1), packed=True)  # other bytes, the same voxels
    given = {"t1": nifti(blobs(1)), "t2": nifti(blobs(2)), "flair": same}

    notes = reader.read(given, Pick()).volume.notes

    assert [(note.code, note.message[:23]) for note in notes] == [("channels_alike", "channels t1 and flair h")]
