"""Recent is what happened in the last span, and nothing else."""

from collections.abc import Iterator
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from isocenter.measure.histogram import Histogram
from isocenter.measure.recent import Recent

SPAN_S, SLOT_S = 60.0, 5.0
GAPS = st.lists(st.floats(0.0, 40.0), min_size=1, max_size=60)


def counted(instants_s: list[float]) -> Recent[Histogram]:
    recent = Recent(Histogram, now_s=0.0)
    for instant_s in instants_s:
        recent.slot(instant_s).add(1.0)
    return recent


def ages(instants_s: list[float], now_s: float) -> Iterator[float]:
    return (now_s - instant_s for instant_s in instants_s)


@given(GAPS, st.floats(0.0, 100.0))
def test_everything_of_the_last_55_seconds_counts_and_nothing_older_than_60(gaps: list[float], later_s: float) -> None:
    instants_s = list(accumulate(gaps))
    now_s = instants_s[-1] + later_s

    found = counted(instants_s).total(now_s).count

    assert sum(age <= SPAN_S - SLOT_S for age in ages(instants_s, now_s)) <= found
    assert found <= sum(age <= SPAN_S for age in ages(instants_s, now_s))


@given(st.floats(0.0, 1000.0), st.floats(0.0, 1000.0))
def test_the_span_is_what_passed_since_the_start_or_a_little_under_a_minute(start_s: float, later_s: float) -> None:
    span_s = Recent(Histogram, now_s=start_s).span_s(start_s + later_s)

    if later_s <= SPAN_S - SLOT_S:
        assert abs(span_s - later_s) < 1e-6
    else:
        assert SPAN_S - SLOT_S - 1e-6 <= span_s <= SPAN_S


def test_a_rate_is_right_from_the_first_second_on() -> None:
    recent = counted([0.1 * n for n in range(10)])

    assert recent.total(1.0).count / recent.span_s(1.0) == 10.0


def test_a_leap_of_the_clock_leaves_nothing_recent() -> None:
    recent = counted([1.0, 2.0])

    assert recent.total(1e6).count == 0
    assert recent.silent(1e6)


def test_a_clock_that_runs_backwards_loses_nothing() -> None:
    recent = counted([1.0, 31.0, 30.0, 2.0])

    assert recent.total(31.0).count == 4


def test_a_ring_is_silent_once_its_last_slot_has_fallen_out() -> None:
    recent = counted([1.0])

    assert not recent.silent(59.0)
    assert recent.silent(61.0)


def test_a_total_is_a_copy() -> None:
    recent = counted([1.0])

    recent.total(1.0).add(1.0)

    assert recent.total(1.0).count == 1
