"""What an engine promises its callers."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from isocenter.core.clock import ManualClock, SystemClock, Timer
from isocenter.core.deadline import Deadline
from isocenter.core.errors import (
    DeadlineExceeded,
    Draining,
    InputNotAccepted,
    NotReady,
    NumericFailure,
    Overloaded,
    RuntimeFault,
)
from isocenter.core.events import (
    AbandonedInQueue,
    BatchFailed,
    BatchFinished,
    BatchStarted,
    Enqueued,
    Expired,
    NullObserver,
    Shed,
    StateChanged,
)
from isocenter.core.request import EngineTimings, Request, Result
from isocenter.engine.batch_policy import BatchRules, Decision, decide
from isocenter.engine.cost import CostModel
from isocenter.engine.doorkeeper import FRESH_S
from isocenter.engine.engine import Engine, InlineEngine
from isocenter.engine.lifecycle import State
from isocenter.runtimes.synthetic import OUTPUT, Faults, SyntheticSession, checksum, item
from patience import PATIENCE_S
from unit.engine.stage import Stage

DECIDE = "isocenter.engine.scheduler.decide"
BATCHES_OF_4 = BatchRules(max_batch_size=4, max_queue_delay_s=1.0)


def answers(result: Result, marker: float) -> bool:
    return bool(result.outputs[OUTPUT] == checksum(item(marker)["x"]))


async def all_answered(asking: Iterable[tuple[float, asyncio.Task[Result]]]) -> None:
    for marker, task in asking:
        assert answers(await task, marker)


async def failure(asking: asyncio.Task[Result]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at it
        await asking
    return caught.value


# Batches


async def test_items_that_come_together_run_together() -> None:
    async with Stage(rules=BATCHES_OF_4) as stage:
        asking = [stage.ask(n) for n in range(4)]
        await stage.quiet()
        assert stage.runs == [(0, 1, 2, 3)]
        await stage.let_through()
        await all_answered(enumerate(asking))


async def test_a_lone_item_waits_for_company_and_no_longer() -> None:
    async with Stage(rules=BATCHES_OF_4) as stage:
        stage.ask(1)
        await stage.turn(0.875)
        stage.ask(2)
        await stage.quiet()
        assert stage.runs == []
        await stage.turn(0.125)
        assert stage.runs == [(1, 2)]


async def test_while_an_instance_works_the_next_batch_gathers() -> None:
    async with Stage() as stage:
        stage.ask(0)
        await stage.quiet()
        for n in (1, 2, 3, 4, 5):
            stage.ask(n)
        await stage.quiet()
        assert stage.engine.queued == 5
        await stage.let_through()
        assert stage.runs == [(0,), (1, 2, 3, 4)]
        await stage.let_through()
        assert stage.runs[2:] == [(5,)]


async def test_the_urgent_go_first() -> None:
    async with Stage(rules=BatchRules(max_batch_size=2, max_queue_delay_s=0.0)) as stage:
        stage.ask(0)
        await stage.quiet()
        stage.ask(1)
        stage.ask(2, timeout_s=5.0)
        stage.ask(3, timeout_s=3.0)
        stage.ask(4, priority=-1)
        await stage.let_through()
        await stage.let_through()
        assert stage.runs == [(0,), (4, 3), (2, 1)]


async def test_instances_work_side_by_side() -> None:
    async with Stage(instances=2) as stage:
        first, second = stage.ask(1), stage.ask(2)
        await stage.quiet()
        third = stage.ask(3)
        await stage.quiet()
        assert sorted(stage.runs) == [(1, 2), (3,)]
        await stage.let_through(2)
        await all_answered([(1, first), (2, second), (3, third)])


async def test_timings_say_where_the_time_went() -> None:
    async with Stage(rules=BATCHES_OF_4) as stage:
        asking = stage.ask(1)
        await stage.turn(0.25)
        stage.ask(2)
        await stage.turn(0.75)
        stage.clock.advance(3.0)
        await stage.let_through()
        assert (await asking).timings == EngineTimings(queue_s=1.0, service_s=3.0, batch_size=2)
        assert stage.observer.events[-2:] == [BatchStarted("demo", 1, 2, 1.0, 2), BatchFinished("demo", 1, 2, 3.0)]


async def test_a_close_deadline_ends_the_wait_for_company() -> None:
    async with Stage(rules=BATCHES_OF_4) as stage:
        stage.ask(1, timeout_s=0.5)
        await stage.turn(0.49)
        assert stage.runs == []
        await stage.turn(0.009)
        assert stage.runs == [(1,)]


async def test_shapes_that_vary_run_apart_one_after_the_other() -> None:
    rules = BatchRules(max_batch_size=4, max_queue_delay_s=1.0)
    async with Stage(rules=rules, shape=(-1,)) as stage:
        asking = [stage.ask(n, shape=(3 if n % 2 else 5,)) for n in range(4)]
        await stage.quiet()
        assert stage.runs == [(0, 2)]
        await stage.let_through()
        assert stage.runs == [(0, 2), (1, 3)]
        await stage.let_through()
        assert (await asking[3]).outputs[OUTPUT] == checksum(item(3, (3,))["x"])


# Leaving


async def test_one_leaver_does_not_strand_the_batch() -> None:
    async with Stage(rules=BATCHES_OF_4) as stage:
        asking = [stage.ask(n) for n in range(4)]
        await stage.quiet()
        asking[2].cancel()
        await stage.let_through()
        await all_answered([(n, asking[n]) for n in (0, 1, 3)])
        assert asking[2].cancelled()
        assert stage.count(AbandonedInQueue) == 0


async def test_who_leaves_the_queue_is_never_run() -> None:
    async with Stage(rules=BATCHES_OF_4) as stage:
        asking = [stage.ask(n) for n in range(3)]
        await stage.quiet()
        asking[1].cancel()
        await stage.quiet()
        assert stage.engine.queued == 2
        await stage.turn(1.0)
        assert stage.runs == [(0, 2)]
        assert stage.count(AbandonedInQueue) == 1


async def test_who_leaves_in_the_moment_of_dispatch_is_never_run() -> None:
    async with Stage(rules=BATCHES_OF_4) as stage:
        asking = [stage.ask(n) for n in range(3)]
        await stage.quiet()
        stage.clock.advance(1.0)  # the scheduler is awake now, and runs before the leaver's task does
        asking[1].cancel()
        await stage.quiet()
        assert stage.runs == [(0, 2)]
        assert stage.count(AbandonedInQueue) == 1


async def test_an_unwarmed_size_is_not_run_even_when_somebody_leaves_in_the_moment_of_dispatch() -> None:
    rules = BatchRules(max_batch_size=4, max_queue_delay_s=1.0, allowed_batch_sizes=(1, 2, 4))
    async with Stage(rules=rules) as stage:
        stage.ask(9)
        await stage.turn(1.0)
        asking = [stage.ask(n) for n in range(4)]
        await stage.quiet()
        stage.gate.let_through()
        await stage.until(lambda: stage.count(BatchFinished) == 1)
        asking[1].cancel()
        await stage.quiet()
        await stage.let_through()
        await stage.let_through()
        assert stage.runs == [(9,), (0, 2), (3,)]


# Deadlines


async def test_the_expired_are_told_at_their_instant_and_never_run() -> None:
    async with Stage() as stage:
        stage.ask(0)
        await stage.quiet()
        asking = stage.ask(1, timeout_s=2.0)
        await stage.turn(1.875)
        assert not asking.done()
        await stage.turn(0.125)
        error = await failure(asking)
        assert isinstance(error, DeadlineExceeded)
        assert error.details == {"waited_s": 2.0, "where": "queue"}
        await stage.let_through()
        assert stage.runs == [(0,)]
        assert stage.count(Expired) == 1


async def test_nobody_waits_for_a_run_past_the_deadline() -> None:
    async with Stage() as stage:
        hasty, patient = stage.ask(1, timeout_s=2.0), stage.ask(2, timeout_s=9.0)
        await stage.turn(2.0)
        error = await failure(hasty)
        assert isinstance(error, DeadlineExceeded)
        assert error.details["where"] == "model"
        await stage.let_through()
        assert answers(await patient, 2)
        assert stage.count(Expired) == 0


async def test_a_deadline_that_has_passed_is_refused_at_the_door() -> None:
    async with Stage() as stage:
        error = await failure(stage.ask(1, timeout_s=-0.5))
        assert isinstance(error, DeadlineExceeded)
        assert error.details == {"late_s": 0.5, "where": "door"}
        assert "passed by 0.500 s" in error.message
        assert stage.observer.events[-1] == Shed("demo", 1, "deadline_exceeded")


# Faults


async def test_one_bad_item_does_not_fail_its_mates() -> None:
    async with Stage(rules=BATCHES_OF_4, faults=Faults(raise_markers={2.0})) as stage:
        asking = [stage.ask(n) for n in range(4)]
        await stage.quiet()
        await stage.let_through()
        for _ in range(4):
            await stage.let_through()
        assert stage.runs == [(0, 1, 2, 3), (0,), (1,), (2,), (3,)]
        await all_answered([(n, asking[n]) for n in (0, 1, 3)])
        error = await failure(asking[2])
        assert isinstance(error, RuntimeFault)
        assert error.details == {"kind": "SyntheticError", "batch_size": 1}
        assert "array" not in str(error)
        assert (await asking[0]).timings.batch_size == 1
        failed = [event for event in stage.observer.events if isinstance(event, BatchFailed)]
        assert failed == [BatchFailed("demo", 1, 4, "SyntheticError"), BatchFailed("demo", 1, 1, "SyntheticError")]


async def test_who_left_is_not_run_again() -> None:
    async with Stage(rules=BATCHES_OF_4, faults=Faults(raise_on_runs=frozenset({1}))) as stage:
        asking = [stage.ask(n) for n in range(4)]
        await stage.quiet()
        asking[0].cancel()
        asking[3].cancel()
        await stage.let_through()
        await stage.let_through(2)
        assert stage.runs == [(0, 1, 2, 3), (1,), (2,)]


async def test_an_item_is_tried_alone_once() -> None:
    async with Stage(faults=Faults(raise_on_runs=frozenset({1}))) as stage:
        asking = stage.ask(1)
        await stage.quiet()
        await stage.let_through()
        assert isinstance(await failure(asking), RuntimeFault)
        assert stage.runs == [(1,)]


async def test_a_runtime_that_loses_rows_is_caught() -> None:
    async with Stage(faults=Faults(wrong_axis_above=0)) as stage:
        asking = stage.ask(1)
        await stage.quiet()
        await stage.let_through()
        error = await failure(asking)
        assert isinstance(error, RuntimeFault)
        assert error.details == {"output": OUTPUT, "shape": [0], "items": 1}


async def test_an_answer_that_is_not_finite_fails_alone() -> None:
    async with Stage(rules=BATCHES_OF_4, faults=Faults(nan_markers={1.0})) as stage:
        asking = [stage.ask(n) for n in range(4)]
        await stage.quiet()
        await stage.let_through()
        assert isinstance(await failure(asking[1]), NumericFailure)
        await all_answered([(n, asking[n]) for n in (0, 2, 3)])
        assert len(stage.runs) == 1


async def test_answers_outlive_the_runtimes_memory() -> None:
    async with Stage() as stage:
        first = stage.ask(1)
        await stage.quiet()
        await stage.let_through()
        result = await first
        second = stage.ask(2)
        await stage.quiet()
        await stage.let_through()
        assert answers(await second, 2)
        assert answers(result, 1)


# The door


async def test_a_full_queue_refuses_with_figures() -> None:
    async with Stage(max_queue_size=2) as stage:
        stage.ask(0)
        await stage.quiet()
        stage.ask(1)
        stage.ask(2)
        error = await failure(stage.ask(3))
        assert isinstance(error, Overloaded)
        assert error.details == {"queued": 2, "limit": 2}
        assert error.retry_after_s is None
        assert stage.observer.events[-1] == Shed("demo", 1, "queue_full")
        assert stage.count(Enqueued) == 3


async def test_after_a_warm_up_the_refusal_says_when_to_come_back() -> None:
    async with Stage(instances=2, max_queue_size=1) as stage:
        stage.engine._scheduler.cost = CostModel({1: 1.0, 4: 2.0})
        for n in range(3):
            stage.ask(n)
            await stage.quiet()
        error = await failure(stage.ask(3))
        assert isinstance(error, Overloaded)
        clear_s = (2 * 1.0 + 1.0) / 2  # two runs and one item more, by two instances
        assert clear_s <= (error.retry_after_s or 0.0) <= 1.25 * clear_s  # those refused do not come back together


async def test_who_gives_less_time_than_an_empty_queue_takes_is_told_when_predictions_are_old() -> None:
    async with Stage() as stage:
        stage.engine._scheduler.cost = CostModel({1: 1.0, 4: 1.0})
        stage.ask(0)
        await stage.quiet()
        hopeless, hopeful = await failure(stage.ask(1, timeout_s=0.5)), await failure(stage.ask(2, timeout_s=1.9))

        assert isinstance(hopeless, Overloaded)
        assert FRESH_S <= (hopeless.retry_after_s or 0.0) <= 1.25 * FRESH_S
        assert isinstance(hopeful, Overloaded)
        assert (hopeful.retry_after_s or 9.0) < FRESH_S


async def test_an_item_that_does_not_fit_never_reaches_the_queue() -> None:
    async with Stage() as stage:
        error = await failure(stage.ask(1, shape=(5,)))
        assert isinstance(error, InputNotAccepted)
        assert stage.count(Enqueued) == 0


# Life


async def test_before_open_and_after_drain_requests_are_refused() -> None:
    stage = Stage()
    assert isinstance(await failure(stage.ask(1)), NotReady)
    await stage.engine.start()
    assert isinstance(await failure(stage.ask(1)), NotReady)
    stage.engine.open()
    assert await stage.engine.drain(1.0)
    assert isinstance(await failure(stage.ask(1)), Draining)
    await stage.engine.stop()
    assert isinstance(await failure(stage.ask(1)), Draining)
    told = [event for event in stage.observer.events if isinstance(event, StateChanged)]
    assert [event.state for event in told] == ["warming", "ready", "draining", "stopped"]
    shed = [event.reason for event in stage.observer.events if isinstance(event, Shed)]
    assert shed == ["not_ready", "not_ready", "draining", "draining"]


async def test_drain_finishes_what_is_in_without_waiting_for_company() -> None:
    async with Stage(rules=BATCHES_OF_4) as stage:
        asking = [stage.ask(n) for n in range(6)]
        await stage.quiet()
        draining = asyncio.create_task(stage.engine.drain(5.0))
        await stage.quiet()
        assert isinstance(await failure(stage.ask(9)), Draining)
        await stage.let_through()
        assert not draining.done()
        await stage.let_through()
        assert await draining
        assert stage.runs == [(0, 1, 2, 3), (4, 5)]
        await all_answered(enumerate(asking))


async def test_what_is_not_drained_within_the_bound_fails() -> None:
    async with Stage(rules=BATCHES_OF_4) as stage:
        asking = [stage.ask(n) for n in range(6)]
        await stage.quiet()
        draining = asyncio.create_task(stage.engine.drain(5.0))
        await stage.turn(4.875)
        assert not draining.done()
        await stage.turn(0.125)
        assert await draining is False
        for task in asking:
            assert isinstance(await failure(task), Draining)


async def test_draining_an_idle_engine_takes_no_time() -> None:
    async with Stage() as stage:
        assert await stage.engine.drain(0.0)


async def test_stop_ends_what_is_in_closes_the_sessions_and_may_be_repeated() -> None:
    async with Stage(instances=2) as stage:
        asking = [stage.ask(n) for n in range(3)]
        await stage.quiet()
        stopping = asyncio.create_task(stage.engine.stop())
        for task in asking:
            assert isinstance(await failure(task), Draining)
        stage.gate.open()
        await stopping
        await stage.engine.stop()
        assert all(session.closed for session in stage.sessions)
        assert stage.engine.state is State.STOPPED


async def test_stop_does_not_wait_longer_than_its_bound_for_a_run_that_hangs() -> None:
    async with Stage() as stage:
        asking = stage.ask(1)
        await stage.quiet()
        stopping = asyncio.create_task(stage.engine.stop())
        await stage.turn(4.875)
        assert not stopping.done()
        await stage.turn(0.125)
        await stopping
        assert isinstance(await failure(asking), Draining)
        assert not stage.sessions[0].closed


async def test_an_engine_that_never_started_closes_its_sessions() -> None:
    stage = Stage()
    await stage.engine.stop()
    assert stage.sessions[0].closed


async def test_warm_up_runs_every_size_on_every_instance() -> None:
    stage = Stage(instances=2)
    stage.gate.open()
    async with stage.engine as engine:
        measured = await engine.warm_up([4, 2], item(7), repeats=2)
        assert list(measured) == [1, 2, 4]
        for session in stage.sessions:
            assert [len(run) for run in session.runs] == [1, 2, 4] * 3
        assert engine.state is State.WARMING
        engine.open()
        with pytest.raises(RuntimeError, match="ready cannot be warmed up"):
            await engine.warm_up([1], item(7))


async def test_after_warm_up_only_warmed_sizes_run() -> None:
    stage = Stage()
    stage.gate.open()
    async with stage.engine as engine:
        await engine.warm_up([1, 2], item(7), repeats=0)
        engine.open()
        del stage.sessions[0].runs[:]
        await asyncio.gather(*(stage.ask(n) for n in range(5)))
        assert {len(run) for run in stage.runs} <= {1, 2}


@pytest.mark.parametrize(
    ("faults", "kind"),
    [(Faults(raise_on_runs=frozenset({2})), RuntimeFault), (Faults(nan_markers={7.0}), NumericFailure)],
    ids=["raises", "nan"],
)
async def test_a_failed_warm_up_fails_the_engine(faults: Faults, kind: type[Exception]) -> None:
    stage = Stage(faults=faults)
    stage.gate.open()
    async with stage.engine as engine:
        with pytest.raises(kind):
            await engine.warm_up([1, 2], item(7))
        assert engine.state is State.FAILED
        assert isinstance(await failure(stage.ask(1)), NotReady)
    assert stage.sessions[0].closed


async def test_a_defect_in_the_scheduler_is_told_to_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with Stage() as stage:
        monkeypatch.setattr(DECIDE, broken)
        error = await failure(stage.ask(1))
        assert isinstance(error, RuntimeFault)
        assert error.details == {"kind": "ZeroDivisionError"}
        assert stage.engine.state is State.FAILED


def test_an_inline_engine_is_an_engine() -> None:
    engine: Engine = Stage().engine
    assert [spec.name for spec in (*engine.inputs, *engine.outputs)] == ["x", OUTPUT]
    assert (engine.model, engine.version, engine.state, engine.queued) == ("demo", 1, State.LOADING, 0)


def test_an_engine_without_sessions_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one session"):
        InlineEngine(
            model="demo",
            version=1,
            sessions=[],
            rules=BatchRules(),
            max_queue_size=1,
            clock=ManualClock(),
            observer=NullObserver(),
        )


# The loop


class Decisions:
    """Counts how often the scheduler asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0

        def counting(*arguments: Any, **named: Any) -> Decision:
            self.count += 1
            return decide(*arguments, **named)

        monkeypatch.setattr(DECIDE, counting)


