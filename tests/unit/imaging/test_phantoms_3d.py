"""Drawn head scans keep what their docstrings promise: seeded, in the head, as large as asked, unlike in contrast."""

import functools

import numpy as np
import pytest

from isocenter.core.errors import InputNotAccepted
from isocenter.imaging.phantom_heads import BRAIN_EDGE, smooth_noise
from isocenter.imaging.phantom_lesions import SIZES_ML, draw_volume_ml, radius_mm
from isocenter.imaging.phantom_planting import plant
from isocenter.imaging.phantoms_3d import CONTRASTS, KINDS, SHAPE, Contrast, HeadPhantom, Kind, head_scan
from isocenter.imaging.volume import Volume

SEEDS = (0, 1, 6, 7, 9, 11)  # which draw each kind and contrast
COARSE_MM = 4.0  # a head of 4 mm voxels takes 50 ms, and has every part that a fine one has


@functools.cache
def coarse(seed: int, kind: Kind | None = None, contrast: Contrast | None = None) -> HeadPhantom:
    return head_scan(seed, kind=kind, contrast=contrast, voxel_mm=COARSE_MM)


def test_the_same_seed_gives_the_same_voxels() -> None:
    first, second = (head_scan(1_000_001, kind="several", voxel_mm=COARSE_MM) for _ in range(2))

    assert np.array_equal(first.volume.voxels, second.volume.voxels)
    assert np.array_equal(first.truth, second.truth)


def test_another_seed_gives_another_head() -> None:
    assert coarse(1_000_001).volume.geometry.spacing_mm != coarse(1_000_002).volume.geometry.spacing_mm


def test_what_a_seed_draws_is_what_asking_for_it_gives() -> None:
    drawn = coarse(1_000_003)
    asked = head_scan(1_000_003, kind=drawn.kind, contrast=drawn.contrast, voxel_mm=COARSE_MM)

    assert np.array_equal(drawn.volume.voxels, asked.volume.voxels)


def test_seeds_draw_every_kind_and_every_contrast() -> None:
    drawn = [coarse(1_000_000 + each) for each in SEEDS]

    assert {each.kind for each in drawn} == set(KINDS)
    assert {each.contrast for each in drawn} == set(CONTRASTS)


@pytest.mark.slow
def test_a_scan_has_the_voxels_and_spacings_of_a_scanner() -> None:
    scan = head_scan(1_000_004, kind="ring")
    *across, apart = scan.volume.geometry.spacing_mm

    assert scan.volume.voxels.shape == (1, *SHAPE)
    assert scan.volume.voxels.dtype == np.uint16
    assert all(0.9 <= each <= 1.2 for each in across)
    assert 1.2 <= apart <= 1.6
    assert scan.volume.geometry.axcodes == "LPS"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ring", "solid", "diffuse"])
def test_a_lesion_has_the_volume_that_was_drawn_for_it(kind: Kind) -> None:
    fine, rough = head_scan(1_000_005, kind=kind), head_scan(1_000_005, kind=kind, voxel_mm=2.0)
    voxel_ml = float(np.prod(fine.volume.geometry.spacing_mm)) / 1e3

    assert np.count_nonzero(fine.truth) * voxel_ml == pytest.approx(fine.lesions[0].volume_ml)
    assert fine.lesions[0].volume_ml == pytest.approx(rough.lesions[0].volume_ml, rel=0.1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "healthy"])
def test_lesions_lie_where_they_are_said_to_lie_and_within_the_brain(kind: Kind) -> None:
    for seed in (1_000_010, 1_000_011):
        phantom = coarse(seed, kind)
        geometry = phantom.volume.geometry
        for number, lesion in enumerate(phantom.lesions, start=1):
            places = np.argwhere(phantom.truth == number)
            if not len(places):  # smaller than a voxel of 64 µl
                continue
            middle = np.array(geometry.position_lps_mm(places.mean(axis=0).tolist()))
            assert np.linalg.norm(middle - lesion.centre_lps_mm) < 0.8 * radius_mm(lesion.volume_ml) + COARSE_MM
            # No half axis of a head is longer than 107 mm, and the skull takes its share.
            farthest = max(np.linalg.norm(geometry.position_lps_mm(place.tolist())) for place in places)
            assert farthest < BRAIN_EDGE * 108.0 + COARSE_MM


