"""Drawn nuclei for the examples: 12 bits in 16, as a camera stores them. Nobody's cells."""

import cv2
import numpy as np
import numpy.typing as npt

BACKGROUND, BRIGHTEST = 180, 2600


def field(seed: int, *, side_px: int = 384, count: int = 40) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Pixels [S, S], and the number of the nucleus at each of them; as many as find room without touching."""
    random = np.random.default_rng(seed)
    labels = np.zeros((side_px, side_px), np.uint16)
    light = np.zeros(labels.shape, np.float32)
    placed = 0
    for _ in range(50 * count):
        if placed == count:
            break
        x, y = random.uniform(16, side_px - 16, 2)
        axes = (random.uniform(8, 13), random.uniform(6, 9))
        turn = random.uniform(0, 180)
        room, nucleus = (np.zeros(labels.shape, np.uint8) for _ in range(2))
        cv2.ellipse(room, ((x, y), (2 * axes[0] + 6, 2 * axes[1] + 6), turn), (1,), -1)
        if labels[room > 0].any():
            continue
        placed += 1
        cv2.ellipse(nucleus, ((x, y), (2 * axes[0], 2 * axes[1]), turn), (1,), -1)
        labels[nucleus > 0] = placed
        light[nucleus > 0] = random.uniform(0.4, 1.0)
    seen = BACKGROUND + BRIGHTEST * cv2.GaussianBlur(light, (0, 0), 1.0)
    noise = np.sqrt(seen) * random.standard_normal(labels.shape)
    return np.clip(seen + noise, 0, 4095).astype(np.uint16), labels
