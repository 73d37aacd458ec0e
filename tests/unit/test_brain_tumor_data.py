"""What the head-scan model learns from keeps its lesions: on the way to 2 mm, and in the crops."""

import numpy as np
import pytest

from brain_tumor_data import VOXEL_MM, Cropper, prepared, real, sample_of
from isocenter.imaging.phantoms_3d import HeadPhantom, head_scan


@pytest.fixture(scope="module")
def phantom() -> HeadPhantom:
    return head_scan(1_000_070, kind="ring", contrast="t1c", voxel_mm=3.0)


def test_a_lesion_keeps_its_volume_on_the_grid_of_the_model(phantom: HeadPhantom) -> None:
    values, numbers = prepared(phantom.volume, phantom.truth)

    assert values.shape == numbers.shape
    assert np.count_nonzero(numbers) * VOXEL_MM**3 / 1e3 == pytest.approx(phantom.lesions[0].volume_ml, rel=0.1)
    assert values[numbers > 0].mean() > values[values != 0].mean()


def test_crops_show_lesions_more_often_than_chance_would(phantom: HeadPhantom) -> None:
    cropper = Cropper(1, most=2)
    cropper.hold(sample_of(*prepared(phantom.volume, phantom.truth)))

    values, classes, weights = cropper.batch(12, 32)

    assert values.shape == (12, 1, 32, 32, 32)
    assert weights.shape == classes.shape == (12, 32, 32, 32)
    assert sum(each.any() for each in classes) >= 6
    assert weights.min() == 1.0


def test_the_oldest_sample_goes_first(phantom: HeadPhantom) -> None:
    empty = np.zeros((32, 32, 32), np.float32)
    cropper = Cropper(1, most=1)
    cropper.hold(sample_of(*prepared(phantom.volume, phantom.truth)))
    cropper.hold(sample_of(empty + np.float32(0.5), empty))

    _, classes, _ = cropper.batch(4, 32)

    assert len(cropper) == 1
    assert not classes.any()


def test_half_of_the_given_heads_get_lesions() -> None:
    head = head_scan(1_000_071, kind="healthy", contrast="t1", voxel_mm=4.0).volume

    planted = [bool(real(head, seed).lesions.any()) for seed in range(8)]

    assert 2 <= sum(planted) <= 6


@pytest.mark.parametrize(("noted", "least", "most"), [(False, 0.0, 0.1), (True, 0.35, 0.65)])
def test_a_place_where_a_lesion_was_seen_in_vain_is_shown_every_other_time(
    noted: bool, least: float, most: float
) -> None:
    values = np.full((80, 80, 80), 0.5, np.float32)
    values[60:62, 20:22, 33:35] = 8.0  # noise does not make it so bright elsewhere
    cropper = Cropper(1, most=1)
    cropper.hold(sample_of(values, np.zeros(values.shape)))

    shown = []
    for _ in range(600):
        batch, _, _ = cropper.batch(1, 16)
        found = (batch[:, 0] > 4.0).astype(np.float32)
        shown.append(bool(found.any()))
        if noted:
            cropper.note(found)

    after_the_first = shown[shown.index(True) + 1 :]
    assert least <= np.mean(after_the_first) <= most
