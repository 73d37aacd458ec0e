"""The engine process' end of the links: it announces engines, runs what front ends submit, and answers."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from isocenter.core.clock import Clock
from isocenter.core.errors import IsocenterError
from isocenter.core.events import Event, MemoryPressure, Observer, StateChanged
from isocenter.engine.engine import InlineEngine
from isocenter.engine.link.arena import ArenaView
from isocenter.engine.link.board import SLOTS, Board, Glance
from isocenter.engine.link.card import EngineCard, Speed
from isocenter.engine.link.errors import error_to_json
from isocenter.engine.link.frames import Kind, event_from_json
from isocenter.engine.link.front_end import FrontEnd
from isocenter.engine.link.layout import Layout, lay_out

AnswerQuestion: TypeAlias = Callable[[str, Any], Awaitable[tuple[Any, bytes]]]
"""What a question's name and argument are answered with: plain data, and bytes."""

_SPEED_EVERY_S = 0.2


@dataclass(slots=True)
class Hosted:
    """One engine that front ends know, or knew until a moment ago."""

    engine: InlineEngine
    card: EngineCard
    layout: Layout | None
    """None if shapes vary: then each request has its own."""
    speed: Speed
    speed_told_at_s: float
    current: bool = True
    still_used_by: set[FrontEnd] = field(default_factory=set)
    """The front ends that may still send requests after the engine was taken from the list."""
    unused: asyncio.Event = field(default_factory=asyncio.Event)


