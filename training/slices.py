"""What the classifier learns from: real slices in three parts, and phantoms."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isocenter.imaging.phantoms import CLASSES, brain_slice
from isocenter.networks.slice_resnet import INPUT_SIDE_PX

FOLDERS = ("glioma", "meningioma", "pituitary", "notumor")  # in the order of CLASSES, which is the order of the logits
MEAN = 0.185
STD = 0.202
TRAINING_PHANTOM_SEEDS = 0
CALIBRATION_PHANTOM_SEEDS = 900_000
REPORT_PHANTOM_SEEDS = 1_000_000
GOLDEN_PHANTOM_SEEDS = 2_000_000


@dataclass(frozen=True, slots=True)
class Slices:
    """Gray planes uint8 [N, H, W] and class indices int64 [N]."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def part_of(content: bytes) -> str:
    """Say to which part a slice belongs; the bytes of its file decide, so no list has to be kept."""
    digest = hashlib.sha256(content).hexdigest()
    if int(digest[:8], 16) % 5 == 0:
        return "held-out"
    return "calibration" if int(digest[8:16], 16) % 20 == 0 else "training"


def letterbox(pixels: np.ndarray, side_px: int = INPUT_SIDE_PX) -> np.ndarray:
    """Fit a gray plane uint8 [H, W] into a black square, Pillow's bilinear filter doing the scaling."""
    height_px, width_px = pixels.shape
    if (height_px, width_px) == (side_px, side_px):
        return pixels
    scale = side_px / max(height_px, width_px)
    size_wh_px = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    square = Image.new("L", (side_px, side_px))
    fitted = Image.fromarray(pixels).resize(size_wh_px, Image.Resampling.BILINEAR)
    square.paste(fitted, ((side_px - size_wh_px[0]) // 2, (side_px - size_wh_px[1]) // 2))
    return np.asarray(square)


def read_slices(directory: Path) -> dict[str, Slices]:
    """Read every slice into its part. Raises FileNotFoundError where a class has no folder or an empty one."""
    found: dict[str, tuple[list[np.ndarray], list[int]]] = {}
    for label, folder in enumerate(FOLDERS):
        paths = sorted((directory / folder).glob("*.jpg"))
        if not paths:
            raise FileNotFoundError(f"no slices in {directory / folder}")
        for path in paths:
            pixels, labels = found.setdefault(part_of(path.read_bytes()), ([], []))
            with Image.open(path) as image:
                pixels.append(letterbox(np.asarray(image.convert("L"))))
            labels.append(label)
    return {part: Slices(np.stack(pixels), np.array(labels)) for part, (pixels, labels) in found.items()}


def draw_phantoms(first_seed: int, count: int) -> Slices:
    pixels = np.zeros((count, INPUT_SIDE_PX, INPUT_SIDE_PX), np.uint8)
    labels = np.zeros(count, np.int64)
    for index in range(count):
        phantom = brain_slice(first_seed + index, label=CLASSES[index % len(CLASSES)])
        pixels[index] = phantom.pixels
        labels[index] = CLASSES.index(phantom.label)
    return Slices(pixels, labels)


def normalised(planes: Tensor) -> Tensor:
    """Put gray planes float32 [N, 1, H, W] in 0..1 into all three channels, centred and scaled."""
    image = ((planes - MEAN) / STD).expand(-1, 3, -1, -1)
    return image.contiguous(memory_format=torch.channels_last)
