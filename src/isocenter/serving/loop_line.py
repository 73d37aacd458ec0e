"""The line of small pictures that the event loop decodes, one a turn, with a thread that helps.

Handing a small picture to a thread and back costs a good part of its decoding. Between any two of them the loop looks
at its sockets, refuses what has to be refused, and reads what has come. While several wait, a thread may take from the
line too: it keeps a core busy that would stand idle. It does the first part of a job, which hardly needs the
interpreter's lock, and leaves the rest to the loop. Where many callers are refused, the loop leaves all first parts to
it (`docs/decisions/0004-frontends.md`).
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from isocenter.core.clock import Clock
from isocenter.serving.pool_job import Job, Outcome, Pace, begin, outcome_of, tell

_HELPED_FROM: Final = 2
"""From so many on that wait, a thread helps."""
_BEGUN_AT_MOST: Final = 8
"""So many decoded pictures may wait for the loop: it may have much else to do, and each is a few times its file."""


class LoopLine:
    """Jobs that the event loop runs in their order. Everything but `help` is called on the loop."""

    def __init__(
        self, *, clock: Clock, cores: int, ask_for_help: Callable[[], None], needed_elsewhere: Callable[[], bool]
    ) -> None:
        """`ask_for_help` has a thread call `help` some time; `needed_elsewhere` says whether others wait for one.

        `cores` are those of this process; with one, nobody helps.
        """
        self._clock = clock
        self._cores = cores
        self._call_for_help = ask_for_help
        self._needed_elsewhere = needed_elsewhere
        self._loop: asyncio.AbstractEventLoop | None = None
        self.refusing = False
        """Many callers are refused now: the event loop has enough to do with them while a thread helps."""
        self.open = 0
        """Jobs in the line, and what the thread that helps has in hand."""
        self.pace = Pace()
        """Of turns."""
        self._ended_s = -math.inf
        self._waiting: deque[Job] = deque()
        self._begun: deque[tuple[Job | Outcome, float]] = deque()
        """What the thread that helps has left to the event loop; it takes its turn like the others, before them."""
        # Each is counted up by one thread alone: that which helps, and the event loop.
        self._handed_over = self._taken_over = 0
        self._asked_for_help = self._helping = False
        self._turn_is_due = False
        self._in_line = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to take turns."""
        self._loop = loop

    def add(self, job: Job) -> None:
        """Let a job wait for its turn."""
        self._waiting.append(job)
        self.open += 1
        self._go_on()

    def ready_in_s(self, coming: int = 0) -> float:
        """Predicted seconds until a job that is handed in after `coming` others is done."""
        return (self.open + coming + 1) * self.pace.mean_s

    def _go_on(self) -> None:
        if (self._waiting or self._begun) and not self._turn_is_due:
            assert self._loop is not None
            self._turn_is_due = True
            self._loop.call_soon(self._turn)
        few_begun = self._handed_over - self._taken_over <= _BEGUN_AT_MOST // 2
        if self._cores > 1 and not self._asked_for_help and len(self._waiting) >= _HELPED_FROM and few_begun:
            self._asked_for_help = True
            self._call_for_help()

    def _turn(self) -> None:
        self._turn_is_due = False
        now_s = started_s = self._clock.now_s()
        job: Job | Outcome
        if self._begun:
            job, started_s = self._begun.popleft()
            self._taken_over += 1
        elif self.refusing and self._helping:
            return  # there is a turn for what comes from there, and one when the help ends
        else:
            try:
                job = self._waiting.popleft()
            except IndexError:  # the thread that helps took the last one
                return
        try:
            outcome = outcome_of(job, now_s) if isinstance(job, Job) else job
        except BaseException:  # a signal, for who runs the loop; it may be run again
            assert isinstance(job, Job)
            self._end(Outcome(job.reply.fail, RuntimeError("decoding was interrupted")), started_s)
            self._go_on()
            raise
        self._end(outcome, started_s)
        self._go_on()

    def _end(self, outcome: Outcome, started_s: float) -> None:
        self.open -= 1
        tell(outcome)
        if outcome.ran:  # those who left or are too late take nothing, and say nothing of those to come
            ended_s = self._clock.now_s()
            # While a line stands, a turn takes what the loop does between two jobs as well; where it is helped, less.
            earliest_s = started_s - 4 * self.pace.mean_s if self._in_line else started_s
            self.pace.follow(ended_s - max(self._ended_s, earliest_s))
            self._ended_s = ended_s
        self._in_line = bool(self._waiting or self._begun)

    def help(self) -> bool:
        """Begin what waits until nothing does, enough is begun, or a thread is needed elsewhere.

        To be called by a thread; False if the event loop is closed.
        """
        assert self._loop is not None
        self._helping = True  # only now: it may have waited long for a thread
        while self._handed_over - self._taken_over < _BEGUN_AT_MOST:
            try:
                job = self._waiting.popleft()
            except IndexError:
                break
            started_s = self._clock.now_s()
            self._handed_over += 1
            try:
                self._loop.call_soon_threadsafe(self._take_over, begin(job, started_s), started_s)
            except RuntimeError:  # the loop is closed
                return False
            if self._needed_elsewhere():
                break
        self._helping = False  # before another thread can be asked, which says that it helps
        self._asked_for_help = False
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._go_on)
        return True

    def _take_over(self, begun: Job | Outcome, started_s: float) -> None:
        self._begun.append((begun, started_s))
        self._go_on()
