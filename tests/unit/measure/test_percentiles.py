"""A percentile is a sample that was measured, by nearest rank."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.measure.percentiles import Percentiles, nearest_rank


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_percentile_is_a_sample_that_the_named_share_does_not_exceed(samples: list[float], quantile: float) -> None:
    ordered = sorted(samples)

    found = nearest_rank(ordered, quantile)

    assert found in samples
    assert sum(sample <= found for sample in samples) >= round(quantile * len(samples), 9)


@pytest.mark.parametrize(
    ("count", "p95"),
    [(1, 1.0), (19, 19.0), (20, 19.0), (21, 20.0), (100, 95.0), (101, 96.0)],
)
def test_the_rank_is_exact_where_binary_fractions_are_not(count: int, p95: float) -> None:
    assert Percentiles.of([float(n) for n in range(1, count + 1)]).p95 == p95


def test_no_samples_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Percentiles.of([])
