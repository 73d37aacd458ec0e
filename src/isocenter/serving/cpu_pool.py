"""A few threads for decoding and preprocessing, with a bound on what may wait for them.

Small pictures may be decoded on the event loop instead: handing one to a thread and back costs a good part of its
decoding. They wait in a line of their own, of which the loop runs one a turn: between any two of them it looks at its
sockets, refuses what has to be refused, and reads what has come. While several wait, a thread may take from that line
too: it keeps a core busy that would stand idle. It does the first part of a job, which hardly needs the interpreter's
lock, and leaves the rest to the loop. Where many callers are refused, the loop leaves all first parts to it
(`docs/decisions/0004-frontends.md`).

Quick jobs never take all threads, where there are several: they hold the interpreter's lock for so much of their time
that the event loop and one thread less get as many of them done, at less cost, and refusals are told in half the time
(measured on two cores: `docs/decisions/0004-frontends.md`).
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded, IsocenterError, Overloaded, without_frames
from isocenter.core.reply import Reply

T = TypeVar("T")
Half = TypeVar("Half")

# From so many on that wait for the event loop, a thread helps it.
_HELPED_FROM = 2


class _Job(NamedTuple):
    run: Callable[[], Any]
    deadline: Deadline
    reply: Reply[Any]
    quick: bool = False
    rest: Callable[[Any], Any] | None = None
    """What is left to do with what `run` gave."""


class _Help:
    """What a thread takes from the others' queue, to take from the event loop's line from then on."""


class CpuPool:
    """Runs functions that release the GIL. A job whose caller left or whose deadline passed is never started."""

    def __init__(self, *, threads: int, max_waiting: int, clock: Clock, cores: int = 1) -> None:
        """`cores` are those of this process; with more than one, a thread helps the event loop."""
        self._clock = clock
        self._max_waiting = max_waiting
        self._cores = cores
        self._asked_for_help = self._helping = False
        self.refusing = False
        """Many callers are refused now: the event loop has enough to do with them while a thread helps."""
        self._jobs: SimpleQueue[_Job | _Help | None] = SimpleQueue()
        self._quick = _QuickJobs(self._jobs, at_once=max(1, threads - 1))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0
        self._busy_s = 0.0
        self._gap_s = 0.0
        self._ended_s = -math.inf
        self._here: deque[_Job] = deque()
        self._begun: deque[tuple[_Outcome, float]] = deque()
        """What the thread that helps has left to the event loop; it takes its turn like the others, before them."""
        self._open_here = 0
        """All of them, and what the thread that helps has in hand."""
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
        job = _Job(function, deadline, reply, quick)
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

    async def run_here(self, first: Callable[[], Half], rest: Callable[[Half], T], deadline: Deadline) -> T:
        """Run both parts of a job on the event loop, in its turn; give the answer of `rest`, or an exception.

        Where a thread helps, it runs `first`: what needs the interpreter's lock often belongs into `rest`.

        Raises:
            Overloaded, DeadlineExceeded: as `run`.
        """
        reply: Reply[T] = self._reply(here=True)
        self._here.append(_Job(first, deadline, reply, rest=rest))
        self._open_here += 1
        self._take_turns()
        self._ask_for_help()
        # One job a turn and none that is too late: no alarm is needed to notice a deadline.
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

    def _take_turns(self) -> None:
        if (self._here or self._begun) and not self._turn_is_due:
            assert self._loop is not None
            self._turn_is_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        if self._begun:
            self._finish_here(*self._begun.popleft())
        elif self.refusing and self._helping:
            return  # there is a turn for what comes from there, and one when the help ends
        else:
            try:
                job = self._here.popleft()
            except IndexError:  # the thread that helps took the last one
                return
            started_s = self._clock.now_s()
            self._finish_here(_outcome_of(job, started_s), started_s)
        self._take_turns()

    def _take_begun(self, outcome: "_Outcome", started_s: float) -> None:
        self._begun.append((outcome, started_s))
        self._take_turns()

    def _finish_here(self, outcome: "_Outcome", started_s: float) -> None:
        self._open_here -= 1
        _tell(outcome)
        if outcome.ran:
            ended_s = self._clock.now_s()
            # While a line stands, a turn takes what the loop does between two jobs as well; where it is helped, less.
            earliest_s = started_s - 4 * self._here_turn_s if self._in_line else started_s
            began_s = max(self._here_ended_s, earliest_s)
            self._here_turn_s = self._follow(self._here_turn_s, ended_s - began_s)
            self._here_ended_s = ended_s
        self._in_line = bool(self._here or self._begun)

    def _ask_for_help(self) -> None:
        if self._cores > 1 and not self._asked_for_help and len(self._here) >= _HELPED_FROM:
            self._asked_for_help = True
            self._jobs.put(_Help())

    def _help(self) -> bool:
        """Begin what the event loop's line holds until it is empty, or somebody waits for a thread."""
        assert self._loop is not None
        self._helping = True  # only now: it may have waited long for a thread
        while True:
            try:
                job = self._here.popleft()
            except IndexError:
                break
            started_s = self._clock.now_s()
            outcome = _outcome_of(job, started_s, whole=False)
            del job  # nobody's image in a local of an idle thread
            try:
                self._loop.call_soon_threadsafe(self._take_begun, outcome, started_s)
            except RuntimeError:  # the loop is closed
                return False
            if not self._jobs.empty():
                break
        self._asked_for_help = self._helping = False
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._take_turns)
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
        _tell(outcome)

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


def _outcome_of(job: _Job, now_s: float, *, whole: bool = True) -> "_Outcome":
    """What a job came to; where it is not run `whole`, its rest runs when the outcome is told."""
    run, reply, rest = job.run, job.reply, job.rest
    if reply.settled:
        return _Outcome(None)
    if job.deadline.expired(now_s):
        return _Outcome(reply.fail, _too_late())
    if rest is None:
        return _tried(run, reply, reply.settle)
    if whole:
        return _tried(lambda: rest(run()), reply, reply.settle)
    return _tried(run, reply, lambda half: not reply.settled and _tell(_tried(lambda: rest(half), reply, reply.settle)))


def _tried(run: Callable[[], Any], reply: Reply[Any], done: Callable[[Any], bool]) -> "_Outcome":
    try:
        return _Outcome(done, run(), ran=True)
    except IsocenterError as error:
        return _Outcome(reply.fail, without_frames(error), ran=True)
    except Exception as error:  # a defect of ours; it belongs to its caller all the same
        return _Outcome(reply.fail, error, ran=True)
    except BaseException as error:  # some native extensions panic past Exception; the thread must live on
        return _Outcome(reply.fail, RuntimeError(f"decoding raised {type(error).__name__}"), ran=True)


def _tell(outcome: "_Outcome") -> bool:
    return outcome.tell is not None and outcome.tell(outcome.answer)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the image was decoded", details={"where": "decode"})


class _Outcome(NamedTuple):
    tell: Callable[[Any], bool] | None
    """How to tell the caller; None if nobody waits."""
    answer: Any = None
    ran: bool = False
