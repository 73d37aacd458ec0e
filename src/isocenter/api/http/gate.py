"""The outermost layer: request ids, the door, and the last net under everything.

Plain ASGI, as every request passes through it and a framework's middleware would cost more than the gate itself.
"""

import asyncio
import itertools
import logging
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isocenter.api.http.answer import Answer
from isocenter.api.http.connection import ARRIVED_S, CLOSE, CONNECTION, Connection
from isocenter.api.http.problems import as_asked, problem, problem_response
from isocenter.core.clock import Clock
from isocenter.core.errors import BadInput, BadRequest, Draining, IsocenterError, Overloaded, Refused
from isocenter.core.events import Answered, Observer
from isocenter.serving.health import Door

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
"""Its answer has a whole body: nothing is streamed."""

Glance: TypeAlias = Callable[[Scope], Answer | None]
"""Answers a request by its head, if it has to be refused now. Reads HEADERS, STARTED_S and the query string."""

HEADERS: Final = "isocenter.headers"
"""Where the headers stand as a mapping of bytes, lower case; of one given twice, the first."""
REQUEST_ID: Final = "isocenter.request_id"
STARTED_S: Final = "isocenter.started_s"
ALWAYS_OPEN: Final = frozenset({"/livez", "/readyz", "/health", "/metrics", "/api/v1/health", "/api/v1/status"})

_ONCE: Final = frozenset({b"content-type", b"idempotency-key", b"transfer-encoding", b"x-timeout-ms"})
"""Headers of which the second would say something else."""
_SAFE_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_RETRY_AFTER_S: Final = 2.0


