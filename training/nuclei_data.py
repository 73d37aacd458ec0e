"""What the nuclei model learns from: images with label images in three parts, and crops of them as other microscopes
might have delivered them."""

import csv
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np

Kind: TypeAlias = Literal["gray-dark", "gray-bright", "colour"]
LABELS = ("background", "inside", "border")  # in the order of the logits
WINDOW_PERCENTILES = (1.0, 99.9)
"""Of all values of an image; what lies between becomes 0..1. As `steps` of the manifest say it."""
SHARES: dict[Kind, float] = {"gray-dark": 0.68, "colour": 0.26, "gray-bright": 0.06}
"""Of the crops of a batch, by kind of image."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """One image with what is known of it."""

    name: str
    kind: Kind
    pixels: np.ndarray
    """uint8 [H, W, 3], red first; gray three times."""
    labels: np.ndarray
    """uint16 [H, W]; 0 is the background."""
    window: tuple[float, float]
    """Values that become 0 and 1."""


def part_of(content: bytes) -> str:
    """Say to which part an image belongs; the bytes of its file decide, so no list has to be kept."""
    digest = hashlib.sha256(content).hexdigest()
    if int(digest[:8], 16) % 5 == 0:
        return "held-out"
    return "calibration" if int(digest[8:16], 16) % 8 == 0 else "training"


def read_fields(directory: Path) -> dict[str, list[Field]]:
    """Read `index.csv`, `images/` and `labels/` of a directory; the three parts by name."""
    parts: dict[str, list[Field]] = {"training": [], "calibration": [], "held-out": []}
    with (directory / "index.csv").open(newline="") as table:
        rows = sorted(csv.DictReader(table), key=lambda row: row["name"])
    for row in rows:
        content = (directory / "images" / f"{row['name']}.png").read_bytes()
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        labels = cv2.imread(str(directory / "labels" / f"{row['name']}.png"), cv2.IMREAD_UNCHANGED)
        assert pixels is not None, row["name"]
        assert labels is not None, row["name"]
        low, high = np.percentile(pixels, WINDOW_PERCENTILES)
        kind: Kind = row["kind"]  # type: ignore[assignment]
        field = Field(row["name"], kind, np.ascontiguousarray(pixels[..., ::-1]), labels, (float(low), float(high)))
        parts[part_of(content)].append(field)
    return parts


def windowed(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values linearly from low..high to 0..1, clipped: float32 of the same shape."""
    scaled = (pixels.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-6))
    return np.asarray(np.clip(scaled, np.float32(0), np.float32(1)))


