"""A histogram tells what the samples themselves would have told, within its error, however it is cut."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.measure.histogram import Histogram
from isocenter.measure.percentiles import nearest_rank

SECONDS = st.floats(1e-6, 3600.0)


def of(samples: list[float]) -> Histogram:
    made = Histogram()
    for sample in samples:
        made.add(sample)
    return made


@given(st.lists(SECONDS, min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_is_the_nearest_rank_one_within_the_error(samples: list[float], quantile: float) -> None:
    exact = nearest_rank(sorted(samples), quantile)

    assert of(samples).quantile(quantile) == pytest.approx(exact, rel=Histogram.RELATIVE_ERROR)


@given(st.lists(SECONDS, min_size=1))
def test_count_mean_and_maximum_are_exact(samples: list[float]) -> None:
    found = of(samples)

    assert (found.count, found.maximum) == (len(samples), max(samples))
    assert found.mean == pytest.approx(math.fsum(samples) / len(samples))


@given(st.lists(st.lists(SECONDS), min_size=1, max_size=5))
def test_merged_parts_are_the_whole(parts: list[list[float]]) -> None:
    merged = Histogram()
    for part in parts:
        merged.merge(of(part))

    whole = of([sample for part in parts for sample in part])
    assert merged.percentiles() == whole.percentiles()
    assert merged.total == pytest.approx(whole.total)


def test_merging_leaves_the_other_one_alone() -> None:
    first, second = of([1.0]), of([2.0])

    first.merge(second)
    first.add(3.0)

    assert (first.count, second.count, second.maximum) == (3, 1, 2.0)


@given(st.lists(SECONDS))
def test_plain_data_is_the_same_histogram_after_a_journey(samples: list[float]) -> None:
    sent = of(samples)

    received = Histogram.from_plain(json.loads(json.dumps(sent.as_plain())))

    assert (received.percentiles(), received.mean) == (sent.percentiles(), sent.mean)


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"buckets": [1]},
        {"buckets": {"1": 1}},
        {"buckets": {"-1": 1}, "total": 1.0, "minimum": 1.0, "maximum": 1.0},
        {"buckets": {"100000": 1}, "total": 1.0, "minimum": 1.0, "maximum": 1.0},
        {"buckets": {"1": "many"}, "total": 1.0, "minimum": 1.0, "maximum": 1.0},
    ],
    ids=["nothing", "a list", "no total", "below the first", "beyond the last", "no number"],
)
def test_what_is_no_histogram_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_plain(plain)


@pytest.mark.parametrize(
    ("sample", "told"),
    [(0.0, 0.0), (-1.0, -1.0), (1e-9, 1e-9), (1e9, 1e9), (math.inf, math.inf), (math.nan, 0.0)],
)
def test_what_lies_outside_is_counted_at_the_nearer_end_and_never_raises(sample: float, told: float) -> None:
    found = of([sample])

    assert found.count == 1
    assert found.maximum == told


def test_no_samples_have_no_percentiles() -> None:
    assert Histogram().percentiles() is None
    assert Histogram().mean is None
    with pytest.raises(ValueError, match="no samples"):
        Histogram().quantile(0.5)
