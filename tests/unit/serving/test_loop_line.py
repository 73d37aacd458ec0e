"""The line of the event loop: one job a turn, with a thread that begins some while several wait."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest

from isocenter.core.clock import ManualClock, SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadImage, DeadlineExceeded, Overloaded
from isocenter.serving.cpu_pool import CpuPool
from patience import PATIENCE_S
from pool_jobs import NEVER, Blocker, answer_of, refuse, until_started


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(0.0)


@pytest.fixture
async def pool(clock: ManualClock) -> AsyncIterator[CpuPool]:
    """One that helps the event loop."""
    async with CpuPool(threads=2, max_waiting=99, clock=clock, cores=2) as pool:
        yield pool


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
        asked = [asyncio.create_task(answer_of(pool, partial(turns.append, n), NEVER, here=True)) for n in range(4)]
        at: list[int] = []
        for task in asked:
            await task
            at.append(turn)
        assert turns == [0, 1, 2, 3]
        assert len(set(at)) == 4, "between any two of them the loop has looked at its sockets"


async def test_a_job_here_runs_on_the_thread_of_the_loop_and_its_errors_are_its_own() -> None:
    async with CpuPool(threads=1, max_waiting=9, clock=SystemClock()) as pool:
        assert await answer_of(pool, threading.get_ident, NEVER, here=True) == threading.get_ident()
        with pytest.raises(BadImage):
            await answer_of(pool, refuse, NEVER, here=True)
        assert pool.waiting == 0


async def test_a_job_here_that_is_too_late_or_whose_caller_left_is_not_run() -> None:
    clock = ManualClock(10.0)
    ran: list[str] = []
    async with CpuPool(threads=1, max_waiting=9, clock=clock) as pool:
        late = asyncio.create_task(answer_of(pool, lambda: ran.append("late"), Deadline(11.0), here=True))
        left = asyncio.create_task(answer_of(pool, lambda: ran.append("left"), NEVER, here=True))
        clock.advance(1.0)
        left.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        await asyncio.wait([left])
        await asyncio.sleep(0)
        assert ran == []
        assert pool.waiting == 0


async def test_jobs_here_count_against_the_same_limit() -> None:
    async with CpuPool(threads=1, max_waiting=2, clock=SystemClock()) as pool:
        first = [asyncio.create_task(answer_of(pool, lambda: None, NEVER, here=True)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await answer_of(pool, lambda: None, NEVER, here=True)
        await asyncio.gather(*first)


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


@pytest.mark.parametrize(("cores", "jobs"), [(2, 1), (1, 6)], ids=["nobody else waits", "one core"])
async def test_the_event_loop_decodes_alone(cores: int, jobs: int) -> None:
    async with CpuPool(threads=2, max_waiting=9, clock=ManualClock(0.0), cores=cores) as pool:
        places = await asyncio.gather(*(answer_of(pool, threading.get_ident, NEVER, here=True) for _ in range(jobs)))

    assert set(places) == {threading.get_ident()}


@pytest.mark.may_block
async def test_a_thread_helps_the_event_loop_whenever_two_wait_for_it(pool: CpuPool) -> None:
    met = threading.Barrier(2, timeout=PATIENCE_S)
    for _ in range(3):
        await asyncio.gather(*(answer_of(pool, met.wait, NEVER, here=True) for _ in range(2)))

    assert pool.waiting == 0


class Begun:
    """Jobs of which a thread has done the first part, and the event loop has not had a turn since."""

    def __init__(self) -> None:
        self._count = threading.Semaphore(0)
        self.ended: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self, pool: CpuPool, count: int, deadline: Deadline = NEVER) -> None:
        """Hand them in; the event loop stands still until they are begun."""
        for number in range(count):
            job = pool.run_here(self._count.release, partial(self._end, number), deadline)
            self.tasks.append(asyncio.create_task(job))
        await asyncio.sleep(0)  # they stand in the line, and the loop has had no turn for them yet
        for _ in range(count):
            assert self._count.acquire(timeout=PATIENCE_S), "the thread that helps begins them all"

    def _end(self, number: int, _: object) -> None:
        self.ended.append(number)


@pytest.mark.may_block
async def test_what_was_begun_is_ended_in_its_order_one_a_turn_of_the_loop(pool: CpuPool) -> None:
    begun, turns = Begun(), list[int]()
    await begun.begin(pool, 6)
    while not all(task.done() for task in begun.tasks):
        turns.append(len(begun.ended))
        await asyncio.sleep(0)

    assert begun.ended == [*range(6)]
    assert {*range(6)} <= {*turns}, "between any two of them the loop has looked at its sockets"


@pytest.mark.may_block
async def test_what_was_begun_for_a_caller_who_left_is_not_ended_and_says_nothing_of_those_to_come(
    pool: CpuPool, clock: ManualClock
) -> None:
    await answer_of(pool, lambda: clock.advance(2.0), NEVER, here=True)
    begun = Begun()
    await begun.begin(pool, 6)
    for task in begun.tasks:
        task.cancel()
    await asyncio.wait(begun.tasks)

    await answer_of(pool, lambda: clock.advance(2.0), NEVER, here=True)
    assert begun.ended == []
    assert pool.waiting == 0
    assert pool.ready_in_s(here=True) == pytest.approx(2.0)


@pytest.mark.may_block
async def test_what_was_begun_and_is_too_late_by_its_turn_is_not_ended(pool: CpuPool, clock: ManualClock) -> None:
    begun = Begun()
    await begun.begin(pool, 6, Deadline(1.0))
    clock.advance(1.0)
    outcomes = await asyncio.gather(*begun.tasks, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * 6
    assert begun.ended == []
    assert pool.waiting == 0


@pytest.mark.may_block
async def test_no_more_than_a_few_are_begun_while_the_event_loop_has_no_turn_for_them() -> None:
    begun, ran = threading.Semaphore(0), threading.Event()
    async with CpuPool(threads=1, max_waiting=99, clock=ManualClock(0.0), cores=2) as pool:
        asked = [asyncio.create_task(pool.run_here(begun.release, lambda _: 7, NEVER)) for _ in range(40)]
        await asyncio.sleep(0)
        for _ in range(8):
            assert begun.acquire(timeout=PATIENCE_S)
        elsewhere = pool.run(ran.set, NEVER)
        elsewhere.send(None)  # handed in without a turn of the event loop; the thread runs it once it has left
        assert ran.wait(PATIENCE_S)
        assert not begun.acquire(blocking=False)

        assert await asyncio.gather(*asked) == [7] * 40
        elsewhere.close()


@pytest.mark.may_block
async def test_a_second_part_that_fails_troubles_nobody_else(pool: CpuPool) -> None:
    met = threading.Barrier(2, timeout=PATIENCE_S)
    refused = [asyncio.create_task(pool.run_here(met.wait, refuse, NEVER)) for _ in range(4)]
    outcomes = await asyncio.gather(*refused, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [BadImage] * 4
    assert await pool.run_here(lambda: 7, lambda seven: seven + 1, NEVER) == 8
    assert pool.waiting == 0


@pytest.mark.may_block
async def test_who_helps_leaves_for_those_who_need_a_thread() -> None:
    may_go_on, helped, ran = threading.Event(), list[int](), threading.Event()

    def first() -> None:
        helped.append(threading.get_ident())
        assert may_go_on.wait(PATIENCE_S)

    async with CpuPool(threads=1, max_waiting=9, clock=ManualClock(0.0), cores=2) as pool:
        here = [asyncio.create_task(answer_of(pool, first, NEVER, here=True)) for _ in range(4)]
        elsewhere = asyncio.create_task(pool.run(ran.set, NEVER))
        await asyncio.sleep(0)  # all five have been handed in, and the event loop has had no turn for them yet
        may_go_on.set()
        assert ran.wait(PATIENCE_S)

        assert len(helped) <= 1
        await asyncio.gather(*here, elsewhere)
        assert pool.waiting == 0


def test_a_signal_while_the_event_loop_decodes_is_for_who_runs_it_and_leaves_the_line_as_it_was() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    async def opened() -> CpuPool:
        return await CpuPool(threads=1, max_waiting=9, clock=ManualClock(0.0)).__aenter__()

    async def asked(pool: CpuPool, job: Callable[[], object]) -> object:
        return await answer_of(pool, job, NEVER, here=True)

    with asyncio.Runner() as runner:
        loop, pool = runner.get_loop(), runner.run(opened())
        first, second = loop.create_task(asked(pool, interrupt)), loop.create_task(asked(pool, lambda: 7))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(second)

        assert loop.run_until_complete(second) == 7
        assert isinstance(first.exception(), RuntimeError)
        assert pool.waiting == 0
        loop.run_until_complete(pool.__aexit__(None, None, None))
