"""uvicorn's HTTP protocol, and what it lacks.

- Requests are told when their caller leaves (`isocenter.api.http.connection`), behind pipelined ones too.
- A connection is closed if nothing comes for the keep-alive time, at any moment at which nothing is being answered.
  uvicorn counts that time only after an answer whose request had come completely.
- A refusal may be written before its body was read. Where the connection ends with it, the rest is read and thrown
  away for a moment: closing at once would reset the connection, and the caller would see that in place of the answer.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from isocenter.api.http.connection import ARRIVED_S, CONNECTION, Connection

_LINGER_S: Final = 5.0
"""How long the rest of a body is still taken."""
_READ_AHEAD: Final = 8
"""So many pipelined requests are read while one is answered. Who does not read does not notice a leaver."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _receiving = False
    _lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count the time in which nothing comes."""
        self._patient = _PatientTransport(transport, self._may_close)
        super().connection_made(cast(asyncio.Transport, self._patient))
        self._caller = Connection(number=len(self.connections))
        self._count_silence()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered."""
        self._patient.give_up()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self._lingering is not None:
            self._lingering.cancel()
        self._caller.lose()

    def data_received(self, data: bytes) -> None:
        """Take in what came."""
        super().data_received(data)
        if self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            self._count_silence()

    def on_headers_complete(self) -> None:
        """A request may be answered now, or after those before it."""
        self._receiving = True
        self.scope[CONNECTION] = self._caller  # type: ignore[typeddict-unknown-key]
        self.scope[ARRIVED_S] = time.monotonic()  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if self.pipeline and len(self.pipeline) <= _READ_AHEAD:
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        """A request's body is complete."""
        super().on_message_complete()
        self._receiving = False
        if self._lingering is not None:
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came: the rest of a body is not waited for any longer either."""
        self._receiving = False
        super().timeout_keep_alive_handler()

    def _count_silence(self) -> None:
        if not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _may_close(self) -> bool:
        if not (self._receiving and self.cycle is not None and self.cycle.response_complete):
            return True
        self._lingering = self.loop.call_later(_LINGER_S, self.transport.close)
        self.flow.resume_reading()
        return False


class _PatientTransport:
    """A transport whose `close` waits for the rest of a body; a second one waits for nothing."""

    __slots__ = ("_closing", "_may_close", "_transport", "pause_reading", "resume_reading", "write")

    def __init__(self, transport: asyncio.Transport, may_close: Callable[[], bool]) -> None:
        self._transport = transport
        self._may_close = may_close
        self._closing = False
        # Bound here, so that they cost nothing more.
        self.write = transport.write
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def close(self) -> None:
        if self._closing or self._may_close():
            self._transport.close()
        self._closing = True

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def give_up(self) -> None:
        """The connection is gone. Nobody is asked any more, and nothing refers to the protocol."""
        self._closing = True
        self._may_close = _at_once
        # uvicorn marks only the request that came last as left by its caller; one before it may still be answered.
        self.write = _nowhere

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _at_once() -> bool:
    return True


def _nowhere(data: Any) -> None:
    pass
