"""Probabilities become objects: which count, where they part, how they are numbered."""

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.postprocess import flood
from isocenter.imaging.postprocess.objects import LabelImage, ObjectRule, objects_of
from label_images import by_chance, drawn


def found(picture: str, **rule: object) -> LabelImage:
    """Objects of a drawn mask: letters have the probability 0.8, points 0.1."""
    probabilities = np.where(drawn(picture) > 0, 0.8, 0.1).astype(np.float32)
    return objects_of(probabilities[np.newaxis], ObjectRule.model_validate(rule), ["cell"])


def circles(*, radius_px: int, apart_px: int) -> Array:
    """Two discs beside each other, as a mask."""
    mask = np.zeros((2 * radius_px + 5, 2 * radius_px + apart_px + 5), np.uint8)
    for x in (radius_px + 2, radius_px + 2 + apart_px):
        cv2.circle(mask, (x, radius_px + 2), radius_px, 1, -1)
    return mask


def test_objects_are_numbered_by_their_first_pixels() -> None:
    image = found("..a.a a.a.. a...a")

    assert image.labels.tolist() == drawn("..a.b c.a.. c...d").tolist()
    assert image.labels.dtype == np.uint32
    assert image.count == 4


def test_an_object_has_the_mean_probability_of_its_pixels() -> None:
    probabilities = np.array([[[0.9, 0.7, 0.1, 0.6]]], np.float32)

    assert objects_of(probabilities, ObjectRule(), ["cell"]).confidences.tolist() == pytest.approx([0.8, 0.6])


@pytest.mark.parametrize(
    ("rule", "labels", "image"),
    [
        (ObjectRule(), ["background", "inside", "border"], "aaa."),
        (ObjectRule(inside=["inside"]), ["background", "inside", "border"], "a..."),
        (ObjectRule(threshold=0.8), ["background", "inside", "border"], "aa.."),
        (ObjectRule(inside=["background"]), ["background", "inside", "border"], "...a"),
    ],
    ids=["all but the background", "one", "a higher threshold", "another"],
)
def test_pixels_count_by_the_sum_of_the_labels_inside(rule: ObjectRule, labels: list[str | int], image: str) -> None:
    probabilities = np.array([[[0.1, 0.1, 0.4, 1]], [[0.8, 0.4, 0.3, 0]], [[0.1, 0.5, 0.3, 0]]], np.float32)

    assert objects_of(probabilities, rule, labels).labels.tolist() == drawn(image).tolist()


def test_the_threshold_of_the_call_goes_before_that_of_the_rule() -> None:
    probabilities = np.array([[[0.4, 0.6, 0.9]]], np.float32)

    assert (objects_of(probabilities, ObjectRule(), ["cell"], threshold=0.7).labels > 0).tolist() == [[0, 0, 1]]


def test_the_least_probability_that_counts_is_the_threshold() -> None:
    assert objects_of(np.full((1, 2, 2), 0.5, np.float32), ObjectRule(), ["cell"]).count == 1


@pytest.mark.parametrize(("connectivity", "count"), [(4, 2), (8, 1)])
def test_corners_connect_with_8_neighbours_only(connectivity: int, count: int) -> None:
    assert found("a. .a", connectivity=connectivity).count == count


def test_small_objects_and_those_at_the_edge_do_not_count() -> None:
    picture = "a..... ..bb.. ...... ..c... ......"

    assert found(picture, min_area_px=2).labels.tolist() == drawn("...... ..aa.. ...... ...... ......").tolist()
    assert found(picture, drop_border=True).count == 2
    assert found(picture, drop_border=True, min_area_px=3).count == 0


def test_holes_are_filled_up_to_a_size() -> None:
    ring, small = "aaaaa a..aa aaa.a aaaaa", "aaaaa a..aa aaaaa aaaaa"

    assert found(ring, fill_holes=True).labels.all()
    assert found(ring).labels.tolist() == drawn(ring).tolist()
    assert found(ring, fill_holes=True, max_hole_px=1).labels.tolist() == drawn(small).tolist()


def test_a_gap_that_reaches_the_edge_or_lies_between_objects_is_no_hole() -> None:
    open_ = "aaa a.a a.a"
    assert found(open_, fill_holes=True).labels.tolist() == drawn(open_).tolist()

    halves = np.array([[0.9, 0.9, 0.9, 0.9]] * 4, np.float32)
    halves[1:3, 1:3] = 0
    seeds = np.zeros_like(halves)
    seeds[0, 0], seeds[3, 3] = 1, 1
    rule = ObjectRule(inside=["cell"], split="seeds", seeds="seed", fill_holes=True)
    between = objects_of(np.stack([halves, seeds]), rule, ["cell", "seed"])
    assert between.count == 2
    assert not between.labels[1:3, 1:3].any()


