"""An engine whose clock is turned by hand and whose runs wait at a gate: nothing happens unasked."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from typing import Self

from isocenter.core.clock import ManualClock
from isocenter.core.deadline import Deadline
from isocenter.core.events import BatchFailed, BatchFinished, BatchStarted, Event, RecordingObserver
from isocenter.core.request import Request, Result
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.engine import InlineEngine
from isocenter.runtimes.synthetic import Faults, Gate, SyntheticSession, item

# Turns of the loop without any news after which none is to be expected: no chain of wake-ups has three silent links.
QUIET_TURNS = 5


class CountingObserver(RecordingObserver):
    """Keeps every event and counts its kind."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[type] = Counter()

    def observe(self, event: Event) -> None:
        super().observe(event)
        self.counts[type(event)] += 1


class Stage:
    """One engine, its gate, its clock, and who saw what."""

    def __init__(
        self,
        *,
        instances: int = 1,
        rules: BatchRules | None = None,
        max_queue_size: int = 64,
        faults: Faults | None = None,
        shape: tuple[int, ...] = (4,),
        clock: ManualClock | None = None,
    ) -> None:
        self.clock = clock or ManualClock(now_s=100.0)
        self.gate = Gate()
        self.observer = CountingObserver()
        self.sessions = [SyntheticSession(shape=shape, gate=self.gate, faults=faults) for _ in range(instances)]
        self.engine = InlineEngine(
            model="demo",
            version=1,
            sessions=self.sessions,
            rules=rules or BatchRules(max_batch_size=4, max_queue_delay_s=0.0),
            max_queue_size=max_queue_size,
            clock=self.clock,
            observer=self.observer,
        )

    async def __aenter__(self) -> Self:
        await self.engine.start()
        self.engine.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.gate.open()
        if kind is None:  # a failed test may have left an engine that never drains, and its clock stands still
            await self.engine.drain(10.0)
        await self.engine.stop()

    def ask(
        self,
        marker: float,
        *,
        timeout_s: float = math.inf,
        priority: int = 0,
        shape: tuple[int, ...] = (4,),
        group: str = "",
    ) -> asyncio.Task[Result]:
        """A caller of its own for one item, or one item of a group."""
        deadline = Deadline(self.clock.now_s() + timeout_s)
        request = Request(str(marker), item(marker, shape), deadline, priority, group)
        return asyncio.create_task(self.engine.infer(request))

    async def quiet(self) -> None:
        """Return when nothing more can happen by itself: every started run stands at the gate."""
        turns = 0
        seen = -1
        while turns < QUIET_TURNS:
            await asyncio.sleep(0)
            events = len(self.observer.events)
            at_gate = sum(len(session.runs) for session in self.sessions) == self.count(BatchStarted)
            turns = turns + 1 if at_gate and seen == events else 0
            seen = events

    async def until(self, fact: Callable[[], bool]) -> None:
        """Return when something is so that a thread is about to make so."""
        while not fact():  # noqa: ASYNC110 - the loop keeps turning, which is what the thread reports to
            await asyncio.sleep(0)

    async def let_through(self, runs: int = 1) -> None:
        """Let so many runs end, and return when what follows from it has happened."""
        ended = self.count(BatchFinished, BatchFailed) + runs
        self.gate.let_through(runs)
        await self.until(lambda: self.count(BatchFinished, BatchFailed) >= ended)
        await self.quiet()

    async def turn(self, seconds: float) -> None:
        """Let time pass, once everything asked so far has come as far as it can."""
        await self.quiet()
        self.clock.advance(seconds)
        await self.quiet()

    @property
    def runs(self) -> list[tuple[float, ...]]:
        """The markers of every batch that reached a session."""
        return [run for session in self.sessions for run in session.runs]

    def count(self, *kinds: type) -> int:
        """How many events of these kinds there were."""
        return sum(self.observer.counts[kind] for kind in kinds)
