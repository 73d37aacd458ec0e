"""When a batch goes, and how large it is."""

import math

import pytest

from isocenter.engine.batch_policy import BatchRules, Decision, Dispatch, Expected, Idle, Waiting, WaitUntil, decide
from isocenter.engine.cost import CostModel

NOW = 100.0
RULES = BatchRules(max_batch_size=8, max_queue_delay_s=0.25, deadline_margin_s=0.125)
PREFERRED = BatchRules(max_batch_size=8, preferred_batch_sizes=(4, 2), max_queue_delay_s=0.25, deadline_margin_s=0.125)
WARMED = BatchRules(max_batch_size=8, allowed_batch_sizes=(1, 2, 6), max_queue_delay_s=0.25, deadline_margin_s=0.125)
DOUBLING = BatchRules(
    max_batch_size=8, allowed_batch_sizes=(1, 2, 4, 8), max_queue_delay_s=0.25, deadline_margin_s=0.125
)
AT_ONCE = BatchRules(max_batch_size=8, max_queue_delay_s=0.0)


def waiting(items: int, *, age_s: float = 0.0, left_s: float = math.inf) -> Waiting:
    return Waiting(items, NOW - age_s, NOW + left_s)


@pytest.mark.parametrize(
    ("queue", "rules", "expected"),
    [
        pytest.param(waiting(0), RULES, Idle(), id="nothing waits"),
        pytest.param(waiting(3), RULES, WaitUntil(NOW + 0.25), id="young items wait for company"),
        pytest.param(waiting(3, age_s=0.125), RULES, WaitUntil(NOW + 0.125), id="counted from the oldest"),
        pytest.param(waiting(3, age_s=0.25), RULES, Dispatch(3), id="the delay is over"),
        pytest.param(waiting(8), RULES, Dispatch(8), id="the largest batch is there"),
        pytest.param(waiting(900), RULES, Dispatch(8), id="never more than the largest"),
        pytest.param(waiting(1), AT_ONCE, Dispatch(1), id="no delay, no wait"),
        pytest.param(waiting(4), PREFERRED, Dispatch(4), id="the largest preferred size is there"),
        pytest.param(waiting(7), PREFERRED, Dispatch(4), id="cut at the largest preferred size"),
        pytest.param(waiting(3), PREFERRED, WaitUntil(NOW + 0.25), id="a smaller preferred size still waits"),
        pytest.param(waiting(3, age_s=0.25), PREFERRED, Dispatch(2), id="late: cut at a preferred size"),
        pytest.param(
            waiting(1, age_s=0.25), PREFERRED, Dispatch(1), id="late: below every preferred size, never padded"
        ),
        pytest.param(waiting(7), WARMED, Dispatch(6), id="the largest warmed batch is there"),
        pytest.param(waiting(5, age_s=0.25), WARMED, Dispatch(2), id="late: cut at a warmed size"),
        pytest.param(waiting(3, left_s=0.375), RULES, WaitUntil(NOW + 0.25), id="a deadline far enough"),
        pytest.param(
            waiting(3, left_s=0.25), RULES, WaitUntil(NOW + 0.125), id="a deadline ends the wait, less margin"
        ),
        pytest.param(waiting(3, left_s=0.125), RULES, Dispatch(3), id="no time left to wait"),
    ],
)
def test_decision(queue: Waiting, rules: BatchRules, expected: Decision) -> None:
    assert decide(queue, idle_instances=1, now_s=NOW, rules=rules) == expected


@pytest.mark.parametrize("items", [0, 1, 8, 900])
def test_nothing_goes_without_an_idle_instance(items: int) -> None:
    assert decide(waiting(items, age_s=9.0), idle_instances=0, now_s=NOW, rules=RULES) == Idle()


PAYING = CostModel({1: 0.500, 2: 0.510, 4: 0.530, 8: 0.600})
FLAT = CostModel({1: 0.500, 2: 1.000, 4: 2.000, 8: 4.000})


def decided(queue: Waiting, cost: CostModel, *, idle_instances: int = 1, **known: float) -> Decision:
    return decide(queue, idle_instances=idle_instances, now_s=NOW, rules=DOUBLING, expected=Expected(cost, **known))