def test_a_hole_with_an_object_in_it_is_kept() -> None:
    target = "aaaaa a...a a.b.a a...a aaaaa"

    assert found(target, fill_holes=True).labels.tolist() == drawn(target).tolist()


def test_discs_that_touch_part_at_the_neck() -> None:
    mask = circles(radius_px=10, apart_px=17).astype(np.float32)
    parted = objects_of(mask[np.newaxis], ObjectRule(split="distance"), ["cell"])
    middle = mask.shape[1] / 2

    assert objects_of(mask[np.newaxis], ObjectRule(), ["cell"]).count == 1
    assert parted.count == 2
    assert np.array_equal(parted.labels > 0, mask > 0)
    assert np.flatnonzero((parted.labels == 1).any(axis=0)).max() <= middle + 1
    assert np.flatnonzero((parted.labels == 2).any(axis=0)).min() >= middle - 2


@pytest.mark.parametrize(("neck_px", "count"), [(1, 2), (6, 1)])
def test_a_neck_that_is_hardly_narrower_parts_nothing(neck_px: float, count: int) -> None:
    mask = circles(radius_px=10, apart_px=17).astype(np.float32)

    assert objects_of(mask[np.newaxis], ObjectRule(split="distance", neck_px=neck_px), ["cell"]).count == count


def test_a_neck_is_looked_for_in_the_outline_of_the_seeds_where_they_are_named() -> None:
    # A bar has no neck; the pixels of `inside` in it do.
    cell = np.zeros((17, 41), np.float32)
    cell[2:15, 2:39] = 0.9
    inside = np.zeros_like(cell)
    inside[4:13, 4:19], inside[7:10, 19:22], inside[4:13, 22:37] = 0.6, 0.6, 0.6
    both = np.stack([cell, inside])

    def labels(**rule: object) -> Array:
        keys = {"inside": ["cell"], "split": "distance", **rule}
        return objects_of(both, ObjectRule.model_validate(keys), ["cell", "inside"]).labels

    assert labels().max() == 1
    assert labels(seeds="inside", seed_threshold=0.7).max() == 1, "nothing is likely enough: one object, not none"
    parted = labels(seeds="inside")
    assert parted.max() == 2
    assert np.array_equal(parted > 0, cell > 0)
    assert set(np.unique(parted[:, :19])) == {0, 1}
    assert set(np.unique(parted[:, 22:])) == {0, 2}


def test_an_ellipse_stays_one() -> None:
    mask = np.zeros((60, 90), np.float32)
    cv2.ellipse(mask, (45, 30), (38, 16), 20, 0, 360, 1.0, -1)

    assert objects_of(mask[np.newaxis], ObjectRule(split="distance"), ["cell"]).count == 1


def scene(*, border: bool = True) -> FloatArray:
    """Background, inside and border of two cells that touch, and of one so small that it is all border."""
    inside, around = np.zeros((9, 20), np.float32), np.zeros((9, 20), np.float32)
    around[1:8, 1:17] = 0.9
    inside[2:7, 2:7], inside[2:7, 11:16] = 0.9, 0.9
    around[inside > 0] = 0.05
    around[2:4, 18] = 0.9
    return np.stack([1 - inside - around, inside, around] if border else [1 - inside - around, inside])


def test_seeds_part_objects_and_an_object_without_one_stays() -> None:
    rule = ObjectRule(split="seeds", seeds="inside", inside=["inside", "border"])
    image = objects_of(scene(), rule, ["background", "inside", "border"])

    assert image.count == 3
    assert image.labels[4, 1:9].tolist() == [1] * 8
    assert image.labels[4, 9:17].tolist() == [2] * 8
    assert image.labels[2:4, 18].tolist() == [3, 3]


def test_objects_part_in_the_valley_and_on_flat_ground_half_way() -> None:
    def parted(middle: list[float]) -> list[int]:
        rule = ObjectRule(split="seeds", seeds="cell", seed_threshold=0.95)
        found: list[int] = objects_of(np.array([[[1, *middle, 1]]], np.float32), rule, ["cell"]).labels[0].tolist()
        return found

    assert parted([0.9] * 6 + [0.6] + [0.9]) == [1, 1, 1, 1, 1, 1, 1, 2, 2, 2]
    assert parted([0.9] + [0.6] + [0.9] * 6) == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert parted([0.9] * 8) == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]


