"""A few threads for decoding and preprocessing, with a bound on what may wait for them.

Small pictures may be decoded on the event loop instead: handing one to a thread and back costs a good part of its
decoding. They wait in a line of their own, of which the loop runs one a turn: between any two of them it looks at its
sockets, refuses what has to be refused, and reads what has come. While several wait, a thread may take from that line
too: it keeps a core busy that would stand idle. Where many callers are refused and no core is idle, it costs more than
it brings, since both need the interpreter's lock (`docs/decisions/0004-frontends.md`).

Quick jobs never take all threads, where there are several: they hold the interpreter's lock for so much of their time
that the event loop and one thread less get as many of them done, at less cost, and refusals are told in half the time
(measured on two cores: `docs/decisions/0004-frontends.md`).
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded, IsocenterError, Overloaded, without_frames
from isocenter.core.reply import Reply

T = TypeVar("T")

# From so many on that wait for the event loop, a thread helps it.
_HELPED_FROM = 3
# Where many callers are refused, only while this share of the cores was idle when it was last looked at.
_IDLE, _LOOKED_EVERY_S = 0.25, 0.25


class _Job(NamedTuple):
    run: Callable[[], Any]
    deadline: Deadline
    reply: Reply[Any]
    quick: bool = False


class _Help:
    """What a thread takes from the others' queue, to take from the event loop's line from then on."""


class CpuPool:
    """Runs functions that release the GIL. A job whose caller left or whose deadline passed is never started."""

    def __init__(
        self,
        *,
        threads: int,
        max_waiting: int,
        clock: Clock,
        cores: int = 1,
        cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        """`cores` are those of this process; with more than one, a thread helps the event loop. `cpu_s` says how much
        of them it has used."""
        self._clock = clock
        self._max_waiting = max_waiting
        self._cores = cores
        self._cpu_s = cpu_s
        self._looked, self._idle = (0.0, 0.0), 0.0
        self._helping = False
        self.refusing = False
        """Many callers are refused now."""
        self._jobs: SimpleQueue[_Job | _Help | None] = SimpleQueue()
        self._quick = _QuickJobs(self._jobs, at_once=max(1, threads - 1))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0
        self._busy_s = 0.0
        self._gap_s = 0.0
        self._ended_s = -math.inf
        self._here: deque[_Job] = deque()
        self._open_here = 0
        """Those, and what the thread that helps has in hand."""
        self._here_turn_s = 0.0
        self._here_ended_s = -math.inf
        self._turn_is_due = False
        self._in_line = False
        self._warming_up = False
        self._count = threads
        self._threads: list[threading.Thread] = []

    @property
    def threads(self) -> int:
        """How many jobs run at a time."""
        return self._count

    @property
    def waiting(self) -> int:
        """Jobs handed in and not answered yet, the running ones included."""
        return self._waiting + self._open_here

    def ready_in_s(self, *, here: bool = False, coming: int = 0) -> float:
        """Predicted seconds until a job that is handed in after `coming` others is done, going by the last ones."""
        if here:
            return (self._open_here + coming + 1) * self._here_turn_s
        ahead, at_once = self._waiting + coming, self._at_once()
        if ahead < at_once:
            return self._busy_s
        # Not what jobs take but how fast the line moves: threads share cores, a lock, and the loop that they report to.
        return ahead * max(self._gap_s, self._busy_s / at_once) + self._busy_s

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Until its end the quickest job counts and not the last ones: the first load libraries, on a busy machine."""
        self._warming_up = True
        try:
            yield
        finally:
            self._warming_up = False

    def _at_once(self) -> int:
        """Jobs that run at a time, as those that are there are."""
        return self._quick.at_once if self._quick.out else self._count

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._looked = self._cpu_s(), self._clock.now_s()
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
        here: bool = False,
        quick: bool = False,
        admitted: bool = False,
    ) -> T:
        """Run a function on a thread, or `here` on the event loop in its turn; give its answer or its exception.

        `quick` is one that takes no longer than the event loop takes for its request; others may take all threads.
        `admitted` is a job of a request that has passed the door and used model time: it waits, however many do.

        Raises:
            Overloaded: too many jobs wait already; `retry_after_s` is what they will take.
            DeadlineExceeded: the deadline passed before it was its turn.
        """
        if self._loop is None:
            raise RuntimeError("the pool is not started")
        if self.waiting >= self._max_waiting and not admitted:
            raise Overloaded(
                f"{self.waiting} images wait to be decoded, the limit is {self._max_waiting}",
                details={"where": "decode", "waiting": self.waiting, "limit": self._max_waiting},
                retry_after_s=max(0.1, self.ready_in_s(here=here)),
            )
        reply: Reply[T] = Reply(self._loop)
        job = _Job(function, deadline, reply, quick)
        if here:
            self._here.append(job)
            self._open_here += 1
            self._take_turns()
            self._ask_for_help()
            # One job a turn and none that is too late: no alarm is needed to notice a deadline.
            return await reply.wait()
        self._waiting += 1
        if quick:
            self._quick.put(job)
        else:
            self._jobs.put(job)
        if math.isinf(deadline.at_s):
            return await reply.wait()
        alarm = self._clock.call_at(deadline.at_s, lambda: reply.fail(_too_late()))
        try:
            return await reply.wait()
        finally:
            alarm.cancel()

    def _take_turns(self) -> None:
        if self._here and not self._turn_is_due:
            assert self._loop is not None
            self._turn_is_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        try:
            job = self._here.popleft()
        except IndexError:  # the thread that helps took the last one
            return
        started_s = self._clock.now_s()
        self._finish_here(_outcome_of(job, started_s), started_s)
        self._take_turns()

    def _finish_here(self, outcome: "_Outcome", started_s: float) -> None:
        self._open_here -= 1
        if outcome.ran:
            ended_s = self._clock.now_s()
            # While a line stands, a turn takes what the loop does between two jobs as well; where it is helped, less.
            began_s = max(self._here_ended_s, started_s - 4 * self._here_turn_s) if self._in_line else started_s
            self._here_turn_s = self._follow(self._here_turn_s, ended_s - began_s)
            self._here_ended_s = ended_s
        if outcome.tell is not None:
            outcome.tell(outcome.answer)
        self._in_line = bool(self._here)

    def _ask_for_help(self) -> None:
        if self._cores > 1 and not self._helping and len(self._here) >= _HELPED_FROM and self._help_pays():
            self._helping = True
            self._jobs.put(_Help())

    def _help_pays(self) -> bool:
        """Whether there is a core to spare: refusals need the interpreter's lock, and come first."""
        if not self.refusing:
            return True
        # Both the loop and the thread that helps ask: what they look at is taken and put back as one.
        (then_used_s, then_s), now_s = self._looked, self._clock.now_s()
        if now_s - then_s >= _LOOKED_EVERY_S:
            used_s = self._cpu_s()
            self._idle = 1.0 - (used_s - then_used_s) / (now_s - then_s) / self._cores
            self._looked = used_s, now_s
        return self._idle > _IDLE

    def _help(self) -> bool:
        """Take from the event loop's line until it is empty, or somebody waits for a thread."""
        assert self._loop is not None
        while True:
            try:
                job = self._here.popleft()
            except IndexError:
                break
            started_s = self._clock.now_s()
            outcome = _outcome_of(job, started_s)
            del job  # nobody's image in a local of an idle thread
            try:
                self._loop.call_soon_threadsafe(self._finish_here, outcome, started_s)
            except RuntimeError:  # the loop is closed
                return False
            if not (self._jobs.empty() and self._help_pays()):
                break
        self._helping = False
        return True

    def _work(self) -> None:
        # A function of its own for one job, so that an idle thread holds nobody's image in its locals.
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        job = self._jobs.get()
        if job is None:
            return False
        if isinstance(job, _Help):
            return self._help()
        outcome = self._run_one(job)
        if job.quick:
            self._quick.done()
        return self._hand_over(outcome)

    def _run_one(self, job: _Job) -> "_Outcome":
        started_s = self._clock.now_s()
        outcome = _outcome_of(job, started_s)
        if outcome.ran:
            # For estimates only: a lost update between threads does no harm.
            self._busy_s = self._follow(self._busy_s, self._clock.now_s() - started_s)
        return outcome

    def _hand_over(self, outcome: "_Outcome") -> bool:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._finish, outcome)
        except RuntimeError:  # the loop is closed: the server is gone and nobody waits
            return False
        return True

    def _finish(self, outcome: "_Outcome") -> None:
        ended_s = self._clock.now_s()
        if outcome.ran:  # those who left or are too late take nothing, and say nothing of those to come
            in_line = self._waiting > self._at_once()
            if in_line and self._ended_s > -math.inf:
                self._gap_s = self._follow(self._gap_s, ended_s - self._ended_s)
            self._ended_s = ended_s if in_line else -math.inf
        self._waiting -= 1
        if outcome.tell is not None:
            outcome.tell(outcome.answer)

    def _follow(self, mean_s: float, seconds: float) -> float:
        """A running mean that one odd job moves little."""
        if mean_s == 0.0:
            return seconds
        if self._warming_up:
            return min(mean_s, seconds)
        return mean_s + 0.1 * (min(seconds, 4 * mean_s) - mean_s)


