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
