"""Drawn nuclei: seeded fields as a camera might have taken them, for golden cases and for tests. Nobody's cells."""

import math

import cv2
import numpy as np

_BACKGROUND = 180.0
_BRIGHTEST = 2600.0


def drawn_field(seed: int, *, side_px: int = 256, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint16 [S, S] of 12 bits, and labels uint16 [S, S] of the `count` nuclei in them, or of as many as fit.

    Bright ellipses with a grain, some of which touch, on a dark ground; out of focus by a pixel, with shot noise.
    """
    rng = np.random.default_rng(seed)
    light = np.zeros((side_px, side_px), np.float32)
    labels = np.zeros((side_px, side_px), np.uint16)
    rows, columns = np.mgrid[:side_px, :side_px].astype(np.float32)
    grain = cv2.GaussianBlur(rng.standard_normal(light.shape, dtype=np.float32), (0, 0), 1.5)
    number = 0
    for _ in range(20 * count):
        if number == count:
            break
        row, column = rng.uniform(8, side_px - 8, 2)
        long_px = rng.uniform(8, 13)
        wide_px, turn = long_px * rng.uniform(0.65, 0.95), rng.uniform(0, math.pi)
        along = (columns - column) * math.cos(turn) + (rows - row) * math.sin(turn)
        across = (rows - row) * math.cos(turn) - (columns - column) * math.sin(turn)
        nucleus = (along / long_px) ** 2 + (across / wide_px) ** 2 <= 1.0
        if np.count_nonzero(nucleus & (labels > 0)) > 0.03 * np.count_nonzero(nucleus):
            continue
        number += 1
        free = nucleus & (labels == 0)
        labels[free] = number
        light[free] = rng.uniform(0.35, 1.0) * (1.0 + 0.6 * grain[free])
    seen = _BACKGROUND + _BRIGHTEST * cv2.GaussianBlur(light, (0, 0), 1.0)
    seen += np.sqrt(np.maximum(seen, 1.0)) * rng.standard_normal(seen.shape, dtype=np.float32)
    return np.clip(seen, 0, 4095).astype(np.uint16), labels