class Gate:
    """Counts who is inside, so that a drain knows when the last one has left.

    `direct` holds the endpoints, by path, whose POST skips the framework: for a small model, routing and dependency
    solving would cost as much as the model. `glances` hold, by path, those who can refuse a POST by its head: at four
    times of what a machine can do, three of four requests are refused, and their cost comes off the fourth.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        door: Door,
        clock: Clock,
        logger: logging.Logger,
        observer: Observer,
        direct: Mapping[str, Endpoint] | None = None,
        glances: Mapping[str, Glance] | None = None,
        max_connections: float = math.inf,
    ) -> None:
        """Put it in front of `app`. Connections beyond `max_connections` are told to come back later, and closed."""
        self._app = app
        self._direct = direct or {}
        self._glances = {path.encode("ascii"): glance for path, glance in (glances or {}).items()}
        self._door = door
        self._clock = clock
        self._logger = logger
        self._observer = observer
        self._max_connections = max_connections
        # A random id asks the system each time. 80 random bits for the gate and a number for the request are as good.
        self._ids = map(f"{secrets.token_hex(10)}{{:012x}}".format, itertools.count())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if HEADERS not in scope:
            self._begin(scope)
        if scope["method"] == "HEAD":  # the server beneath writes no body, by the scope that it has
            scope = {**scope, "method": "GET"}
        if (error := _mistake_of(scope)) is not None:
            await self._turn_away(error, scope, send)
            return
        if scope["path"] in ALWAYS_OPEN:
            await self._app(scope, receive, self._sender(scope, send))
            return
        connection: Connection | None = scope.get(CONNECTION)
        if not self._door.is_open or (connection is not None and connection.number > self._max_connections):
            await self._refuse(scope, send, connection)
            return
        self._door.enter()
        try:
            endpoint = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
            if endpoint is None:
                await self._through_the_framework(scope, receive, send)
            else:
                await self._directly(endpoint, scope, receive, send)
        finally:
            self._door.leave()

    def refuse_at_once(self, path: bytes, scope: Scope) -> tuple[Answer, list[tuple[bytes, bytes]]] | None:
        """The answer to a POST that has to be refused now, and its headers; None to all others, to be called as usual.

        The scope holds what is known when the head of a request is there: headers and query string.
        """
        glance = self._glances.get(path)
        connection: Connection | None = scope.get(CONNECTION)
        beyond = connection is not None and connection.number > self._max_connections
        if glance is None or beyond or not self._door.is_open:
            return None
        self._begin(scope)
        if b"expect" in scope[HEADERS] or _mistake_of(scope) is not None:
            return None
        try:
            answer = glance(scope)
        except Exception:
            answer = self._unexpected(scope)
        if answer is None:
            return None
        return answer, self._finished(answer.raw_headers, answer.status_code, scope)

    def refuse_the_rest(self, error: BadInput) -> tuple[Answer, list[tuple[bytes, bytes]]]:
        """The last answer on a connection on which something came that is no request, and its headers."""
        self._observer.observe(Answered("http", "", 0, error.code, 0.0, {}))
        answer = problem(error)
        return answer, [*answer.raw_headers, (b"x-request-id", next(self._ids).encode()), CLOSE]

    def _begin(self, scope: Scope) -> None:
        # Since its head came, where the server says so: the loop may have had much to do before it came to this.
        arrived_s = scope.get(ARRIVED_S)
        scope[STARTED_S] = self._clock.now_s() if arrived_s is None else arrived_s
        scope[HEADERS] = headers = dict(reversed(scope["headers"]))
        given = headers.get(b"x-request-id")
        scope[REQUEST_ID] = given.decode("ascii") if given and _SAFE_ID.fullmatch(given) else next(self._ids)

    async def _refuse(self, scope: Scope, send: Send, connection: Connection | None) -> None:
        refusal: Refused
        if connection is None or not self._door.is_open:
            refusal = _draining()
        else:
            refusal = Overloaded(
                f"{connection.number} connections are open, the limit is {self._max_connections}",
                details={"connections": connection.number, "limit": self._max_connections, "where": "door"},
                retry_after_s=_RETRY_AFTER_S,
            )
        await self._turn_away(refusal, scope, send)

    async def _turn_away(self, error: IsocenterError, scope: Scope, send: Send) -> None:
        """Say why a request goes no further than here, and close the connection; it is counted."""
        self._observer.observe(Answered("http", "", 0, error.code, 0.0, {}))
        await self._write(as_asked(scope["path"], problem(error)), scope, send, close=True)

    async def _directly(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False
        try:
            response = await endpoint(Request(scope, receive))
            answered = True
            await self._write(response, scope, send)
        except asyncio.CancelledError:
            if answered or self._door.is_open:
                raise
            await self._turn_away(_draining(), scope, send)  # a drain is over: the cancellation goes no further
        except Exception:
            problem = self._unexpected(scope)
            if not answered:
                await self._write(problem, scope, send)

    async def _through_the_framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def noticing(message: Message) -> None:
            nonlocal answered
            answered = True
            await finishing(message)

        finishing = self._sender(scope, send)
        try:
            await self._app(scope, receive, noticing)
        except asyncio.CancelledError:
            if answered or self._door.is_open:
                raise
            await self._turn_away(_draining(), scope, send)  # a drain is over: the cancellation goes no further
        except Exception:
            problem = self._unexpected(scope)
            if not answered:
                await self._write(problem, scope, send)

    async def _write(self, response: Response, scope: Scope, send: Send, *, close: bool = False) -> None:
        """Two messages, without the framework's way of sending."""
        status = response.status_code
        headers = self._finished(response.raw_headers, status, scope, close=close)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    def _sender(self, scope: Scope, send: Send) -> Send:
        async def finishing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = self._finished(message.get("headers", ()), message["status"], scope)
            await send(message)

        return finishing

    def _finished(
        self, headers: Iterable[tuple[bytes, bytes]], status: int, scope: Scope, *, close: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """An answer's headers, and those that every answer has."""
        finished = [*headers, (b"x-request-id", scope[REQUEST_ID].encode())]
        # Who asked first whether he may send, and is refused, does not send: what comes next on his connection could
        # be taken for the body (RFC 9110, 10.1.1).
        if close or not self._door.is_open or (status >= 400 and b"expect" in scope[HEADERS]):
            finished.append(CLOSE)
        return finished

    def _unexpected(self, scope: Scope) -> Answer:
        request_id = scope[REQUEST_ID]
        self._logger.exception("unexpected", extra={"request_id": request_id})
        answer = problem_response("internal", "an unexpected error; this is a bug", {"request_id": request_id})
        return as_asked(scope.get("path", ""), answer)  # at a glance, there is no path yet


def _draining() -> Draining:
    return Draining("the server is stopping; ask another one", retry_after_s=_RETRY_AFTER_S)


def _mistake_of(scope: Scope) -> IsocenterError | None:
    """What a head must not say."""
    headers = scope[HEADERS]
    coding = headers.get(b"transfer-encoding")
    if coding is not None and coding.strip(b" \t").lower() != b"chunked":
        return BadRequest(f"Transfer-Encoding is {coding[:64].decode('latin-1')!r}; of these, chunked is understood")
    if len(headers) == len(scope["headers"]):
        return None
    names = [name for name, _ in scope["headers"] if name in _ONCE]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is None:
        return None
    return BadRequest(f"the header {twice.decode().title()} is given twice; which one is meant is not guessed")
