"""An event loop on a thread of its own, for callers that have none."""

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from isocenter.core.errors import BadRequest, Draining

T = TypeVar("T")


class LoopThread:
    """Keeps an async context open on a thread, and runs coroutines beside it for any number of other threads."""

    def __init__(self, context: AbstractAsyncContextManager[Any], *, name: str, what: str = "the service") -> None:
        self._context = context
        self._what = what
        self._lock = threading.Lock()
        self._taking = False
        self._leave = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._entered: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened_by: int | None = None
        """The process: one that is forked from it has a copy of everything here but the thread."""
        # A daemon: a program that ends without closing must not hang.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def open(self) -> None:
        """Enter the context; what it raises is raised here, and nothing is left running."""
        if self._loop is not None:
            raise RuntimeError("this was opened before; make another one")
        self._opened_by = os.getpid()
        self._loop = asyncio.new_event_loop()
        try:
            self._thread.start()
            self._entered.result()
        except BaseException:  # Ctrl-C is one
            self.close()
            raise
        self._taking = True

    def close(self) -> None:
        """Leave the context and end the thread. Calls that come later get `Draining`. Twice is once.

        In a process that was forked from the one that opened it, there is nothing to end, and nothing is done.

        Raises:
            BadRequest: it is asked of the thread itself, by work that it runs; nothing is closed.
        """
        if self._is_elsewhere():
            return
        if threading.current_thread() is self._thread:
            raise BadRequest(f"{self._what} cannot be closed by what it runs: the thread would wait for its own end")
        with self._lock:
            # From here on nothing is handed to the loop, so nobody waits for one that has ended.
            self._taking = False
        if self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._end)
        if self._thread.is_alive():
            self._thread.join()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it. If the waiting is interrupted (Ctrl-C), it is cancelled.

        Raises:
            Draining: it is not open, or was closed before this was done.
            BadRequest: another process opened it, and this one was forked from that.
        """
        if self._is_elsewhere():  # before the lock, which may have been held when the process was forked
            work.close()
            raise BadRequest(f"{self._what} was opened before this process was forked; open one in this process")
        # Made before anything is handed over, so that Ctrl-C finds it at whatever moment it comes.
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            with self._lock:
                self._check(work)
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._begin, work, answer)
            return answer.result()
        except concurrent.futures.CancelledError:
            raise Draining(f"{self._what} closed before this was done") from None
        except BaseException:
            answer.cancel()
            raise

    def _is_elsewhere(self) -> bool:
        """Whether another process opened it: its thread does not run in this one."""
        return self._opened_by not in (None, os.getpid())

    def _check(self, work: Coroutine[Any, Any, T]) -> None:
        if self._taking and threading.current_thread() is not self._thread:
            return
        work.close()
        if self._taking:
            raise RuntimeError("the thread that answers cannot wait for itself")
        raise Draining(f"{self._what} is not open")

    def _begin(self, work: Coroutine[Any, Any, T], answer: "concurrent.futures.Future[T]") -> None:
        if answer.cancelled():
            work.close()
            return
        assert self._loop is not None
        loop, task = self._loop, self._loop.create_task(work)

        def left(answer: "concurrent.futures.Future[T]") -> None:
            if answer.cancelled():
                with contextlib.suppress(RuntimeError):  # the loop has ended, and the task with it
                    loop.call_soon_threadsafe(task.cancel)

        answer.add_done_callback(left)
        task.add_done_callback(lambda task: _hand_over(task, answer))

    def _work(self) -> None:
        loop = self._loop
        assert loop is not None
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(self._stay())
            except BaseException as error:
                if self._entered.done():
                    raise
                self._entered.set_exception(error)

    async def _stay(self) -> None:
        self._main = asyncio.current_task()
        if self._leave.is_set():
            return
        async with self._context:
            self._entered.set_result(None)
            await self._leave.wait()

    def _end(self) -> None:
        self._leave.set()
        if self._main is not None and not self._entered.done():
            self._main.cancel()


def _hand_over(task: "asyncio.Task[T]", answer: "concurrent.futures.Future[T]") -> None:
    if task.cancelled():
        answer.cancel()
        return
    error = task.exception()
    if not answer.set_running_or_notify_cancel():  # nobody waits any more
        return
    if error is None:
        answer.set_result(task.result())
    else:
        answer.set_exception(error)
