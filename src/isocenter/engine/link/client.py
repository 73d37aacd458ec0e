"""A front end's end of the link: what it sends to the engine process, and what comes back."""

import asyncio
import itertools
import math
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np

from isocenter.core.clock import Clock
from isocenter.core.errors import Unavailable
from isocenter.core.events import Event, Observer
from isocenter.core.reply import Reply
from isocenter.core.request import EngineTimings, Request, Result
from isocenter.core.tensor import Array
from isocenter.engine.link.arena import Arena, Block
from isocenter.engine.link.board import Board
from isocenter.engine.link.card import EngineCard, Speed
from isocenter.engine.link.errors import error_from_json
from isocenter.engine.link.frames import Channel, Kind, event_to_json, instant_to_json
from isocenter.engine.link.layout import Layout, shapes_of
from isocenter.engine.link.remote import RemoteEngine

EVENTS_WAIT_S: Final = 0.05
EVENTS_AT_ONCE: Final = 256
EVENTS_KEPT: Final = 10_000
"""While the engine process is away; the oldest are lost first."""
OnModels: TypeAlias = Callable[[list[RemoteEngine]], None]


class EngineLink:
    """The connection to the engine process, which may be lost and made again. Lives on one event loop.

    `on_models` is called with all engines that are served, when they are announced and after each change.
    """

    def __init__(
        self,
        number: int,
        *,
        arena: Arena,
        board: Board,
        clock: Clock,
        on_models: OnModels,
        on_lost: Callable[[], None] = lambda: None,
        observer: Observer | None = None,
    ) -> None:
        self.number = number
        self.arena = arena
        self.board = board
        self.clock = clock
        self.observer: Observer = observer or self
        """Who is told what happens at the doors of the engines."""
        self._on_models = on_models
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._numbers = itertools.count(1)
        self._engines: dict[int, RemoteEngine] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._held: dict[int, Block] = {}
        """Blocks of requests that were told an error or that nobody waits for; the engine may still read them."""
        self._asked: dict[int, Reply[tuple[Any, bytes]]] = {}
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._flushing: asyncio.TimerHandle | None = None
        self._restart_s = 1.0
        self._lost_at_s = -math.inf

    @property
    def is_up(self) -> bool:
        """Whether the engine process can be reached."""
        return self._channel is not None and self._channel.is_open

    @property
    def outstanding(self) -> int:
        """Requests that are on their way, and blocks that the engine process has not given back yet."""
        return len(self._waiting) + len(self._held)

    async def connect(self, sock: socket.socket, *, restart_s: float = 1.0) -> None:
        """Talk to the engine process over this socket from now on; `restart_s` is what its start took."""
        if self._channel is not None:
            self._hang_up(self._channel)
        self._restart_s = restart_s
        self._channel = await Channel.open(sock, self._came, lambda: self._hang_up(channel))
        channel = self._channel
        self._flush_events()

    def close(self) -> None:
        """Send what is left of the events, and hang up."""
        if self._channel is not None:
            self._flush_events()
            self._channel.close()

    def unavailable(self) -> Unavailable:
        """What callers are told while the engine process is away: when it should be back, going by its last start."""
        left_s = self._lost_at_s + self._restart_s - self.clock.now_s()
        return Unavailable(
            "the engine process is being started again", retry_after_s=min(max(0.5, left_s), self._restart_s + 0.5)
        )

    # Events and questions.

    def observe(self, event: Event) -> None:
        """Hand an event on to the engine process, which counts; a moment later, with others."""
        self._events.append(event)
        if len(self._events) >= EVENTS_AT_ONCE:
            self._flush_events()
        elif self._flushing is None:
            self._flushing = self._loop.call_later(EVENTS_WAIT_S, self._flush_events)

    async def ask(self, what: str, argument: Any = None) -> tuple[Any, bytes]:
        """Ask something of the engine process: plain data and bytes.

        Raises:
            Unavailable: it is away.
            IsocenterError: what the question was answered with.
        """
        if self._channel is None or not self.is_up:
            raise self.unavailable()
        number = next(self._numbers)
        reply = self._asked[number] = Reply[tuple[Any, bytes]](self._loop)
        self._flush_events()  # what happened here before is part of the answer
        self._channel.send(Kind.ASK, [number, what, argument])
        try:
            return await reply.wait()
        finally:
            self._asked.pop(number, None)

    def _flush_events(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._events and self._channel is not None and self.is_up:
            self._channel.send(Kind.EVENTS, [event_to_json(event) for event in self._events])
            self._events.clear()

    # Requests.

    def submit(self, request: Request, engine: RemoteEngine, block: Block, layout: Layout) -> tuple[int, Reply[Result]]:
        """Send one request whose item lies in a block.

        Raises:
            Unavailable: the engine process is away.
        """
        if self._channel is None or not self.is_up:
            raise self.unavailable()
        number = next(self._numbers)
        reply: Reply[Result] = Reply(self._loop)
        self._waiting[number] = _Waiting(reply, block, layout)
        block.share()
        shapes = shapes_of(request.item, engine.inputs) if engine.layout is None else None
        head = [
            number,
            engine.card.index,
            block.offset,
            instant_to_json(request.deadline.at_s),
            request.priority,
            request.group,
            request.id,
            shapes,
        ]
        self._channel.send(Kind.SUBMIT, head)
        return number, reply

    def leave(self, number: int) -> None:
        """The caller of a request waits no more."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            self._held[number] = waiting.block
            if self._channel is not None:
                self._channel.send(Kind.LEAVE, number)

    def retire(self, engine: RemoteEngine) -> None:
        """Nothing more goes to an engine that is announced no more."""
        if self._channel is not None:
            self._channel.send(Kind.RETIRED, engine.card.index)

    # What the engine process says.

    def _came(self, kind: Kind, head: Any, tail: bytes) -> None:
        match kind:
            case Kind.RESULT:
                self._result(head[0], head[1:], tail)
            case Kind.ERROR:
                waiting = self._waiting.pop(head[0], None)
                if waiting is not None:
                    self._held[head[0]] = waiting.block
                    waiting.reply.fail(error_from_json(head[1:]))
            case Kind.FREED:
                block = self._held.pop(head, None)
                if block is not None:
                    block.let_go()
            case Kind.MODELS:
                self._announced([EngineCard.from_json(card) for card in head])
            case Kind.COSTS:
                for index, speed in head:
                    if index in self._engines:
                        self._engines[index].learn(Speed.from_json(speed))
            case Kind.TOLD:
                self._told(head, tail)
            case _:
                raise ValueError(f"the engine process does not send {kind.name}")

    def _result(self, number: int, head: list[Any], tail: bytes) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is None:  # the caller left meanwhile
            block = self._held.pop(number, None)
            if block is not None:
                block.let_go()
            return
        queue_s, service_s, batch_size, fallback, described = head
        outputs = waiting.outputs(described, tail)
        waiting.block.let_go()
        waiting.reply.settle(Result(outputs, EngineTimings(queue_s, service_s, batch_size), fallback))

    def _announced(self, cards: list[EngineCard]) -> None:
        before, self._engines = self._engines, {}
        for card in cards:
            engine = before.pop(card.index, None)
            if engine is None:
                engine = RemoteEngine(self, card)
            engine.card = card
            self._engines[card.index] = engine
        self._on_models(list(self._engines.values()))
        for engine in before.values():
            engine.retire()

    def _told(self, head: list[Any], tail: bytes) -> None:
        number, error, data = head
        reply = self._asked.pop(number, None)
        if reply is None:
            return
        if error is None:
            reply.settle((data, tail))
        else:
            reply.fail(error_from_json(error))

    def _hang_up(self, channel: Channel) -> None:
        """The engine process is gone: everybody who waits is told at once, and nothing is read any more."""
        if channel is not self._channel:
            return
        self._channel = None
        self._lost_at_s = self.clock.now_s()
        channel.close()
        for waiting in self._waiting.values():
            waiting.block.let_go()
            waiting.reply.fail(self.unavailable())
        for block in self._held.values():
            block.let_go()
        for reply in self._asked.values():
            reply.fail(self.unavailable())
        self._waiting.clear()
        self._held.clear()
        self._asked.clear()
        for engine in self._engines.values():
            engine.lost()
        self._engines.clear()  # their numbers mean nothing to the next engine process
        self.board.clear_row(1 + self.number)
        self._on_models([])
        self._on_lost()


class _Waiting:
    """A request on its way."""

    __slots__ = ("block", "layout", "reply")

    def __init__(self, reply: Reply[Result], block: Block, layout: Layout) -> None:
        self.reply = reply
        self.block = block
        self.layout = layout

    def outputs(self, described: list[list[Any]], tail: bytes) -> dict[str, Array]:
        """The answer's arrays, out of the frame and out of the block."""
        found: dict[str, Array] = {}
        at = 0
        for name, dtype, shape in described:
            if dtype is None:
                place = next(each for each in self.layout.outputs if each.name == name)
                found[name] = place.of(self.block.array()).copy()
                continue
            kind = np.dtype(dtype)
            count = math.prod(shape)
            # A copy, as an array over the frame's bytes could not be written to.
            found[name] = np.frombuffer(tail, kind, count, at).reshape(shape).copy()
            at += count * kind.itemsize
        return found
