"""What may break, and what then happens to everybody else."""

import asyncio
import threading

import pytest

from fault_table import Fault
from isocenter.core.deadline import Deadline
from isocenter.core.errors import (
    DeadlineExceeded,
    IsocenterError,
    NotReady,
    NumericFailure,
    OutOfMemory,
    Overloaded,
    RunHung,
    RuntimeFault,
)
from isocenter.core.request import Request, Result
from isocenter.engine.instance_group import REOPEN_FIRST_S
from isocenter.engine.lifecycle import State
from isocenter.engine.scheduler import HUNG_LOOKS, SICK_AFTER
from isocenter.runtimes.synthetic import item
from patience import PATIENCE_S
from unit.engine.ward import Patient, Ward, answered, unwell, ward


async def test_bad_items_in_a_row_do_not_cost_a_healthy_instance_its_place() -> None:
    async with ward() as w:
        w.patients[0].raises = True
        failing = [w.ask(n) for n in range(SICK_AFTER)]
        for task in failing[:-1]:
            with pytest.raises(RuntimeFault):
                await task
        w.patients[0].raises = False
        await asyncio.wait(failing)
        assert answered(await w.outcome(9.0), 9.0)
        assert "broken" not in w.said()
        assert w.opened == []


@pytest.mark.fault
async def test_an_instance_that_fails_its_examination_is_replaced_and_nobody_after_it_notices(fault: Fault) -> None:
    async with ward(instances=2) as w:
        w.patients[0].raises = w.patients[1].raises = True
        found: list[Result | IsocenterError] = []
        while w.said().count("rebuilt") < 2:
            first = len(found)
            found += await asyncio.gather(*(w.outcome(float(n)) for n in range(first, first + 8)))
        await w.until(lambda: w.engine.instances == 2 and w.engine.state is State.READY)
        after = [await w.outcome(float(n)) for n in range(len(found), len(found) + 10)]
        assert all(isinstance(each, Result) for each in after)
        assert w.engine.instances == 2
        fault("both sessions of a model raise", **w.count(found + after))


@pytest.mark.fault
async def test_a_session_that_hangs_is_given_up_and_replaced_and_who_shared_its_run_is_answered(fault: Fault) -> None:
    async with ward() as w:
        w.patients[0].hangs = True
        asked = [w.ask(float(n)) for n in range(4)]
        await w.turn_until_hung()
        found = [*await asyncio.gather(*asked), await w.outcome(4.0)]
        fault("a session hangs", **w.count(found))
        assert all(answered(each, float(n)) for n, each in enumerate(found))
        assert not w.patients[0].closed
        w.patients[0].woken.set()
        await w.until(lambda: w.patients[0].closed)


@pytest.mark.fault
async def test_an_item_that_no_session_comes_back_from_is_told_and_its_mates_are_answered(fault: Fault) -> None:
    def spellbound() -> Patient:
        patient = Patient()
        patient.hangs_on = 2.0
        return patient

    async with ward() as w:
        w.next_patient = spellbound
        w.patients[0].hangs_on = 2.0
        asked = [w.ask(float(n)) for n in range(5)]
        await w.turn_until_hung()
        await w.until(lambda: any(patient.stuck for patient in w.opened))
        await w.turn_until_hung()
        await asyncio.wait(asked)
        found = [_outcome(task) for task in asked]
        assert isinstance(found[2], RunHung)
        assert found[2].details["batch_size"] == 1
        assert all(answered(each, float(n)) for n, each in enumerate(found) if n != 2)
        assert w.said().count("hung") == 2
        fault("no session comes back from one item of a batch", **w.count(found))


async def test_a_run_that_comes_back_after_it_was_given_up_answers_nobody_twice() -> None:
    async with ward() as w:
        w.patients[0].hangs = True
        stuck = w.ask(1.0)
        await w.turn_until_hung()
        assert isinstance(await _error(stuck), RunHung)
        w.patients[0].hangs = False
        w.patients[0].woken.set()
        await w.until(lambda: w.patients[0].closed and "rebuilt" in w.said())
        assert answered(await w.outcome(2.0), 2.0)
        assert w.engine.instances == 1


