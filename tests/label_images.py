"""Label images drawn and drawn by chance, for tests of what is made of them."""

from collections.abc import Iterator

import cv2
import numpy as np

from isocenter.core.tensor import Array


def drawn(picture: str) -> Array:
    """A label image from letters: a is 1, b is 2, a point is none."""
    return np.array([[0 if letter == "." else ord(letter) - 96 for letter in row] for row in picture.split()])


def by_chance(count: int) -> Iterator[Array]:
    """Noise of one label, of several, blocks that touch, components; with holes, single pixels, objects at the edge."""
    rng = np.random.default_rng(6)
    for number in range(count):
        height, width = (int(side) for side in rng.integers(1, 48, 2))
        share = rng.random((height, width)) < rng.uniform(0.2, 0.95)
        blocks = rng.integers(0, 6, (1 + height // 6, 1 + width // 6)).astype(np.uint8)
        kinds = (
            share * 7,
            share * rng.integers(1, 4, share.shape),
            cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST) * (rng.random(share.shape) < 0.95),
            cv2.connectedComponents(share.astype(np.uint8), connectivity=4 if number % 8 < 4 else 8)[1],
        )
        yield kinds[number % 4].astype(np.uint32)
