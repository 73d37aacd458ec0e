"""When memory gets short, batches shrink first, then work is shed, then memory is freed; and back again."""

import asyncio
from collections.abc import Callable

import pytest

from isocenter.core.clock import ManualClock
from isocenter.core.events import PRESSURE_LEVELS, MemoryPressure, RecordingObserver
from isocenter.engine.engine import InlineEngine
from isocenter.engine.memory import Level
from isocenter.measure.memory import MemoryLeft
from isocenter.serving.memory_watch import MemoryWatch, Watched, Yielding

TOTAL = 1000


class Engine:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[int | bool | None] = []

    def limit_batch(self, size: int | None) -> None:
        self.told.append(size)

    def shed_for_memory(self, on: bool) -> None:
        self.told.append(on)

    def heard(self) -> list[int | bool | None]:
        """What it was told since the last question."""
        told, self.told = self.told, []
        return told


class Clock(ManualClock):
    """Counts how often somebody has gone to sleep."""

    sleeps = 0

    async def sleep_until(self, instant_s: float) -> None:
        self.sleeps += 1
        await super().sleep_until(instant_s)


class Watch:
    """A watch over one engine of batches up to 16, its clock, and what is left."""

    def __init__(self, available: int | None = TOTAL) -> None:
        self.clock = Clock(now_s=50.0)
        self.observer = RecordingObserver()
        self.engines = [Engine()]
        self.bounds = [] if available is None else [MemoryLeft(available, TOTAL)]
        self.looks = 0
        self.freed = 0
        self.fails = False
        self.watch = MemoryWatch(
            lambda: [Watched(engine, 16) for engine in self.engines],
            clock=self.clock,
            observer=self.observer,
            read=self._read,
            free=self._free,
        )

    def _read(self) -> list[MemoryLeft]:
        self.looks += 1
        if self.fails:
            raise ZeroDivisionError("a defect")
        return self.bounds

    def _free(self) -> None:
        self.freed += 1

    async def look(self, available: int, *, after_s: float = 1.0) -> list[int | bool | None]:
        """What the engine is told after a look that finds so much of a thousand."""
        self.bounds = [MemoryLeft(available, TOTAL)]
        self.clock.advance(after_s)
        await self.watch.look()
        return self.engines[0].heard()

    @property
    def levels(self) -> list[str]:
        """The levels that observers have heard of."""
        return [event.level for event in self.observer.events if isinstance(event, MemoryPressure)]


async def until(fact: Callable[[], bool]) -> None:
    while not fact():  # noqa: ASYNC110 - a thread is about to make it so, and reports to this loop
        await asyncio.sleep(0)


async def test_nothing_is_said_while_there_is_enough() -> None:
    stage = Watch()
    assert await stage.look(500) == []
    assert stage.observer.events == []


async def test_batches_shrink_then_work_is_shed_then_memory_is_freed() -> None:
    stage = Watch()
    told = [await stage.look(available) for available in (90, 70, 50, 30, 20)]
    assert told == [[8, False], [4, False], [1, False], [1, True], [1, True]]
    assert stage.levels == ["half", "quarter", "one", "shed", "free"]
    assert stage.freed == 1
    assert stage.observer.events[-1] == MemoryPressure("free", 20, TOTAL)


async def test_with_room_again_everything_is_taken_back_step_by_step() -> None:
    stage = Watch()
    await stage.look(20)
    told = [await stage.look(900) for _ in range(5)]
    assert told == [[1, False], [4, False], [8, False], [None, False], []]
    assert stage.watch.level is Level.NORMAL


async def test_what_is_told_once_is_not_told_again() -> None:
    stage = Watch()
    assert await stage.look(90) == [8, False]
    assert await stage.look(91) == []
    assert stage.levels == ["half"]


async def test_freeing_is_repeated_only_after_a_while() -> None:
    stage = Watch()
    freed = []
    for after_s in (0.0, 1.0, 8.0, 1.0, 1.0):
        await stage.look(10, after_s=after_s)
        freed.append(stage.freed)
    assert freed == [1, 1, 1, 2, 2]


async def test_shedding_that_does_not_help_is_followed_by_freeing() -> None:
    stage = Watch()
    await stage.look(35)
    await stage.look(35, after_s=4.0)
    assert (stage.levels, stage.freed) == (["shed"], 0)
    await stage.look(35, after_s=1.0)
    assert (stage.levels, stage.freed) == (["shed", "free"], 1)


async def test_an_engine_that_comes_later_hears_of_it_too() -> None:
    stage = Watch()
    await stage.look(30)
    stage.engines.append(Engine())
    assert await stage.look(30) == []
    assert stage.engines[1].heard() == [1, True]


async def test_the_closest_bound_decides() -> None:
    stage = Watch()
    stage.bounds = [MemoryLeft(5_000, 10_000), MemoryLeft(70, 1_000), MemoryLeft(60, 100)]
    await stage.watch.look()
    assert stage.watch.level is Level.QUARTER
    assert stage.watch.left == MemoryLeft(70, 1_000)


async def test_a_system_that_says_nothing_changes_nothing() -> None:
    stage = Watch(available=None)
    await stage.watch.look()
    assert (stage.watch.level, stage.watch.left, stage.engines[0].heard()) == (Level.NORMAL, None, [])


async def test_it_looks_once_a_second_and_lifts_its_limits_when_it_ends() -> None:
    stage = Watch(available=30)
    async with stage.watch:
        await until(lambda: stage.clock.sleeps == 1)
        stage.clock.advance(0.9)
        await asyncio.sleep(0)
        assert (stage.looks, stage.levels) == (1, ["shed"])
        stage.clock.advance(0.1)
        await until(lambda: stage.clock.sleeps == 2)
        assert stage.looks == 2
    assert stage.engines[0].heard() == [1, True, None, False]


async def test_a_defect_is_heard_of_and_the_limits_are_lifted_all_the_same() -> None:
    stage = Watch(available=30)
    await stage.watch.__aenter__()
    await until(lambda: stage.clock.sleeps == 1)
    assert stage.engines[0].heard() == [1, True]
    stage.fails = True
    stage.clock.advance(1.0)
    await until(lambda: stage.looks == 2)
    await until(lambda: "memory-watch" not in {task.get_name() for task in asyncio.all_tasks()})
    with pytest.raises(ZeroDivisionError):
        await stage.watch.__aexit__(None, None, None)
    assert stage.engines[0].heard() == [None, False]


def test_levels_are_named_alike_everywhere() -> None:
    assert tuple(level.word for level in Level) == PRESSURE_LEVELS


def test_an_engine_of_this_process_yields() -> None:
    yielding: type[Yielding] = InlineEngine
    assert yielding is InlineEngine
