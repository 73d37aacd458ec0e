"""A bounded pool: nothing is lost, nothing waits without limit, nobody who left is worked for."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import NoReturn, TypeVar

import pytest

from isocenter.core.clock import ManualClock, SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadImage, DeadlineExceeded, Overloaded
from isocenter.serving.cpu_pool import CpuPool
from patience import PATIENCE_S

NEVER = Deadline.never()
T = TypeVar("T")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def pool(clock: ManualClock) -> AsyncIterator[CpuPool]:
    async with CpuPool(threads=1, max_waiting=2, clock=clock) as pool:
        yield pool


class Blocker:
    """A job that holds the pool's thread until it is let go."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self._go_on = threading.Event()

    def __call__(self) -> str:
        self.started.set()
        assert self._go_on.wait(PATIENCE_S)
        return "done"

    def let_go(self) -> None:
        self._go_on.set()


async def until_started(blocker: Blocker) -> None:
    assert await asyncio.to_thread(blocker.started.wait, PATIENCE_S)


async def answer_of(pool: CpuPool, function: Callable[[], T], deadline: Deadline, *, here: bool) -> T:
    """The answer of a job in one part, from a thread or from the event loop."""
    if here:
        return await pool.run_here(function, lambda answer: answer, deadline)
    return await pool.run(function, deadline)


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
    with pytest.raises(DeadlineExceeded):
        await late  # told at its deadline, while the thread is still busy with another

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


async def test_small_jobs_run_here_in_their_order_one_a_turn_of_the_loop() -> None:
    loop = asyncio.get_running_loop()
    turns: list[int] = []
    turn = 0

    def count() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count)

    async with CpuPool(threads=1, max_waiting=9, clock=SystemClock()) as pool:
        loop.call_soon(count)
        asked = [
            asyncio.create_task(answer_of(pool, partial(turns.append, n), Deadline.never(), here=True))
            for n in range(4)
        ]
        at: list[int] = []
        for task in asked:
            await task
            at.append(turn)
        assert turns == [0, 1, 2, 3]
        assert len(set(at)) == 4, "between any two of them the loop has looked at its sockets"


async def test_a_job_here_runs_on_the_thread_of_the_loop_and_its_errors_are_its_own() -> None:
    async with CpuPool(threads=1, max_waiting=9, clock=SystemClock()) as pool:
        assert await answer_of(pool, threading.get_ident, Deadline.never(), here=True) == threading.get_ident()
        with pytest.raises(BadImage):
            await answer_of(pool, _refuse, Deadline.never(), here=True)
        assert pool.waiting == 0


async def test_a_job_here_that_is_too_late_or_whose_caller_left_is_not_run() -> None:
    clock = ManualClock(10.0)
    ran: list[str] = []
    async with CpuPool(threads=1, max_waiting=9, clock=clock) as pool:
        late = asyncio.create_task(answer_of(pool, lambda: ran.append("late"), Deadline(11.0), here=True))
        left = asyncio.create_task(answer_of(pool, lambda: ran.append("left"), Deadline.never(), here=True))
        clock.advance(1.0)
        left.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        await asyncio.wait([left])
        await asyncio.sleep(0)
        assert ran == []
        assert pool.waiting == 0


@pytest.mark.parametrize("here", [False, True])
async def test_a_job_that_found_no_room_elsewhere_is_not_taken_for_a_full_pool(pool: CpuPool, here: bool) -> None:
    with pytest.raises(Overloaded) as refusal:
        await answer_of(pool, _no_room, NEVER, here=here)
    assert refusal.value.details == {}


def _no_room() -> NoReturn:
    raise Overloaded("every slot is taken")