def test_a_healthy_head_has_no_lesion() -> None:
    healthy = coarse(1_000_020, "healthy")

    assert not healthy.truth.any()
    assert healthy.lesions == ()


def test_several_are_apart_and_numbered() -> None:
    phantom = coarse(1_000_021, "several")

    assert len(phantom.lesions) >= 2
    assert set(np.unique(phantom.truth)) <= set(range(len(phantom.lesions) + 1))


def test_lesions_are_brighter_than_the_brain_in_some_scans_and_darker_in_others() -> None:
    directions = set()
    for seed in range(1_000_030, 1_000_036):
        phantom, healthy = coarse(seed, "solid", "t1"), coarse(seed, "healthy", "t1")
        inside = phantom.truth > 0
        if np.count_nonzero(inside) > 10:
            shown = phantom.volume.voxels[0][inside].mean() / phantom.volume.voxels.max()
            directions.add(bool(shown > healthy.volume.voxels[0][inside].mean() / healthy.volume.voxels.max()))

    assert directions == {True, False}


def test_with_contrast_agent_bodies_are_brighter_than_the_head_around_them() -> None:
    phantom, healthy = coarse(1_000_050, "solid", "t1c"), coarse(1_000_050, "healthy", "t1c")
    inside = phantom.truth > 0

    assert phantom.volume.voxels[0][inside].mean() > 1.3 * healthy.volume.voxels[0][inside].mean()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"seed": -1}, "negative"),
        ({"seed": 1, "kind": "large"}, "kinds are"),
        ({"seed": 1, "contrast": "flair"}, "contrasts"),
        ({"seed": 1, "voxel_mm": 9.0}, "coarser than 6 mm"),
    ],
)
def test_what_cannot_be_drawn_is_said(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        head_scan(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [*SIZES_ML])
def test_volumes_stay_within_the_bounds_of_their_kind(kind: str) -> None:
    rng = np.random.default_rng(1)
    _, _, low, high = SIZES_ML[kind]

    assert all(low <= draw_volume_ml(rng, kind) <= high for _ in range(300))


def test_smooth_noise_does_not_depend_on_how_finely_it_is_sampled() -> None:
    rough, fine = (smooth_noise(np.random.default_rng(5), (size,) * 3, (4, 4, 4)) for size in (8, 24))

    assert np.abs(fine[1::3, 1::3, 1::3] - rough).max() < 0.01


def test_a_planted_lesion_changes_the_head_only_near_itself() -> None:
    head = coarse(1_000_060, "healthy", "t1c").volume
    planted = plant(head, 3, kind="solid")
    changed = planted.volume.voxels[0] != head.voxels[0]

    assert planted.truth.any()
    assert planted.volume.voxels.dtype == head.voxels.dtype
    assert changed[planted.truth > 0].mean() > 0.8
    assert np.count_nonzero(changed) < 0.2 * changed.size
    assert np.array_equal(planted.truth, plant(head, 3, kind="solid").truth)


def test_planted_lesions_lie_below_the_vertex_and_above_the_neck() -> None:
    head = coarse(1_000_061, "healthy", "t1").volume
    planted = plant(head, 4, kind="ring")
    top = head.geometry.position_lps_mm([0, 0, head.geometry.shape[2] - 1])[2]

    for lesion in planted.lesions:
        assert lesion.centre_lps_mm[2] < top
        assert lesion.centre_lps_mm[2] > top - 130.0


def test_nothing_is_planted_where_there_is_no_head() -> None:
    rng = np.random.default_rng(2)
    empty = Volume.of(rng.uniform(0, 1, (1, 12, 12, 12)).astype(np.float32), spacing_mm=(2.0, 2.0, 2.0))

    with pytest.raises(InputNotAccepted, match="no "):
        plant(empty, 1)
