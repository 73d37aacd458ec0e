"""The one loop: sleeps until something happened, lets go of what nobody waits for, runs what is due.

All of it lives on the event loop, so nothing is locked. It is woken by an arrival that can change its mind, by an
instance that comes back, and by one alarm; it never polls.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from isocenter.core.clock import Clock, Timer
from isocenter.core.errors import DeadlineExceeded, IsocenterError
from isocenter.core.events import (
    AbandonedInQueue,
    BatchFailed,
    BatchFinished,
    BatchStarted,
    Enqueued,
    Expired,
    Observer,
)
from isocenter.core.reply import Reply
from isocenter.core.request import EngineTimings, Request, Result
from isocenter.core.tensor import Tensors
from isocenter.engine.batch import shape_key
from isocenter.engine.batch_policy import BatchRules, Dispatch, WaitUntil, decide
from isocenter.engine.instance import Instance, Outcome, Ran, RunFailed
from isocenter.engine.queue import Entry, RequestQueue


@dataclass(slots=True)
class Running:
    """What one instance is busy with: the piece in the session, and the pieces that follow it."""

    backlog: deque[list[Entry]]
    piece: list[Entry] = field(default_factory=list)
    started_at_s: float = 0.0
    earliest_deadline_s: float = -math.inf

    def entries(self) -> Iterator[Entry]:
        """Everything that is still owed an answer here."""
        return (entry for entry in chain(self.piece, *self.backlog) if not entry.reply.settled)


class Scheduler:
    """Queue in, instances out. Owns the wake-ups, the alarm and the batches on their way."""

    def __init__(
        self,
        model: str,
        version: int,
        *,
        queue: RequestQueue,
        instances: Sequence[Instance],
        rules: BatchRules,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self.rules = rules
        self.service_s: float | None = None
        self.batching_pays = True
        self._model = model
        self._version = version
        self._queue = queue
        self._idle = list(instances)
        self._running: dict[Instance, Running] = {}
        specs = instances[0].inputs
        self._varying = tuple(spec for spec in specs if -1 in spec.shape)
        self._clock = clock
        self._observe = observer.observe
        self._woken = False
        self._sleeper: asyncio.Future[None] | None = None
        self._alarm: Timer | None = None
        self._alarm_at_s = math.inf
        self._rang_at_s = -math.inf
        self._waiting_for_empty: list[asyncio.Future[bool]] = []

    # What others ask of it.

    @property
    def in_flight(self) -> int:
        """Items on the instances that are still owed an answer."""
        return sum(1 for running in self._running.values() for _ in running.entries())

    def submit(self, request: Request, reply: Reply[Result]) -> Entry:
        """Take one admitted item into the queue."""
        entry = self._queue.put(request, reply, now_s=self._clock.now_s())
        self._observe(Enqueued(self._model, self._version))
        # While every instance is busy, an arrival changes nothing unless it expires before the alarm rings.
        if self._idle or request.deadline.at_s < self._alarm_at_s:
            self.wake()
        return entry

    def leave(self, entry: Entry) -> None:
        """The caller of an entry has left."""
        if self._queue.discard(entry):
            self._observe(AbandonedInQueue(self._model, self._version))
            self.wake()

    def wake(self) -> None:
        """Look again. Any number of calls before the loop runs are one."""
        self._woken = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def run(self) -> None:
        """Schedule until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._woken:
                    self._sleeper = loop.create_future()
                    await self._sleeper
                self._woken = False
                self._step()
        finally:
            self._set_alarm(math.inf)

    async def empty_until(self, instant_s: float) -> bool:
        """Wait until nothing is queued or running; False if the instant comes first."""
        self.wake()
        empty: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting_for_empty.append(empty)
        self._tell_if_empty()
        timer = self._clock.call_at(instant_s, lambda: _tell(empty, False))
        try:
            return await empty
        finally:
            timer.cancel()
            self._waiting_for_empty.remove(empty)

    def fail_all(self, error: Callable[[], IsocenterError]) -> None:
        """End everything that is queued or running with an error of its own. Runs go on, nobody waits for them."""
        for entry in chain(self._queue.clear(), *(running.entries() for running in self._running.values())):
            entry.reply.fail(error())

    # One step.

    def _step(self) -> None:
        # Timers may ring a little early; then it is the instant they were set to.
        now_s = max(self._clock.now_s(), self._rang_at_s)
        self._drop_expired(now_s)
        wait_until_s = self._dispatch_due(now_s)
        deadlines_s = (running.earliest_deadline_s for running in self._running.values())
        self._set_alarm(min(wait_until_s, self._queue.earliest_deadline_s, *deadlines_s))
        self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        if self._waiting_for_empty and not self._queue and not self._running:
            for empty in self._waiting_for_empty:
                _tell(empty, True)

    def _drop_expired(self, now_s: float) -> None:
        for entry in self._queue.expire(now_s):
            if entry.reply.fail(_too_late(entry, now_s, where="queue")):
                self._observe(Expired(self._model, self._version))
            else:
                self._observe(AbandonedInQueue(self._model, self._version))
        for running in self._running.values():
            if running.earliest_deadline_s <= now_s:
                for entry in running.entries():
                    if entry.request.deadline.expired(now_s):
                        entry.reply.fail(_too_late(entry, now_s, where="model"))
                running.earliest_deadline_s = _earliest_deadline_s(running)

    def _dispatch_due(self, now_s: float) -> float:
        """Start every batch that is due; when to look again if nothing else happens."""
        while True:
            decision = decide(
                self._queue.waiting(),
                idle_instances=len(self._idle),
                now_s=now_s,
                rules=self.rules,
                service_s=self.service_s,
                batching_pays=self.batching_pays,
            )
            if isinstance(decision, Dispatch):
                self._dispatch(decision.size, now_s)
            else:
                return decision.at_s if isinstance(decision, WaitUntil) else math.inf

    def _dispatch(self, size: int, now_s: float) -> None:
        entries, abandoned = self._queue.take(size)
        for _ in abandoned:
            self._observe(AbandonedInQueue(self._model, self._version))
        if entries:
            instance = self._idle.pop()
            running = self._running[instance] = Running(deque(self._pieces(entries)))
            self._start_next(instance, running, now_s)
            running.earliest_deadline_s = _earliest_deadline_s(running)

    def _pieces(self, entries: list[Entry]) -> Iterator[list[Entry]]:
        """Runs of equal shape and allowed size: one, unless shapes vary or somebody left at the last moment."""
        groups: dict[object, list[Entry]] = {}
        for entry in entries:
            groups.setdefault(shape_key(entry.request.item, self._varying), []).append(entry)
        for group in groups.values():
            while group:
                size = self.rules.cut(len(group))
                yield group[:size]
                group = group[size:]

    def _start_next(self, instance: Instance, running: Running, now_s: float) -> bool:
        """Start the next piece that anybody waits for; False if there is none."""
        while running.backlog:
            piece = [entry for entry in running.backlog.popleft() if not entry.reply.settled]
            if piece:
                running.piece, running.started_at_s = piece, now_s
                oldest_s = now_s - min(entry.enqueued_at_s for entry in piece)
                self._observe(BatchStarted(self._model, self._version, len(piece), oldest_s))
                items: list[Tensors] = [entry.request.item for entry in piece]
                instance.submit(items, self._came_back)
                return True
        return False

    # One batch back.

    def _came_back(self, instance: Instance, outcome: Outcome) -> None:
        running = self._running[instance]
        piece, started_at_s = running.piece, running.started_at_s
        running.piece = []
        if isinstance(outcome, Ran):
            self._observe(BatchFinished(self._model, self._version, len(piece), outcome.service_s))
        else:
            self._retry_or_fail(piece, running, outcome)
        if not self._start_next(instance, running, self._clock.now_s()):
            del self._running[instance]
            self._idle.append(instance)
            self.wake()  # before the callers are: the instance shall not wait for what they do next
        if isinstance(outcome, Ran):
            _answer(piece, started_at_s, outcome)

    def _retry_or_fail(self, piece: list[Entry], running: Running, failed: RunFailed) -> None:
        if len(piece) == 1:
            piece[0].reply.fail(failed.error)
        else:  # one item may be at fault: once more, each alone
            running.backlog.extendleft([entry] for entry in reversed(piece))
        self._observe(BatchFailed(self._model, self._version, len(piece), failed.kind))

    # The alarm.

    def _set_alarm(self, at_s: float) -> None:
        if at_s == self._alarm_at_s:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at_s = at_s
        self._alarm = self._clock.call_at(at_s, self._ring) if at_s < math.inf else None

    def _ring(self) -> None:
        self._rang_at_s, self._alarm_at_s, self._alarm = self._alarm_at_s, math.inf, None
        self.wake()


def _answer(piece: list[Entry], started_at_s: float, ran: Ran) -> None:
    for entry, answer in zip(piece, ran.answers, strict=True):
        if isinstance(answer, IsocenterError):
            entry.reply.fail(answer)
        else:
            timings = EngineTimings(started_at_s - entry.enqueued_at_s, ran.service_s, len(piece))
            entry.reply.settle(Result(answer, timings))


def _tell(future: asyncio.Future[bool], answer: bool) -> None:
    if not future.done():
        future.set_result(answer)


def _earliest_deadline_s(running: Running) -> float:
    return min((entry.request.deadline.at_s for entry in running.entries()), default=math.inf)


def _too_late(entry: Entry, now_s: float, *, where: str) -> DeadlineExceeded:
    waited_s = now_s - entry.enqueued_at_s
    return DeadlineExceeded(
        f"the deadline passed after {waited_s:.3f} s, in the {where}", details={"waited_s": waited_s, "where": where}
    )