class EngineHost:
    """Announces engines to front ends and runs their requests. Lives on one event loop.

    It observes the events of the engines, to keep the board as things are.
    """

    def __init__(
        self,
        *,
        board: Board,
        clock: Clock,
        observer: Observer,
        answer: AnswerQuestion,
        logger: logging.Logger,
    ) -> None:
        self._board = board
        self._clock = clock
        self._observer = observer
        self._answer = answer
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._hosted: dict[int, Hosted] = {}
        self._made = 0
        self._free_slots = list(range(SLOTS))[::-1]
        self._front_ends: set[FrontEnd] = set()
        self._changed: set[tuple[str, int]] = set()
        self._states_changed = False

    # What is served.

    def publish(self, engines: Iterable[tuple[InlineEngine, Mapping[str, Any]]]) -> None:
        """Announce all engines that may be asked from now on, each with what is to be known about it.

        An engine that is published no more still answers what comes: wait for `unused` before it is drained.
        """
        known = {id(hosted.engine): hosted for hosted in self._hosted.values() if hosted.current}
        listed: set[int] = set()
        for engine, about in engines:
            hosted = known.get(id(engine)) or self._take_in(engine)
            hosted.card = _card(hosted.card.index, hosted.card.slot, engine, about)
            listed.add(hosted.card.index)
        for index, hosted in self._hosted.items():
            if hosted.current and index not in listed:
                hosted.current = False
                hosted.still_used_by = set(self._front_ends)
                _note_unused(hosted)
        for front in self._front_ends:
            self._tell_models(front)

    async def unused(self, engine: InlineEngine) -> None:
        """Return when no front end can send anything more to an engine that is published no more."""
        for hosted in [each for each in self._hosted.values() if each.engine is engine and not each.current]:
            await hosted.unused.wait()

    def forget(self, engine: InlineEngine) -> None:
        """An engine has stopped; its number and its place on the board are given up."""
        for index in [index for index, each in self._hosted.items() if each.engine is engine and not each.current]:
            slot = self._hosted.pop(index).card.slot
            if slot is not None:
                self._board.counts(slot)[0] = 0
                self._free_slots.append(slot)

    def _take_in(self, engine: InlineEngine) -> Hosted:
        self._made += 1
        slot = self._free_slots.pop() if self._free_slots else None
        varies = any(-1 in spec.shape for spec in engine.inputs)
        hosted = self._hosted[self._made] = Hosted(
            engine,
            _card(self._made, slot, engine, {}),
            None if varies else lay_out(engine.inputs, engine.outputs, {}),
            Speed.of(None, ()),
            self._clock.now_s(),
        )
        self._write(hosted)
        return hosted

    def _tell_models(self, front: FrontEnd) -> None:
        current = [hosted for hosted in self._hosted.values() if hosted.current]
        front.send(Kind.MODELS, [hosted.card.as_json() for hosted in current])
        front.send(Kind.COSTS, [[hosted.card.index, hosted.speed.as_json()] for hosted in current])

    # What happens in the engines.

    def observe(self, event: Event) -> None:
        """Keep the board as things are, and tell front ends of every new state."""
        if not self._changed:
            self._loop.call_soon(self._catch_up)
        if isinstance(event, MemoryPressure):
            self._changed.update((each.engine.model, each.engine.version) for each in self._hosted.values())
        else:
            self._changed.add((event.model, event.version))
        self._states_changed = self._states_changed or isinstance(event, StateChanged)

    def _catch_up(self) -> None:
        changed, self._changed = self._changed, set()
        for hosted in self._hosted.values():
            if (hosted.engine.model, hosted.engine.version) in changed:
                self._write(hosted)
        if self._states_changed:
            self._states_changed = False
            self.publish([(each.engine, each.card.about) for each in self._hosted.values() if each.current])

    def _write(self, hosted: Hosted) -> None:
        now_s = self._clock.now_s()
        engine, slot = hosted.engine, hosted.card.slot
        view = engine.view(now_s)
        if slot is not None:
            np.copyto(self._board.counts(slot)[0], engine.backlog.counts)
            busy = view.busy
            self._board.write(
                slot, Glance(busy.instances, busy.left_s, now_s, view.knows, view.memory_is_short, engine.queued)
            )
        if now_s - hosted.speed_told_at_s >= _SPEED_EVERY_S or not hosted.speed.curve:
            hosted.speed_told_at_s = now_s
            speed = Speed.of(view.cost, tuple(view.sizes), engine.caution_s)
            if not speed.like(hosted.speed):
                hosted.speed = speed
                for front in self._front_ends:
                    front.send(Kind.COSTS, [[hosted.card.index, speed.as_json()]])

    # Front ends.

    @property
    def requests(self) -> int:
        """Requests of all front ends that are not answered yet."""
        return sum(front.requests for front in self._front_ends)

    async def connect(self, number: int, sock: socket.socket, arena_fd: int, arena_bytes: int) -> None:
        """Take in a front end over its link; the descriptor of its arena is closed here."""
        try:
            arena = ArenaView(arena_fd, arena_bytes)
        finally:
            os.close(arena_fd)
        front = FrontEnd(self, number, arena)
        await front.open(sock)
        self._front_ends.add(front)
        self._tell_models(front)

    def close(self) -> None:
        """Hang up on everybody."""
        for front in list(self._front_ends):
            front.close()

    def hosted(self, index: int) -> Hosted | None:
        """The engine with a number."""
        return self._hosted.get(index)

    def hand_on(self, events: list[list[Any]]) -> None:
        """What happened in a front end is counted here."""
        for event in events:
            self._observer.observe(event_from_json(event))

    async def tell(self, what: str, argument: Any) -> tuple[list[Any] | None, Any, bytes]:
        """Error, data and bytes for a question."""
        try:
            data, tail = await self._answer(what, argument)
        except IsocenterError as error:
            return error_to_json(error), None, b""
        except Exception as error:
            self.unexpected(error)
            return error_to_json(error), None, b""
        return None, data, tail

    def retired(self, front: FrontEnd, index: int) -> None:
        """A front end sends nothing more to an engine that was taken from the list."""
        hosted = self._hosted.get(index)
        if hosted is not None and not hosted.current:
            hosted.still_used_by.discard(front)
            _note_unused(hosted)

    def gone(self, front: FrontEnd) -> None:
        """A front end has hung up or died, and what it had reserved with it."""
        self._front_ends.discard(front)
        self._board.clear_row(1 + front.number)
        for hosted in self._hosted.values():
            hosted.still_used_by.discard(front)
            if not hosted.current:
                _note_unused(hosted)

    def unexpected(self, error: Exception) -> None:
        """A defect of ours came to light."""
        self._logger.error("unexpected", exc_info=error)


def _note_unused(hosted: Hosted) -> None:
    if not hosted.still_used_by:
        hosted.unused.set()


def _card(index: int, slot: int | None, engine: InlineEngine, about: Mapping[str, Any]) -> EngineCard:
    return EngineCard(
        index=index,
        slot=slot,
        model=engine.model,
        version=engine.version,
        state=engine.state,
        inputs=engine.inputs,
        outputs=engine.outputs,
        timeout_s=engine.timeout_s,
        limits=engine.limits,
        about=about,
    )
