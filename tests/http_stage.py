"""An endpoint whose answers a test holds back, the server in front of it, and callers byte by byte."""

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
import uvloop
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from isocenter.api.http.answer import Answer
from isocenter.api.http.connection import WhileConnected, http_protocol
from isocenter.api.http.gate import HEADERS, Gate
from isocenter.api.http.problems import problem
from isocenter.api.http.protocol import HttpProtocol
from isocenter.core.clock import SystemClock
from isocenter.core.errors import Abandoned, Overloaded
from isocenter.core.events import RecordingObserver
from isocenter.serving.health import Door
from patience import PATIENCE_S

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
"""Their transports differ."""

Run = Callable[[Awaitable[None]], None]


def runner_on(loop: str) -> Run:
    """What runs a scenario on an event loop of that kind."""

    def run(scenario: Awaitable[None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await scenario

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(bounded())

    return run


class Stage:
    """An endpoint whose answers a test holds back, and the server in front of it."""

    def __init__(self, *, glances: bool = False) -> None:
        self.glances = glances
        """Whether refusals are made as soon as a head is there."""
        self.called = 0
        self.go_on = asyncio.Event()
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.door = Door()
        self.observer = RecordingObserver()

    async def predict(self, request: Request) -> Response:
        """Read the body, wait until the test says so, answer."""
        self.called += 1
        name = request.headers.get("x-name", "")
        if name == "refused":
            return problem(Overloaded("full", retry_after_s=1.0))
        try:
            with WhileConnected(request.scope):
                await self.arrived.put(name)
                length = len(await request.body())
                await self.arrived.put(f"{name} read")
                await self.go_on.wait()
        except Abandoned as error:
            await self.ended.put(f"{name} abandoned")
            return problem(error)
        await self.ended.put(f"{name} answered")
        return PlainTextResponse(f"{name} {length}")

    def glance(self, scope: Scope) -> Answer | None:
        """The same refusal, by the head."""
        refused = scope[HEADERS].get(b"x-name") == b"refused"
        return problem(Overloaded("full", retry_after_s=1.0)) if refused else None

    def app(self, max_connections: float) -> ASGIApp:
        """The gate, as the server has it."""
        return Gate(
            PlainTextResponse("alive"),
            direct={"/predict": self.predict},
            glances={"/predict": self.glance} if self.glances else None,
            door=self.door,
            clock=SystemClock(),
            logger=logging.getLogger("test-connections"),
            observer=self.observer,
            max_connections=max_connections,
        )


class Server:
    """A port, and the connections to it."""

    def __init__(self, port: int, state: ServerState) -> None:
        self.port = port
        self.state = state
        self.received = 0
        """Bytes, on all connections."""
        self._callers: list[Caller] = []

    async def connect(self) -> "Caller":
        """A caller."""
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port))
        self._callers.append(caller)
        return caller

    async def until_left(self, connections: int = 0) -> None:
        """Return once no more connections are left, and without any, once no request is worked on."""
        # uvicorn tells nobody.
        while len(self.state.connections) > connections or (not connections and self.state.tasks):  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def until_received(self, connections: int, size: int) -> None:
        """Return once there are so many connections, and so many bytes came on them."""
        while len(self.state.connections) < connections or self.received < size:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def nothing_comes(self) -> None:
        """Let the time in which nothing comes run out, wherever it is counted, as soon as it is anywhere."""
        while not (counted := [each for each in self._protocols() if _counts_silence(each)]):  # noqa: ASYNC110
            await asyncio.sleep(0)
        for each in counted:
            assert each.timeout_keep_alive_task is not None
            each.timeout_keep_alive_task.cancel()
            each.timeout_keep_alive_handler()

    def silence_ends_s(self) -> float:
        """When the time in which nothing comes will be over on the only connection, on the loop's clock."""
        (connection,) = self._protocols()
        assert connection.timeout_keep_alive_task is not None
        return connection.timeout_keep_alive_task.when()

    def a_head_has_begun(self) -> bool:
        """Whether a head is coming on the only connection, as it counts its time."""
        (connection,) = self._protocols()
        assert isinstance(connection, HttpProtocol)
        return connection._head_began_s is not None

    def _protocols(self) -> list[HttpToolsProtocol]:
        return [each for each in self.state.connections if isinstance(each, HttpToolsProtocol)]

    async def until_pipelined(self, requests: int) -> None:
        """Return once so many requests wait behind the one that is answered, on the only connection."""
        connection = next(iter(self.state.connections))
        assert isinstance(connection, HttpToolsProtocol)
        while len(connection.pipeline) < requests:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def close(self) -> None:
        """End every connection, from both ends."""
        for connection in list(self.state.connections):
            connection.transport.abort()
        for caller in self._callers:
            caller.leave()
            with contextlib.suppress(ConnectionError):
                await caller.writer.wait_closed()
        await self.until_left()


class Caller:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send, and wait until it is on its way."""
        self.writer.write(data)
        await self.writer.drain()

    async def post(self, name: str, size: int = 3, *, more: str = "") -> None:
        """A whole request."""
        await self.send(
            f"POST /predict HTTP/1.1\r\nHost: test\r\nX-Name: {name}\r\nContent-Length: {size}\r\n{more}\r\n".encode()
            + bytes(size)
        )

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ended(self) -> bool:
        """Whether the server closes the connection, and sends nothing more before."""
        return await self.reader.read() == b""

    def leave(self, *, rudely: bool = False) -> None:
        """Close the connection, or reset it."""
        if rudely:
            handle: socket.socket = self.writer.get_extra_info("socket")
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        self.writer.close()


def _counts_silence(protocol: HttpToolsProtocol) -> bool:
    return protocol.timeout_keep_alive_task is not None and not protocol.timeout_keep_alive_task.cancelled()


@asynccontextmanager
async def serving(
    stage: Stage, *, max_connections: float = float("inf"), silence_s: float = 3600.0
) -> AsyncIterator[Server]:
    config = uvicorn.Config(
        stage.app(max_connections),
        http=http_protocol(),
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
    config.load()
    config.timeout_keep_alive = silence_s  # type: ignore[assignment]
    state = ServerState()

    def protocol() -> asyncio.Protocol:
        made: HttpToolsProtocol = config.http_protocol_class(  # type: ignore[call-arg, assignment]
            config=config, server_state=state, app_state={}
        )
        take_in = made.data_received

        def data_received(data: bytes) -> None:
            server.received += len(data)
            take_in(data)

        made.data_received = data_received  # type: ignore[method-assign]
        return made

    listening = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    server = Server(listening.sockets[0].getsockname()[1], state)
    try:
        yield server
    finally:
        listening.close()
        await server.close()
