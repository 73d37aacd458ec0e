"""The phantoms keep what their docstrings promise: seeded, labelled, and told apart by what a reader would look at."""

import functools

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.imaging.phantoms import CLASSES, BrainPhantom, brain_slice

TUMOURS = CLASSES[:3]
SEEDS = tuple(range(1_000_000, 1_000_012))


@functools.cache
def _phantoms(label: str) -> list[BrainPhantom]:
    return [brain_slice(seed, label=label) for seed in SEEDS]


def _centre_xy(lesion: NDArray[np.bool_]) -> tuple[float, float]:
    """Centre of mass as a share of the side, x to the right and y downwards."""
    rows, columns = np.nonzero(lesion)
    return float(columns.mean() / lesion.shape[1]), float(rows.mean() / lesion.shape[0])


@pytest.mark.parametrize("label", CLASSES)
def test_the_same_seed_gives_the_same_pixels(label: str) -> None:
    first, second = brain_slice(1_000_001, label=label), brain_slice(1_000_001, label=label)
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.lesion, second.lesion)


@pytest.mark.parametrize("label", CLASSES)
def test_another_seed_gives_another_head(label: str) -> None:
    first, second = brain_slice(1_000_001, label=label), brain_slice(1_000_002, label=label)
    assert not np.array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("label", CLASSES)
def test_the_asked_label_is_the_label(label: str) -> None:
    phantom = brain_slice(1_000_003, label=label)
    assert (phantom.label, phantom.seed) == (label, 1_000_003)


def test_without_a_label_the_seed_draws_every_class() -> None:
    drawn = {brain_slice(seed, side_px=64).label for seed in range(1_000_000, 1_000_040)}
    assert drawn == set(CLASSES)


def test_a_drawn_label_gives_the_phantom_that_asking_for_it_gives() -> None:
    drawn = brain_slice(1_000_005)
    asked = brain_slice(1_000_005, label=drawn.label)
    assert np.array_equal(drawn.pixels, asked.pixels)


@pytest.mark.parametrize("side_px", [64, 160, 224, 301])
def test_the_side_is_honoured(side_px: int) -> None:
    phantom = brain_slice(1_000_004, label="Glioma", side_px=side_px)
    assert phantom.pixels.shape == phantom.lesion.shape == (side_px, side_px)
    assert (phantom.pixels.dtype.name, phantom.lesion.dtype.name) == ("uint8", "bool")


def test_the_anatomy_stays_when_the_side_changes() -> None:
    small = brain_slice(1_000_006, label="Meningioma", side_px=112)
    large = brain_slice(1_000_006, label="Meningioma", side_px=224)
    assert _centre_xy(small.lesion) == pytest.approx(_centre_xy(large.lesion), abs=0.01)


@pytest.mark.parametrize("label", CLASSES)
def test_the_lesion_is_empty_for_no_tumor_and_only_then(label: str) -> None:
    for phantom in _phantoms(label):
        assert phantom.lesion.any() == (label != "No Tumor")


@pytest.mark.parametrize("label", TUMOURS)
def test_no_lesion_is_too_small_or_too_faint_to_see(label: str) -> None:
    for phantom in _phantoms(label):
        area = phantom.lesion.mean()
        assert 0.003 < area < 0.12, f"seed {phantom.seed}: {area:.4f} of the slice"
        # A ring's dark core is part of the lesion, so the brightest fifth is what has to stand out.
        brightest = np.percentile(phantom.pixels[phantom.lesion], 80)
        around = cv2.dilate(phantom.lesion.astype(np.uint8), np.ones((25, 25), np.uint8)).astype(bool) & ~phantom.lesion
        assert brightest > np.median(phantom.pixels[around]) + 40, f"seed {phantom.seed}"


def test_a_pituitary_mass_sits_on_the_midline_before_the_centre() -> None:
    for phantom in _phantoms("Pituitary"):
        x, y = _centre_xy(phantom.lesion)
        assert abs(x - 0.5) < 0.06, f"seed {phantom.seed}"
        assert 0.30 < y < 0.48, f"seed {phantom.seed}"


def test_a_glioma_keeps_away_from_midline_and_skull() -> None:
    for phantom in _phantoms("Glioma"):
        x, y = _centre_xy(phantom.lesion)
        assert abs(x - 0.5) > 0.05, f"seed {phantom.seed}"
        assert np.hypot(x - 0.5, y - 0.5) < 0.33, f"seed {phantom.seed}"


def test_a_meningioma_is_even_where_a_glioma_is_not() -> None:
    def unevenness(phantom: BrainPhantom) -> float:
        inner = cv2.erode(phantom.lesion.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        values = phantom.pixels[inner].astype(float)
        return float(values.std() / values.mean())

    meningiomas = [unevenness(phantom) for phantom in _phantoms("Meningioma")]
    gliomas = [unevenness(phantom) for phantom in _phantoms("Glioma")]
    assert max(meningiomas) < min(gliomas)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"seed": 1, "label": "Cyst"}, "none of", id="unknown label"),
        pytest.param({"seed": -1}, "negative", id="negative seed"),
        pytest.param({"seed": 1, "side_px": 63}, "under 64 px", id="side too small"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        brain_slice(**arguments)  # type: ignore[arg-type]
