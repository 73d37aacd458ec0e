"""The shipped nuclei model finds nuclei as well as its card says, by the way that requests take."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import ROOT
from isocenter import SyncService
from isocenter.core.tensor import Array
from isocenter.imaging.postprocess.objects import objects_of
from isocenter.imaging.volume import COLOURS, Volume
from isocenter.repository.layout import find
from nuclei_data import WINDOW_PERCENTILES, Field, part_of, read_fields, windowed
from nuclei_drawn import drawn_field
from nuclei_metrics import Quality, quality_of, summary_of
from patience import PATIENCE_S
from shipped_models import SHIPPED, served_alone

NAME = "nuclei-segmenter"
IMAGES = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data")) / "nuclei_dsb2018"
UNUSED_SEED = 7  # the golden case is another one


@pytest.fixture(scope="module")
def service() -> Iterator[SyncService]:
    with served_alone(NAME) as service:
        yield service


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Field]]:
    if not IMAGES.is_dir():
        pytest.skip("no nuclei_dsb2018 in the directory that TEST_DATA_DIR names")
    return read_fields(IMAGES)


def objects(service: SyncService, pixels: Array) -> Array:
    """Labels [H, W] of a gray image [H, W] or a coloured one [H, W, 3], by the rule of the manifest."""
    planes = np.stack([pixels] * 3) if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    found = service.segment(Volume.of(planes, channels=COLOURS), probabilities=True, timeout=PATIENCE_S)
    rule = find(SHIPPED, NAME, 1).manifest.output.objects
    assert rule is not None
    assert found.probabilities is not None
    return objects_of(found.probabilities, rule, found.labels).labels


def test_the_weights_are_small_enough_to_be_kept_with_the_code() -> None:
    assert (SHIPPED / NAME / "1" / "model.onnx").stat().st_size < 8_000_000


def test_drawn_nuclei_of_an_unused_seed_are_found(service: SyncService) -> None:
    pixels, truth = drawn_field(UNUSED_SEED)

    quality = quality_of(objects(service, pixels), truth)

    assert quality.object_f1 >= 0.9
    assert quality.foreground_iou >= 0.8


def test_twelve_bits_in_sixteen_give_the_objects_of_their_eight_bit_picture(service: SyncService) -> None:
    pixels, _ = drawn_field(UNUSED_SEED)
    low, high = np.percentile(pixels, (1, 99.9))
    picture = np.clip(np.rint((pixels - low) / (high - low) * 255), 0, 255).astype(np.uint8)

    assert quality_of(objects(service, pixels), objects(service, picture)).object_f1 >= 0.95


def as_twelve_bits(pixels: Array, seed: int) -> Array:
    """A field of 8 bits as a camera of 12 might have taken it: its steps smoothed away, then shot noise; uint16.

    No file of the set has more than 8 bits.
    """
    light: Array = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 0.8)
    low, high = light.min(), light.max()
    seen: Array = 180.0 + 3400.0 * (light - low) / (high - low)
    seen += np.sqrt(seen) * np.random.default_rng(seed).standard_normal(seen.shape, dtype=np.float32)
    return np.asarray(np.clip(np.rint(seen), 0, 4095).astype(np.uint16))


def as_png(pixels: Array) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.mark.slow
def test_real_fields_of_twelve_bits_give_the_objects_of_their_eight_bit_pictures(
    service: SyncService, parts: dict[str, list[Field]]
) -> None:
    dark = [field for field in parts["calibration"] if field.kind == "gray-dark"]
    found, objects_seen = {}, 0
    for seed, field in enumerate(dark[:8]):
        pixels = as_twelve_bits(field.pixels[..., 0], seed)
        low, high = np.percentile(pixels, WINDOW_PERCENTILES)
        picture = np.rint(255 * windowed(pixels, float(low), float(high))).astype(np.uint8)
        deep, shallow = (service.segment_image(as_png(each), timeout=PATIENCE_S) for each in (pixels, picture))
        found[field.name] = round(quality_of(deep.labels.labels, shallow.labels.labels).object_f1, 3)
        objects_seen += deep.count

    assert objects_seen > 200
    assert min(found.values()) >= 0.95, found


def test_the_split_is_by_the_bytes_of_a_file() -> None:
    parts = [part_of(f"image {number}".encode()) for number in range(2000)]

    assert 0.17 < parts.count("held-out") / 2000 < 0.23
    assert 0.08 < parts.count("calibration") / 2000 < 0.12
    assert (part_of(b"image 3"), part_of(b"image 4")) == (part_of(b"image 3"), part_of(b"image 4"))


@pytest.fixture(scope="module")
def held_out(service: SyncService, parts: dict[str, list[Field]]) -> dict[str, list[Quality]]:
    found: defaultdict[str, list[Quality]] = defaultdict(list)
    for field in parts["held-out"]:
        found[field.kind].append(quality_of(objects(service, field.pixels), field.labels))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "images", "iou", "f1"),
    [("gray-dark", 60, 0.865, 0.895), ("colour", 14, 0.73, 0.60)],
    ids=["dark fluorescence", "stained"],
)
def test_nuclei_of_held_out_images_are_found_as_promised(
    held_out: dict[str, list[Quality]], kind: str, images: int, iou: float, f1: float
) -> None:
    summary = summary_of(held_out[kind])

    assert summary.images == images
    assert summary.foreground_iou >= iou
    assert summary.object_f1 >= f1
