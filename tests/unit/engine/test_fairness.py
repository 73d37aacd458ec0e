"""Many users of one model: nobody's single image waits behind more than one batch of somebody else's five hundred."""

import asyncio
import random
from functools import partial

import pytest

from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.simulator import Arrival, Machine, Simulation
from unit.engine.stage import Stage

HOUR_S, SINGLES = 3600.0, 6
CURVES = {
    "batching pays": {1: 0.010, 2: 0.011, 4: 0.014, 8: 0.020},
    "batching costs": {1: 0.050, 2: 0.110, 4: 0.230},
    "one at a time": {1: 0.200},
}


def times_of_singles(curve: dict[int, float], instances: int, seed: int) -> list[float]:
    """Seconds that single images took which came one by one while a call of five hundred was served."""
    chance = random.Random(seed)
    day = Simulation(Machine(curve, instances=instances, spread=0.0), seed=seed)
    took_s: list[float] = []

    def answered(asked_s: float, error: Exception | None) -> None:
        assert error is None
        took_s.append(day.world.now - asked_s)

    for _ in range(500):
        day.ask(Arrival(0.0, HOUR_S, group="batch call"))
    for _ in range(SINGLES):
        day.world.run_until(day.world.now + chance.uniform(2.0, 4.0) * max(curve.values()))
        single = Arrival(day.world.now, chance.choice([0.5, 1.0, 2.0]) * HOUR_S)
        day.ask(single, then=partial(answered, day.world.now))
        assert len(day.queue) > 1, "the call still waits"
    day.world.run_until(HOUR_S)
    assert day.report.answered == 500 + SINGLES
    return took_s


@pytest.mark.parametrize("instances", [1, 2])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_single_images_wait_for_one_batch_of_a_call_of_five_hundred(curve: dict[int, float], instances: int) -> None:
    for seed in range(4):
        took_s = times_of_singles(curve, instances, seed)
        assert len(took_s) == SINGLES
        assert max(took_s) <= 2 * max(curve.values()) + 1e-9, "the rest of one batch, and its own"


@pytest.mark.parametrize("size", [1, 4])
async def test_the_next_batch_of_the_engine_holds_the_single_image(size: int) -> None:
    rules = BatchRules(max_batch_size=size, max_queue_delay_s=0.0)
    async with Stage(rules=rules, max_queue_size=1000) as stage:
        batch_call = [stage.ask(n, group="batch call") for n in range(500)]
        await stage.quiet()
        singles = []
        for turn in range(1, 4):  # each comes while a batch of the group runs, and has less urgency than the group
            await stage.let_through(2)
            running = stage.runs[-1]
            singles.append(stage.ask(-turn, timeout_s=HOUR_S))
            await stage.let_through()
            assert -turn not in running
            assert -turn in stage.runs[-1]
        for asking in batch_call:
            asking.cancel()
        stage.gate.open()
        await asyncio.gather(*singles)


async def test_two_batch_calls_share_what_there_is() -> None:
    async with Stage(rules=BatchRules(max_batch_size=4, max_queue_delay_s=0.0), max_queue_size=1000) as stage:
        askings = [stage.ask(n, group="first") for n in range(100)]
        await stage.let_through(3)
        askings += [stage.ask(1000 + n, group="second") for n in range(100)]
        await stage.let_through(5)
        assert [sum(marker >= 1000 for marker in run) for run in stage.runs[-4:]] == [2, 2, 2, 2]
        for asking in askings:
            asking.cancel()
        stage.gate.open()
        await asyncio.gather(*askings, return_exceptions=True)