def classes_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers int64 [H, W] and weights float32 [H, W] of a label image uint16 [H, W].

    The border is the outermost pixel of a nucleus, and two where another one is near. It belongs to the nucleus: inside
    and border together are the foreground.
    """
    nucleus = labels > 0
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    rim = (cv2.erode(labels, cross) != labels) | (cv2.dilate(labels, cross) != labels)
    contact = _two_within(labels, 5)
    classes = nucleus.astype(np.int64)
    classes[nucleus & (rim | contact)] = 2
    sizes = np.bincount(labels.ravel()).astype(np.float32)
    # A small nucleus counts as one object too, and has few pixels to say so.
    by_size = np.clip(np.sqrt(250.0 / np.maximum(sizes, 1.0)), 0.7, 2.2)
    by_size[0] = 0.0
    weights = by_size[labels]
    weights[classes == 2] *= 1.4
    # Both sides of an outline weigh the same: if not, it moves to where less is to be lost.
    around = cv2.dilate(weights, np.ones((5, 5), np.uint8))
    weights[~nucleus] = np.where(around > 0, around, np.float32(1))[~nucleus]
    weights[_two_within(labels, 7)] *= 2.5
    return classes, weights.astype(np.float32)


def _two_within(labels: np.ndarray, side_px: int) -> np.ndarray:
    """Where a square around a pixel holds two nuclei or more."""
    square = np.ones((side_px, side_px), np.uint8)
    highest = cv2.dilate(labels, square)
    lowest = cv2.erode(np.where(labels == 0, np.uint16(65_535), labels), square)
    return np.asarray((highest > 0) & (lowest < highest))


class Cropper:
    """Draw crops: image float32 [3, S, S] in 0..1, class numbers int64 [S, S], weights float32 [S, S]."""

    def __init__(self, fields: list[Field], seed: int, *, changed: float = 1.0) -> None:
        """`changed` is how often a crop is changed otherwise than by quarter turns and mirrors, as a share of usual."""
        self._changed = changed
        self._rng = np.random.default_rng(seed)
        self._by_kind = {kind: [field for field in fields if field.kind == kind] for kind in SHARES}
        kinds = [kind for kind in SHARES if self._by_kind[kind]]
        total = sum(SHARES[kind] for kind in kinds)
        self._kinds = [(kind, SHARES[kind] / total) for kind in kinds]
        # Large images hold more to see, but the figures count images.
        self._odds = {kind: _odds(self._by_kind[kind]) for kind in kinds}

    def batch(self, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`count` crops, stacked."""
        crops = [self._crop(side_px) for _ in range(count)]
        images, classes, weights = zip(*crops, strict=True)
        return np.stack(images), np.stack(classes), np.stack(weights)

    def _crop(self, side_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = self._rng
        number = int(rng.choice(len(self._kinds), p=[share for _, share in self._kinds]))
        kind = self._kinds[number][0]
        field = self._by_kind[kind][int(rng.choice(len(self._odds[kind]), p=self._odds[kind]))]
        pixels, labels = self._moved(field, side_px)
        low, high = field.window
        reach = high - low
        if self._now(0.4):
            low += reach * rng.uniform(-0.03, 0.03)
            high = low + reach * math.exp(rng.uniform(-0.2, 0.2))
        image = self._coloured(windowed(pixels, low, high), kind)
        image = self._degraded(image)
        classes, weights = classes_of(labels)
        return np.ascontiguousarray(image.transpose(2, 0, 1)), classes, weights

    def _now(self, odds: float) -> bool:
        return bool(self._rng.random() < odds * self._changed)

    def _moved(self, field: Field, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        rng = self._rng
        scale = math.exp(rng.uniform(math.log(0.65), math.log(1.55))) if self._now(0.5) else 1.0
        aspect = math.exp(rng.uniform(-0.12, 0.12)) if self._now(0.3) else 1.0
        turn = rng.uniform(0.0, 2.0 * math.pi) if self._now(0.35) else 0.5 * math.pi * int(rng.integers(4))
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        height_px, width_px = field.labels.shape
        reach_px = 0.5 * side_px / scale
        for _ in range(3 if rng.random() < 0.9 else 1):  # mostly where there is something to see
            centre = [
                rng.uniform(min(reach_px, size / 2), max(size - reach_px, size / 2)) for size in (width_px, height_px)
            ]
            column, row, near_px = int(centre[0]), int(centre[1]), int(0.7 * reach_px)
            if field.labels[max(0, row - near_px) : row + near_px, max(0, column - near_px) : column + near_px].any():
                break
        if scale == 1.0 and aspect == 1.0 and turn % (0.5 * math.pi) == 0.0:
            centre = [round(value) + 0.5 * (side_px % 2 == 1) for value in centre]
        cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
        # Source from target, pixel centres at whole numbers.
        matrix = np.array([[cos * aspect * mirror, -sin / aspect], [sin * aspect * mirror, cos / aspect]])
        offset = np.array(centre) - 0.5 - matrix @ np.array([(side_px - 1) / 2, (side_px - 1) / 2])
        source_from_target = np.column_stack([matrix, offset]).astype(np.float64)
        outside = cv2.BORDER_CONSTANT if rng.random() < 0.3 else cv2.BORDER_REFLECT_101
        size = (side_px, side_px)
        linear = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        pixels = field.pixels
        if scale < 0.8:
            pixels = cv2.GaussianBlur(pixels, (0, 0), 0.35 / scale)
        image = cv2.warpAffine(pixels, source_from_target, size, flags=linear, borderMode=outside)
        nearest = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        labels = cv2.warpAffine(field.labels, source_from_target, size, flags=nearest, borderMode=outside)
        return np.asarray(image), np.asarray(labels)

    def _coloured(self, image: np.ndarray, kind: Kind) -> np.ndarray:
        rng = self._rng
        if self._now(0.35):
            image = image ** np.float32(math.exp(rng.uniform(-0.4, 0.4)))
        if kind == "colour":
            if self._now(0.6):
                mixing = np.eye(3) + rng.uniform(-0.12, 0.12, (3, 3))
                image = image @ mixing.astype(np.float32).T + rng.uniform(-0.06, 0.06, 3).astype(np.float32)
            if self._now(0.15):
                image = np.repeat(image @ rng.dirichlet((4, 4, 4)).astype(np.float32)[:, np.newaxis], 3, axis=2)
            if self._now(0.06):
                image = 1.0 - image
        else:
            if self._now(0.05):
                image = 1.0 - image
            if self._now(0.08):
                tint = rng.uniform(0.0, 1.0, 3)
                image = image * (tint / tint.max()).astype(np.float32)
        return image

    def _degraded(self, image: np.ndarray) -> np.ndarray:
        rng = self._rng
        if self._now(0.12):
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.1))
        if self._now(0.25):
            size = image.shape if rng.random() < 0.5 else (*image.shape[:2], 1)
            image = image + rng.standard_normal(size, dtype=np.float32) * np.float32(rng.uniform(0.0, 0.04))
        return np.asarray(np.clip(image, 0.0, 1.0).astype(np.float32))


def _odds(fields: list[Field]) -> np.ndarray:
    odds = np.array([field.labels.size for field in fields], np.float64) ** 0.4
    return np.asarray(odds / odds.sum())
