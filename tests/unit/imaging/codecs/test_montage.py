"""The picture shows the scan as radiologists look at it, and the mask where it lies."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from isocenter.core.tensor import Array
from isocenter.imaging.codecs.montage import montage_of
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.postprocess.findings import FindingRule, findings_of
from isocenter.imaging.volume import Volume
from scan_masks import ALL_48, SHAPE, lumps, pointing, turned

TILE = 256


def shown(data: bytes) -> Array:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def coloured(picture: Array) -> Array:
    return np.asarray(np.ptp(picture.astype(int), axis=2) > 60)


@pytest.mark.parametrize(
    "orientations", [("LPS", "RAS", "PIR", "SAL"), pytest.param(ALL_48, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_every_orientation_of_a_scan_gives_one_picture(orientations: Sequence[str]) -> None:
    source = pointing("LPS", (1.0, 1.2, 1.4))
    gray = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
    rule = FindingRule(labels=[1, 2])
    pictures = set()
    for axcodes in orientations:
        voxels, geometry = turned(gray, source, axcodes)
        mask, _ = turned(lumps(), source, axcodes)
        lesions = findings_of(mask, [0, 1, 2], geometry, rule, probabilities=None)[0].lesions
        pictures.add(montage_of(Volume(voxels[None], geometry), mask, lesions=lesions))
    assert len(pictures) == 1


@pytest.mark.parametrize(
    ("towards", "half"),
    [("L", "right"), ("R", "left"), ("A", "upper"), ("P", "lower")],
)
def test_the_left_of_the_patient_is_on_the_right_and_the_front_is_up(towards: str, half: str) -> None:
    geometry = pointing("RAS", (1.0, 1.0, 1.0))
    mask = np.zeros(SHAPE, np.uint8)
    axis = 0 if towards in "LR" else 1
    side = slice(0, 2) if towards in "LP" else slice(-2, None)  # the array's axes point to R and to A
    mask[(side, slice(2, -2), slice(2, -2)) if axis == 0 else (slice(2, -2), side, slice(2, -2))] = 1
    voxels = np.random.default_rng(0).integers(1, 9, (1, *SHAPE)).astype(np.uint8)

    found = coloured(shown(montage_of(Volume(voxels, geometry), mask, columns=4)))[:TILE, 3 * TILE : 4 * TILE]

    rows, columns = np.argwhere(found).mean(axis=0)
    middle = TILE / 2 - 0.5
    where = {"right": columns - middle, "left": middle - columns, "lower": rows - middle, "upper": middle - rows}
    assert where[half] > TILE / 8


def test_thick_slices_are_shown_as_they_were_taken() -> None:
    voxels = np.random.default_rng(0).integers(1, 9, (1, 5, 30, 20)).astype(np.uint8)
    sagittal = montage_of(Volume.of(voxels, spacing_mm=(6, 1, 1)), np.zeros((5, 30, 20), np.uint8), columns=5)
    axial = montage_of(Volume.of(voxels, spacing_mm=(1, 1, 1)), np.zeros((5, 30, 20), np.uint8), columns=5)
    assert shown(sagittal).shape == (TILE, 5 * TILE, 3)
    assert shown(axial).shape == (3 * TILE, 5 * TILE, 3)


def test_the_middle_of_each_lesion_is_among_the_slices() -> None:
    geometry = Geometry.of((40, 40, 100))
    mask = np.zeros(geometry.shape, np.uint8)
    mask[20:24, 20:24, 57] = 1
    lesions = findings_of(mask, ["b", "t"], geometry, FindingRule(labels=["t"]), probabilities=None)[0].lesions
    volume = Volume(np.random.default_rng(0).integers(1, 9, (1, *geometry.shape)).astype(np.uint8), geometry)

    assert coloured(shown(montage_of(volume, mask, lesions=lesions))).any()
    assert not coloured(shown(montage_of(volume, mask))).any()


def test_labels_that_overlap_have_a_colour_each() -> None:
    volume = Volume.of(np.random.default_rng(0).integers(1, 9, (2, 9, 9, 3)).astype(np.uint8))
    layers = np.zeros((2, 9, 9, 3), np.uint8)
    layers[0, 1:8, 1:8], layers[1, 4:6, 4:6] = 1, 1
    picture = shown(montage_of(volume, layers))
    colours = {tuple(colour) for colour in picture[coloured(picture)].tolist()}
    assert len(colours) == 2


def test_a_volume_of_one_value_is_drawn_too() -> None:
    volume = Volume.of(np.full((1, 4, 4, 4), -7.0, np.float32))
    assert shown(montage_of(volume, np.zeros((4, 4, 4), np.uint8))).shape == (TILE, 4 * TILE, 3)


def test_a_mask_of_another_grid_is_not_drawn() -> None:
    with pytest.raises(ValueError, match="a montage of"):
        montage_of(Volume.of(np.zeros((1, 4, 4, 4), np.uint8)), np.zeros((4, 4, 5), np.uint8))