async def test_jobs_here_count_against_the_same_limit() -> None:
    async with CpuPool(threads=1, max_waiting=2, clock=SystemClock()) as pool:
        first = [asyncio.create_task(answer_of(pool, lambda: None, Deadline.never(), here=True)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await answer_of(pool, lambda: None, Deadline.never(), here=True)
        await asyncio.gather(*first)


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


def _refuse() -> NoReturn:
    raise BadImage("broken")


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


@pytest.mark.may_block
async def test_a_thread_helps_the_event_loop_while_several_wait_for_it() -> None:
    met = threading.Barrier(2, timeout=PATIENCE_S)
    async with CpuPool(threads=2, max_waiting=9, clock=ManualClock(0.0), cores=2) as pool:
        jobs: list[Callable[[], object]] = [met.wait, met.wait, lambda: None, lambda: None]
        await asyncio.gather(*(answer_of(pool, job, NEVER, here=True) for job in jobs))

        assert pool.waiting == 0


@pytest.mark.may_block
async def test_where_many_are_refused_the_event_loop_leaves_first_parts_to_the_thread_that_helps() -> None:
    loop, helped, turned = threading.get_ident(), threading.Event(), threading.Event()

    def place() -> int:
        """Where it runs: on the event loop once there is help, on the thread once the loop has had many turns."""
        found = threading.get_ident()
        if found != loop:
            helped.set()
        assert (helped if found == loop else turned).wait(PATIENCE_S)
        return found

    async with CpuPool(threads=2, max_waiting=9, clock=ManualClock(0.0), cores=2) as pool:
        pool.refusing = True
        asked = [asyncio.create_task(answer_of(pool, place, NEVER, here=True)) for _ in range(8)]
        for _ in range(40):
            await asyncio.sleep(0)
        turned.set()
        places = await asyncio.gather(*asked)

        assert places.count(loop) <= 1, "nothing after the help began"
        assert pool.waiting == 0


async def test_who_is_to_help_and_has_something_else_to_do_keeps_nobody_waiting() -> None:
    large = Blocker()
    async with CpuPool(threads=1, max_waiting=9, clock=ManualClock(0.0), cores=2) as pool:
        pool.refusing = True
        running = asyncio.create_task(pool.run(large, NEVER))
        await until_started(large)
        async with asyncio.timeout(PATIENCE_S):
            small = await asyncio.gather(*(answer_of(pool, lambda: 7, NEVER, here=True) for _ in range(6)))
        large.let_go()

        assert await running == "done"
        assert small == [7] * 6


@pytest.mark.may_block
async def test_who_helps_leaves_the_second_part_to_the_event_loop() -> None:
    met = threading.Barrier(2, timeout=PATIENCE_S)

    def first() -> int:
        met.wait()
        return threading.get_ident()

    def places(first_place: int) -> tuple[int, int]:
        return first_place, threading.get_ident()

    async with CpuPool(threads=2, max_waiting=9, clock=ManualClock(0.0), cores=2) as pool:
        found = await asyncio.gather(*(pool.run_here(first, places, NEVER) for _ in range(4)))

    loop = threading.get_ident()
    assert len({place for place, _ in found}) == 2, "a thread helped"
    assert {place for _, place in found} == {loop}


@pytest.mark.may_block
async def test_a_second_part_that_fails_troubles_nobody_else() -> None:
    met = threading.Barrier(2, timeout=PATIENCE_S)

    def refuse(_: object) -> NoReturn:
        raise BadImage("broken")

    async with CpuPool(threads=2, max_waiting=9, clock=ManualClock(0.0), cores=2) as pool:
        refused = [asyncio.create_task(pool.run_here(met.wait, refuse, NEVER)) for _ in range(4)]
        outcomes = await asyncio.gather(*refused, return_exceptions=True)

        assert [type(outcome) for outcome in outcomes] == [BadImage] * 4
        assert await pool.run_here(lambda: 7, lambda seven: seven + 1, NEVER) == 8
        assert pool.waiting == 0


@pytest.mark.may_block
async def test_a_second_part_whose_caller_left_after_the_first_is_not_run() -> None:
    begun, ran = threading.Semaphore(0), list[str]()
    async with CpuPool(threads=2, max_waiting=9, clock=ManualClock(0.0), cores=2) as pool:
        left = [
            asyncio.create_task(pool.run_here(begun.release, lambda _: ran.append("left"), NEVER)) for _ in range(4)
        ]
        await asyncio.sleep(0)  # they stand in the line, and the loop has had no turn for them yet
        for _ in left:
            assert begun.acquire(timeout=PATIENCE_S), "the thread that helps begins them all"
        for task in left:
            task.cancel()
        await asyncio.wait(left)

        assert await pool.run_here(lambda: 7, lambda seven: seven + 1, NEVER) == 8
        assert pool.waiting == 0
    assert ran == []


@pytest.mark.parametrize(("cores", "jobs"), [(2, 1), (1, 6)], ids=["nobody else waits", "one core"])
async def test_the_event_loop_decodes_alone(cores: int, jobs: int) -> None:
    async with CpuPool(threads=2, max_waiting=9, clock=ManualClock(0.0), cores=cores) as pool:
        places = await asyncio.gather(*(answer_of(pool, threading.get_ident, NEVER, here=True) for _ in range(jobs)))

    assert set(places) == {threading.get_ident()}


@pytest.mark.may_block
async def test_who_helps_leaves_for_those_who_need_a_thread() -> None:
    met = threading.Barrier(2, timeout=PATIENCE_S)
    async with CpuPool(threads=1, max_waiting=9, clock=ManualClock(0.0), cores=2) as pool:
        jobs: list[Callable[[], object]] = [met.wait, met.wait, lambda: None, lambda: None, lambda: None]
        here = [answer_of(pool, job, NEVER, here=True) for job in jobs]
        async with asyncio.timeout(PATIENCE_S):
            *_, thread = await asyncio.gather(*here, pool.run(threading.get_ident, NEVER))

    assert thread != threading.get_ident()
