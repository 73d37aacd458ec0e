"""Jobs for a pool of threads that a test holds in its hand."""

import asyncio
import threading
from collections.abc import Callable
from typing import NoReturn, TypeVar

from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadImage
from isocenter.serving.cpu_pool import CpuPool
from patience import PATIENCE_S

NEVER = Deadline.never()
T = TypeVar("T")


class Blocker:
    """A job that holds the pool's thread until it is let go."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self._go_on = threading.Event()

    def __call__(self) -> str:
        self.started.set()
        assert self._go_on.wait(PATIENCE_S)
        return "done"

    def let_go(self) -> None:
        self._go_on.set()


async def until_started(blocker: Blocker) -> None:
    assert await asyncio.to_thread(blocker.started.wait, PATIENCE_S)


async def answer_of(pool: CpuPool, function: Callable[[], T], deadline: Deadline, *, here: bool) -> T:
    """The answer of a job in one part, from a thread or from the event loop."""
    if here:
        return await pool.run_here(function, lambda answer: answer, deadline)
    return await pool.run(function, deadline)


def refuse(*_: object) -> NoReturn:
    """What an image may earn, in either part of a job."""
    raise BadImage("broken")