@pytest.mark.fault
async def test_a_clock_that_jumps_again_and_again_costs_no_instance(fault: Fault) -> None:
    async with ward() as w:
        w.patients[0].hangs = True
        running = [w.ask(float(n)) for n in range(8)]
        for _ in range(HUNG_LOOKS):
            await w.turn(3600.0)  # the machine slept for an hour, again and again
        w.patients[0].hangs = False
        w.patients[0].woken.set()
        found = list(await asyncio.gather(*running))
        assert w.said() == []
        fault("the clock jumps by an hour, four times, while a batch runs", **w.count(found))


async def test_who_waits_behind_a_hung_run_is_answered_by_the_next_instance() -> None:
    async with ward(max_batch_size=1) as w:
        w.patients[0].hangs = True
        stuck, waiting = w.ask(1.0), w.ask(2.0)
        await w.turn_until_hung()
        assert isinstance(await _error(stuck), RunHung)
        assert answered(await waiting, 2.0)


async def test_with_no_instance_left_the_engine_is_not_ready_and_ready_again_when_one_is_opened() -> None:
    async with ward() as w:
        w.next_patient = unwell
        w.engine._group._open_fallback = None
        w.patients[0].raises = True
        for n in range(SICK_AFTER):
            assert isinstance(await w.outcome(float(n)), RuntimeFault)
        await w.until(lambda: "not_rebuilt" in w.said())
        assert w.engine.state is State.RECOVERING
        refused = await w.outcome(8.0)
        assert isinstance(refused, NotReady)
        assert refused.retry_after_s
        w.next_patient = Patient
        await w.turn(REOPEN_FIRST_S)
        await w.until(lambda: "rebuilt" in w.said())
        assert w.states()[-1] == "ready"
        assert answered(await w.outcome(9.0), 9.0)


@pytest.mark.fault
async def test_the_fallback_answers_labelled_until_the_models_own_runtime_is_back(fault: Fault) -> None:
    async with ward() as w:
        w.next_patient = unwell
        w.patients[0].raises = True
        found_all = [await w.outcome(float(n)) for n in range(SICK_AFTER)]
        assert all(isinstance(each, RuntimeFault) for each in found_all)
        await w.until(lambda: "fallback" in w.said())
        found = await w.ask(float(SICK_AFTER))
        found_all.append(found)
        assert found.fallback == "fp32 on cpu"
        w.next_patient = Patient
        await w.turn(REOPEN_FIRST_S)
        await w.until(lambda: "retired" in w.said())
        found = await w.ask(float(SICK_AFTER + 1))
        assert found.fallback == ""
        fault("a model's only session breaks for good, a fallback is declared", **w.count([*found_all, found]))
        assert w.states()[-3:] == ["ready", "recovering", "ready"]


@pytest.mark.fault
async def test_a_batch_without_memory_is_run_in_halves_and_batches_stay_smaller_for_a_while(fault: Fault) -> None:
    async with ward() as w:
        w.patients[0].no_memory_above = 2
        found = await asyncio.gather(*(w.ask(float(n)) for n in range(8)))
        fault("a session has no memory for its batch", **w.count(list(found)))
        await w.until(lambda: w.freed >= 1)
        del w.patients[0].runs[:]
        await asyncio.gather(*(w.ask(float(n)) for n in range(8)))
        assert {len(run) for run in w.patients[0].runs} == {2}
        w.patients[0].no_memory_above = None
        await w.turn(31.0)
        del w.patients[0].runs[:]
        await asyncio.gather(*(w.ask(float(n)) for n in range(9)))
        assert 4 in {len(run) for run in w.patients[0].runs}


async def test_an_item_that_finds_no_memory_even_alone_fails_by_name() -> None:
    async with ward() as w:
        w.patients[0].no_memory_above = 0
        found = await w.outcome(1.0)
        assert isinstance(found, OutOfMemory)
        w.patients[0].no_memory_above = None
        assert answered(await w.outcome(2.0), 2.0)


@pytest.mark.fault
async def test_nan_is_never_an_answer(fault: Fault) -> None:
    async with ward() as w:
        w.patients[0].nan = True
        found = await asyncio.gather(*(w.outcome(float(n)) for n in range(100)))
        assert {type(each) for each in found} <= {NumericFailure, Overloaded, NotReady}
        assert isinstance(found[0], NumericFailure)
        fault("a session gives NaN", **w.count(found))


