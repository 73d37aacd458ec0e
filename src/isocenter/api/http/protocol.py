"""uvicorn's HTTP protocol, and what it lacks.

- Requests are told when their caller leaves (`isocenter.api.http.connection`), behind pipelined ones too.
- A connection is closed if nothing comes for the keep-alive time, at any moment at which nothing is being answered.
  uvicorn counts that time only after an answer whose request had come completely.
- A refusal may be written before its body was read. Where the connection ends with it, the rest is read and thrown
  away for a moment: closing at once would reset the connection, and the caller would see that in place of the answer.
- What has to be refused is refused as soon as its head is there, without a task or a body in memory.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from isocenter.api.http.answer import Answer
from isocenter.api.http.connection import ARRIVED_S, CLOSE, CONNECTION, Connection

_LINGER_S: Final = 5.0
"""How long the rest of a body is still taken."""
_READ_AHEAD: Final = 8
"""So many pipelined requests are read while one is answered. Who does not read does not notice a leaver."""


RefuseAtOnce: TypeAlias = Callable[[bytes, Scope], tuple[Answer, list[tuple[bytes, bytes]]] | None]
"""By path and scope; see `isocenter.api.http.gate.Gate.refuse_at_once`."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _receiving = False
    _refused = False
    _lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count the time in which nothing comes."""
        self._patient = _PatientTransport(transport, self._may_close)
        super().connection_made(cast(asyncio.Transport, self._patient))
        self._caller = Connection(number=len(self.connections))
        # Only our own application has it; others are called as usual.
        self._refuse_at_once: RefuseAtOnce | None = getattr(self.app, "refuse_at_once", None)
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
        if self._may_refuse_at_once() and (refusal := self._refusal()) is not None:
            self._refuse(*refusal)
            return
        super().on_headers_complete()
        if self.pipeline and len(self.pipeline) <= _READ_AHEAD:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """A piece of a body; nobody wants that of a request which is answered already."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request's body is complete."""
        if not self._refused:
            super().on_message_complete()
        self._receiving = self._refused = False
        if self._lingering is not None:
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came: the rest of a body is not waited for any longer either."""
        self._receiving = False
        super().timeout_keep_alive_handler()

    def _may_refuse_at_once(self) -> bool:
        """Whether nothing stands before it on this connection, and nothing about it is out of the ordinary."""
        parser = self.parser
        return (
            self._refuse_at_once is not None
            and not self.pipeline
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.transport.is_closing()
            and parser.get_method() == b"POST"
            and not parser.should_upgrade()
        )

    def _refusal(self) -> tuple[Answer, list[tuple[bytes, bytes]]] | None:
        assert self._refuse_at_once is not None
        path, _, query = self.url.partition(b"?")
        if b"#" in query:
            return None
        self.scope["query_string"] = query
        return self._refuse_at_once(path, cast(Scope, self.scope))

    def _refuse(self, answer: Answer, headers: list[tuple[bytes, bytes]]) -> None:
        self._refused = True
        self.server_state.total_requests += 1
        # uvicorn's rule for every other answer: of HTTP/1.0, which proxies often speak, no connection is kept.
        kept = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        sent = headers if kept else [*headers, CLOSE]
        self.transport.write(_on_the_wire(answer, sent, self.server_state.default_headers))
        if not kept:
            self.transport.close()

    def _count_silence(self) -> None:
        if not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _may_close(self) -> bool:
        answered = self._refused or (self.cycle is not None and self.cycle.response_complete)
        if not (self._receiving and answered):
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


def _on_the_wire(
    answer: Answer, headers: Iterable[tuple[bytes, bytes]], default_headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    lines = [b"%b: %b\r\n" % header for header in (*default_headers, *headers)]
    return b"".join((STATUS_LINE[answer.status_code], *lines, b"\r\n", answer.body))


def _at_once() -> bool:
    return True


def _nowhere(data: Any) -> None:
    pass
