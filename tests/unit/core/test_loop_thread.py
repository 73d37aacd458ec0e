"""Callers without an event loop get their answers, whatever moment a context opens, closes or is interrupted at."""

import asyncio
import multiprocessing
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection

import pytest

from isocenter.core.errors import BadRequest, Draining
from isocenter.core.loop_thread import LoopThread
from patience import PATIENCE_S

pytestmark = pytest.mark.may_block


class Context:
    """Notes what happens to it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self.seen.append("entered")
        yield
        self.seen.append("left")


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread(Context().opened(), name="test")
    thread.open()
    yield thread
    thread.close()


def interrupt() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def runs(name: str) -> bool:
    """Whether there is a thread of that name; those of other tests may end at any moment."""
    return name in {thread.name for thread in threading.enumerate()}


async def number(value: int) -> int:
    await asyncio.sleep(0)
    return value


def test_the_context_is_open_while_calls_are_taken_and_its_thread_ends_with_it() -> None:
    context = Context()
    thread = LoopThread(context.opened(), name="test")

    thread.open()
    assert thread.call(number(7)) == 7
    assert runs("test")
    assert context.seen == ["entered"]
    thread.close()
    thread.close()

    assert context.seen == ["entered", "left"]
    assert not runs("test")


def test_many_threads_each_get_their_own_answer(thread: LoopThread) -> None:
    with ThreadPoolExecutor(16) as callers:
        assert list(callers.map(lambda n: thread.call(number(n)), range(500))) == list(range(500))


def test_an_error_of_the_work_is_raised_where_it_was_asked_for(thread: LoopThread) -> None:
    async def broken() -> None:
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        thread.call(broken())


def test_what_the_context_raises_on_entering_is_raised_and_no_thread_is_left() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        if runs("test"):
            raise LookupError("no model")
        yield

    thread = LoopThread(broken(), name="test")

    with pytest.raises(LookupError, match="no model"):
        thread.open()
    assert not runs("test")
    with pytest.raises(RuntimeError, match="opened before"):
        thread.open()


@pytest.mark.parametrize("round_number", range(50))
def test_ctrl_c_cancels_the_call_at_whatever_moment_it_comes(thread: LoopThread, round_number: int) -> None:
    ended = threading.Event()

    async def endless() -> None:
        try:
            if round_number % 2:
                await asyncio.sleep(0)
            interrupt()
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        thread.call(endless())

    assert ended.wait(PATIENCE_S)
    assert thread.call(number(1)) == 1


def test_ctrl_c_while_the_context_opens_leaves_no_thread() -> None:
    left = threading.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        try:
            interrupt()
            await asyncio.Event().wait()
            yield
        finally:
            left.set()

    with pytest.raises(KeyboardInterrupt):
        LoopThread(slow(), name="test").open()

    assert left.is_set()
    assert not runs("test")


def test_calls_that_race_with_the_end_all_end() -> None:
    for _ in range(20):
        thread = LoopThread(Context().opened(), name="test")
        thread.open()
        with ThreadPoolExecutor(4) as callers:
            calls = [callers.submit(lambda: thread.call(number(1))) for _ in range(40)]  # noqa: B023
            thread.close()
            errors = {type(call.exception(PATIENCE_S)) for call in calls}
        assert errors <= {type(None), Draining}


def test_a_call_that_is_not_done_when_the_thread_ends_is_told() -> None:
    thread = LoopThread(Context().opened(), name="test")
    thread.open()
    begun = threading.Event()

    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(lambda: thread.call(endless()))
        assert begun.wait(PATIENCE_S)
        thread.close()
        with pytest.raises(Draining, match="before this was done"):
            call.result(PATIENCE_S)


def test_calls_before_and_after_are_refused() -> None:
    thread = LoopThread(Context().opened(), name="test")
    thread.close()

    with pytest.raises(Draining, match="not open"):
        thread.call(number(1))
    thread.open()
    thread.close()
    with pytest.raises(Draining, match="not open"):
        thread.call(number(1))


def test_the_thread_does_not_wait_for_itself(thread: LoopThread) -> None:
    async def nested() -> int:
        return thread.call(number(1))

    with pytest.raises(RuntimeError, match="cannot wait for itself"):
        thread.call(nested())


def test_the_thread_is_not_closed_by_what_it_runs(thread: LoopThread) -> None:
    async def close() -> None:
        thread.close()

    with pytest.raises(BadRequest, match="cannot be closed by what it runs"):
        thread.call(close())

    assert thread.call(number(1)) == 1


def ask_and_close(thread: LoopThread, said: Connection) -> None:
    try:
        thread.call(number(1))
    except BadRequest as error:
        said.send(error.message)
    thread.close()
    said.send("closed")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_that_the_thread_did_not_come_with_it(thread: LoopThread) -> None:
    heard, said = multiprocessing.Pipe(duplex=False)
    forked = multiprocessing.get_context("fork").Process(target=ask_and_close, args=(thread, said))
    forked.start()
    try:
        assert heard.poll(PATIENCE_S)
        assert "before this process was forked" in heard.recv()
        assert heard.poll(PATIENCE_S)
        assert heard.recv() == "closed"
    finally:
        forked.kill()
        forked.join()
    assert thread.call(number(1)) == 1
