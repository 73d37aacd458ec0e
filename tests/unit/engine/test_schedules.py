"""Two thousand random days of an engine, against a model of what it must do.

The clock is turned by hand and runs wait at a gate, so a schedule has one course only: its seed tells all.
"""

import asyncio
import math
import random
from dataclasses import dataclass

import pytest

from isocenter.core.errors import DeadlineExceeded, NumericFailure, Overloaded, RuntimeFault
from isocenter.core.events import AbandonedInQueue, BatchFailed, BatchFinished, BatchStarted, Enqueued, Expired, Shed
from isocenter.core.request import Result
from isocenter.engine.batch_policy import BatchRules
from isocenter.runtimes.synthetic import OUTPUT, Faults, checksum, item
from unit.engine.stage import Stage

DAYS_PER_RULES = 250
STEPS = 15
QUEUE_SIZE = 9
# Powers of two, so that sums of times are exact.
DELAY_S = 0.25
RULES = {
    "at once": BatchRules(max_batch_size=4, max_queue_delay_s=0.0),
    "one by one": BatchRules(max_batch_size=1, max_queue_delay_s=DELAY_S),
    "with company": BatchRules(max_batch_size=4, max_queue_delay_s=DELAY_S, deadline_margin_s=0.0),
    "preferred": BatchRules(
        max_batch_size=6, preferred_batch_sizes=(2, 4), max_queue_delay_s=DELAY_S, deadline_margin_s=0.125
    ),
}


@dataclass(slots=True)
class Caller:
    """What the model knows of one item."""

    marker: float
    key: tuple[int, float, int]
    enqueued_at_s: float
    task: asyncio.Task[Result]

    @property
    def deadline_s(self) -> float:
        return self.key[1]


