"""What a model runs in may stop in the middle of a batch, as a server does: nobody pays for it with his answer."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from isocenter.core.clock import ManualClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import IsocenterError, NotReady, RuntimeLost
from isocenter.core.events import BatchStarted, InstanceChanged, RecordingObserver, StateChanged
from isocenter.core.request import Request, Result
from isocenter.core.tensor import Tensors
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.engine import InlineEngine
from isocenter.engine.instance_group import REOPEN_FIRST_S
from isocenter.engine.lifecycle import State
from isocenter.engine.scheduler import LOSSES_MOST
from isocenter.runtimes.synthetic import INPUT, OUTPUT, SyntheticSession, checksum, item

LABEL = "local fp32 on cpu"


class Server:
    """What sessions run in. It can be stopped, and started again."""

    def __init__(self) -> None:
        self.up = True
        self.stops_at: float | None = None
        """An item that stops it."""
        self.restarts = False
        """Whether it is started again as soon as somebody asks."""

    def session(self) -> "Remote":
        self.up = self.up or self.restarts
        if not self.up:
            raise RuntimeLost("nothing listens there")
        return Remote(self)


class Remote(SyntheticSession):
    """A session in that server."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    def run(self, batch: Tensors) -> Tensors:
        if self._server.stops_at in batch[INPUT][:, 0]:
            self._server.up = False
        if not self._server.up:
            raise RuntimeLost("the server hung up")
        return super().run(batch)


class House:
    """An engine whose sessions are a server's, and perhaps a fallback that is not."""

    def __init__(self, *, instances: int = 1, fallback: bool = True, starts_down: bool = False) -> None:
        self.clock = ManualClock(100.0)
        self.observer = RecordingObserver()
        self.server = Server()
        self.fallback_opens = True
        self.fallback_server: Server | None = None
        """Where the fallback runs, if not here."""
        self.fallbacks: list[SyntheticSession] = []
        self.open_own: Callable[[], SyntheticSession] = self.server.session
        self.open_fallback: Callable[[], SyntheticSession] = self._open_fallback
        sessions = [] if starts_down else [self.server.session() for _ in range(instances)]
        self.server.up = not starts_down
        self.engine = InlineEngine(
            model="demo",
            version=1,
            sessions=sessions,
            rules=BatchRules(max_batch_size=4, max_queue_delay_s=0.0),
            max_queue_size=100,
            clock=self.clock,
            observer=self.observer,
            open_session=lambda: self.open_own(),
            open_fallback=(lambda: self.open_fallback()) if fallback else None,
            fallback=LABEL,
            standing_in=self._open_fallback() if starts_down else None,
            missing=instances if starts_down else 0,
        )

    def _open_fallback(self) -> SyntheticSession:
        if not self.fallback_opens:
            raise OSError("no such file")
        self.fallbacks.append(self.fallback_server.session() if self.fallback_server else SyntheticSession())
        return self.fallbacks[-1]

    def ask(self, marker: float, timeout_s: float = math.inf) -> asyncio.Task[Result]:
        request = Request(str(marker), item(marker), Deadline(self.clock.now_s() + timeout_s))
        return asyncio.create_task(self.engine.infer(request))

    async def ask_until_open(self, marker: float) -> Result:
        """The answer to somebody who comes again while a runtime is being opened, as he is told to."""
        while True:
            try:
                return await self.ask(marker)
            except NotReady:
                await asyncio.sleep(0)

    async def until(self, fact: Callable[[], bool]) -> None:
        while not fact():  # noqa: ASYNC110 - threads report to this loop
            await asyncio.sleep(0)

    async def reopened_after(self, attempts: int) -> None:
        """Turn the clock to the next attempt to open the model's own, and wait until it was made."""
        await self.until(lambda: self.said().count("not_rebuilt") >= attempts)
        for _ in range(20):  # from the attempt to the sleep that follows it
            await asyncio.sleep(0)
        self.clock.advance(REOPEN_FIRST_S * 2 ** (attempts - 1))

    def said(self) -> list[str]:
        return [event.what for event in self.observer.events if isinstance(event, InstanceChanged)]

    def states(self) -> list[str]:
        return [event.state for event in self.observer.events if isinstance(event, StateChanged)]


@asynccontextmanager
async def house(*, instances: int = 1, fallback: bool = True, starts_down: bool = False) -> AsyncIterator[House]:
    made = House(instances=instances, fallback=fallback, starts_down=starts_down)
    await made.engine.start()
    await made.engine.warm_up((1, 2, 4), item(7.0), repeats=1)
    made.engine.open()
    try:
        yield made
    finally:
        await made.engine.drain(0.0)
        await made.engine.stop()


def answered(found: Result, marker: float) -> bool:
    return float(found.outputs[OUTPUT]) == checksum(item(marker)[INPUT])


async def error_of(task: asyncio.Task[Result]) -> IsocenterError:
    await asyncio.wait([task])
    error = task.exception()
    assert isinstance(error, IsocenterError)
    return error


