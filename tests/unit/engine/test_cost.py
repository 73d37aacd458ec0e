"""What the engine believes of its own speed."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.engine.cost import CostModel

LINEAR = {1: 0.010, 2: 0.020, 4: 0.040, 8: 0.080}
PAYING = {1: 0.010, 2: 0.011, 4: 0.014, 8: 0.020}


def test_between_two_sizes_it_interpolates_and_beyond_the_largest_it_counts_batches() -> None:
    cost = CostModel(PAYING)
    assert cost.service_s(3) == pytest.approx(0.0125)
    assert cost.service_s(0) == 0.0
    assert cost.service_s(20) == pytest.approx(2 * 0.020 + 0.014)


def test_a_promise_is_longer_than_a_prediction() -> None:
    cost = CostModel(PAYING)
    assert cost.promise_s(4) > cost.service_s(4)


@pytest.mark.parametrize("seed", [{}, {0: 1.0}, {1: -1.0}, {1: math.nan}, {1: math.inf}])
def test_nonsense_is_refused(seed: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="batch size"):
        CostModel(seed)


def test_one_odd_run_moves_no_prediction() -> None:
    cost = CostModel(PAYING)
    for _ in range(10):
        cost.observe(4, 0.014)
    before = cost.service_s(4)
    cost.observe(4, 1.4)
    assert cost.service_s(4) == pytest.approx(before, rel=0.04)
    assert cost.service_s(8) == pytest.approx(0.020, rel=0.04)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 6.0])
def test_a_machine_that_changes_its_speed_is_believed_after_four_runs_for_every_size(factor: float) -> None:
    cost = CostModel(PAYING)
    for _ in range(10):
        cost.observe(4, 0.014)
    for _ in range(4):
        cost.observe(4, 0.014 * factor)
    for size, seconds in PAYING.items():
        assert cost.service_s(size) == pytest.approx(seconds * factor, rel=0.1)


def test_a_size_that_differs_from_its_seed_is_learned_beside_the_others() -> None:
    cost = CostModel(PAYING)
    for _ in range(100):
        for size, seconds in PAYING.items():
            cost.observe(size, seconds * (1.5 if size == 8 else 1.0))
    assert cost.service_s(8) == pytest.approx(0.030, rel=0.1)
    assert cost.service_s(2) == pytest.approx(0.011, rel=0.1)


def test_instances_have_their_own_speed_and_one_that_is_gone_no_longer_counts() -> None:
    cost = CostModel(PAYING)
    for _ in range(9):
        cost.observe(4, 0.014, instance="quick")
        cost.observe(4, 0.056, instance="slow")
    assert 0.014 < cost.service_s(4) < 0.056
    cost.forget("slow")
    assert cost.service_s(4) == pytest.approx(0.014, rel=0.1)


def test_one_that_joins_counts_with_what_a_lone_item_took_it_until_it_has_run() -> None:
    cost = CostModel(LINEAR)
    cost.begin("slow", 1.0)
    assert cost.service_s(1) == pytest.approx(1.0)
    assert cost.service_s(8) == pytest.approx(8.0)
    cost.observe(1, 1.0, instance="slow")
    cost.begin("slow", 9.0)  # its runs are known by now
    assert cost.service_s(1) == pytest.approx(1.0)
    cost.forget("slow")
    assert cost.service_s(1) == pytest.approx(LINEAR[1])


def test_what_all_take_is_told_apart_from_what_one_takes() -> None:
    cost = CostModel(LINEAR)
    cost.begin("slow", 1.0)
    assert cost.factor("slow") == 1.0
    cost.begin("quick", 0.01)
    for name, lone_s in (("slow", 1.0), ("quick", 0.01)):
        assert cost.service_s(4) * cost.factor(name) == pytest.approx(4 * lone_s)
    assert cost.factor("unknown") == 1.0


def test_promises_hold_for_nearly_all_runs() -> None:
    chance = random.Random(5)
    cost = CostModel(PAYING)
    kept = 0
    for n in range(2000):
        seconds = 0.014 * chance.lognormvariate(0, 0.15)
        kept += n >= 500 and seconds <= cost.promise_s(4)
        cost.observe(4, seconds)
    assert 0.94 <= kept / 1500 <= 0.995
    assert cost.promise_s(4) < 2 * cost.service_s(4)


def test_with_a_flat_curve_the_smallest_size_is_as_good_as_any() -> None:
    slow = {size: 100 * seconds for size, seconds in LINEAR.items()}
    assert CostModel(slow).efficient_size((1, 2, 4, 8)) == 1


def test_a_run_that_costs_less_than_its_hand_over_is_worth_sharing() -> None:
    assert CostModel({size: size * 1e-4 for size in (1, 2, 4, 8)}).efficient_size((1, 2, 4, 8)) == 8


def test_the_efficient_size_is_the_largest_where_batching_pays_and_less_where_time_is_short() -> None:
    cost = CostModel(PAYING)
    assert cost.efficient_size((1, 2, 4, 8)) == 8
    assert cost.efficient_size((1, 2, 4, 8), within_s=0.018) == 4
    assert cost.efficient_size((1, 2, 4, 8), within_s=0.001) == 1
    assert cost.efficient_size((2, 4), within_s=0.001) == 2


@given(
    st.dictionaries(st.integers(1, 64), st.floats(1e-6, 10.0), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 64), st.floats(0.0, 100.0)), max_size=60),
)
def test_predictions_stay_finite_and_positive_whatever_is_observed(
    seed: dict[int, float], runs: list[tuple[int, float]]
) -> None:
    cost = CostModel(seed)
    for size, seconds in runs:
        cost.observe(size, seconds)
    for items in (1, 2, 63, 64, 1000):
        assert 0 < cost.service_s(items) < cost.promise_s(items) < math.inf
