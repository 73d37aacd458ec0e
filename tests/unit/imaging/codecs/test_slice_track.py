"""Where slices lie: gaps, doubled ones and tilt, also of what is refused."""

import math

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_files import AXIAL, STEP_MM, Files, files, slices
from isocenter.imaging.codecs.slice_track import SliceTrack, series_of, slice_tracks
from isocenter.imaging.limits import VolumeLimits


def tracks(source: Files) -> list[SliceTrack]:
    return slice_tracks(series_of(source, limits=VolumeLimits()))


def sheared(made: list[Dataset], degrees: float) -> list[Dataset]:
    """Slices that climb along their columns, as a tilted gantry takes them."""
    for number, each in enumerate(made):
        each.ImagePositionPatient[1] += round(number * STEP_MM * math.tan(math.radians(degrees)), 6)
    return made


def test_an_even_series_has_no_faults() -> None:
    (track,) = tracks(files(slices()))
    assert np.allclose(track.along_mm, np.arange(8) * STEP_MM)
    assert (track.uneven, track.doubled, track.missing, track.tilt_deg) == ((), (), 0, 0.0)


def test_missing_and_doubled_slices_are_counted() -> None:
    made = slices()
    (track,) = tracks(files([*made[:2], *made[4:], made[5]]))
    assert (track.uneven, track.missing, track.doubled) == ((2,), 2, (4,))
    assert track.median_gap_mm == pytest.approx(STEP_MM)


@pytest.mark.parametrize("degrees", [0.5, 18.5])
def test_a_tilt_is_measured(degrees: float) -> None:
    (track,) = tracks(files(sheared(slices(), degrees)))
    assert track.tilt_deg == pytest.approx(degrees, abs=1e-3)
    assert track.aside_mm[-1] == pytest.approx(7 * STEP_MM * math.tan(math.radians(degrees)), abs=1e-4)


def test_series_that_cannot_be_split_have_one_track_and_no_tilt() -> None:
    turned = slices(directions=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    made = [*slices(directions=AXIAL)[:4], *turned[4:]]
    (track,) = tracks(files(made))
    assert (track.volume, track.tilt_deg, len(track.along_mm)) == (None, None, 8)


def test_broken_files_are_left_out() -> None:
    whole = files(slices())
    (track,) = tracks(whole | {"cut.dcm": whole["0000.dcm"][:200], "notes.txt": b"words"})
    assert len(track.along_mm) == 8
