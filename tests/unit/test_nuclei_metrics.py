"""The figures of the nuclei model are counted as its card says."""

import numpy as np
import pytest

from nuclei_metrics import quality_of, summary_of


def image(*rows: str) -> np.ndarray:
    """Labels from digits, a dot for the background."""
    return np.array([[0 if each == "." else int(each) for each in row] for row in rows])


def test_the_same_objects_under_other_numbers_are_found() -> None:
    quality = quality_of(image("11.22", "11.22"), image("77.33", "77.33"))

    assert (quality.foreground_iou, quality.hits, quality.found, quality.true) == (1.0, 2, 2, 2)
    assert quality.object_f1 == 1.0


def test_an_image_without_objects_is_right_if_none_is_found() -> None:
    nothing = image("...")

    assert (quality_of(nothing, nothing).foreground_iou, quality_of(nothing, nothing).object_f1) == (1.0, 1.0)
    assert quality_of(image("1.."), nothing).object_f1 == 0.0
    assert quality_of(nothing, image("1..")).foreground_iou == 0.0


@pytest.mark.parametrize(
    ("found", "true", "hits"),
    [("1111", "11..", 1), ("1111", "1...", 0), ("1122", "1111", 1), ("1222", "1111", 1), ("111..", "..111", 0)],
    ids=["just half", "less than half", "one of two halves", "the larger part", "shifted apart"],
)
def test_an_object_is_found_from_an_iou_of_one_half(found: str, true: str, hits: int) -> None:
    assert quality_of(image(found), image(true)).hits == hits


def test_an_object_is_matched_once_and_the_best_pair_comes_first() -> None:
    # Both halves have an IoU of 1/2 with the whole, and the whole is one object.
    quality = quality_of(image("1122"), image("1111"))

    assert (quality.hits, quality.found, quality.true) == (1, 2, 1)
    assert quality.object_f1 == pytest.approx(2 / 3)

    # At a lower bar, 1 could take either true object; with the better pair first, 2 still finds one.
    assert quality_of(image("11112", "....2"), image("111.3", "1...3"), iou=0.3).hits == 2


def test_a_summary_counts_images_and_pools_objects() -> None:
    good = quality_of(image("1.2.3"), image("1.2.3"))
    bad = quality_of(image("1...."), image("....1"))

    summary = summary_of([good, bad])

    assert (summary.images, summary.objects) == (2, 4)
    assert summary.foreground_iou == pytest.approx(0.5)
    assert summary.object_f1 == pytest.approx(0.5)
    assert summary.pooled_f1 == pytest.approx(6 / 8)