class _QuickJobs:
    """Quick jobs on their way to the threads: no more of them at a time than `at_once`."""

    def __init__(self, jobs: "SimpleQueue[_Job | _Help | None]", *, at_once: int) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self.at_once = at_once
        self.out = 0
        """So many are with the threads."""

    def put(self, job: _Job) -> None:
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


def _outcome_of(job: _Job, now_s: float) -> "_Outcome":
    if job.reply.settled:
        return _Outcome(None)
    if job.deadline.expired(now_s):
        return _Outcome(job.reply.fail, _too_late())
    try:
        return _Outcome(job.reply.settle, job.run(), ran=True)
    except IsocenterError as error:
        return _Outcome(job.reply.fail, without_frames(error), ran=True)
    except Exception as error:  # a defect of ours; it belongs to its caller all the same
        return _Outcome(job.reply.fail, error, ran=True)
    except BaseException as error:  # some native extensions panic past Exception; the thread must live on
        return _Outcome(job.reply.fail, RuntimeError(f"decoding raised {type(error).__name__}"), ran=True)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the image was decoded", details={"where": "decode"})


class _Outcome(NamedTuple):
    tell: Callable[[Any], bool] | None
    """How to tell the caller; None if nobody waits."""
    answer: Any = None
    ran: bool = False
