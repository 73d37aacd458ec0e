"""A front end's link and an engine host, in one process over a real socket and real shared memory."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Self

from isocenter.core.clock import Clock, SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.events import Event, RecordingObserver
from isocenter.core.request import Request, Result
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.engine import InlineEngine
from isocenter.engine.link.arena import Arena
from isocenter.engine.link.board import Board
from isocenter.engine.link.client import EngineLink
from isocenter.engine.link.figures import FrontEndFigures, make_shared
from isocenter.engine.link.remote import RemoteEngine
from isocenter.engine.link.server import EngineHost
from isocenter.runtimes.synthetic import Gate, SyntheticSession, item
from patience import PATIENCE_S

SHAPE = (4,)


async def nothing_known(what: str, argument: Any) -> tuple[Any, bytes]:
    raise AssertionError(f"nobody should ask for {what} {argument}")


class Pair:
    """`engine` behind a host, `remote` before it. Runs wait at the gate if there is one."""

    def __init__(
        self,
        *,
        session: Any = None,
        arena_bytes: int = 2**20,
        answer: Callable[[str, Any], Awaitable[tuple[Any, bytes]]] = nothing_known,
        gated: bool = False,
        max_queue_size: int = 5000,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.gate = Gate()
        self.session = session or SyntheticSession(shape=SHAPE, gate=self.gate if gated else None)
        self.counted = RecordingObserver()
        """What front ends told."""
        self.host: EngineHost | None = None
        self.engine = InlineEngine(
            model="demo",
            version=1,
            sessions=[self.session],
            rules=BatchRules(max_batch_size=4, max_queue_delay_s=0.0),
            max_queue_size=max_queue_size,
            clock=self.clock,
            observer=self,
        )
        self._answer = answer
        self.arena_bytes = arena_bytes
        self.announced: list[list[RemoteEngine]] = []
        self.engine_events: list[Event] = []

    async def __aenter__(self) -> Self:
        await self.engine.start()
        self.engine.open()
        self._board_fd = make_shared("board", FrontEndFigures.size_bytes(1))
        self._arena_fd = make_shared("arena", self.arena_bytes)
        self.host = self.make_host()
        self.arena = Arena(self._arena_fd, self.arena_bytes)
        self.board = Board(self._board_fd, 1)
        self.link = EngineLink(0, arena=self.arena, board=self.board, clock=self.clock, on_models=self.announced.append)
        await self.connect()
        return self

    def observe(self, event: Event) -> None:
        """The engine's events keep the board."""
        self.engine_events.append(event)
        if self.host is not None:
            self.host.observe(event)

    def make_host(self) -> EngineHost:
        """A new host for the engine, as after a restart."""
        host = EngineHost(
            board=Board(self._board_fd, 1),
            clock=self.clock,
            observer=self.counted,
            answer=self._answer,
            logger=logging.getLogger("test"),
        )
        host.publish([(self.engine, {"title": "a demo"})])
        return host

    async def connect(self) -> None:
        """A new link between the two."""
        here, there = socket.socketpair()
        assert self.host is not None
        await self.host.connect(0, there, os.dup(self._arena_fd), self.arena_bytes)
        await self.link.connect(here)
        await until(lambda: bool(self.announced and self.announced[-1]))

    async def connect_nobody(self) -> socket.socket:
        """The end of a link that a front end has died without using."""
        here, there = socket.socketpair()
        assert self.host is not None
        await self.host.connect(0, there, os.dup(self._arena_fd), self.arena_bytes)
        return here

    async def __aexit__(self, *_: object) -> None:
        self.gate.open()
        self.link.close()
        assert self.host is not None
        self.host.close()
        await self.engine.drain(PATIENCE_S)
        await self.engine.stop()
        os.close(self._arena_fd)
        os.close(self._board_fd)

    @property
    def remote(self) -> RemoteEngine:
        """The engine as it was announced last."""
        return self.announced[-1][0]

    def ask(
        self, marker: float, *, timeout_s: float = PATIENCE_S, shape: tuple[int, ...] = SHAPE
    ) -> asyncio.Task[Result]:
        """A caller of its own for one item."""
        deadline = Deadline.after(timeout_s, now_s=self.clock.now_s())
        return asyncio.create_task(self.remote.infer(Request(str(marker), item(marker, shape), deadline)))

    async def at_gate(self, runs: int = 1) -> None:
        """Return when so many runs have begun."""
        await until(lambda: len(self.session.runs) >= runs)


async def until(fact: Callable[[], bool]) -> None:
    """Return when something is so that another task or thread is about to make so."""
    while not fact():  # noqa: ASYNC110 - the loop keeps turning, which is what the others report to
        await asyncio.sleep(0)
