"""What a thread was given to do is the caller's again when he is told."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from isocenter.serving.on_thread import on_thread


class Held:
    """Memory."""


class Slow(ThreadPoolExecutor):
    """Threads that do not get their turn back to forget what they did."""

    def __init__(self) -> None:
        super().__init__(1)
        self.kept: list[Callable[..., Any]] = []

    def submit(self, function: Callable[..., Any], /, *given: Any, **named: Any) -> "Future[Any]":
        self.kept.append(partial(function, *given, **named))
        return super().submit(function, *given, **named)


async def test_an_answer_and_an_error_reach_the_caller_from_another_thread() -> None:
    assert await on_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await on_thread(lambda: 1 // 0)


async def test_a_slow_thread_does_not_hold_what_it_was_given() -> None:
    with Slow() as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        taken = Held()
        await on_thread(partial(id, taken))
        there = weakref.ref(taken)
        del taken

        assert len(threads.kept) == 1
        assert there() is None
