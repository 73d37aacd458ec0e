"""A few threads for decoding and preprocessing, with a bound on what may wait for them.

Small pictures may be decoded on the event loop instead, in a line of their own (`isocenter.serving.loop_line`).

Quick jobs never take all threads, where there are several: they hold the interpreter's lock for so much of their time
that the event loop and one thread less get as many of them done, at less cost, and refusals are told in half the time
(measured on two cores: `docs/decisions/0004-frontends.md`).
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import Overloaded
from isocenter.core.reply import Reply
from isocenter.serving.loop_line import LoopLine
from isocenter.serving.pool_job import Job, Outcome, Pace, outcome_of, tell, too_late

T = TypeVar("T")
Half = TypeVar("Half")


class _Help:
    """What a thread takes from the others' queue, to take from the event loop's line from then on."""


class CpuPool:
    """Runs functions that release the GIL. A job whose caller left or whose deadline passed is never started."""

    def __init__(self, *, threads: int, max_waiting: int, clock: Clock, cores: int = 1) -> None:
        """`cores` are those of this process; with more than one, a thread helps the event loop."""
        self._clock = clock
        self._max_waiting = max_waiting
        self._jobs: SimpleQueue[Job | _Help | None] = SimpleQueue()
        self._quick = _QuickJobs(self._jobs, at_once=max(1, threads - 1))
        self._line = LoopLine(
            clock=clock,
            cores=cores,
            ask_for_help=lambda: self._jobs.put(_Help()),
            needed_elsewhere=lambda: not self._jobs.empty(),
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0
        self._busy, self._gap = Pace(), Pace()
        self._ended_s = -math.inf
        self._count = threads
        self._threads: list[threading.Thread] = []

    @property
    def threads(self) -> int:
        """How many jobs run at a time."""
        return self._count

    @property
    def waiting(self) -> int:
        """Jobs handed in and not answered yet, the running ones included."""
        return self._waiting + self._line.open

    @property
    def refusing(self) -> bool:
        """Whether many callers are refused now: the event loop has enough to do with them while a thread helps."""
        return self._line.refusing

    @refusing.setter
    def refusing(self, many: bool) -> None:
        self._line.refusing = many

    def ready_in_s(self, *, here: bool = False, coming: int = 0) -> float:
        """Predicted seconds until a job that is handed in after `coming` others is done, going by the last ones."""
        if here:
            return self._line.ready_in_s(coming)
        ahead, at_once = self._waiting + coming, self._at_once()
        busy_s = self._busy.mean_s
        if ahead < at_once:
            return busy_s
        # Not what jobs take but how fast the line moves: threads share cores, a lock, and the loop that they report to.
        return ahead * max(self._gap.mean_s, busy_s / at_once) + busy_s

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Until its end the quickest job counts and not the last ones: the first load libraries, on a busy machine."""
        paces = self._busy, self._gap, self._line.pace
        for pace in paces:
            pace.warming_up = True
        try:
            yield
        finally:
            for pace in paces:
                pace.warming_up = False

    def _at_once(self) -> int:
        """Jobs that run at a time, as those that are there are."""
        return self._quick.at_once if self._quick.out else self._count

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._line.start(self._loop)
        self._threads = [
            threading.Thread(target=self._work, name=f"isocenter-decode-{number}", daemon=True)
            for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quick.let_all_go()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 5.0)

    async def run(
        self,
        function: Callable[[], T],
        deadline: Deadline,
        *,
        quick: bool = False,
        admitted: bool = False,
    ) -> T:
        """Run a function on a thread; give its answer or its exception.

        `quick` is one that takes no longer than the event loop takes for its request; others may take all threads.
        `admitted` is a job of a request that has passed the door and used model time: it waits, however many do.

        Raises:
            Overloaded: too many jobs wait already; `retry_after_s` is what they will take.
            DeadlineExceeded: the deadline passed before it was its turn.
        """
        reply: Reply[T] = self._reply(admitted=admitted)
        since_s = self._clock.now_s()
        job = Job(function, deadline, reply, since_s, quick)
        self._waiting += 1
        if quick:
            self._quick.put(job)
        else:
            self._jobs.put(job)
        if math.isinf(deadline.at_s):
            return await reply.wait()
        alarm = self._clock.call_at(deadline.at_s, lambda: reply.fail(too_late(deadline.at_s - since_s)))
        try:
            return await reply.wait()
        finally:
            alarm.cancel()

    async def run_here(self, first: Callable[[], Half], rest: Callable[[Half], T], deadline: Deadline) -> T:
        """Run both parts of a job on the event loop, in its turn; give the answer of `rest`, or an exception.

        Where a thread helps, it runs `first`: what needs the interpreter's lock often belongs into `rest`.

        Raises:
            Overloaded, DeadlineExceeded: as `run`.
        """
        reply: Reply[T] = self._reply(here=True)
        self._line.add(Job(first, deadline, reply, self._clock.now_s(), rest=rest))
        # None is begun or ended that is too late, one a turn: no alarm is needed to notice a deadline.
        return await reply.wait()

    def _reply(self, *, here: bool = False, admitted: bool = False) -> Reply[Any]:
        if self._loop is None:
            raise RuntimeError("the pool is not started")
        if self.waiting >= self._max_waiting and not admitted:
            raise Overloaded(
                f"{self.waiting} images wait to be decoded, the limit is {self._max_waiting}",
                details={"where": "decode", "waiting": self.waiting, "limit": self._max_waiting},
                retry_after_s=max(0.1, self.ready_in_s(here=here)),
            )
        return Reply(self._loop)

    def _work(self) -> None:
        # A function of its own for one job, so that an idle thread holds nobody's image in its locals.
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        job = self._jobs.get()
        if job is None:
            return False
        if isinstance(job, _Help):
            return self._line.help()
        # As soon as the caller is told, what the job took and gave is his alone: he counts on its memory being free
        # again, and this thread may have to wait for its turn until it forgets a name.
        quick, told = job.quick, [self._run_one(job)]
        del job
        if quick:
            self._quick.done()
        return self._hand_over(told)

    def _run_one(self, job: Job) -> Outcome:
        started_s = self._clock.now_s()
        outcome = outcome_of(job, started_s)
        if outcome.ran:
            # For estimates only: a lost update between threads does no harm.
            self._busy.follow(self._clock.now_s() - started_s)
        return outcome

    def _hand_over(self, told: list[Outcome]) -> bool:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._finish, told)
        except RuntimeError:  # the loop is closed: the server is gone and nobody waits
            return False
        return True

    def _finish(self, told: list[Outcome]) -> None:
        outcome, ended_s = told.pop(), self._clock.now_s()
        if outcome.ran:  # those who left or are too late take nothing, and say nothing of those to come
            in_line = self._waiting > self._at_once()
            if in_line and self._ended_s > -math.inf:
                self._gap.follow(ended_s - self._ended_s)
            self._ended_s = ended_s if in_line else -math.inf
        self._waiting -= 1
        tell(outcome)


class _QuickJobs:
    """Quick jobs on their way to the threads: no more of them at a time than `at_once`."""

    def __init__(self, jobs: SimpleQueue[Job | _Help | None], *, at_once: int) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self.at_once = at_once
        self.out = 0
        """So many are with the threads."""

    def put(self, job: Job) -> None:
        """Hand one on, or let it wait for one that is done."""
        with self._lock:
            if self.out >= self.at_once:
                self._waiting.append(job)
                return
            self.out += 1
        self._jobs.put(job)

    def done(self) -> None:
        """One is done; to be called by its thread, so that the next one need not wait for the event loop."""
        with self._lock:
            if self._waiting:
                self._jobs.put(self._waiting.popleft())
            else:
                self.out -= 1

    def let_all_go(self) -> None:
        """Hand everything on: the threads are about to end."""
        with self._lock:
            self.at_once += len(self._waiting)
            self.out += len(self._waiting)
            while self._waiting:
                self._jobs.put(self._waiting.popleft())
