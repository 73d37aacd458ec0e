"""What is found in a mask: every lesion, its size and place in millimetres; and that nothing is, where nothing is."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.postprocess.components import components_of, largest_distance
from isocenter.imaging.postprocess.findings import FindingRule, Findings, findings_of
from scan_masks import ALL_48, lumps, pointing, turned

LABELS = ["background", "tumor", "edema"]
BOTH = FindingRule(labels=["tumor", "edema"])
TUMOR = FindingRule(labels=["tumor"])


def noise(density: float, shape: tuple[int, ...] = (13, 14, 15), seed: int = 0) -> Array:
    return (np.random.default_rng(seed).random(shape) < density).astype(np.uint8)


def labelled(mask: Array, connectivity: Literal[6, 18, 26]) -> Array:
    """Voxel by voxel, by the definition."""
    differ = {6: 1, 18: 2, 26: 3}[connectivity]
    steps = [step for step in np.ndindex(3, 3, 3) if 0 < np.abs(np.array(step) - 1).sum() <= differ]
    labels = np.zeros(mask.shape, int)
    for number, seed in enumerate(zip(*np.nonzero(mask), strict=True), 1):
        if labels[seed]:
            continue
        stack = [seed]
        while stack:
            at = stack.pop()
            if min(at) < 0 or any(a >= b for a, b in zip(at, mask.shape, strict=True)) or not mask[at] or labels[at]:
                continue
            labels[at] = number
            stack += [tuple(a + b - 1 for a, b in zip(at, step, strict=True)) for step in steps]
    return labels


def found_in(mask: Array, rule: FindingRule = BOTH, probabilities: FloatArray | None = None, **grid: Any) -> Findings:
    return findings_of(mask, LABELS, Geometry.of(mask.shape[-3:], **grid), rule, probabilities=probabilities)[0]


def rounded(voxels: int, diameter_mm: float, centroid_mm: Sequence[float]) -> tuple[float, ...]:
    return (voxels, *(round(each, 6) + 0.0 for each in (diameter_mm, *centroid_mm)))


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("density", [0.02, 0.15, 0.35, 0.8])
def test_components_are_those_of_the_definition(connectivity: Literal[6, 18, 26], density: float) -> None:
    mask = noise(density, (7, 8, 9))
    wanted = labelled(mask, connectivity)

    found = components_of(mask, connectivity)

    own = np.zeros_like(wanted)
    for (row, column), start, end, owner in zip(found.row, found.start, found.end, found.owner, strict=True):
        own[row, column, start:end] = owner + 1
    pairs = np.unique(np.stack([own.ravel(), wanted.ravel()], axis=1), axis=0)
    assert len(pairs) == found.count + 1 == len(np.unique(wanted))
    assert found.voxels.tolist() == np.bincount(own.ravel())[1:].tolist()


@pytest.mark.parametrize(("connectivity", "fully"), [(6, False), (26, True)])
def test_components_are_as_many_as_itk_counts(connectivity: Literal[6, 26], fully: bool) -> None:
    sitk: Any = pytest.importorskip("SimpleITK")
    mask = noise(0.12, (24, 25, 26))
    counter = sitk.ConnectedComponentImageFilter()
    counter.SetFullyConnected(fully)
    counter.Execute(sitk.GetImageFromArray(mask))

    assert components_of(mask, connectivity).count == counter.GetObjectCount()


def test_diameters_and_centroids_are_those_of_itk() -> None:
    sitk: Any = pytest.importorskip("SimpleITK")
    spacing_mm = (0.8, 1.3, 4.0)
    mask = noise(0.3, (12, 14, 9))
    image = sitk.GetImageFromArray(mask.transpose(2, 1, 0))
    image.SetSpacing(spacing_mm)
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.ComputeFeretDiameterOn()
    shapes.Execute(sitk.ConnectedComponent(image))
    wanted = sorted(
        rounded(shapes.GetNumberOfPixels(label), shapes.GetFeretDiameter(label), shapes.GetCentroid(label))
        for label in shapes.GetLabels()
    )

    rule = FindingRule(labels=["tumor"], connectivity=6)
    lesions = found_in(mask, rule, spacing_mm=spacing_mm).lesions

    found = sorted(rounded(lesion.voxels, lesion.diameter_mm, lesion.centroid_lps_mm) for lesion in lesions)
    assert found == wanted


@pytest.mark.parametrize("points", [1, 2, 30, 700])
def test_the_largest_distance_is_the_largest_of_all_pairs(points: int) -> None:
    cloud = np.random.default_rng(points).normal(size=(points, 3)) * (9, 4, 7)
    wanted = max(float(np.linalg.norm(cloud - each, axis=1).max()) for each in cloud)
    assert largest_distance(cloud) == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("axcodes", ALL_48)
def test_lesions_are_in_one_place_of_the_patient_however_the_array_lies(axcodes: str) -> None:
    source = pointing("LPS")
    mask, geometry = turned(lumps(), source, axcodes)

    wanted, _ = findings_of(lumps(), LABELS, source, BOTH, probabilities=None)
    found, _ = findings_of(mask, LABELS, geometry, BOTH, probabilities=None)

    assert [(each.label, each.voxels) for each in found.lesions] == [("edema", 24), ("tumor", 10), ("tumor", 1)]
    for one, other in zip(found.lesions, wanted.lesions, strict=True):
        assert one.centroid_lps_mm == pytest.approx(other.centroid_lps_mm, abs=1e-9)
        assert one.diameter_mm == pytest.approx(other.diameter_mm, abs=1e-9)
        assert geometry.position_lps_mm(one.centroid_voxel) == pytest.approx(one.centroid_lps_mm)
    assert found.volume_ml == pytest.approx(35 * 0.7 * 1.5 * 4.0 / 1000)


def test_a_mask_with_axes_in_any_order_of_memory_has_the_same_findings() -> None:
    mask = noise(0.2) + 2 * noise(0.1, seed=1) * (noise(0.2) == 0)
    assert found_in(np.asfortranarray(mask)) == found_in(np.ascontiguousarray(mask))


def test_nothing_found_is_an_answer_with_a_probability() -> None:
    probabilities = np.full((3, 4, 5, 6), 0.01, np.float32)
    probabilities[1, 2, 2, 2], probabilities[1, 2, 2, 3] = 0.4, 0.2
    empty = np.zeros((4, 5, 6), np.uint8)

    found = found_in(empty, TUMOR, probabilities)

    assert (found.present, found.lesions, found.volume_ml, found.removed) == (False, (), 0.0, 0)
    assert found.probability == pytest.approx(0.4)
    assert found.volume_ml_by_label == {"tumor": 0.0, "edema": 0.0}
    two_voxels = FindingRule(labels=["tumor"], min_volume_ml=0.002)
    assert found_in(empty, two_voxels, probabilities).probability == pytest.approx(0.3)


def test_nothing_is_removed_unless_the_rule_says_so() -> None:
    mask = lumps()
    found, kept = findings_of(mask, LABELS, Geometry.of(mask.shape), BOTH, probabilities=None)
    assert kept is mask
    assert (found.removed, found.removed_ml) == (0, 0.0)


def test_what_is_removed_is_reported_and_leaves_the_mask() -> None:
    mask = lumps()
    rule = FindingRule(labels=["tumor"], min_volume_ml=0.002)

    found, kept = findings_of(mask, LABELS, Geometry.of(mask.shape), rule, probabilities=None)

    assert [lesion.voxels for lesion in found.lesions] == [10]
    assert found.removed == 1
    assert found.removed_ml == pytest.approx(0.001)
    assert np.argwhere(kept != mask).tolist() == [[5, 7, 9]]
    assert mask[5, 7, 9] == 1, "the caller's own mask was changed"
    assert found.volume_ml_by_label == {"tumor": pytest.approx(0.010), "edema": pytest.approx(0.024)}
    again = findings_of(kept, LABELS, Geometry.of(mask.shape), rule, probabilities=None)[0]
    assert (again.lesions, again.removed) == (found.lesions, 0)


def test_a_component_of_exactly_the_smallest_volume_stays() -> None:
    mask = np.zeros((5, 5, 5), np.uint8)
    mask[1:4, 1, 1] = 1
    rule = FindingRule(labels=["tumor"], min_volume_ml=0.003 * 0.1**3)
    assert found_in(mask, rule, spacing_mm=(0.1, 0.1, 0.1)).removed == 0


@pytest.mark.parametrize("order", ["C", "F"])
def test_components_that_are_not_probable_enough_are_removed_and_do_not_count(order: Literal["C", "F"]) -> None:
    mask = np.asarray(lumps(), order=order)
    probabilities = np.full((3, *mask.shape), 0.05, np.float32)
    probabilities[1][mask == 1] = 0.75
    probabilities[1, 5, 7, 9] = 0.5  # a component of its own
    before = probabilities.copy()
    rule = FindingRule(labels=["tumor"], min_probability=0.75)

    found, kept = findings_of(mask, LABELS, Geometry.of(mask.shape), rule, probabilities=probabilities)

    assert [(each.voxels, each.probability) for each in found.lesions] == [(10, 0.75)]
    assert found.removed == 1
    assert found.removed_ml == pytest.approx(0.001)
    assert np.argwhere(kept != mask).tolist() == [[5, 7, 9]]
    assert found.probability == 0.75
    surer = FindingRule(labels=["tumor"], min_probability=0.8)
    none, _ = findings_of(mask, LABELS, Geometry.of(mask.shape), surer, probabilities=probabilities)
    assert (none.present, none.removed) == (False, 2)
    assert none.probability == pytest.approx(0.05)
    assert np.array_equal(probabilities, before), "the caller's own probabilities were changed"


def test_what_is_too_small_has_its_say_in_how_sure_the_answer_is() -> None:
    mask = lumps()
    probabilities = np.where(np.arange(3)[:, None, None, None] == mask, np.float32(0.75), np.float32(0.0))
    rule = FindingRule(labels=["tumor"], min_volume_ml=1.0, min_probability=0.7)

    found = found_in(mask, rule, probabilities)

    assert not found.present
    assert found.probability is not None
    assert found.probability > 0


def test_a_rule_about_probability_needs_some() -> None:
    with pytest.raises(ValueError, match=r"lesions of probability 0\.5 or more, and no probabilities"):
        found_in(lumps(), FindingRule(labels=["tumor"], min_probability=0.5))


def test_labels_that_overlap_are_counted_once_in_the_whole() -> None:
    layers = np.zeros((2, 4, 5, 6), np.uint8)
    layers[0, 1:3, 1:3, 1:3] = 1
    layers[1, 1, 1, 1] = 1
    rule = FindingRule(labels=["whole", "core"])
    probabilities = np.where(layers, np.float32(0.75), np.float32(0.25))

    found, kept = findings_of(layers, ["whole", "core"], Geometry.of((4, 5, 6)), rule, probabilities=probabilities)

    assert [(each.label, each.voxels, each.number) for each in found.lesions] == [("whole", 8, 1), ("core", 1, 2)]
    assert found.volume_ml == pytest.approx(0.008)
    assert found.volume_ml_by_label == {"whole": pytest.approx(0.008), "core": pytest.approx(0.001)}
    assert (found.probability, found.lesions[1].probability) == (0.75, 0.75)
    assert kept is layers


def test_a_lesion_is_as_sure_as_its_voxels() -> None:
    mask = lumps()
    probabilities = np.random.default_rng(0).random((3, *mask.shape), dtype=np.float32)
    for order in ("C", "F"):
        found = found_in(np.asarray(mask, order=order), BOTH, np.asarray(probabilities, order=order))
        assert found.lesions[0].probability == pytest.approx(float(probabilities[2][mask == 2].mean()), rel=1e-6)


@pytest.mark.parametrize("voxels", [1, 7, 500, 2730])
def test_the_most_probable_voxels_decide_how_sure_it_is(voxels: int) -> None:
    probabilities = np.random.default_rng(2).random((3, 13, 14, 15), dtype=np.float32)
    rule = FindingRule(labels=["edema"], min_volume_ml=voxels / 1000)
    highest = np.sort(probabilities[2], axis=None)[-voxels:].mean(dtype=np.float64)
    assert found_in(noise(0.1), rule, probabilities).probability == pytest.approx(highest, rel=1e-9)


def test_labels_that_exclude_each_other_add_up() -> None:
    probabilities = np.zeros((3, 4, 5, 6), np.float32)
    probabilities[:, 1, 1, 1] = 0.2, 0.45, 0.35
    assert found_in(np.zeros((4, 5, 6), np.uint8), BOTH, probabilities).probability == pytest.approx(0.8)


@pytest.mark.parametrize("label", ["background", "lesion"])
def test_a_rule_names_labels_of_the_mask(label: str) -> None:
    with pytest.raises(ValueError, match=f"no label '{label}' among tumor, edema"):
        found_in(lumps(), FindingRule(labels=[label]))
