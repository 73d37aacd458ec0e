"""uvicorn's HTTP protocol, and what it lacks.

- Requests are told when their caller leaves (`isocenter.api.http.connection`), behind pipelined ones too.
- A connection is closed if nothing comes for the keep-alive time, at any moment at which nothing is being answered.
  uvicorn counts that time only after an answer whose request had come completely.
- A refusal may be written before its body was read. Where the connection ends with it, the rest is read and thrown
  away for a moment: closing at once would reset the connection, and the caller would see that in place of the answer.
- What has to be refused is refused as soon as its head is there, without a task or a body in memory.
- What is no HTTP/1.1 is refused like everything else, after the answers to what came before it.
- The head of a request is bounded in bytes and in time, and so is what stands beside a body: trailers, and what a chunk
  says beside its length.
- An offer to go on in another protocol is ignored (RFC 9110, 7.8). Java's client makes one with every request.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from isocenter.api.http.answer import Answer
from isocenter.api.http.connection import ARRIVED_S, CLOSE, CONNECTION, Connection
from isocenter.core.errors import BadInput, BadRequest, TooManyBytes

_LINGER_S: Final = 5.0
"""How long the rest of a body is still taken."""
_READ_AHEAD: Final = 8
"""So many pipelined requests are read while one is answered. Who does not read does not notice a leaver."""
_MAX_HEAD_BYTES: Final = 65_536
"""Of one head, of the trailers, and of what comes with one chunk."""
_OF_AN_UPGRADE: Final = frozenset({b"upgrade", b"http2-settings"})
"""Headers that offer another protocol, and what `Connection` calls them."""

Headed: TypeAlias = tuple[Answer, list[tuple[bytes, bytes]]]
"""An answer, and all headers that it is sent with."""
RefuseAtOnce: TypeAlias = Callable[[bytes, Scope], Headed | None]
"""By path and scope; see `isocenter.api.http.gate.Gate.refuse_at_once`."""
RefuseTheRest: TypeAlias = Callable[[BadInput], Headed]
"""See `isocenter.api.http.gate.Gate.refuse_the_rest`."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _receiving = False
    _refused = False
    _lingering: asyncio.TimerHandle | None = None
    _last: Headed | None = None
    """The answer after which nothing is read any more."""
    _beside_bytes = 0
    """What came since the last request was complete, or since the last piece of the body; but for the rest of what came
    with that."""
    _piece_bytes = 0
    """What came last."""
    _head_most_bytes = 0
    """What came since the head began, and what came with its beginning."""
    _head_began_s: float | None = None
    """On the loop's clock, while a head is coming."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count the time in which nothing comes."""
        self._patient = _PatientTransport(transport, self._may_close)
        super().connection_made(cast(asyncio.Transport, self._patient))
        self._caller = Connection(number=len(self.connections))
        # Only our own application has it; others are called as usual.
        self._refuse_at_once: RefuseAtOnce | None = getattr(self.app, "refuse_at_once", None)
        self._refuse_the_rest: RefuseTheRest | None = getattr(self.app, "refuse_the_rest", None)
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
        self._unset_keepalive_if_required()
        if self._last is not None:
            return
        self._piece_bytes = len(data)
        self._beside_bytes += self._piece_bytes
        self._head_most_bytes += self._piece_bytes
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._end(_refusal_of(error))
            return
        if self._beside_bytes > _MAX_HEAD_BYTES:
            self._end(_too_long(self._beside_bytes))
        elif self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            self._count_silence()

    def on_message_begin(self) -> None:
        """The first byte of a head."""
        super().on_message_begin()
        self._head_began_s, self._head_most_bytes = self.loop.time(), self._piece_bytes

    def on_headers_complete(self) -> None:
        """A request may be answered now, or after those before it."""
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            raise BadRequest(f"HTTP/{self.parser.get_http_version()} is not spoken here; 1.1 and 1.0 are")
        if self._head_most_bytes > _MAX_HEAD_BYTES and (size := self._size_of_head()) > _MAX_HEAD_BYTES:
            raise _too_long(size)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise BadRequest("CONNECT is not possible here")
            return
        self._beside_bytes, self._head_began_s = 0, None
        self.headers = []  # the scope has the head's; what stands behind a body goes here, where nobody looks
        self.scope[CONNECTION] = self._caller  # type: ignore[typeddict-unknown-key]
        self.scope[ARRIVED_S] = time.monotonic()  # type: ignore[typeddict-unknown-key]
        if self._may_refuse_at_once() and (refusal := self._refusal()) is not None:
            self._receiving = True
            self._refuse(*refusal)
            return
        super().on_headers_complete()  # raises if the target is no URL
        self._receiving = True
        if self.pipeline and len(self.pipeline) <= _READ_AHEAD:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """A piece of a body; nobody wants that of a request which is answered already."""
        self._beside_bytes = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request's body is complete."""
        if not self._refused and not self.parser.should_upgrade():
            super().on_message_complete()
        self._receiving = self._refused = False
        self._beside_bytes = 0
        if self._lingering is not None:
            self.transport.close()

    def on_response_complete(self) -> None:
        """An answer is written; the next one is begun, or the last one of all is sent."""
        more = bool(self.pipeline)
        super().on_response_complete()
        if self._last is not None and not more:
            self._write_last()
        elif self._head_began_s is not None and self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
            self._count_silence()

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
        )

    def _feed(self, data: bytes) -> None:
        """Have it parsed. At an offer to go on in another protocol the parser stops, as if it were accepted."""
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                head = self._head_without_offer()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
                self.parser.feed_data(head)
            else:
                return

    def _head_without_offer(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = (token.strip() for token in value.split(b","))
                value = b", ".join(token for token in tokens if token.lower() not in _OF_AN_UPGRADE)
            if name not in _OF_AN_UPGRADE:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join((*lines, b"", b""))

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _end(self, error: BadInput) -> None:
        """Refuse what came, after the answers to everything before it, and read nothing more."""
        if self._refuse_the_rest is None:
            self.send_400_response(error.message)
            return
        self._last = self._refuse_the_rest(error)
        cycle, receiving = self.cycle, self._receiving
        answered = self._refused or cycle is None or cycle.response_complete
        self._receiving = False
        if not receiving:
            if answered:
                self._write_last()
        elif answered:  # already: nothing is said to it twice
            self._linger()
        elif self.pipeline:
            self.pipeline.popleft()  # the one that came last, which will never be complete
        elif cycle.response_started:  # the rest of that answer is all that may be written
            self.transport.close()
        else:
            cycle.disconnected = True  # whoever waits for its body is told that the caller left
            cycle.message_event.set()
            self._caller.lose()
            self._write_last()

    def _write_last(self) -> None:
        assert self._last is not None
        if self.transport.is_closing():
            return
        answer, headers = self._last
        self.transport.write(_on_the_wire(answer, headers, self.server_state.default_headers))
        self._linger()

    def _linger(self) -> None:
        """Close, but not at once: that would reset the connection of one who still sends, before he has read it all."""
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            self.transport.close()
            return
        self._patient.write_eof()
        self._lingering = self.loop.call_later(_LINGER_S, self.transport.close)

    def _refusal(self) -> Headed | None:
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
        if self.transport.is_closing():
            return
        patience_s: float = self.timeout_keep_alive
        if self._head_began_s is not None:  # a head has this time from its first byte on
            patience_s -= self.loop.time() - self._head_began_s
        self.timeout_keep_alive_task = self.loop.call_later(patience_s, self.timeout_keep_alive_handler)

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


def _refusal_of(error: httptools.HttpParserError) -> BadInput:
    if not isinstance(error, httptools.HttpParserCallbackError):
        return BadRequest(f"this is not HTTP/1.1: {error}")
    if isinstance(error.__context__, BadInput):  # what a callback raised
        return error.__context__
    return BadRequest("the target of the request is no URL")


def _too_long(size: int) -> TooManyBytes:
    return TooManyBytes(
        f"the head of the request, or what stands beside its body, has {size} bytes or more; the limit is "
        f"{_MAX_HEAD_BYTES}",
        details={"bytes": size, "limit": _MAX_HEAD_BYTES},
    )


def _at_once() -> bool:
    return True


def _nowhere(data: Any) -> None:
    pass
