"""A bounded pool: nothing is lost, nothing waits without limit, nobody who left is worked for."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, NoReturn, cast

import pytest

from isocenter.core.clock import ManualClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadImage, DeadlineExceeded, Overloaded
from isocenter.serving.cpu_pool import CpuPool
from patience import PATIENCE_S
from pool_jobs import NEVER, Blocker, answer_of, until_started


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def pool(clock: ManualClock) -> AsyncIterator[CpuPool]:
    async with CpuPool(threads=1, max_waiting=2, clock=clock) as pool:
        yield pool


async def test_an_answer_and_an_exception_both_reach_their_caller(pool: CpuPool) -> None:
    def bad() -> None:
        raise ZeroDivisionError

    assert await pool.run(lambda: 7, NEVER) == 7
    with pytest.raises(ZeroDivisionError):
        await pool.run(bad, NEVER)
    assert await pool.run(lambda: 8, NEVER) == 8
    assert pool.waiting == 0


async def test_work_runs_beside_the_loop_and_not_on_it(pool: CpuPool) -> None:
    assert await pool.run(threading.get_ident, NEVER) != threading.get_ident()


async def test_a_full_pool_refuses_at_once_with_both_figures(pool: CpuPool) -> None:
    first, second = Blocker(), Blocker()
    running = [asyncio.create_task(pool.run(job, NEVER)) for job in (first, second)]
    await until_started(first)

    with pytest.raises(Overloaded) as refusal:
        await pool.run(lambda: None, NEVER)

    assert refusal.value.details == {"where": "decode", "waiting": 2, "limit": 2}
    assert refusal.value.retry_after_s is not None
    first.let_go()
    second.let_go()
    assert await asyncio.gather(*running) == ["done", "done"]


async def test_a_job_whose_deadline_passed_while_waiting_is_never_started(pool: CpuPool, clock: ManualClock) -> None:
    blocker, ran = Blocker(), []
    running = asyncio.create_task(pool.run(blocker, NEVER))
    late = asyncio.create_task(pool.run(lambda: ran.append(1), Deadline(5.0)))
    await until_started(blocker)
    clock.advance(6.0)
    with pytest.raises(DeadlineExceeded) as refusal:
        await late  # told at its deadline, while the thread is still busy with another
    assert refusal.value.details == {"waited_s": 5.0, "where": "decode"}

    blocker.let_go()
    assert await running == "done"
    assert await pool.run(lambda: 1, NEVER) == 1
    assert ran == []


async def test_a_job_whose_caller_left_is_never_started_and_frees_its_place(pool: CpuPool) -> None:
    blocker, ran = Blocker(), []
    running = asyncio.create_task(pool.run(blocker, NEVER))
    leaver = asyncio.create_task(pool.run(lambda: ran.append(1), NEVER))
    await until_started(blocker)
    leaver.cancel()
    blocker.let_go()

    assert await running == "done"
    assert await pool.run(lambda: 1, NEVER) == 1
    assert ran == []
    assert pool.waiting == 0


async def test_a_refusal_keeps_no_image_alive(pool: CpuPool) -> None:
    class Pixels:
        pass

    alive: list[weakref.ref[Pixels]] = []

    def decode() -> None:
        pixels = Pixels()
        alive.append(weakref.ref(pixels))
        try:
            raise OSError("a library's words")
        except OSError as error:
            raise BadImage("broken") from error

    with pytest.raises(BadImage) as refusal:
        await pool.run(decode, NEVER)

    assert isinstance(refusal.value.__cause__, OSError)
    assert alive[0]() is None


async def test_a_job_that_panics_past_exception_ends_and_the_thread_lives_on(pool: CpuPool) -> None:
    def panic() -> None:
        raise SystemExit

    with pytest.raises(RuntimeError, match="SystemExit"):
        await pool.run(panic, NEVER)

    assert await pool.run(lambda: 1, NEVER) == 1
    assert pool.waiting == 0


@pytest.mark.parametrize("here", [False, True])
async def test_a_job_that_found_no_room_elsewhere_is_not_taken_for_a_full_pool(pool: CpuPool, here: bool) -> None:
    with pytest.raises(Overloaded) as refusal:
        await answer_of(pool, _no_room, NEVER, here=here)
    assert refusal.value.details == {}


def _no_room() -> NoReturn:
    raise Overloaded("every slot is taken")


async def test_the_pool_predicts_from_what_jobs_took() -> None:
    clock = ManualClock(0.0)
    async with CpuPool(threads=1, max_waiting=9, clock=clock) as pool:
        assert pool.ready_in_s(here=True) == 0.0
        await answer_of(pool, lambda: clock.advance(2.0), Deadline.never(), here=True)
        assert pool.ready_in_s(here=True) == pytest.approx(2.0)
        await answer_of(pool, lambda: clock.advance(200.0), Deadline.never(), here=True)
        assert pool.ready_in_s(here=True) < 3.0, "one odd job moves it little"


@pytest.mark.parametrize("here", [False, True])
async def test_what_is_slow_only_while_it_warms_up_turns_nobody_away_afterwards(here: bool) -> None:
    clock = ManualClock(0.0)
    async with CpuPool(threads=1, max_waiting=9, clock=clock) as pool:
        with pool.warming_up():
            for seconds in (5.0, 0.02, 3.0):
                await answer_of(pool, partial(clock.advance, seconds), NEVER, here=here)
        assert pool.ready_in_s(here=here) == pytest.approx(0.02)
        await answer_of(pool, lambda: clock.advance(0.04), NEVER, here=here)
        assert pool.ready_in_s(here=here) == pytest.approx(0.022)


@pytest.mark.parametrize("here", [False, True])
async def test_jobs_that_came_too_late_say_nothing_of_those_to_come(here: bool) -> None:
    clock = ManualClock(0.0)
    async with CpuPool(threads=1, max_waiting=99, clock=clock) as pool:
        await answer_of(pool, lambda: clock.advance(2.0), NEVER, here=here)
        for _ in range(30):
            with pytest.raises(DeadlineExceeded):
                await answer_of(pool, lambda: None, Deadline(1.0), here=here)
        await answer_of(pool, lambda: clock.advance(2.0), NEVER, here=here)

        assert pool.ready_in_s(here=here) == pytest.approx(2.0), "the collapse: all are let in, and all are too late"


async def test_those_who_are_coming_stand_before_the_next_one() -> None:
    clock = ManualClock(0.0)
    async with CpuPool(threads=1, max_waiting=9, clock=clock) as pool:
        for here in (False, True):
            await answer_of(pool, lambda: clock.advance(2.0), NEVER, here=here)
            assert pool.ready_in_s(here=here, coming=3) == pytest.approx(8.0)


async def test_quick_jobs_leave_a_thread_to_others_and_each_is_run_in_its_turn(clock: ManualClock) -> None:
    first, second, last = Blocker(), Blocker(), Blocker()
    async with CpuPool(threads=2, max_waiting=9, clock=clock) as pool:
        running = [asyncio.create_task(pool.run(job, NEVER, quick=True)) for job in (first, second, last)]
        await until_started(first)

        assert await pool.run(lambda: "beside it", NEVER) == "beside it"
        assert not second.started.is_set()

        first.let_go()
        await until_started(second)
        assert not last.started.is_set()
        second.let_go()
        last.let_go()
        assert await asyncio.gather(*running) == ["done"] * 3


async def test_jobs_that_are_not_quick_take_all_threads(clock: ManualClock) -> None:
    jobs = [Blocker(), Blocker()]
    async with CpuPool(threads=2, max_waiting=9, clock=clock) as pool:
        running = [asyncio.create_task(pool.run(job, NEVER)) for job in jobs]
        for job in jobs:
            await until_started(job)
        for job in jobs:
            job.let_go()
        assert await asyncio.gather(*running) == ["done"] * 2


async def test_quick_jobs_that_wait_are_run_before_the_pool_ends(clock: ManualClock) -> None:
    held = [Blocker(), Blocker()]
    async with CpuPool(threads=3, max_waiting=9, clock=clock) as pool:
        running = [asyncio.create_task(pool.run(job, NEVER, quick=True)) for job in held]
        running += [asyncio.create_task(pool.run(lambda: "done", NEVER, quick=True)) for _ in range(4)]
        for job in held:
            await until_started(job)
        # Only once the pool is ending: what waits for these two stands behind the threads' end then.
        for job in held:
            asyncio.get_running_loop().call_soon(job.let_go)
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.gather(*running) == ["done"] * 6


class Held:
    """Memory."""


class Crowded:
    """An event loop on a machine so busy that a thread that tells it something does not get its turn back."""

    def __init__(self) -> None:
        self._loop, self.turn = asyncio.get_running_loop(), threading.Event()

    def create_future(self) -> "asyncio.Future[Any]":
        return self._loop.create_future()

    def call_soon_threadsafe(self, callback: Callable[..., object], *given: object) -> None:
        self._loop.call_soon_threadsafe(callback, *given)
        self.turn.wait(PATIENCE_S)


async def test_a_thread_that_has_told_its_caller_holds_nothing_of_the_job(pool: CpuPool) -> None:
    crowded = Crowded()
    pool._loop = cast(asyncio.AbstractEventLoop, crowded)
    taken = Held()
    jobs = [partial(lambda _: Held(), taken)]
    try:
        given = await pool.run(jobs.pop(), NEVER)
        there = [weakref.ref(taken), weakref.ref(given)]
        del taken, given
        await asyncio.sleep(0)  # asyncio holds the answer as long as the step lasts that it began

        assert [each() for each in there] == [None, None]
    finally:
        crowded.turn.set()
