"""Channels are normalised each by its own scheme; the foreground has its holes filled, as nnU-Net fills them."""

from collections import deque
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.core.errors import InputNotAccepted
from isocenter.core.tensor import FloatArray
from isocenter.imaging.transforms.arrays.channels import foreground, normalized
from isocenter.imaging.transforms.arrays.schemes import NormalizeChannels

VALUES: FloatArray = np.random.default_rng(3).normal(40, 60, (1, 5, 6, 7)).astype(np.float32)


def normalize(array: FloatArray, *schemes: dict[str, Any]) -> FloatArray:
    return normalized(array, NormalizeChannels.model_validate({"kind": "normalize_channels", "channels": schemes}))


def test_each_channel_has_its_own_scheme() -> None:
    array = np.concatenate([VALUES] * 5)
    window = {"scheme": "training_window", "low": -20, "high": 90, "mean": 30, "std": 25}

    found = normalize(
        array, {"scheme": "z_score"}, window, {"scheme": "min_max"}, {"scheme": "divide", "by": 255}, {"scheme": "none"}
    )

    values = VALUES[0].astype(np.float64)
    expected = [
        (values - values.mean()) / values.std(),
        (np.clip(values, -20, 90) - 30) / 25,
        (values - values.min()) / (values.max() - values.min()),
        values / 255,
        values,
    ]
    assert found.dtype == np.float32
    for channel, wanted in zip(found, expected, strict=True):
        assert np.abs(channel - wanted).max() <= 1e-5


def test_a_masked_score_is_of_the_foreground_of_all_channels_and_leaves_the_rest() -> None:
    array = np.zeros((2, 5, 5, 5), np.float32)
    array[0, 1:4, 1:4, 1:4] = VALUES[0, :3, :3, :3]
    array[0, 2, 2, 2] = 0  # a hole in it, which counts
    array[1, 4, 4, 4] = 7  # something in the other channel alone

    found = normalize(array, {"scheme": "z_score", "masked": True}, {"scheme": "none"})[0]

    inside = np.zeros((5, 5, 5), bool)
    inside[1:4, 1:4, 1:4] = inside[4, 4, 4] = True
    chosen = array[0][inside].astype(np.float64)
    assert np.abs(found[inside] - (chosen - chosen.mean()) / chosen.std()).max() <= 1e-5
    assert not found[~inside].any()


def test_a_channel_of_one_value_does_not_become_infinite() -> None:
    flat = np.full((1, 3, 3), 5, np.float32)

    for scheme in ({"scheme": "z_score"}, {"scheme": "min_max"}):
        assert not normalize(flat, scheme).any()


def test_schemes_are_for_as_many_channels_as_there_are() -> None:
    with pytest.raises(InputNotAccepted, match="1 channels and 2 schemes"):
        normalize(VALUES, {"scheme": "none"}, {"scheme": "none"})


def test_a_picture_keeps_its_holes() -> None:
    ring = np.ones((1, 3, 3), np.float32)
    ring[0, 1, 1] = 0

    assert not foreground(ring)[1, 1]


def flooded(empty: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """What steps along the axes reach from the border: one voxel after the other."""
    reached = np.zeros_like(empty)
    at_border = [
        where
        for where in product(*map(range, empty.shape))
        if empty[where] and any(at in (0, size - 1) for at, size in zip(where, empty.shape, strict=True))
    ]
    waiting = deque(at_border)
    while waiting:
        where = waiting.popleft()
        if reached[where]:
            continue
        reached[where] = True
        for axis, step in product(range(empty.ndim), (-1, 1)):
            there = tuple(at + step * (number == axis) for number, at in enumerate(where))
            inside = all(0 <= at < size for at, size in zip(there, empty.shape, strict=True))
            if inside and empty[there] and not reached[there]:
                waiting.append(there)
    return reached


@given(st.tuples(*[st.integers(1, 6)] * 3), st.integers(0, 2**31), st.floats(0.2, 0.9))
def test_holes_are_what_the_border_does_not_reach(shape: tuple[int, ...], seed: int, share: float) -> None:
    array = (np.random.default_rng(seed).random((1, *shape)) < share).astype(np.float32)

    assert np.array_equal(foreground(array), ~flooded(array[0] == 0))
