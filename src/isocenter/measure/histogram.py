"""A histogram with logarithmic buckets: fixed memory, constant time to add, exact to merge."""

import math
from array import array
from collections.abc import Mapping
from typing import Final, Self

import numpy as np

from isocenter.measure.percentiles import Percentiles, rank_of

_GROWTH: Final = 1.04
_LOWEST: Final = 1e-6
_HIGHEST: Final = 3600.0
_PER_E: Final = 1.0 / math.log(_GROWTH)
_LAST: Final = math.ceil(math.log(_HIGHEST / _LOWEST) * _PER_E)
_EMPTY: Final = bytes(8 * (_LAST + 1))

# What is told of a bucket's samples: as far, in proportion, from its lower edge as from its upper one.
_EDGES = _LOWEST * _GROWTH ** np.arange(_LAST + 1)
_TOLD: Final = np.concatenate(([_LOWEST], 2.0 * _EDGES[:-1] * _EDGES[1:] / (_EDGES[:-1] + _EDGES[1:]))).tolist()


class Histogram:
    """Counts of samples from 1e-6 to 3600 in the caller's unit: a microsecond to an hour, for seconds.

    Within that range a quantile is off by at most `RELATIVE_ERROR`; what lies outside counts as the nearer end. The
    maximum is exact. One thread.

    >>> found = Histogram()
    >>> for ms in range(1, 101):
    ...     found.add(ms / 1e3)
    >>> found.count, found.maximum, round(found.quantile(0.5), 2)
    (100, 0.1, 0.05)
    """

    RELATIVE_ERROR: Final = 0.02

    __slots__ = ("_counts", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self._counts = array("q", _EMPTY)
        self.count = 0
        self.total = 0.0
        """The sum of all samples."""
        self.minimum = math.inf
        self.maximum = -math.inf

    def add(self, sample: float) -> None:
        """Count one sample. It is on the hot path, and never raises for a number; NaN counts as the lowest."""
        # Everything that is no positive number, a clock that jumped among it, fails the first comparison.
        if sample > _LOWEST:
            bucket = math.ceil(math.log(sample / _LOWEST) * _PER_E) if sample < _HIGHEST else _LAST
            self._counts[bucket] += 1
        else:
            sample = sample if sample == sample else 0.0
            self._counts[0] += 1
        self.count += 1
        self.total += sample
        if sample > self.maximum:
            self.maximum = sample
        if sample < self.minimum:
            self.minimum = sample

    def merge(self, other: Self) -> None:
        """Take in the samples of another one; the same as if they had been added here."""
        np.frombuffer(self._counts, np.int64)[:] += np.frombuffer(other._counts, np.int64)
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def quantile(self, quantile: float) -> float:
        """The nearest-rank quantile, within `RELATIVE_ERROR`.

        Raises:
            ValueError: there is no sample, or the quantile is not in (0, 1].
        """
        return self._quantiles(quantile)[0]

    def percentiles(self) -> Percentiles | None:
        """The summary with its sample count; None if there is no sample."""
        if not self.count:
            return None
        p50, p95, p99 = self._quantiles(0.50, 0.95, 0.99)
        return Percentiles(self.count, p50, p95, p99, self.maximum)

    @property
    def mean(self) -> float | None:
        """The mean of all samples, exact; None if there is none."""
        return self.total / self.count if self.count else None

    def as_plain(self) -> dict[str, object]:
        """Numbers, strings, lists and mappings only, empty buckets left out."""
        if not self.count:
            return {"buckets": {}}
        counts = np.frombuffer(self._counts, np.int64)
        buckets = {str(bucket): int(counts[bucket]) for bucket in np.flatnonzero(counts)}
        return {"buckets": buckets, "total": self.total, "minimum": self.minimum, "maximum": self.maximum}

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> Self:
        """What `as_plain` gave, after any journey.

        Raises:
            ValueError: it is not that.
        """
        made = cls()
        try:
            buckets, total, minimum, maximum = (plain.get(name) for name in ("buckets", "total", "minimum", "maximum"))
            assert isinstance(buckets, Mapping)
            for bucket, count in buckets.items():
                made._counts[_bucket(bucket)] = count
            if buckets:
                made.count = sum(made._counts)
                made.total, made.minimum, made.maximum = float(total), float(minimum), float(maximum)  # type: ignore[arg-type]
        except (AssertionError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a histogram: {error}") from error
        return made

    def _quantiles(self, *quantiles: float) -> list[float]:
        ranks = [rank_of(quantile, self.count) for quantile in quantiles]
        below = np.cumsum(np.frombuffer(self._counts, np.int64))
        buckets = np.searchsorted(below, ranks, side="left")
        # A bucket's middle may lie beyond the outermost samples, and these are known.
        return [min(max(_TOLD[bucket], self.minimum), self.maximum) for bucket in buckets]


def _bucket(name: str) -> int:
    bucket = int(name)
    if not 0 <= bucket <= _LAST:
        raise ValueError(f"there is no bucket {bucket}")
    return bucket
