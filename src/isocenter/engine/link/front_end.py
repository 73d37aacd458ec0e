"""One front end as the engine process sees it: its requests, and the memory they lie in."""

import asyncio
import socket
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isocenter.core.deadline import Deadline
from isocenter.core.errors import IsocenterError, NotReady, without_frames
from isocenter.core.request import Request, Result
from isocenter.core.tensor import Array
from isocenter.engine.engine import InlineEngine
from isocenter.engine.link.arena import ArenaView
from isocenter.engine.link.errors import error_to_json
from isocenter.engine.link.frames import Channel, Kind, instant_from_json
from isocenter.engine.link.layout import Layout, lay_out
from isocenter.engine.queue import Entry

if TYPE_CHECKING:
    from isocenter.engine.link.server import EngineHost


class FrontEnd:
    """One link. When it is cut, nobody waits for anything that came over it."""

    def __init__(self, host: "EngineHost", number: int, arena: ArenaView) -> None:
        self.number = number
        self._host = host
        self._arena = arena
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._requests: dict[int, _RemoteReply] = {}
        self._read: dict[int, weakref.ref[Array]] = {}
        """The memory of every request that a run may still read, answered or not."""
        self._questions: set[asyncio.Task[None]] = set()

    @property
    def requests(self) -> int:
        """Requests that are not answered yet."""
        return len(self._requests)

    async def open(self, sock: socket.socket) -> None:
        """Begin to listen."""
        self._channel = await Channel.open(sock, self._came, self._lost)

    def send(self, kind: Kind, head: object, tail: bytes = b"") -> None:
        """Send one frame."""
        if self._channel is not None:
            self._channel.send(kind, head, tail)

    def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            self._channel.close()

    def _came(self, kind: Kind, head: Any, _: bytes) -> None:
        match kind:
            case Kind.SUBMIT:
                self._submit(*head)
            case Kind.LEAVE:
                if head in self._requests:
                    self._requests[head].leave()
            case Kind.EVENTS:
                self._host.hand_on(head)
            case Kind.ASK:
                question = self._loop.create_task(self._tell(*head))
                self._questions.add(question)
                question.add_done_callback(self._questions.discard)
            case Kind.RETIRED:
                self._host.retired(self, head)
            case _:
                raise ValueError(f"a front end does not send {kind.name}")

    def _lost(self) -> None:
        """Queued work is dropped; what runs over the arena's memory keeps it until it is done."""
        self._channel = None
        self._read.clear()
        for reply in list(self._requests.values()):
            reply.leave()
        for question in self._questions:
            question.cancel()
        self._host.gone(self)

    async def _tell(self, number: int, what: str, argument: Any) -> None:
        error, data, tail = await self._host.tell(what, argument)
        self.send(Kind.TOLD, [number, error, data], tail)

    # Requests.

    def _submit(
        self,
        number: int,
        index: int,
        offset: int,
        deadline_s: float | None,
        priority: int,
        group: str,
        request_id: str,
        shapes: dict[str, list[int]] | None,
    ) -> None:
        hosted = self._host.hosted(index)
        if hosted is None:
            self.fail(number, NotReady("this version is no longer served", retry_after_s=1.0))
            self.send(Kind.FREED, number)
            return
        engine = hosted.engine
        layout = hosted.layout or _laid_out(engine, shapes)
        block = self._arena.item_bytes(offset, layout.size)
        # Whichever thread drops the last view of the item comes through here.
        self._read[number] = weakref.ref(block, lambda _: self._soon_freed(number))
        reply = self._requests[number] = _RemoteReply(self, number, engine, layout, offset)
        try:
            reply.entry = engine.submit(
                Request(
                    request_id,
                    layout.item(block),
                    Deadline(instant_from_json(deadline_s)),
                    priority=priority,
                    group=group,
                ),
                reply,
            )
        except IsocenterError as error:
            reply.fail(error)
        except Exception as error:
            self._host.unexpected(error)
            reply.fail(error)

    def over(self, number: int) -> None:
        """A request is settled one way or another."""
        self._requests.pop(number, None)

    def fail(self, number: int, error: Exception) -> None:
        """Tell of an error; the block is given back when nothing reads it any more."""
        if isinstance(error, IsocenterError):
            without_frames(error)
        else:
            error.__traceback__ = None  # its frames hold the item
        self.send(Kind.ERROR, [number, *error_to_json(error)])

    def settle(self, number: int, result: Result, layout: Layout, offset: int) -> None:
        """Send the answer. The only run that read the item is over, so the block goes back with it."""
        self._read.pop(number, None)
        described: list[list[Any]] = []
        tail = b""
        places = {place.name: place for place in layout.outputs}
        for name, array in result.outputs.items():
            place = places.get(name)
            if place is not None and (array.shape, array.dtype) == (place.shape, place.dtype):
                np.copyto(place.of(self._arena.output_bytes(offset, layout.size)), array)
                described.append([name, None, None])
            else:
                described.append([name, array.dtype.str, array.shape])
                tail += array.tobytes()
        timings = result.timings
        head = [number, timings.queue_s, timings.service_s, timings.batch_size, result.fallback, described]
        self.send(Kind.RESULT, head, tail)

    def _soon_freed(self, number: int) -> None:
        try:
            self._loop.call_soon_threadsafe(self._freed, number)
        except RuntimeError:
            return  # the loop is closed: nobody is left to tell

    def _freed(self, number: int) -> None:
        if self._read.pop(number, None) is not None:
            self.send(Kind.FREED, number)


class _RemoteReply:
    """What an engine settles; the caller waits in another process."""

    __slots__ = ("_engine", "_front", "_layout", "_number", "_offset", "entry", "settled")

    def __init__(self, front: FrontEnd, number: int, engine: InlineEngine, layout: Layout, offset: int) -> None:
        self.settled = False
        self.entry: Entry | None = None
        self._front, self._number, self._engine = front, number, engine
        self._layout, self._offset = layout, offset

    def settle(self, answer: Result) -> bool:
        """Give the answer; False if nobody waits for it any more."""
        if self.settled:
            return False
        self._end()
        self._front.settle(self._number, answer, self._layout, self._offset)
        return True

    def fail(self, error: Exception) -> bool:
        """Give an error instead of an answer; False if nobody waits for it any more."""
        if self.settled:
            return False
        self._end()
        self._front.fail(self._number, error)
        return True

    def leave(self) -> None:
        """The caller has left: what is queued is dropped."""
        if self.settled:
            return
        entry = self.entry
        self._end()
        if entry is not None:
            self._engine.leave(entry)

    def _end(self) -> None:
        self.settled = True
        self.entry = None
        self._front.over(self._number)


def _laid_out(engine: InlineEngine, shapes: Mapping[str, list[int]] | None) -> Layout:
    return lay_out(engine.inputs, engine.outputs, {name: tuple(shape) for name, shape in (shapes or {}).items()})
