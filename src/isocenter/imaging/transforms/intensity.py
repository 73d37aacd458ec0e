"""Intensity windows: which sample values become 0 and 255."""

from decimal import ROUND_CEILING, Decimal

import numpy as np

from isocenter.core.errors import EmptyInput
from isocenter.core.tensor import Array
from isocenter.imaging.transforms.steps import Percentile, Window

_COUNTED_AT_ONCE = 2**18


def rank(percentile: float, count: int) -> int:
    """The nearest rank of a percentile among `count` sorted samples, from 0; exact in decimals.

    >>> rank(99.9, 1000), rank(50, 4), rank(0, 4), rank(100, 4)
    (998, 1, 0, 3)
    """
    return max(0, int((Decimal(repr(percentile)) * count / 100).to_integral_value(ROUND_CEILING)) - 1)


def bounds(pixels: Array, window: Window) -> tuple[float, float]:
    """The low and high of a window for these samples, all channels together.

    Raises:
        EmptyInput: high is not above low, so nothing would be left to see.
    """
    ranks = [rank(b.percentile, pixels.size) for b in (window.low, window.high) if isinstance(b, Percentile)]
    found = iter(_samples_of_rank(pixels, ranks))
    low, high = (next(found) if isinstance(b, Percentile) else b.value for b in (window.low, window.high))
    if not high > low:
        raise EmptyInput(
            f"the intensity window is empty: low={low:.9g}, high={high:.9g}", details={"low": low, "high": high}
        )
    return low, high


def _samples_of_rank(pixels: Array, ranks: list[int]) -> list[float]:
    if not ranks:
        return []
    if pixels.dtype == np.uint16:
        samples, counts = pixels.reshape(-1), np.zeros(65536, np.int64)
        for at in range(0, samples.size, _COUNTED_AT_ONCE):  # bincount takes eight bytes for each sample it is given
            counts += np.bincount(samples[at : at + _COUNTED_AT_ONCE], minlength=65536)
        counted = np.cumsum(counts)
        return [float(np.searchsorted(counted, position, side="right")) for position in ranks]
    ordered = np.partition(pixels, sorted(set(ranks)), axis=None)
    return [float(ordered[position]) for position in ranks]