async def test_the_loop_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = Decisions(monkeypatch)
    async with Stage(rules=BATCHES_OF_4) as stage:
        stage.ask(1, timeout_s=50.0)
        await stage.quiet()
        assert decisions.count == 1  # wait for company
        for _ in range(7):
            await stage.turn(0.125)
        assert decisions.count == 1  # asleep until the instant
        await stage.turn(0.125)
        assert decisions.count == 2  # run it
        for n in range(20):
            stage.ask(n, timeout_s=60.0)
            await stage.quiet()
        assert decisions.count == 2  # no instance is idle: arrivals change nothing
        await stage.let_through()
        assert decisions.count == 3  # a full batch


async def test_a_burst_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = Decisions(monkeypatch)
    async with Stage(rules=BATCHES_OF_4) as stage:
        for n in range(3):
            stage.ask(n)
        await stage.quiet()
        assert decisions.count == 1


class HastyClock(ManualClock):
    """Rings a little early, as event loops do that round to milliseconds."""

    def call_at(self, instant_s: float, callback: Callable[[], object]) -> Timer:
        return super().call_at(instant_s - 0.0005, callback)


async def test_an_alarm_that_rings_early_counts_as_its_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = Decisions(monkeypatch)
    async with Stage(rules=BATCHES_OF_4, clock=HastyClock(100.0)) as stage:
        stage.ask(1)
        await stage.turn(0.9996)
        assert stage.runs == [(1,)]
        assert decisions.count == 2


