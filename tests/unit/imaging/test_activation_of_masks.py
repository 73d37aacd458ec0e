"""Scores to probabilities to masks."""

import numpy as np
import pytest

from isocenter.core.tensor import Array
from isocenter.imaging.postprocess.activation import loudest, masks_of, probabilities_of

LARGE = np.array([[800, -800, 0.5], [-800, 790, 0.25]], np.float32)
PAIRS = np.array([[0.2, 0.5], [0.8, 0.5]], np.float32)


def test_scores_of_any_size_become_probabilities() -> None:
    soft, alone = probabilities_of(LARGE, "softmax"), probabilities_of(LARGE, "sigmoid")

    assert np.allclose(soft.sum(axis=0), 1)
    assert soft[:, 0].tolist() == [1, 0]
    assert alone[:, 0].tolist() == [1, 0]
    assert alone[0, 2] == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-6)
    assert np.array_equal(probabilities_of(LARGE, "none"), LARGE)


def test_what_was_given_is_left_alone() -> None:
    given = LARGE.copy()

    for activation in ("softmax", "sigmoid", "none"):
        probabilities_of(given, activation)

    assert np.array_equal(given, LARGE)


@pytest.mark.parametrize(
    ("values", "threshold", "mask"),
    [
        (PAIRS, None, np.array([1, 0], np.uint8)),
        (PAIRS, 0.5, np.array([[0, 1], [1, 1]], np.uint8)),
        (np.eye(300, dtype=np.float32)[:, -1:], None, np.array([299], np.uint16)),
    ],
    ids=["most probable, the first of equals", "each for itself", "many labels"],
)
def test_a_voxel_has_the_label_that_the_rule_gives_it(values: Array, threshold: float | None, mask: Array) -> None:
    found = masks_of(values, threshold)

    assert np.array_equal(found, mask)
    assert found.dtype == mask.dtype


THREE = np.array([[0.5, 0.6, 0.61, 0.0], [0.2, 0.1, 0.3, 0.5], [0.3, 0.3, 0.09, 0.5]], np.float32)


@pytest.mark.parametrize(
    ("foreground", "mask"),
    [(None, [0, 0, 0, 1]), (0.4, [2, 2, 0, 1]), (0.5, [2, 0, 0, 1]), (0.6, [0, 0, 0, 1])],
    ids=["the loudest", "lower", "half of all", "higher"],
)
def test_labels_that_exclude_each_other_share_what_is_foreground(foreground: float | None, mask: list[int]) -> None:
    """Not one of 0.2 and 0.3 is half of all, but there is as much of both as of the background."""
    assert masks_of(THREE, None, foreground=foreground).tolist() == mask


def test_layers_are_written_over_only_where_they_may_be() -> None:
    given = THREE.copy()

    kept = masks_of(given, None, foreground=0.4)

    assert np.array_equal(given, THREE)
    assert np.array_equal(loudest(iter(given), 3, foreground=0.4, over=True), kept)
