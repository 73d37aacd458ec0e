"""Sessions that are slow, and not sick: a large network, a fallback on another device."""

import asyncio

import pytest

from isocenter.core.errors import RuntimeFault
from isocenter.engine.instance_group import EXAMINATION_LEAST_S, REOPEN_FIRST_S, RETIRE_S
from isocenter.engine.scheduler import HUNG_LEAST_S, HUNG_LOOK_EVERY_S, HUNG_LOOKS, HUNG_TIMES, SICK_AFTER
from unit.engine.ward import Patient, Ward, answered, unwell, ward

QUICK_S = 0.25
SLOW_S = HUNG_LEAST_S + HUNG_LOOKS * HUNG_LOOK_EVERY_S + QUICK_S * 2


async def fail(w: Ward, session: Patient | None = None) -> None:
    """What the model runs in breaks; its fallback answers."""
    w.next_patient = unwell
    (session or w.patients[0]).raises = True
    failing = [w.ask(float(n)) for n in range(SICK_AFTER)]
    for task in failing:
        with pytest.raises(RuntimeFault):
            await task
    await w.until(lambda: "fallback" in w.said())


async def test_a_fallback_that_is_far_slower_is_not_taken_for_hung() -> None:
    async with ward(takes_s=QUICK_S / 10, max_batch_size=1) as w:
        w.next_stand_in = lambda: Patient(SLOW_S)
        await fail(w)
        found = await w.ask(9.0)
        assert found.fallback
        assert answered(found, 9.0)
        assert "hung" not in w.said()


async def test_the_time_of_a_fallback_is_known_before_its_first_request_and_forgotten_after_its_last() -> None:
    async with ward(takes_s=QUICK_S, max_batch_size=1) as w:
        w.next_stand_in = lambda: Patient(SLOW_S)
        await fail(w)
        assert w.engine.service_s[1] == pytest.approx(SLOW_S)
        w.next_patient = lambda: Patient(QUICK_S)
        w.patients[0].raises = False
        await w.turn(REOPEN_FIRST_S)
        await w.until(lambda: "retired" in w.said())
        assert w.engine.service_s[1] == pytest.approx(QUICK_S)


async def test_an_examination_may_take_as_long_as_the_runs_of_a_large_network() -> None:
    async with ward(takes_s=EXAMINATION_LEAST_S * 1.5, max_batch_size=1) as w:
        w.patients[0].raises = True
        for failing in [w.ask(float(n)) for n in range(SICK_AFTER)]:
            with pytest.raises(RuntimeFault):
                await failing
        w.patients[0].raises = False
        await w.until(lambda: {"recovered", "broken"} & {*w.said()} != set())
        assert w.said() == ["suspected", "recovered"]
        assert answered(await w.ask(9.0), 9.0)


async def test_a_fallback_that_is_no_longer_needed_takes_nothing_more_however_many_wait() -> None:
    async with ward(max_batch_size=1) as w:
        await fail(w)
        w.stand_ins[0].hangs = True
        asked = [w.ask(float(n)) for n in range(90)]
        await w.until(lambda: w.stand_ins[0].stuck)
        w.next_patient = Patient
        await w.turn(REOPEN_FIRST_S)
        await w.until(lambda: "rebuilt" in w.said())
        w.stand_ins[0].hangs = False
        w.stand_ins[0].woken.set()
        found = await asyncio.gather(*asked)
        assert all(answered(each, float(n)) for n, each in enumerate(found))
        assert sum(bool(each.fallback) for each in found) == 1, "what it had in hand when the model's own came back"
        while "retired" not in w.said():
            await w.turn(RETIRE_S)
        assert w.engine.instances == 1


async def test_a_fallback_on_its_way_out_stays_if_the_models_own_session_is_lost_again() -> None:
    async with ward(takes_s=QUICK_S, max_batch_size=1) as w:
        await fail(w)
        w.stand_ins[0].hangs = True
        slow = w.ask(8.0)
        await w.until(lambda: w.stand_ins[0].stuck)
        w.next_patient = lambda: Patient(QUICK_S)
        await w.turn(REOPEN_FIRST_S)
        await w.until(lambda: "rebuilt" in w.said())
        await fail(w, session=w.opened[-1])
        await w.until(lambda: w.said().count("broken") == 2)
        w.stand_ins[0].hangs = False
        w.stand_ins[0].woken.set()
        assert answered(await slow, 8.0)
        found = await w.ask(9.0)
        assert found.fallback
        assert len(w.stand_ins) == 1


async def test_a_run_is_held_against_what_its_own_instance_takes() -> None:
    async with ward(takes_s=QUICK_S) as w:
        scheduler = w.engine._scheduler
        assert scheduler.cost is not None
        scheduler.cost.begin("quick", QUICK_S)
        scheduler.cost.begin("slow", 100 * QUICK_S)
        assert scheduler.hung_after_s(1, "slow") > HUNG_TIMES * 100 * QUICK_S


@pytest.mark.parametrize("lost_again", [False, True])
async def test_a_fallback_that_is_examined_is_in_nobodys_hands(lost_again: bool) -> None:
    async with ward(takes_s=QUICK_S, max_batch_size=1) as w:
        w.next_stand_in = lambda: Patient(QUICK_S)
        await fail(w)
        stand_in, scheduler = w.stand_ins[0], w.engine._scheduler
        stand_in.raises = True
        for failing in [w.ask(float(n)) for n in range(SICK_AFTER)]:
            with pytest.raises(RuntimeFault):
                await failing
        stand_in.raises, stand_in.hangs = False, True
        runner = w.engine._group.standing_in
        assert runner is not None
        assert scheduler.working == 0
        assert not scheduler.dismiss(runner)
        if lost_again:
            scheduler.keep(runner)
        assert scheduler.working == 0
        stand_in.hangs = False
        stand_in.woken.set()
        await w.until(lambda: "recovered" in w.said())
        assert scheduler.working == 1
