"""What crosses the socket between a front end and the engine process: frames of a JSON head and a tail of bytes."""

import asyncio
import math
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, Self, TypeAlias, cast, get_args

import numpy as np
import orjson

from isocenter.core.events import Event
from isocenter.core.tensor import TensorSpec


class Kind(IntEnum):
    """What a frame says. Heads are lists or mappings, as the senders' functions show."""

    # From a front end.
    SUBMIT = 1
    LEAVE = 2
    """The caller of a request has left."""
    EVENTS = 3
    ASK = 4
    """A question about the engine process: metrics, statistics, a reload."""
    RETIRED = 5
    """Nothing more comes from here for an engine that was taken from the list."""
    # From the engine process.
    MODELS = 16
    """Every version that is served; sent again after each change."""
    COSTS = 17
    RESULT = 18
    """An answer; its block may be used again."""
    ERROR = 19
    """A typed error; the block follows with FREED."""
    FREED = 20
    """Nothing reads a request's block any more."""
    TOLD = 21
    """The answer to a question."""


OnFrame: TypeAlias = Callable[[Kind, Any, bytes], None]

_PREFIX: Final = struct.Struct("<IIB")


class Channel(asyncio.Protocol):
    """One end of a link. Frames that are sent in one turn of the loop leave in one write."""

    def __init__(self, on_frame: OnFrame, on_lost: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()
        self._unsent: list[bytes] = []

    @classmethod
    async def open(cls, sock: socket.socket, on_frame: OnFrame, on_lost: Callable[[], None]) -> Self:
        """Talk over a connected unix socket, which belongs to the channel from here on."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(on_frame, on_lost), sock=sock)
        return channel

    @property
    def is_open(self) -> bool:
        """Whether what is sent can arrive."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def unsent_bytes(self) -> int:
        """What the other end has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, kind: Kind, head: object, tail: bytes = b"") -> None:
        """Send one frame; on a closed channel it vanishes."""
        if not self.is_open:
            return
        data = orjson.dumps(head, option=orjson.OPT_NON_STR_KEYS, default=_plain)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += (_PREFIX.pack(len(data), len(tail), kind), data, tail)

    def close(self) -> None:
        """Send what is left and close."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _flush(self) -> None:
        if self._unsent and self._transport is not None:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        self._rest += data
        at = 0
        while len(self._rest) - at >= _PREFIX.size:
            head_size, tail_size, kind = _PREFIX.unpack_from(self._rest, at)
            head_at = at + _PREFIX.size
            end = head_at + head_size + tail_size
            if end > len(self._rest):
                break
            head = orjson.loads(self._rest[head_at : head_at + head_size])
            self._on_frame(Kind(kind), head, bytes(self._rest[head_at + head_size : end]))
            at = end
        del self._rest[:at]

    def connection_lost(self, error: Exception | None) -> None:
        self._unsent.clear()
        self._on_lost()


def _plain(value: object) -> object:
    # A number beyond 64 bits, as a lying picture's header may announce it, and whatever else JSON has no word for.
    return float(value) if isinstance(value, int) and abs(value) < 2**1000 else str(value)


# Specs, instants, events: as plain data and back.


def specs_to_json(specs: tuple[TensorSpec, ...]) -> list[list[Any]]:
    """Names, element types and shapes."""
    return [[spec.name, spec.dtype.str, list(spec.shape)] for spec in specs]


def specs_from_json(data: list[list[Any]]) -> tuple[TensorSpec, ...]:
    """The way back."""
    return tuple(TensorSpec(name, np.dtype(dtype), tuple(shape)) for name, dtype, shape in data)


def instant_to_json(at_s: float) -> float | None:
    """JSON knows no infinity."""
    return None if math.isinf(at_s) else at_s


def instant_from_json(at_s: float | None) -> float:
    """The way back."""
    return math.inf if at_s is None else at_s


def event_to_json(event: Event) -> list[Any]:
    """The name of its class, then its fields in order."""
    return [type(event).__name__, *(getattr(event, name) for name in _FIELDS[type(event)])]


def event_from_json(data: list[Any]) -> Event:
    """The way back."""
    event: Event = _EVENTS[data[0]](*data[1:])
    return event


_EVENTS: Final[dict[str, type[Any]]] = {kind.__name__: kind for kind in get_args(Event)}
_FIELDS: Final = {kind: tuple(kind.__dataclass_fields__) for kind in _EVENTS.values()}
