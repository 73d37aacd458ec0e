"""Ten thousand random days of the scheduler in a simulated world: what must hold on every one of them.

`test_schedules.py` checks fewer days much more closely, with real threads; here it is the number that counts.
"""

import math
import random
from itertools import pairwise

import pytest

from isocenter.core.events import AbandonedInQueue, BatchFailed, BatchFinished, BatchStarted, Enqueued, Expired, Shed
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.simulator import Arrival, Machine, SimulatedReply, Simulation
from unit.engine.stage import CountingObserver

DAYS = 10_000
PARTS = 10


def a_machine(chance: random.Random) -> Machine:
    base_s, per_item_s = chance.choice([(0.0, 0.01), (0.02, 0.001), (0.005, 0.005), (0.0, 0.0005)])
    sizes = chance.choice([(1,), (1, 2, 4, 8), (1, 3, 6), (1, 16)])
    return Machine(
        {size: base_s + per_item_s * size for size in sizes},
        instances=chance.choice([1, 1, 2, 4]),
        max_queue_size=chance.choice([3, 20, 1000]),
        max_queue_delay_s=chance.choice([0.0, 0.002, 0.05]),
        spread=chance.choice([0.0, 0.1, 0.5]),
        fails=chance.choice([0.0, 0.0, 0.1, 0.5]),
        short_of_memory_above=chance.choice([None, None, 2]),
    )


def a_load(chance: random.Random, machine: Machine) -> list[Arrival]:
    capacity_per_s = machine.instances * max(size / run_s for size, run_s in machine.curve_s.items())
    gap_s = 1.0 / (capacity_per_s * chance.choice([0.2, 0.8, 1.5, 5.0]))
    longest_s = max(machine.curve_s.values())
    at_s, load = 0.0, []
    for _ in range(chance.randrange(1, 40)):
        at_s += 0.0 if chance.random() < 0.3 else chance.expovariate(1 / gap_s)
        load.append(
            Arrival(
                at_s,
                timeout_s=chance.choice([math.inf, 30 * longest_s, 3 * longest_s, 1.2 * longest_s, 0.5 * longest_s]),
                priority=chance.choice([0, 0, 0, -1, 1]),
                group=chance.choice(["", "", "", "a", "b"]),
                leaves_after_s=chance.choice([math.inf] * 5 + [0.0, longest_s]),
            )
        )
    return load


def live(seed: int) -> None:
    chance = random.Random(seed)
    machine = a_machine(chance)
    sizes = tuple(machine.curve_s)
    preferred = chance.choice([(), sizes[1:]])
    rules = BatchRules(
        max_batch_size=max(sizes), preferred_batch_sizes=preferred, max_queue_delay_s=machine.max_queue_delay_s
    )
    observer = CountingObserver()
    day = Simulation(machine, rules=rules, observer=observer, seed=seed)
    replies: list[SimulatedReply] = []
    for arrival in a_load(chance, machine):
        day.world.run_until(arrival.at_s)
        reply = day.ask(arrival)
        if reply is not None:
            replies.append(reply)
    day.world.run_until(math.inf)

    report = day.report
    assert all(reply.times == 1 for reply in replies), "everybody who was let in is answered, once"
    assert len(replies) == report.answered + report.expired + report.failed + report.left
    assert report.offered == len(replies) + report.shed
    assert report.run_in_vain == 0, "nothing is started for somebody whose deadline has passed"
    assert {size for runner in day.runners for size in runner.sizes} <= set(sizes), "only what was warmed"
    assert day.scheduler.empty
    assert day.queue.backlog.total == len(day.queue) == 0
    assert report.failed == 0 or machine.fails or machine.short_of_memory_above
    count = observer.counts
    assert (count[Enqueued], count[Shed]) == (len(replies), report.shed)
    assert count[BatchStarted] == count[BatchFinished] + count[BatchFailed] == report.runs
    assert count[Expired] + count[AbandonedInQueue] <= report.expired + report.left


@pytest.mark.parametrize("part", range(PARTS))
def test_every_request_ends_once_whatever_the_day_brings(part: int) -> None:
    for seed in range(part * DAYS // PARTS, (part + 1) * DAYS // PARTS):
        try:
            live(seed)
        except AssertionError as broken:
            broken.add_note(f"seed {seed}")
            raise


@pytest.mark.parametrize("seed", range(10))
def test_nobody_starves_who_has_time(seed: int) -> None:
    """Patient callers, urgent ones and a large group at three times the capacity: the patient and the group get on."""
    chance = random.Random(seed)
    day = Simulation(Machine({1: 0.010, 4: 0.020}), seed=seed)
    patient = [day.ask(Arrival(0.0, 60.0)) for _ in range(5)]
    group = [day.ask(Arrival(0.0, 60.0, group="scan")) for _ in range(50)]
    at_s = 0.0
    while at_s < 30.0:
        at_s += chance.expovariate(600.0)
        day.world.run_until(at_s)
        day.ask(Arrival(at_s, chance.choice([0.1, 0.3, 60.0])))
    day.world.run_until(math.inf)
    assert all(reply is not None and reply.times == 1 for reply in patient + group)
    assert day.report.failed == 0
    assert day.report.late <= 0.01 * day.report.answered
    assert day.report.expired <= 0.01 * day.report.answered


CURVES = {
    "batching pays": {1: 0.010, 2: 0.011, 4: 0.014, 8: 0.020, 16: 0.034},
    "flat": {size: 0.080 * size for size in (1, 2, 4, 8, 16)},
    "quick": {size: 0.0002 + 0.0002 * size for size in (1, 2, 4, 8, 16)},
    "one size": {1: 0.050},
}


@pytest.mark.parametrize("instances", [1, 4])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_goodput_stays_at_capacity_when_more_is_asked_than_can_be_done(curve: dict[int, float], instances: int) -> None:
    machine = Machine(curve, instances=instances, spread=0.1)
    capacity_per_s = instances * max(size / run_s for size, run_s in curve.items())
    timeout_s = max(0.25, 12 * curve[1])
    goodput = {}
    for factor in (1.0, 2.0, 4.0):
        day = Simulation(machine, seed=7)
        chance = random.Random(3)
        at_s, rate = 0.0, factor * capacity_per_s
        for _ in range(int(min(8000, 60 * rate))):
            at_s += chance.expovariate(rate)
            day.world.run_until(at_s)
            day.ask(Arrival(at_s, timeout_s))
        day.world.run_until(math.inf)
        report = day.report
        goodput[factor] = report.goodput_per_s
        assert report.late + report.expired <= 0.01 * (report.answered + report.expired), "who is let in is in time"
    for less, more in pairwise((1.0, 2.0, 4.0)):
        assert goodput[more] >= 0.95 * goodput[less]
    assert goodput[4.0] >= 0.90 * capacity_per_s
