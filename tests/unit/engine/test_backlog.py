"""Counting what is ahead, without looking at every item."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.engine.backlog import CELLS, Backlog

NOW = 5000.0
HORIZON_S = 6.3
WIDTH_S = 0.1
ITEM = st.tuples(st.floats(0.0, 20.0) | st.just(math.inf), st.sampled_from([-1, 0, 1]))


def placed_before(left_s: float, priority: int, other: tuple[float, int]) -> tuple[bool, bool]:
    """Whether another item surely is, and whether it may be, before one: a bucket's deadlines are not told apart."""
    their_left_s, their_priority = other
    if their_priority != priority:
        return their_priority < priority, their_priority < priority
    beyond = min(left_s, their_left_s) >= HORIZON_S - 2 * WIDTH_S
    return their_left_s <= left_s - 0.0, their_left_s < left_s + 2 * WIDTH_S or beyond


@given(st.lists(ITEM, max_size=40), ITEM)
def test_nobody_ahead_is_overlooked_and_nobody_far_behind_is_counted(
    items: list[tuple[float, int]], new: tuple[float, int]
) -> None:
    backlog = Backlog(HORIZON_S)
    for left_s, priority in items:
        backlog.add(NOW + left_s, priority, now_s=NOW)
    left_s, priority = new
    found = backlog.ahead(NOW + left_s, priority, now_s=NOW)
    surely = sum(placed_before(left_s, priority, item)[0] for item in items)
    maybe = sum(placed_before(left_s, priority, item)[1] for item in items)
    assert surely <= found.items <= maybe
    assert not found.behind or found.behind[-1][1] == len(items)
    assert [up_to for _, up_to in found.behind] == sorted(up_to for _, up_to in found.behind)


@given(st.lists(st.tuples(ITEM, st.booleans()), max_size=60))
def test_what_is_removed_is_no_longer_counted(steps: list[tuple[tuple[float, int], bool]]) -> None:
    backlog = Backlog(HORIZON_S)
    cells = []
    for (left_s, priority), leaves in steps:
        cells.append(backlog.add(NOW + left_s, priority, now_s=NOW))
        if leaves:
            backlog.remove(cells.pop(0))
    assert backlog.total == len(cells) == int(backlog.counts[:-1].sum())
    for cell in cells:
        backlog.remove(cell)
    assert backlog.total == 0
    assert not backlog.counts[:-1].any()


def test_time_passes_and_cells_are_used_again() -> None:
    backlog = Backlog(HORIZON_S)
    for second in range(100):
        now_s = NOW + second
        cell = backlog.add(now_s + 1.0, 0, now_s=now_s)
        assert backlog.ahead(now_s + 2.0, 0, now_s=now_s).items == 1
        assert backlog.ahead(now_s + 0.5, 0, now_s=now_s).items == 0
        backlog.remove(cell)


@pytest.mark.parametrize("left_s", [1e12, 1e13, 1e300, 1e308, math.inf])
def test_a_deadline_beyond_what_the_counts_can_hold_is_as_late_as_can_be(left_s: float) -> None:
    backlog = Backlog(HORIZON_S)
    cell = backlog.add(NOW + left_s, 0, now_s=NOW)
    assert backlog.ahead(NOW + left_s, 0, now_s=NOW).items == 1
    backlog.remove(cell)
    assert not backlog.counts[:-1].any()


def test_several_processes_counts_are_read_as_one() -> None:
    shared = np.zeros((3, CELLS), np.int64)
    parts = [Backlog(HORIZON_S, row) for row in shared]
    for part in parts:
        part.add(NOW + 1.0, 0, now_s=NOW)
    assert parts[0].ahead(NOW + 2.0, 0, now_s=NOW, of_all=shared).items == 3
    assert parts[0].ahead(NOW + 0.5, 0, now_s=NOW, of_all=shared).items == 0
    assert parts[0].total == 1


@pytest.mark.parametrize("counts", [np.zeros(3, np.int64), np.zeros(CELLS, np.int32)])
def test_memory_that_does_not_fit_is_refused(counts: np.ndarray) -> None:
    with pytest.raises(ValueError, match="counts of int64"):
        Backlog(1.0, counts)


@pytest.mark.parametrize("horizon_s", [0.0, -1.0, math.inf, math.nan])
def test_a_horizon_is_a_time(horizon_s: float) -> None:
    with pytest.raises(ValueError, match="horizon"):
        Backlog(horizon_s)
