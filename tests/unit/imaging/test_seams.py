"""Objects of tiles, joined, are the objects of the whole image, with the same numbers."""

import cv2
import numpy as np
import pytest

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.postprocess.objects import ObjectRule, objects_of
from isocenter.imaging.postprocess.seams import Joined, Seams

LABELS = ["background", "inside", "border"]
HEIGHT, WIDTH = 240, 310


def probabilities(seed: int) -> FloatArray:
    """Discs that touch, lie in one another's way, and reach over the edges."""
    rng = np.random.default_rng(seed)
    body, core = np.zeros((2, HEIGHT, WIDTH), np.float32)
    for _ in range(90):
        at, radius = (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT))), int(rng.integers(4, 14))
        cv2.circle(body, at, radius, 1, -1)
        cv2.circle(core, at, max(1, radius - 4), 1, -1)
    body, core = (np.asarray(cv2.GaussianBlur(each, (0, 0), 1.5), np.float32) for each in (body, core))
    inside = body * core
    return np.stack([1 - body, inside, np.clip(body - inside, 0, 1)])


def in_tiles(values: FloatArray, rule: ObjectRule, margin_px: int) -> tuple[Array, Joined]:
    """Labels by way of tiles; rows come in odd numbers."""
    rows: list[Array] = []
    seams = Seams((HEIGHT, WIDTH), LABELS, rule, rows.append, margin_px=margin_px, tile_px=(57, 83))
    for start in range(0, HEIGHT, 31):
        seams(start, values[:, start : start + 31])
    joined = seams.finish()
    return joined.number[np.concatenate(rows)], joined


RULES = [
    ObjectRule(),
    ObjectRule(connectivity=8, fill_holes=True, max_hole_px=60),
    ObjectRule(inside=["inside", "border"], split="seeds", seeds="inside", min_area_px=40, drop_border=True),
    ObjectRule(split="seeds", seeds="inside", border="border", seed_threshold=0.3, fill_holes=True),
    ObjectRule(split="distance", fill_holes=True, min_area_px=20),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.split}-{rule.connectivity}-{rule.drop_border}")
def test_tiles_give_the_objects_of_the_whole(rule: ObjectRule) -> None:
    values = probabilities(1)
    labels, joined = in_tiles(values, rule, margin_px=70)
    whole = objects_of(values, rule, LABELS)

    np.testing.assert_array_equal(labels, whole.labels)
    np.testing.assert_allclose(joined.objects["confidence"], whole.confidences, rtol=1e-5)
    assert whole.count > 10
    for number, found in enumerate(joined.objects[:20], 1):
        y, x = np.nonzero(whole.labels == number)
        assert (found["left_px"], found["top_px"], found["right_px"], found["bottom_px"]) == (
            x.min(), y.min(), x.max() + 1, y.max() + 1,
        )  # fmt: skip
        np.testing.assert_allclose((found["x_px"], found["y_px"], found["area_px"]), (x.mean(), y.mean(), len(x)))


def test_what_is_connected_is_one_object_however_small_the_margin() -> None:
    """A maze that goes through every tile many times."""
    values = np.zeros((3, HEIGHT, WIDTH), np.float32)
    for number, column in enumerate(range(5, WIDTH - 5, 10)):
        values[1, 5 : HEIGHT - 5, column : column + 4] = 1
        values[1, 5 if number % 2 else HEIGHT - 9 :, column : column + 14][:4] = 1
    values[1, HEIGHT - 5 :] = 0
    labels, joined = in_tiles(values, ObjectRule(), margin_px=9)

    np.testing.assert_array_equal(labels, objects_of(values, ObjectRule(), LABELS).labels)
    assert len(joined.objects) == 1


@pytest.mark.parametrize("split", ["none", "distance"])
@pytest.mark.parametrize("max_hole_px", [None, 14_000])
def test_a_hole_larger_than_a_tile_is_filled_whole_or_not_at_all(max_hole_px: int | None, split: str) -> None:
    """Two rings around many tiles: a smaller and a larger hole than are filled; and one that reaches over the edge."""
    values = np.zeros((3, HEIGHT, WIDTH), np.float32)
    for at, radius in (((85, 85), 70), ((220, 130), 80), ((300, 10), 30)):
        cv2.circle(values[1], at, radius, 1, 10)
    rule = ObjectRule(fill_holes=True, max_hole_px=max_hole_px, split=split, neck_px=50, min_area_px=15_000)
    labels, joined = in_tiles(values, rule, margin_px=9)
    whole = objects_of(values, rule, LABELS)

    np.testing.assert_array_equal(labels, whole.labels)
    np.testing.assert_allclose(joined.objects["confidence"], whole.confidences, rtol=1e-5)
    assert whole.count == 1
    assert (labels[85, 85], labels[130, 220]) == (1, 1 if max_hole_px is None else 0)


def test_nothing_is_nothing() -> None:
    labels, joined = in_tiles(np.zeros((3, HEIGHT, WIDTH), np.float32), ObjectRule(), margin_px=9)
    assert not labels.any()
    assert len(joined.objects) == 0


def test_rows_that_are_missing_are_noticed() -> None:
    seams = Seams((20, 20), LABELS, ObjectRule(), lambda rows: None, margin_px=4)
    with pytest.raises(ValueError, match="row 0 is next, not 3"):
        seams(3, np.zeros((3, 2, 20), np.float32))
    seams(0, np.zeros((3, 6, 20), np.float32))
    with pytest.raises(ValueError, match="6 of 20 rows"):
        seams.finish()
