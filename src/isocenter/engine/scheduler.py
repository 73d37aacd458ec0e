"""Queue in, instances out: lets go of what nobody waits for, runs what is due, hands answers back.

No threads, no locks, no event loop of its own: it is called when something happened (an arrival, an instance that came
back, its one alarm), looks once, and returns. `soon` is how it asks to be called, so that a simulator can run the very
same code.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain

from isocenter.core.clock import Clock, Timer
from isocenter.core.errors import IsocenterError, OutOfMemory, RunHung, RuntimeLost
from isocenter.core.events import (
    AbandonedInQueue,
    BatchFailed,
    BatchFinished,
    BatchStarted,
    Enqueued,
    Expired,
    Observer,
)
from isocenter.core.request import Request
from isocenter.core.tensor import TensorSpec
from isocenter.engine.admission import Admission, Busy
from isocenter.engine.batch_policy import BatchRules, Dispatch, Expected, WaitUntil, decide
from isocenter.engine.cost import CostModel
from isocenter.engine.doorkeeper import FRESH_S, View
from isocenter.engine.instance import Outcome, Ran, RunFailed
from isocenter.engine.lifecycle import State
from isocenter.engine.queue import Answerable, Entry, RequestQueue
from isocenter.engine.running import Runner, Running, answer, callers, give_up, note_times, pieces, too_late

# A run that takes so many times what is promised is suspected, at the earliest after so many seconds, and declared hung
# at the last of so many further looks. Looks are counted: where a machine stood still, each time costs one.
HUNG_TIMES, HUNG_LEAST_S, HUNG_LOOKS, HUNG_LOOK_EVERY_S = 10.0, 5.0, 4, 0.5
# An item with less than this share of a lone run left cannot be answered in time by anything we do.
HOPELESS_SHARE = 0.7
# Failed runs in a row after which an instance has to show that it still works.
SICK_AFTER = 3
# An item that was in so many lost runs, beside one an instance, may be what they were lost to.
LOSSES_MOST = 2
# How much of the gap between two arrivals is taken from the last one.
GAP_RATE = 0.1


class Scheduler:
    """Owns the wake-ups, the alarm and the batches on their way."""

    def __init__(
        self,
        model: str,
        version: int,
        *,
        queue: RequestQueue,
        instances: Sequence[Runner],
        inputs: Sequence[TensorSpec],
        rules: BatchRules,
        clock: Clock,
        observer: Observer,
        soon: Callable[[Callable[[], None]], object],
        on_sick: Callable[[Runner], None] = lambda _: None,
        on_hung: Callable[[Runner], None] = lambda _: None,
        on_lost: Callable[[Runner], None] = lambda _: None,
        on_short_of_memory: Callable[[int], None] = lambda _: None,
        on_empty: Callable[[], None] = lambda: None,
    ) -> None:
        self.rules = rules
        self.cost: CostModel | None = None
        self.admission: Admission | None = None
        """Told who was late; knows what callers give."""
        self.awaited_at_s: float | None = None
        """While no instance works: when one is expected to."""
        self._model = model
        self._version = version
        self._queue = queue
        self._idle: list[Runner] = list(instances)
        self._running: dict[Runner, Running] = {}
        self._left: list[Runner] = []
        self._failures: dict[Runner, int] = {}
        self._varying = tuple(spec for spec in inputs if -1 in spec.shape)
        self._clock = clock
        self._observe = observer.observe
        self._enqueued = Enqueued(model, version)
        self._soon = soon
        self._on_sick, self._on_hung, self._on_lost = on_sick, on_hung, on_lost
        self._losses_most = LOSSES_MOST + len(instances)
        self._on_short_of_memory, self._on_empty = on_short_of_memory, on_empty
        self._woken = False
        self._alarm: Timer | None = None
        self._alarm_at_s = math.inf
        self._rang_at_s = -math.inf
        self._last_arrival_s = -math.inf
        self._gap_s = math.inf
        self._ran_at_s = -math.inf
        self._note_running()

    # What others ask of it.

    @property
    def in_flight(self) -> int:
        """Items on the instances that are still owed an answer."""
        return sum(1 for running in self._running.values() for _ in running.entries())

    @property
    def empty(self) -> bool:
        """Whether nothing is queued or running."""
        return not self._queue and not self._running

    @property
    def working(self) -> int:
        """Instances that take batches, idle or busy."""
        return len(self._idle) + sum(not running.leaving for running in self._running.values())

    def busy(self, now_s: float) -> Busy:
        """What the instances are at; one that is awaited counts as busy until then."""
        if self.awaited_at_s is not None and not self.working:
            return Busy(1, max(0.0, self.awaited_at_s - now_s))
        instances, all_left_s = len(self._idle), 0.0
        for running in self._running.values():
            if running.leaving:
                continue
            instances += 1
            left_s = running.ends_at_s - now_s
            # Who is late already will take a while yet; how long is anybody's guess.
            least_s = 0.1 * (running.ends_at_s - running.started_at_s)
            all_left_s += left_s if left_s > least_s else least_s
        return Busy(instances, all_left_s)

    def _note_running(self) -> None:
        """See when the next of those that run is hung or not waited for any more; to be called when they change."""
        running = self._running.values()
        self._look_at_s = min([min(each.hung_at_s, each.earliest_deadline_s) for each in running], default=math.inf)

    def view(self, now_s: float, *, state: State, memory_is_short: bool = False) -> View:
        """What a doorkeeper sees of an engine in that state."""
        held, knows = self._queue.backlog.total, self.knows(now_s)
        return View(state, held, memory_is_short, self.busy(now_s), self.cost, knows, self.rules.sizes)

    def knows(self, now_s: float) -> bool:
        """Whether predictions can be held against anybody: there are some, and they are fresh or being renewed."""
        return self.cost is not None and (bool(self._running) or now_s - self._ran_at_s < FRESH_S)

    def submit(self, request: Request, reply: Answerable, *, cell: int | None = None) -> Entry:
        """Take one admitted item into the queue."""
        now_s = self._clock.now_s()
        entry = self._queue.put(request, reply, now_s=now_s, cell=cell)
        self._observe(self._enqueued)
        gap_s = now_s - self._last_arrival_s
        self._gap_s = gap_s if self._gap_s == math.inf else self._gap_s + GAP_RATE * (gap_s - self._gap_s)
        self._last_arrival_s = now_s
        # While every instance is busy, an arrival changes nothing unless it expires before the alarm rings.
        if self._idle or request.deadline.at_s < self._alarm_at_s:
            self.wake()
        return entry

    def leave(self, entry: Entry) -> None:
        """The caller of an entry has left."""
        if self._queue.discard(entry):
            self._observe(AbandonedInQueue(self._model, self._version))
            self.wake()

    def join(self, instance: Runner) -> None:
        """Take an instance in, or back."""
        self._failures.pop(instance, None)
        self._idle.append(instance)
        self.awaited_at_s = None
        self.wake()

    def dismiss(self, instance: Runner) -> bool:
        """Let an instance go; False if it is at something, which it finishes, and nothing after: ask again then.

        One that is examined is in nobody's hands until it has passed, or is given up.
        """
        running = self._running.get(instance)
        if running is not None:
            running.leaving = True
        for free in (self._idle, self._left):
            if instance in free:
                free.remove(instance)
                if self.cost is not None:
                    self.cost.forget(instance.name)
                return True
        return False

    def keep(self, instance: Runner) -> None:
        """One that was dismissed, and has not been let go yet, is needed after all."""
        running = self._running.get(instance)
        if running is not None:
            running.leaving = False
        elif instance in self._left:
            self._left.remove(instance)
            self.join(instance)

    def hung_after_s(self, items: int, instance: str = "") -> float:
        """After how many seconds a run of so many items is taken for one that does not come back."""
        if self.cost is None:
            return HUNG_LEAST_S
        return max(HUNG_LEAST_S, HUNG_TIMES * self.cost.promise_s(items) * self.cost.factor(instance))

    def wake(self) -> None:
        """Look again. Any number of calls before it looks are one."""
        if not self._woken:
            self._woken = True
            self._soon(self.step)

    def fail_all(self, error: Callable[[], IsocenterError]) -> None:
        """End everything that is queued or running with an error of its own. Runs go on, nobody waits for them."""
        for entry in chain(self._queue.clear(), *(running.entries() for running in self._running.values())):
            entry.reply.fail(error())

    def close(self) -> None:
        """Never ring again."""
        self._set_alarm(math.inf)

    # One step.

    def step(self) -> None:
        """Look once: expire, dispatch, set the alarm."""
        self._woken = False
        # Timers may ring a little early; then it is the instant they were set to.
        now_s = self._clock.now_s()
        if now_s < self._rang_at_s:
            now_s = self._rang_at_s
        hopeless_s = 0.0
        if self.cost is not None and self.knows(now_s):
            # The microsecond keeps an alarm at `deadline - hopeless_s` from ringing for ever beside its rounding.
            hopeless_s = HOPELESS_SHARE * self.cost.service_s(1) + 1e-6
        queue, running = self._queue, self._running
        if queue.earliest_deadline_s <= now_s + hopeless_s:
            self._drop_expired(now_s, hopeless_s)
        if self._look_at_s <= now_s:
            self._drop_late(now_s)
            self._drop_hung(now_s)
            self._note_running()
        alarm_s = self._dispatch_due(now_s) if queue else math.inf
        expires_s = queue.earliest_deadline_s - hopeless_s + (1e-6 if hopeless_s else 0.0)
        if expires_s < alarm_s:
            alarm_s = expires_s
        self._set_alarm(alarm_s if alarm_s < self._look_at_s else self._look_at_s)
        if not queue and not running:
            self._on_empty()

    def _drop_expired(self, now_s: float, hopeless_s: float) -> None:
        for entry in self._queue.expire(now_s + hopeless_s):
            if entry.reply.fail(too_late(entry, now_s, where="queue")):
                self._observe(Expired(self._model, self._version))
                if self.admission is not None:
                    self.admission.note_late(now_s)
            else:
                self._observe(AbandonedInQueue(self._model, self._version))

    def _drop_late(self, now_s: float) -> None:
        for running in self._running.values():
            if running.earliest_deadline_s <= now_s:
                for entry in running.entries():
                    if entry.request.deadline.expired(now_s):
                        entry.reply.fail(too_late(entry, now_s, where="model"))
                        if self.admission is not None:
                            self.admission.note_late(now_s)
                running.note_earliest()

    def _drop_hung(self, now_s: float) -> None:
        for instance, running in list(self._running.items()):
            if now_s < running.hung_at_s:
                continue
            if running.looks < HUNG_LOOKS:
                running.looks, running.hung_at_s = running.looks + 1, now_s + HUNG_LOOK_EVERY_S
                continue
            del self._running[instance]
            self._failures.pop(instance, None)
            self._observe(BatchFailed(self._model, self._version, len(running.piece), RunHung.__name__))
            self._put_back([*give_up(running.piece, now_s - running.started_at_s), *chain(*running.backlog)], now_s)
            self._on_hung(instance)

    def _dispatch_due(self, now_s: float) -> float:
        """Start every batch that is due; when to look again if nothing else happens."""
        while self._idle and self._queue:
            decision = decide(
                self._queue.waiting(),
                idle_instances=len(self._idle),
                now_s=now_s,
                rules=self.rules,
                expected=self._expected(),
            )
            if isinstance(decision, Dispatch):
                self._dispatch(decision.size, now_s)
            else:
                return decision.at_s if isinstance(decision, WaitUntil) else math.inf
        return math.inf

    def _expected(self) -> Expected | None:
        if self.cost is None:
            return None
        budget_s = self.admission.budget_s if self.admission is not None else math.inf
        return Expected(self.cost, budget_s, 1.0 / self._gap_s if 0 < self._gap_s < math.inf else None)

    def _dispatch(self, size: int, now_s: float) -> None:
        entries, abandoned = self._queue.take(size)
        for _ in abandoned:
            self._observe(AbandonedInQueue(self._model, self._version))
        if entries:
            instance = self._idle.pop()
            running = self._running[instance] = Running(deque(pieces(entries, self._varying, self.rules)))
            self._start_next(instance, running, now_s)
            running.note_earliest()
            self._note_running()

    def _start_next(self, instance: Runner, running: Running, now_s: float) -> bool:
        """Start the next piece that anybody waits for; False if there is none."""
        while running.backlog:
            piece = [entry for entry in running.backlog.popleft() if not entry.reply.settled]
            if piece and (size := self.rules.cut(len(piece))) < len(piece):
                running.backlog.appendleft(piece[size:])  # somebody left, and so many were not warmed
                piece = piece[:size]
            if piece:
                running.piece, running.started_at_s, running.looks = piece, now_s, 0
                if self.cost is not None:
                    running.ends_at_s = now_s + self.cost.service_s(len(piece)) * self.cost.factor(instance.name)
                    running.hung_at_s = now_s + self.hung_after_s(len(piece), instance.name)
                oldest_s = now_s - min([entry.enqueued_at_s for entry in piece])
                self._observe(BatchStarted(self._model, self._version, len(piece), oldest_s, callers(piece)))
                instance.submit([entry.request.item for entry in piece], self._came_back)
                return True
        return False

    # One batch back.

    def _came_back(self, instance: Runner, outcome: Outcome) -> None:
        running = self._running.get(instance)
        if running is None:
            return  # it was given up; whoever waited was told
        piece, started_at_s = running.piece, running.started_at_s
        running.piece = []
        self._ran_at_s = self._clock.now_s()
        if isinstance(outcome, RunFailed) and isinstance(outcome.error, RuntimeLost):
            self._take_back(instance, running, piece, outcome)
            return
        if isinstance(outcome, Ran):
            self._failures.pop(instance, None)
            if self.cost is not None:
                self.cost.observe(len(piece), outcome.service_s, instance=instance.name)
            self._observe(BatchFinished(self._model, self._version, len(piece), outcome.service_s))
        else:
            self._failures[instance] = self._failures.get(instance, 0) + 1
            self._retry_or_fail(piece, running, outcome)
        if not self._start_next(instance, running, self._clock.now_s()):
            del self._running[instance]
            if self._failures.get(instance, 0) >= SICK_AFTER:
                self._on_sick(instance)
            else:
                (self._left if running.leaving else self._idle).append(instance)
            self.wake()  # before the callers are: the instance shall not wait for what they do next
        self._note_running()
        if isinstance(outcome, Ran):
            if self.admission is not None:
                note_times(piece, self.admission, self._ran_at_s)
            answer(piece, started_at_s, outcome, instance.fallback)

    def _take_back(self, instance: Runner, running: Running, piece: list[Entry], failed: RunFailed) -> None:
        """Nothing runs there any more, and no item is at fault: who waits for it waits for another instance."""
        del self._running[instance]
        self._note_running()
        self._failures.pop(instance, None)
        self._observe(BatchFailed(self._model, self._version, len(piece), failed.kind))
        for entry in piece:
            entry.losses += 1
            if entry.losses > self._losses_most:
                entry.reply.fail(failed.error)
        self._put_back([*piece, *chain(*running.backlog)], self._ran_at_s)
        self._on_lost(instance)
        self.wake()

    def _put_back(self, entries: list[Entry], now_s: float) -> None:
        for entry in reversed(entries):  # each goes to the front of the line
            if not entry.reply.settled:
                self._queue.put_back(entry, now_s=now_s)

    def _retry_or_fail(self, piece: list[Entry], running: Running, failed: RunFailed) -> None:
        short = isinstance(failed.error, OutOfMemory)
        again = [entry for entry in piece if not (entry.retried if short else len(piece) == 1)]
        if short:
            self._on_short_of_memory(len(piece))
        for entry in piece:
            if entry not in again:
                entry.reply.fail(failed.error)
            entry.retried = entry.retried or short
        if short:  # once more, in halves
            half = self.rules.cut(max(1, len(again) // 2))
            pieces = [again[at : at + half] for at in range(0, len(again), half)]
        else:  # one item may be at fault: once more, each alone
            pieces = [[entry] for entry in again]
        running.backlog.extendleft(reversed(pieces))
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
