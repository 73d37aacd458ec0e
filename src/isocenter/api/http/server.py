"""uvicorn, as we run it: on a listener, or on connections that somebody else has accepted."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from isocenter.api.http.connection import http_protocol


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: it would close the listening socket before the drain."""

    def __init__(self, http: ASGIApp, *, backlog: int, keep_alive_s: float) -> None:
        config = uvicorn.Config(
            http,
            http=http_protocol(),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=backlog,
            timeout_keep_alive=int(max(1, keep_alive_s)),
            timeout_graceful_shutdown=1,  # the door has waited already
        )
        super().__init__(config)
        config.load()
        self.listening = asyncio.Event()
        self._counted = _counted(config.http_protocol_class)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        try:
            await super().startup(sockets)
        finally:
            self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def take(self, connection: socket.socket, on_lost: Callable[[], None]) -> None:
        """Serve a connection that was accepted elsewhere; `on_lost` is called at its end."""

        def protocol() -> asyncio.Protocol:
            made = self._counted(config=self.config, server_state=self.server_state, app_state={})
            made.on_lost = on_lost
            return cast(asyncio.Protocol, made)

        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)
        except OSError:  # the caller has hung up already
            connection.close()
            on_lost()


def _counted(kind: Any) -> Any:
    """The protocol class, and somebody who is told of a connection's end. No closure, which would be a cycle."""

    class Counted(kind):  # type: ignore[misc]
        on_lost: Callable[[], None]

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.on_lost()

    return Counted
