"""The outermost layer: request ids, the door, and the last net under everything.

Plain ASGI, as every request passes through it and a framework's middleware would cost more than the gate itself.
"""

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isocenter.api.http.problems import problem, problem_response
from isocenter.core.clock import Clock
from isocenter.core.errors import Draining
from isocenter.core.events import Answered, Observer
from isocenter.serving.health import Door

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

REQUEST_ID: Final = "isocenter.request_id"
STARTED_S: Final = "isocenter.started_s"
ALWAYS_OPEN: Final = frozenset({"/livez", "/readyz", "/health", "/metrics"})

_SAFE_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_RETRY_AFTER_S: Final = 2.0


class Gate:
    """Counts who is inside, so that a drain knows when the last one has left.

    `direct` holds the endpoints, by path, whose POST skips the framework: for a small model, routing and dependency
    solving would cost as much as the model.
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
    ) -> None:
        self._app = app
        self._direct = direct or {}
        self._door = door
        self._clock = clock
        self._logger = logger
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[STARTED_S] = self._clock.now_s()
        request_id = scope[REQUEST_ID] = _request_id(scope)
        answered = False

        async def send_with_id(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                headers = message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if not self._door.is_open:
                    headers.append((b"connection", b"close"))
            await send(message)

        if scope["path"] in ALWAYS_OPEN:
            await self._app(scope, receive, send_with_id)
            return
        if not self._door.is_open:
            self._observer.observe(Answered("http", "", 0, Draining.code, 0.0, {}))
            refusal = Draining("the server is stopping; ask another one", retry_after_s=_RETRY_AFTER_S)
            await problem(refusal)(scope, receive, send_with_id)
            return
        self._door.enter()
        try:
            endpoint = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
            if endpoint is None:
                await self._app(scope, receive, send_with_id)
            else:
                response = await endpoint(Request(scope, receive))
                await response(scope, receive, send_with_id)
        except Exception:
            self._logger.exception("unexpected", extra={"request_id": request_id})
            if not answered:
                response = problem_response(
                    "internal", "an unexpected error; this is a bug", {"request_id": request_id}
                )
                await response(scope, receive, send_with_id)
        finally:
            self._door.leave()


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SAFE_ID.fullmatch(value):
            return str(value.decode("ascii"))
    return uuid.uuid4().hex