@pytest.mark.parametrize("instances", [1, 3])
async def test_whoever_was_in_a_lost_batch_is_answered_by_the_fallback(instances: int) -> None:
    async with house(instances=instances) as h:
        asked = [h.ask(float(n)) for n in range(40)]
        await h.until(lambda: any(isinstance(event, BatchStarted) for event in h.observer.events))
        h.server.up = False
        found = await asyncio.gather(*asked)
        assert [n for n, result in enumerate(found) if not answered(result, n)] == []
        assert {result.fallback for result in found[20:]} == {LABEL}


async def test_a_lost_batch_is_not_taken_for_a_bad_item_and_run_one_by_one() -> None:
    async with house() as h:
        h.server.up = False
        await asyncio.gather(*(h.ask(float(n)) for n in range(4)))
        assert "suspected" not in h.said()
        assert [len(run) for run in h.fallbacks[-1].runs if run != (7.0,)] == [4]


async def test_whoever_comes_while_the_fallback_is_being_opened_is_taken_in() -> None:
    async with house() as h:
        h.server.up = False
        first = h.ask(1.0)
        await h.until(lambda: "lost" in h.said())
        assert (h.engine.state, h.engine.instances) == (State.READY, 0)
        second = h.ask(2.0)
        assert answered(await first, 1.0)
        assert answered(await second, 2.0)
        assert "recovering" not in h.states()


async def test_the_server_answers_again_when_it_is_back() -> None:
    async with house() as h:
        h.server.up = False
        assert (await h.ask(1.0)).fallback == LABEL
        await h.until(lambda: "not_rebuilt" in h.said())
        h.server.up = True
        await h.reopened_after(1)
        await h.until(lambda: "retired" in h.said())
        assert (await h.ask(2.0)).fallback == ""


async def test_without_a_fallback_whoever_waits_is_told_and_whoever_comes_is_not_let_in() -> None:
    async with house(fallback=False) as h:
        h.server.up = False
        place = h.engine.reserve(Deadline.never())
        asked = [h.ask(float(n)) for n in range(12)]
        errors = [await error_of(task) for task in asked]
        assert {type(error) for error in errors} == {RuntimeLost}
        assert all(error.retry_after_s for error in errors)
        assert h.engine.state is State.RECOVERING
        assert isinstance(await error_of(h.ask(20.0)), NotReady)
        with pytest.raises(RuntimeLost):  # he was let in before
            await h.engine.infer(Request("late", item(21.0), Deadline.never()), place)
        assert h.engine.backlog.total == 0
        await h.until(lambda: "not_rebuilt" in h.said())
        h.server.up = True
        await h.reopened_after(1)
        await h.until(lambda: h.engine.state is State.READY)
        assert answered(await h.ask(22.0), 22.0)


async def test_a_fallback_that_does_not_open_is_as_good_as_none() -> None:
    async with house() as h:
        h.server.up, h.fallback_opens = False, False
        assert isinstance(await error_of(h.ask(1.0)), RuntimeLost)
        assert h.engine.state is State.RECOVERING


class Attempt:
    """To open something: it is held until the test says how it ends."""

    def __init__(self) -> None:
        self.begun, self.ended, self._go_on = threading.Event(), threading.Event(), threading.Event()
        self._opens = False

    def end(self, *, opens: bool) -> None:
        self._opens = opens
        self._go_on.set()

    def made(self) -> SyntheticSession:
        self.begun.set()
        self._go_on.wait()
        self.ended.set()
        if not self._opens:
            raise OSError("the server hung up")
        return SyntheticSession()


async def test_nobody_is_told_while_another_attempt_to_open_the_fallback_is_on_its_way() -> None:
    async with house() as h:
        own, first, second = Attempt(), Attempt(), Attempt()
        h.fallback_server, h.open_own = Server(), own.made
        h.server.up = False
        assert (await h.ask(1.0)).fallback == LABEL
        await h.until(own.begun.is_set)

        to_come = iter([first, second])
        h.open_fallback = lambda: next(to_come).made()
        h.fallback_server.up = False
        asked = h.ask(2.0)
        await h.until(first.begun.is_set)
        own.end(opens=False)
        await h.until(second.begun.is_set)
        first.end(opens=False)
        await h.until(first.ended.is_set)
        for _ in range(100):  # from its thread to who began it
            await asyncio.sleep(0)
        second.end(opens=True)
        assert answered(await asked, 2.0)


async def test_an_item_that_stops_every_server_is_given_up_after_a_few_and_others_are_answered() -> None:
    async with house() as h:
        h.fallback_server = Server()
        h.fallback_server.restarts = True
        h.fallback_server.stops_at = h.server.stops_at = 13.0
        assert isinstance(await error_of(h.ask(13.0)), RuntimeLost)
        # One more, where a runtime was being opened again just then.
        assert h.said().count("lost") - LOSSES_MOST in (1, 2)
        assert answered(await h.ask_until_open(1.0), 1.0)


async def test_a_model_whose_server_is_down_starts_on_its_fallback_and_comes_back() -> None:
    async with house(instances=2, starts_down=True) as h:
        assert h.engine.state is State.READY
        assert "fallback" in h.said()
        assert (await h.ask(1.0)).fallback == LABEL
        await h.until(lambda: h.said().count("not_rebuilt") >= 2)
        h.server.up = True
        await h.reopened_after(2)
        await h.until(lambda: h.engine.instances == 2 and "retired" in h.said())
        assert (await h.ask(2.0)).fallback == ""
