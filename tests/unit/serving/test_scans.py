"""Scans and the decode threads: one is left for pictures, and nobody waits past his deadline."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from isocenter.core.clock import SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded, Overloaded
from isocenter.serving import scans
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.scans import _FewThreads
from patience import PATIENCE_S
from pool_jobs import Blocker, until_started

NEVER = Deadline.never()


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[CpuPool]:
    async with CpuPool(threads=2, max_waiting=8, clock=SystemClock()) as pool:
        yield pool


async def test_a_picture_does_not_wait_for_scans(pool: CpuPool) -> None:
    go_on = threading.Event()
    few = _FewThreads(pool, SystemClock())
    at_work = [asyncio.create_task(few.run(lambda: go_on.wait(PATIENCE_S), NEVER)) for _ in range(3)]
    await asyncio.sleep(0)

    picture = await pool.run(lambda: "decoded", NEVER)

    assert picture == "decoded"
    assert not any(task.done() for task in at_work)
    go_on.set()
    assert await asyncio.gather(*at_work) == [True] * 3


async def test_whoever_waits_for_a_thread_is_told_when_his_time_is_over(pool: CpuPool) -> None:
    go_on, clock = threading.Event(), SystemClock()
    few = _FewThreads(pool, clock)
    at_work = asyncio.create_task(few.run(lambda: go_on.wait(PATIENCE_S), NEVER))
    await asyncio.sleep(0)

    with pytest.raises(DeadlineExceeded):
        await few.run(lambda: None, Deadline.after(0.01, now_s=clock.now_s()))

    go_on.set()
    assert await at_work
    assert await few.run(lambda: 7, NEVER) == 7


async def test_one_who_leaves_while_he_waits_takes_nobodys_place(pool: CpuPool) -> None:
    go_on = threading.Event()
    few = _FewThreads(pool, SystemClock())
    at_work = asyncio.create_task(few.run(lambda: go_on.wait(PATIENCE_S), NEVER))
    leaver = asyncio.create_task(few.run(lambda: None, NEVER))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)

    go_on.set()
    assert await at_work
    assert await few.run(lambda: 7, NEVER) == 7


async def test_one_who_leaves_at_work_frees_his_thread_only_when_its_work_has_ended(pool: CpuPool) -> None:
    few, left, next_one = _FewThreads(pool, SystemClock()), Blocker(), Blocker()
    leaver = asyncio.create_task(few.run(left, NEVER))
    await until_started(left)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    after = asyncio.create_task(few.run(next_one, NEVER))
    await asyncio.sleep(0)

    assert pool.waiting == 1  # what the leaver left: the other thread is for pictures

    left.let_go()
    next_one.let_go()
    assert await after == "done"


async def test_more_scans_than_may_wait_are_shed(pool: CpuPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "_MOST_WAITING", 1)
    go_on = threading.Event()
    few = _FewThreads(pool, SystemClock())
    at_work = [asyncio.create_task(few.run(lambda: go_on.wait(PATIENCE_S), NEVER)) for _ in range(2)]
    await asyncio.sleep(0)

    with pytest.raises(Overloaded, match="1 scans wait"):
        await few.run(lambda: None, NEVER)

    go_on.set()
    await asyncio.gather(*at_work)
