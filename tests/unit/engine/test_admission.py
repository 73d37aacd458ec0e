"""Who is let in: in time himself, and making nobody late."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.engine.admission import CAUTION_STEP, ONE_LATE_IN, RISK, WAIT_DOUBT, Admission, Busy, judge, margin_s
from isocenter.engine.backlog import Ahead, Backlog
from isocenter.engine.cost import CostModel

NOW = 1000.0
COST = CostModel({1: 0.100, 2: 0.200, 4: 0.400})
PAYING = CostModel({1: 0.100, 2: 0.110, 4: 0.130})
ONE = Busy(1)


def promise_s(batch: int = 1, *, runs: int = 0) -> float:
    """A run of a batch, and what is kept free for it and the runs before it."""
    return COST.service_s(batch) * (1 + RISK * (COST.spread - 1) * math.sqrt(1 + runs))


def kept_for(wait_s: float) -> float:
    """A wait, and what is kept free beside it."""
    return (1 + WAIT_DOUBT) * wait_s


def late_s(ahead: int, *, left_s: float, busy: Busy = ONE, batch: int = 1, ready_in_s: float = 0.0) -> float:
    verdict = judge(
        Ahead(ahead, []), left_s=left_s, now_s=NOW, ready_in_s=ready_in_s, busy=busy, cost=COST, batch=batch
    )
    return verdict.late_s


def test_an_idle_engine_takes_what_it_can_run_in_time_and_not_what_it_cannot() -> None:
    assert late_s(0, left_s=0.2) <= 0
    assert late_s(0, left_s=0.1) > 0


def test_everything_before_an_item_counts_in_the_batches_that_will_form() -> None:
    needed_s = kept_for(9 * 0.1) + promise_s(runs=9)
    assert late_s(9, left_s=needed_s) == pytest.approx(margin_s(needed_s) / (1 + WAIT_DOUBT))
    in_fours_s = kept_for(2 * 0.4) + promise_s(4, runs=2)
    assert late_s(9, left_s=in_fours_s, batch=4) == pytest.approx(margin_s(in_fours_s) / (1 + WAIT_DOUBT))


def test_a_run_that_is_under_way_and_a_picture_that_is_still_decoded_take_their_time() -> None:
    later_s = late_s(0, left_s=1.0) + 0.5
    assert late_s(0, left_s=1.0, busy=Busy(1, 0.5)) == pytest.approx(later_s)
    assert late_s(0, left_s=1.0, ready_in_s=0.5) == pytest.approx(later_s)
    assert late_s(0, left_s=1.0, ready_in_s=0.5, busy=Busy(1, 0.5)) == pytest.approx(later_s)


def test_instances_share_what_is_ahead() -> None:
    assert late_s(8, left_s=1.0, busy=Busy(2)) == pytest.approx(late_s(4, left_s=1.0))


def test_without_an_instance_nothing_is_admitted() -> None:
    assert late_s(0, left_s=9.0, busy=Busy(0)) == math.inf


def test_who_gives_endless_time_is_never_late() -> None:
    assert late_s(10**6, left_s=math.inf) == -math.inf


@given(st.integers(0, 500), st.floats(0.0, 30.0), st.floats(0.0, 5.0), st.sampled_from([1, 2, 4]))
def test_more_ahead_is_never_sooner(ahead: int, left_s: float, ready_in_s: float, batch: int) -> None:
    fewer = late_s(ahead, left_s=left_s, ready_in_s=ready_in_s, batch=batch)
    assert late_s(ahead + 1, left_s=left_s, ready_in_s=ready_in_s, batch=batch) >= fewer


def test_nobody_is_pushed_over_his_deadline_by_a_more_urgent_one() -> None:
    theirs_s = 5 * 0.1 + promise_s() + 0.001  # six of them just make it
    urgent = Ahead(0, [(NOW + theirs_s, 6)])
    verdict = judge(urgent, left_s=0.3, now_s=NOW, ready_in_s=0.0, busy=ONE, cost=COST, batch=1)
    assert not verdict.admitted
    roomy = Ahead(0, [(NOW + theirs_s + 0.11, 6)])
    assert judge(roomy, left_s=0.3, now_s=NOW, ready_in_s=0.0, busy=ONE, cost=COST, batch=1).admitted


def test_who_is_late_anyway_keeps_nobody_out() -> None:
    hopeless = Ahead(0, [(NOW + 0.01, 6)])
    assert judge(hopeless, left_s=0.3, now_s=NOW, ready_in_s=0.0, busy=ONE, cost=COST, batch=1).admitted


class Room:
    """A backlog and its judge."""

    def __init__(self, *, timeout_s: float = 1.0) -> None:
        self.backlog = Backlog(2 * timeout_s)
        self.admission = Admission(self.backlog, timeout_s=timeout_s)

    def admits(self, left_s: float, priority: int = 0, *, cost: CostModel = COST) -> bool:
        verdict = self.admission.judge(
            NOW + left_s, priority, now_s=NOW, ready_in_s=0.0, busy=ONE, cost=cost, allowed=(1, 2, 4)
        )
        if verdict.admitted:
            self.backlog.add(NOW + left_s, priority, now_s=NOW)
        return verdict.admitted


def test_equal_callers_are_admitted_up_to_what_fits_into_their_time() -> None:
    room = Room()
    admitted = sum(room.admits(1.0) for _ in range(50))
    fits = [n for n in range(50) if kept_for(n * 0.1) + promise_s(runs=n) + margin_s(1.0) <= 1.0]
    assert admitted == len(fits) >= 5


def test_an_urgent_one_is_let_in_before_patient_ones_where_they_can_wait() -> None:
    room = Room(timeout_s=10.0)
    while room.admits(10.0):
        pass
    squeezed_in = sum(room.admits(0.3) for _ in range(20))
    assert squeezed_in <= margin_s(10.0) / 0.1, "what is promised to the patient ones is not sold again"
    room = Room(timeout_s=10.0)
    for _ in range(50):
        assert room.admits(10.0)
    assert room.admits(0.3), "five seconds of work are queued, none of it before him"


def test_a_higher_priority_goes_before_and_a_lower_one_after_everybody() -> None:
    room = Room(timeout_s=10.0)
    for _ in range(20):
        assert room.admits(10.0)
    assert room.admits(0.5, priority=-1)
    assert not room.admits(1.0, priority=1)


def test_batches_leave_time_for_a_caller_who_comes_just_after_one_started() -> None:
    room = Room(timeout_s=0.26)
    assert room.admits(0.26, cost=PAYING)
    assert room.admission.budget_s == pytest.approx(0.26)


def test_the_usual_budget_follows_callers_down_quickly_and_up_slowly() -> None:
    room = Room(timeout_s=10.0)
    for _ in range(20):
        room.admits(1.0)
    assert room.admission.budget_s == pytest.approx(1.0)
    for _ in range(5):
        room.admits(10.0)
    assert room.admission.budget_s < 1.2


def test_caution_is_given_back_only_once_enough_were_in_time_for_each_who_was_late() -> None:
    admission = Room().admission
    for _ in range(3):  # at one instant: one incident
        admission.note_late(NOW)
    cautious_s = admission.caution_s
    assert cautious_s == pytest.approx(CAUTION_STEP * admission.budget_s)
    for _ in range(3 * ONE_LATE_IN):
        admission.note_in_time()
    assert admission.caution_s == cautious_s
    for _ in range(ONE_LATE_IN + 1):
        admission.note_in_time()
    assert admission.caution_s == pytest.approx(0.0, abs=1e-9)