class Day:
    """An engine and the model beside it. The model holds who waits, in what order; the engine must agree."""

    def __init__(self, seed: int, rules: BatchRules, *, instances: int) -> None:
        self.chance = random.Random(seed)
        self.rules = rules
        self.instances = instances
        self.bad: set[float] = set()
        self.nan: set[float] = set()
        faults = Faults(raise_markers=self.bad, nan_markers=self.nan)
        self.stage = Stage(instances=instances, rules=rules, max_queue_size=QUEUE_SIZE, faults=faults)
        self.callers: dict[float, Caller] = {}
        self.waiting: dict[float, Caller] = {}
        self.run_once: set[float] = set()
        self.cancelled: set[float] = set()
        self.refused = self.expired_in_queue = self.left_the_queue = 0
        self.looked_at = [0] * instances

    async def live(self) -> None:
        async with self.stage:
            for _ in range(STEPS):
                await self.step()
            self.stage.gate.open()
            assert await self.stage.engine.drain(1.0)
            await self.stage.quiet()
            self.note_runs(gated=False)
            for caller in self.callers.values():
                self.check_outcome(caller)
            self.check_balance()

    async def step(self) -> None:
        match self.chance.choices(["ask", "leave", "time", "run"], [8, 2, 3, 4])[0]:
            case "ask":
                for _ in range(self.chance.randrange(1, 4)):
                    await self.ask()
            case "leave":
                await self.leave()
            case "time":
                await self.pass_time()
            case "run" if self.running:
                await self.stage.let_through()
        self.note_runs()
        self.check_nobody_waits_without_reason()

    async def ask(self) -> None:
        marker = float(len(self.callers) + self.refused + 1)
        if self.chance.random() < 0.2:
            self.chance.choice([self.bad, self.nan]).add(marker)
        timeout_s = self.chance.choice([math.inf, DELAY_S / 2, DELAY_S, 1.0, 4.0])
        priority = self.chance.choice([0, 0, 0, -1, 1])
        full = len(self.waiting) >= QUEUE_SIZE
        task = self.stage.ask(marker, timeout_s=timeout_s, priority=priority)
        await self.stage.quiet()
        if full:
            assert isinstance(task.exception(), Overloaded)
            self.refused += 1
        else:
            now_s = self.stage.clock.now_s()
            caller = Caller(marker, (priority, now_s + timeout_s, int(marker)), now_s, task)
            self.callers[marker] = self.waiting[marker] = caller
        self.note_runs()

    async def leave(self) -> None:
        still_here = [caller for caller in self.callers.values() if not caller.task.done()]
        if still_here:
            caller = self.chance.choice(still_here)
            caller.task.cancel()
            self.cancelled.add(caller.marker)
            self.left_the_queue += self.waiting.pop(caller.marker, None) is not None
            await self.stage.quiet()

    async def pass_time(self) -> None:
        await self.stage.turn(self.chance.choice([DELAY_S / 2, DELAY_S, 1.0]))
        for caller in list(self.waiting.values()):
            if caller.deadline_s <= self.stage.clock.now_s():
                assert caller.task.done(), "the expired are told at once"
                del self.waiting[caller.marker]
                self.expired_in_queue += 1

    @property
    def running(self) -> int:
        return self.stage.count(BatchStarted) - self.stage.count(BatchFinished, BatchFailed)

    def note_runs(self, *, gated: bool = True) -> None:
        """What reached a session since the last look is the front of the line, or one item of a failed batch again."""
        front: list[float] = []
        for n, session in enumerate(self.stage.sessions):
            batches = session.runs[self.looked_at[n] :]
            self.looked_at[n] += len(batches)
            for batch in batches:
                assert not (gated and any(self.callers[marker].task.done() for marker in batch)), "nobody waits for it"
                if self.run_once.issuperset(batch):
                    assert len(batch) == 1, "a retry is alone"
                    continue
                assert len(batch) in {self.rules.cut(items) for items in range(1, QUEUE_SIZE + 1)}
                assert [*batch] == sorted(batch, key=lambda marker: self.callers[marker].key), "in order"
                front += batch
                self.run_once.update(batch)
        expected = sorted(self.waiting.values(), key=lambda caller: caller.key)[: len(front)]
        assert sorted(front) == sorted(caller.marker for caller in expected), "the first of the line, each once"
        for marker in front:
            del self.waiting[marker]

    def check_nobody_waits_without_reason(self) -> None:
        assert self.stage.engine.queued == len(self.waiting)
        assert self.running <= self.instances
        if self.running < self.instances:
            now_s = self.stage.clock.now_s()
            assert len(self.waiting) < self.rules.largest
            for caller in self.waiting.values():
                assert now_s < caller.enqueued_at_s + self.rules.max_queue_delay_s
                assert now_s < caller.deadline_s - self.rules.deadline_margin_s

    def check_outcome(self, caller: Caller) -> None:
        assert caller.task.done()
        if caller.marker in self.cancelled:
            assert caller.task.cancelled()
            return
        match caller.task.exception():
            case None:
                assert caller.task.result().outputs[OUTPUT] == checksum(item(caller.marker)["x"])
                assert caller.marker not in self.bad | self.nan
            case DeadlineExceeded():
                assert caller.deadline_s <= self.stage.clock.now_s()
            case RuntimeFault():
                assert caller.marker in self.bad
            case NumericFailure():
                assert caller.marker in self.nan
            case unexpected:
                raise AssertionError(unexpected)

    def check_balance(self) -> None:
        count = self.stage.count
        assert count(Enqueued) == len(self.callers)
        assert count(Shed) == self.refused
        assert count(Expired) == self.expired_in_queue
        assert count(AbandonedInQueue) == self.left_the_queue
        assert len(self.callers) == len(self.run_once) + self.expired_in_queue + self.left_the_queue
        assert not self.waiting


@pytest.mark.parametrize("instances", [1, 2])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_every_request_ends_once_and_as_promised(rules: BatchRules, instances: int) -> None:
    async def days() -> None:
        for seed in range(DAYS_PER_RULES):
            try:
                await Day(seed, rules, instances=instances).live()
            except AssertionError as broken:
                broken.add_note(f"seed {seed}")
                raise

    asyncio.run(days())