@pytest.mark.fault
async def test_ten_thousand_leavers_leave_nothing_behind(fault: Fault) -> None:
    async with ward() as w:
        left = 0
        for _ in range(100):
            callers = [w.ask(float(n % 50)) for n in range(100)]
            for n, caller in enumerate(callers):
                if n % 3 == 0:
                    await asyncio.sleep(0)
                caller.cancel()
            await asyncio.wait(callers)
            left += sum(caller.cancelled() for caller in callers)
        fault("callers leave, inside the engine", asked=10_000, answered=10_000 - left, left=left)
        await w.until(lambda: w.engine._scheduler.empty)
        assert (w.engine.queued, w.engine.backlog.total, w.engine._scheduler.in_flight) == (0, 0, 0)
        assert answered(await w.outcome(3.0), 3.0)


async def test_short_memory_sheds_new_work_and_finishes_what_is_in() -> None:
    async with ward() as w:
        w.engine.shed_for_memory(True)
        refused = await w.outcome(1.0)
        assert isinstance(refused, Overloaded)
        assert "memory" in refused.message
        w.engine.shed_for_memory(False)
        assert answered(await w.outcome(1.0), 1.0)


async def test_a_limit_on_batches_holds_until_it_is_taken_away() -> None:
    async with ward() as w:
        w.engine.limit_batch(2)
        del w.patients[0].runs[:]
        await asyncio.gather(*(w.ask(float(n)) for n in range(12)))
        assert max(len(run) for run in w.patients[0].runs) == 2
        w.engine.limit_batch(None)
        await asyncio.gather(*(w.ask(float(n)) for n in range(12)))
        assert max(len(run) for run in w.patients[0].runs) == 4


async def test_places_that_are_not_used_are_given_back() -> None:
    async with ward() as w:
        places = [w.engine.reserve(Deadline.never()) for _ in range(100)]
        with pytest.raises(Overloaded):
            w.engine.check(Deadline.never())
        for place in places:
            place.release()
            place.release()
        assert w.engine.backlog.total == 0
        w.engine.check(Deadline.never())


async def test_a_place_is_good_for_one_item() -> None:
    async with ward() as w:
        place = w.engine.reserve(Deadline.never())
        request = Request("a", item(1.0), Deadline.never())
        assert answered(await w.engine.infer(request, place), 1.0)
        with pytest.raises(RuntimeError, match="once"):
            await w.engine.infer(request, place)


async def test_who_reserved_and_comes_too_late_is_told_at_the_door() -> None:
    async with ward() as w:
        deadline = Deadline.after(1.0, now_s=w.clock.now_s())
        place = w.engine.reserve(deadline)
        w.clock.advance(1.0)
        with pytest.raises(DeadlineExceeded):
            await w.engine.infer(Request("a", item(1.0), deadline), place)
        assert w.engine.backlog.total == 0


def _outcome(task: asyncio.Task[Result]) -> Result | IsocenterError:
    error = task.exception()
    assert error is None or isinstance(error, IsocenterError)
    return task.result() if error is None else error


async def _error(task: asyncio.Task[Result]) -> BaseException | None:
    await asyncio.wait([task])
    return task.exception()


async def break_down(w: Ward) -> None:
    """What the model runs in breaks, and is opened again."""
    w.patients[0].raises = True
    failing = [asyncio.create_task(w.outcome(float(n))) for n in range(SICK_AFTER)]
    await w.until(lambda: "broken" in w.said())
    for task in failing:
        task.cancel()


async def test_a_session_that_is_opened_when_its_engine_stops_is_closed() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def opened_slowly() -> Patient:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return Patient()

    async with ward() as w:
        w.next_patient = opened_slowly
        w.next_stand_in = opened_slowly
        await break_down(w)
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        await w.engine.stop()
        go_on.set()
        await w.until(lambda: bool(w.opened or w.stand_ins))
        await w.until(lambda: all(each.closed for each in (*w.opened, *w.stand_ins)))


async def test_a_session_that_is_examined_when_its_engine_stops_is_closed() -> None:
    def hanging() -> Patient:
        patient = Patient()
        patient.hangs = True
        return patient

    async with ward() as w:
        w.next_patient = hanging
        await break_down(w)
        await w.until(lambda: any(each.stuck for each in w.opened))
        await w.engine.stop()
        for each in w.opened:
            each.woken.set()
        await w.until(lambda: all(each.closed for each in w.opened))