def test_a_hole_in_a_parted_object_is_filled() -> None:
    probabilities = scene()
    probabilities[:, 4, 4] = 1, 0, 0
    rule = ObjectRule(split="seeds", seeds="inside", fill_holes=True)

    assert objects_of(probabilities, rule, ["background", "inside", "border"]).labels[4, 1:9].tolist() == [1] * 8


def test_seeds_that_are_too_small_or_too_improbable_do_not_count() -> None:
    labels = ["background", "inside", "border"]
    probabilities = scene()
    probabilities[1, 4, 9] = 0.7

    def count(**rule: object) -> int:
        return objects_of(
            probabilities, ObjectRule.model_validate({"split": "seeds", "seeds": "inside", **rule}), labels
        ).count

    assert (count(), count(min_seed_px=2), count(seed_threshold=0.8)) == (4, 3, 3)


def test_a_border_is_taken_off_the_seeds() -> None:
    cell, edge = np.full((5, 9), 0.9, np.float32), np.zeros((5, 9), np.float32)
    edge[:, 4] = 0.8
    both = np.stack([cell, edge])

    def count(**rule: object) -> int:
        keys = {"inside": ["cell"], "split": "seeds", "seeds": "cell", **rule}
        return objects_of(both, ObjectRule.model_validate(keys), ["cell", "edge"]).count

    assert (count(), count(border="edge")) == (1, 2)


def test_each_object_is_connected_and_the_mask_is_shared_out_whole() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        noise = cv2.GaussianBlur(rng.random((60, 70), np.float32), (0, 0), 2)
        values = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
        both = np.stack([values, values**2])
        for rule in (
            ObjectRule(split="distance"),
            ObjectRule(inside=["cell"], split="seeds", seeds="middle", seed_threshold=0.4),
        ):
            image = objects_of(both if rule.seeds else both[:1], rule, ["cell", "middle"][: 2 if rule.seeds else 1])
            assert np.array_equal(image.labels > 0, values >= 0.5)
            for label in range(1, image.count + 1):
                assert cv2.connectedComponents((image.labels == label).astype(np.uint8), connectivity=4)[0] == 2


@pytest.mark.parametrize("connectivity", [4, 8])
def test_a_maze_is_finished_in_bounded_work(monkeypatch: pytest.MonkeyPatch, connectivity: int) -> None:
    monkeypatch.setattr(flood, "_MAX_WAVES", 3)
    maze = drawn("aaaaaaaaa ........a aaaaaaaaa a........ aaaaaaaaa")
    whole = flood.components((maze > 0).astype(np.uint8), connectivity)
    seeds = np.zeros_like(whole)
    seeds[0, 0], seeds[0, 2] = 1, 2

    labels = flood.flood(whole, seeds, flood.in_steps(maze.astype(np.float32), maze, lowest=0, step=1), connectivity)

    assert np.array_equal(labels > 0, maze > 0)
    assert len(np.unique(labels)) == 3


def test_the_same_probabilities_give_the_same_objects() -> None:
    for labels in by_chance(12):
        mask = (labels > 0).astype(np.float32)[np.newaxis]
        first, second = (objects_of(mask.copy(), ObjectRule(split="distance"), ["cell"]).labels for _ in range(2))
        assert np.array_equal(first, second)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2)])
@pytest.mark.parametrize("split", ["none", "distance"])
def test_images_of_any_size_are_answered(shape: tuple[int, int], split: str) -> None:
    for value, count in ((0.0, 0), (1.0, 1)):
        rule = ObjectRule.model_validate({"split": split, "fill_holes": True})
        assert objects_of(np.full((1, *shape), value, np.float32), rule, ["cell"]).count == count


def test_a_rule_that_names_a_label_that_is_not_there_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no label 'nucleus' among background, cell"):
        objects_of(np.zeros((2, 3, 3), np.float32), ObjectRule(inside=["nucleus"]), ["background", "cell"])


@pytest.mark.parametrize(
    "keys",
    [{"split": "seeds"}, {"seeds": "cell"}, {"border": "edge"}, {"threshold": 1.0}, {"connectivity": 6}, {"neck": 1}],
    ids=str,
)
def test_a_rule_that_makes_no_sense_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ObjectRule.model_validate(keys)
