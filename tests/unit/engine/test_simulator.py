"""The simulator against loads whose outcome can be worked out by hand."""

import pytest

from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.simulator import Arrival, Machine, poisson, simulate, simulate_clients

EXACT = 0.0


def test_one_client_on_one_instance_is_answered_at_the_rate_of_lone_runs() -> None:
    report = simulate_clients(1, Machine({1: 0.010}, spread=EXACT), seconds=10.0, timeout_s=1.0)
    assert report.answered == pytest.approx(1000, abs=1)
    assert max(report.latencies_s) == pytest.approx(0.010)
    assert report.utilisation == pytest.approx(1.0, abs=0.01)


def test_three_hundred_clients_on_eight_instances_reach_the_ceiling_of_the_curve() -> None:
    curve = {1: 0.006, 8: 0.010, 32: 0.028}
    report = simulate_clients(300, Machine(curve, instances=8, spread=EXACT), seconds=20.0, timeout_s=10.0)
    assert report.goodput_per_s == pytest.approx(8 * 32 / 0.028, rel=0.05)
    assert report.mean_batch == pytest.approx(32, rel=0.05)
    assert report.shed == report.late == report.failed == 0


def test_a_load_without_randomness_comes_out_the_same_every_time() -> None:
    machine = Machine({1: 0.010, 4: 0.020}, spread=0.2)
    first, second = (simulate(poisson(150.0, seconds=20.0, timeout_s=0.2, seed=5), machine, seed=9) for _ in range(2))
    assert first == second
    assert first.offered == first.answered + first.shed + first.expired


def test_who_comes_when_nobody_else_does_waits_for_nobody() -> None:
    load = [Arrival(float(second), 1.0) for second in range(10)]
    report = simulate(load, Machine({1: 0.010, 8: 0.070}, max_queue_delay_s=0.5, spread=EXACT))
    # Of the first one's company nothing is known yet; after that, it is known that none comes.
    assert report.latencies_s == [pytest.approx(0.510)] + [pytest.approx(0.010)] * 9


def test_a_burst_shares_runs_in_sizes_that_are_allowed() -> None:
    load = [Arrival(0.0, 1.0) for _ in range(10)]
    report = simulate(
        load,
        Machine({1: 0.010, 2: 0.010, 4: 0.010}, spread=EXACT),
        rules=BatchRules(max_batch_size=4, max_queue_delay_s=0.0),
    )
    assert sorted(report.latencies_s) == [pytest.approx(0.010 * n) for n in (1, 2, 2, 2, 2, 3, 3, 3, 3, 4)]


def test_who_leaves_costs_nobody_a_run() -> None:
    load = [Arrival(0.0, 9.0), *(Arrival(0.001, 9.0, leaves_after_s=0.005) for _ in range(20))]
    report = simulate(load, Machine({1: 0.010}, spread=EXACT))
    assert (report.answered, report.left, report.runs) == (1, 20, 1)


def test_memory_that_is_short_halves_the_batches_and_loses_nobody() -> None:
    load = [Arrival(0.0, 9.0) for _ in range(64)]
    report = simulate(load, Machine({1: 0.010, 8: 0.020}, spread=EXACT, short_of_memory_above=1))
    assert report.answered + report.failed == 64
    assert report.failed < 64