def test_the_wait_leaves_time_to_run_before_the_earliest_deadline() -> None:
    needed_s = PAYING.promise_s(4) + 0.125
    early, late = waiting(3, left_s=needed_s + 0.125), waiting(3, left_s=needed_s)
    assert decided(early, PAYING) == WaitUntil(pytest.approx(NOW + 0.125))  # type: ignore[arg-type]
    assert decided(late, PAYING) == Dispatch(2)


@pytest.mark.parametrize(
    ("items", "idle_instances", "size"), [(1, 1, 1), (5, 1, 1), (20, 1, 1), (8, 2, 1), (1, 4, 1), (3, 3, 1)]
)
def test_with_a_flat_curve_nobody_waits_for_company_nor_for_the_end_of_a_batch(
    items: int, idle_instances: int, size: int
) -> None:
    assert decided(waiting(items), FLAT, idle_instances=idle_instances) == Dispatch(size)


@pytest.mark.parametrize(("items", "idle_instances", "size"), [(8, 1, 8), (20, 1, 8), (8, 2, 4), (20, 2, 8), (9, 4, 2)])
def test_what_is_there_is_spread_over_the_idle(items: int, idle_instances: int, size: int) -> None:
    assert decided(waiting(items, age_s=9.0), PAYING, idle_instances=idle_instances) == Dispatch(size)


def test_company_is_waited_for_only_where_it_comes_often_enough_to_pay() -> None:
    # One item more in the batch saves nearly a run of half a second.
    assert isinstance(decided(waiting(1), PAYING, arrivals_per_s=4.0), WaitUntil)
    assert decided(waiting(1), PAYING, arrivals_per_s=1.0) == Dispatch(1)


def test_a_batch_is_smaller_where_the_earliest_deadline_needs_it() -> None:
    left_s = PAYING.promise_s(4) + 0.2
    assert decided(waiting(20, left_s=left_s), PAYING) == Dispatch(4)


def test_where_even_one_alone_would_be_late_the_others_keep_their_full_batch() -> None:
    assert decided(waiting(20, left_s=0.1), PAYING) == Dispatch(8)


def test_a_batch_never_takes_most_of_the_time_that_callers_give() -> None:
    steep = CostModel({1: 0.1, 2: 0.15, 4: 0.25, 8: 0.45})
    assert decided(waiting(20), steep) == Dispatch(8)
    assert decided(waiting(20), steep, budget_s=1.0) == Dispatch(4)


@pytest.mark.parametrize("rules", [RULES, PREFERRED, WARMED], ids=["plain", "preferred", "warmed"])
@pytest.mark.parametrize("expected", [None, Expected(PAYING)], ids=["cost unknown", "cost known"])
def test_every_wait_ends_in_a_dispatch_at_its_instant(rules: BatchRules, expected: Expected | None) -> None:
    for items in range(1, rules.largest):
        for left_s in (0.1, 0.3, math.inf):
            queue = waiting(items, left_s=left_s)
            decision = decide(queue, idle_instances=1, now_s=NOW, rules=rules, expected=expected)
            if isinstance(decision, WaitUntil):
                assert decision.at_s > NOW
                decision = decide(queue, idle_instances=1, now_s=decision.at_s, rules=rules, expected=expected)
            assert decision == Dispatch(rules.cut(items))


def test_capped_rules_form_only_sizes_that_were_warmed() -> None:
    assert DOUBLING.capped(5).sizes == (1, 2, 4)
    assert DOUBLING.capped(1).sizes == (1,)
    assert DOUBLING.capped(0).sizes == (1,)
    assert DOUBLING.capped(99) == DOUBLING


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch_size": 0},
        {"preferred_batch_sizes": (0,)},
        {"preferred_batch_sizes": (16,)},
        {"allowed_batch_sizes": (9,)},
        {"max_queue_delay_s": -0.001},
        {"max_queue_delay_s": math.nan},
        {"max_queue_delay_s": math.inf},
        {"deadline_margin_s": -1.0},
    ],
    ids=str,
)
def test_rules_that_cannot_be_obeyed_are_refused(wrong: dict[str, int | float | tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"batch size|max_batch_size|seconds"):
        BatchRules(**wrong)  # type: ignore[arg-type]


def test_preferred_sizes_that_were_not_warmed_do_not_count() -> None:
    rules = BatchRules(max_batch_size=8, preferred_batch_sizes=(4, 8), allowed_batch_sizes=(1, 4))
    assert [rules.cut(items) for items in range(10)] == [0, 1, 1, 1, 4, 4, 4, 4, 4, 4]
