"""A job of the pool: what is run for whom, and what it came to."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded, IsocenterError, without_frames
from isocenter.core.reply import Reply


class Job(NamedTuple):
    """A function and who waits for what it gives."""

    run: Callable[[], Any]
    deadline: Deadline
    reply: Reply[Any]
    since_s: float
    """The instant at which it was handed in."""
    quick: bool = False
    rest: Callable[[Any], Any] | None = None
    """What is left to do with what `run` gave."""


class Outcome(NamedTuple):
    """What a job came to, to be told on the event loop."""

    tell: Callable[[Any], bool] | None
    """How to tell the caller; None if nobody waits."""
    answer: Any = None
    ran: bool = False


class Pace:
    """A running mean of seconds that one odd job moves little."""

    def __init__(self) -> None:
        self.mean_s = 0.0
        self.warming_up = False
        """The quickest counts and not the last ones: the first load libraries, on a busy machine."""

    def follow(self, seconds: float) -> None:
        """Take one in."""
        if self.mean_s == 0.0:
            self.mean_s = seconds
        elif self.warming_up:
            self.mean_s = min(self.mean_s, seconds)
        else:
            self.mean_s += 0.1 * (min(seconds, 4 * self.mean_s) - self.mean_s)


def outcome_of(job: Job, now_s: float) -> Outcome:
    """Run a job to its end, if somebody still waits for it and it is not too late."""
    run, rest = job.run, job.rest
    if (over := _over(job, now_s)) is not None:
        return over
    answer, error = _tried(run if rest is None else lambda: rest(run()))
    return Outcome(job.reply.settle, answer, ran=True) if error is None else Outcome(job.reply.fail, error, ran=True)


def begin(job: Job, now_s: float) -> Job | Outcome:
    """Run the first part of a job. What is left of it is a job as well, if it has not come to its end already."""
    if (over := _over(job, now_s)) is not None:
        return over
    half, error = _tried(job.run)
    if error is not None:
        return Outcome(job.reply.fail, error, ran=True)
    assert job.rest is not None
    return job._replace(run=partial(job.rest, half), rest=None)


def tell(outcome: Outcome) -> None:
    """Give the caller what it came to, if one waits for it."""
    if outcome.tell is not None:
        outcome.tell(outcome.answer)


def too_late(waited_s: float) -> DeadlineExceeded:
    """What is told to who could not be decoded in time."""
    return DeadlineExceeded(
        f"the deadline passed after {waited_s:.3f} s, before the image was decoded",
        details={"waited_s": round(waited_s, 3), "where": "decode"},
    )


def _over(job: Job, now_s: float) -> Outcome | None:
    if job.reply.settled:
        return Outcome(None)
    return Outcome(job.reply.fail, too_late(now_s - job.since_s)) if job.deadline.expired(now_s) else None


def _tried(run: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return run(), None
    except IsocenterError as error:
        return None, without_frames(error)
    except Exception as error:  # a defect of ours; it belongs to its caller all the same
        return None, error
    except KeyboardInterrupt:  # of the main thread: for who runs the event loop
        raise
    except BaseException as error:  # some native extensions panic past Exception; the thread must live on
        return None, RuntimeError(f"decoding raised {type(error).__name__}")
