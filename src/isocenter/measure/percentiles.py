"""Percentiles by nearest rank, never without their sample count."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A summary of samples in one unit (the caller's).

    >>> Percentiles.of([4.0, 1.0, 3.0, 2.0])
    Percentiles(count=4, p50=2.0, p95=4.0, p99=4.0, maximum=4.0)
    """

    count: int
    p50: float
    p95: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> "Percentiles":
        """Summarise at least one sample.

        Raises:
            ValueError: there is none.
        """
        ordered = sorted(samples)
        if not ordered:
            raise ValueError("no samples: a percentile of nothing is not 0")
        return cls(
            len(ordered),
            nearest_rank(ordered, 0.50),
            nearest_rank(ordered, 0.95),
            nearest_rank(ordered, 0.99),
            ordered[-1],
        )


def nearest_rank(ordered: list[float], quantile: float) -> float:
    """The smallest sample that at least `quantile` of all samples do not exceed. `ordered` is sorted and not empty.

    >>> nearest_rank([10.0, 20.0, 30.0, 40.0], 0.5)
    20.0
    """
    return ordered[rank_of(quantile, len(ordered)) - 1]


def rank_of(quantile: float, count: int) -> int:
    """Which of `count` samples, the smallest being the first, is the quantile by nearest rank.

    >>> rank_of(0.95, 20)
    19

    Raises:
        ValueError: there is no sample, or the quantile is not in (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"a quantile is in (0, 1], not {quantile}")
    if count < 1:
        raise ValueError("no samples: a percentile of nothing is not 0")
    # ceil(q*n) with a guard: 0.95 * 20 is 19.000000000000004 in binary.
    return max(math.ceil(round(quantile * count, 9)), 1)
