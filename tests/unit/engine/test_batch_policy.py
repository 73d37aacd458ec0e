"""When a batch goes, and how large it is."""

import math

import pytest

from isocenter.engine.batch_policy import BatchRules, Decision, Dispatch, Idle, Waiting, WaitUntil, decide

NOW = 100.0
RULES = BatchRules(max_batch_size=8, max_queue_delay_s=0.25, deadline_margin_s=0.125)
PREFERRED = BatchRules(max_batch_size=8, preferred_batch_sizes=(4, 2), max_queue_delay_s=0.25, deadline_margin_s=0.125)
WARMED = BatchRules(max_batch_size=8, allowed_batch_sizes=(1, 2, 6), max_queue_delay_s=0.25, deadline_margin_s=0.125)
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


def test_the_wait_leaves_time_to_run_before_the_earliest_deadline() -> None:
    queue = waiting(3, left_s=1.0)
    assert decide(queue, idle_instances=1, now_s=NOW, rules=RULES, service_s=0.75) == WaitUntil(NOW + 0.125)
    assert decide(queue, idle_instances=1, now_s=NOW, rules=RULES, service_s=0.875) == Dispatch(3)


@pytest.mark.parametrize(
    ("items", "idle_instances", "size"), [(1, 1, 1), (5, 1, 5), (20, 1, 8), (8, 2, 4), (5, 2, 3), (1, 4, 1), (3, 3, 1)]
)
def test_a_flat_curve_never_waits_and_spreads_over_the_idle(items: int, idle_instances: int, size: int) -> None:
    decision = decide(waiting(items), idle_instances=idle_instances, now_s=NOW, rules=RULES, batching_pays=False)
    assert decision == Dispatch(size)


@pytest.mark.parametrize("rules", [RULES, PREFERRED, WARMED], ids=["plain", "preferred", "warmed"])
def test_every_wait_ends_in_a_dispatch_at_its_instant(rules: BatchRules) -> None:
    for items in range(1, rules.largest):
        for left_s in (0.1, 0.3, math.inf):
            queue = waiting(items, left_s=left_s)
            decision = decide(queue, idle_instances=1, now_s=NOW, rules=rules, service_s=0.01)
            if isinstance(decision, WaitUntil):
                assert decision.at_s > NOW
                decision = decide(queue, idle_instances=1, now_s=decision.at_s, rules=rules, service_s=0.01)
            assert decision == Dispatch(rules.cut(items))


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
