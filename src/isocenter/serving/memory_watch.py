"""Looks at what memory is left, once a second, and tells the engines what to give up."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from isocenter.core.clock import Clock
from isocenter.core.events import MemoryPressure, Observer
from isocenter.engine.memory import Level, PressureRules, decide_pressure
from isocenter.measure.memory import MemoryLeft, free_memory, memory_left


class Yielding(Protocol):
    """What an engine gives up."""

    def limit_batch(self, size: int | None) -> None:
        """Form no batch above a size; None takes the limit away."""
        ...

    def shed_for_memory(self, on: bool) -> None:
        """Refuse new work, or take it again."""
        ...


@dataclass(frozen=True, slots=True)
class Watched:
    """One engine, and the largest batch that its model allows."""

    engine: Yielding
    max_batch_size: int


class MemoryWatch:
    """One task on the event loop; `async with` starts and ends it. Reading and freeing happen on threads.

    On the way out the limits are lifted. Where the system does not say what is left, it does nothing.

    Args:
        engines: those that are served now; asked at every look, as versions come and go.
        clock: paces the looks.
        observer: hears of every change of level.
        read: every bound that holds; may block.
        free: gives back what is not needed; may block.
        rules: where the levels begin.
        every_s: seconds from look to look.
        free_every_s: while the last level lasts, it frees again after so many seconds.
    """

    def __init__(
        self,
        engines: Callable[[], Iterable[Watched]],
        *,
        clock: Clock,
        observer: Observer,
        read: Callable[[], Sequence[MemoryLeft]] = memory_left,
        free: Callable[[], None] = free_memory,
        rules: PressureRules | None = None,
        every_s: float = 1.0,
        free_every_s: float = 10.0,
    ) -> None:
        self.level = Level.NORMAL
        self.left: MemoryLeft | None = None
        """The bound that was closest at the last look; None before the first, or if the system does not say."""
        self._engines = engines
        self._clock = clock
        self._observer = observer
        self._read = read
        self._free = free
        self._rules = rules or PressureRules()
        self._every_s = every_s
        self._free_every_s = free_every_s
        self._since_s = clock.now_s()
        self._freed_at_s = -float("inf")
        self._told: dict[Yielding, Level] = {}
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="memory-watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        self._tell(Level.NORMAL)
        if watching is not None and not watching.cancelled():
            watching.result()  # it ends by itself only by a defect of ours

    async def look(self) -> None:
        """Read once, and act on it."""
        bounds = await asyncio.to_thread(self._read)
        if not bounds:
            return
        left = self.left = min(bounds, key=lambda b: self._rules.share_left(b.available_bytes, b.total_bytes))
        now_s = self._clock.now_s()
        level = decide_pressure(
            left.available_bytes, left.total_bytes, self.level, rules=self._rules, held_s=now_s - self._since_s
        )
        if level is not self.level:
            self.level, self._since_s = level, now_s
            self._observer.observe(MemoryPressure(level.word, left.available_bytes, left.total_bytes))
        self._tell(level)
        if level is Level.FREE and now_s - self._freed_at_s >= self._free_every_s:
            self._freed_at_s = now_s
            await asyncio.to_thread(self._free)

    async def _watch(self) -> None:
        while True:
            await self.look()
            await self._clock.sleep_until(self._clock.now_s() + self._every_s)

    def _tell(self, level: Level) -> None:
        """Tell every engine that has not heard of the level yet: one that came with a reload hears of it too."""
        told = self._told
        self._told = {}
        for watched in self._engines():
            if told.get(watched.engine, Level.NORMAL) is not level:
                watched.engine.limit_batch(level.batch_limit(watched.max_batch_size))
                watched.engine.shed_for_memory(level.sheds)
            self._told[watched.engine] = level