async def test_an_earlier_deadline_moves_the_alarm_while_all_instances_work() -> None:
    async with Stage() as stage:
        stage.ask(0)
        await stage.quiet()
        late, early = stage.ask(1, timeout_s=9.0), stage.ask(2, timeout_s=3.0)
        await stage.turn(3.0)
        assert early.done()
        assert not late.done()
        assert isinstance(await failure(early), DeadlineExceeded)


async def test_it_works_by_the_machines_clock_too() -> None:
    clock = SystemClock()
    session = SyntheticSession()
    engine = InlineEngine(
        model="demo",
        version=1,
        sessions=[session],
        rules=BatchRules(max_batch_size=4),
        max_queue_size=64,
        clock=clock,
        observer=NullObserver(),
        drain_bound_s=PATIENCE_S,
        stop_bound_s=PATIENCE_S,
    )

    async def caller(n: int) -> bool:
        deadline = Deadline.after(PATIENCE_S, now_s=clock.now_s())
        return answers(await engine.infer(Request(str(n), item(n), deadline)), n)

    async with engine:
        await engine.warm_up([1, 4], item(0))
        engine.open()
        assert all(await asyncio.gather(*(caller(n) for n in range(50))))
    assert session.closed
    assert np.sum([len(run) for run in session.runs]) >= 50
