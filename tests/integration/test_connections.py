"""Real sockets at the protocol that the server runs: who leaves is noticed, who is refused gets his answer."""

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
import uvloop
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from isocenter.api.http import protocol as module
from isocenter.api.http.answer import Answer
from isocenter.api.http.connection import WhileConnected, http_protocol
from isocenter.api.http.gate import HEADERS, Gate
from isocenter.api.http.problems import problem
from isocenter.core.clock import SystemClock
from isocenter.core.errors import Abandoned, Overloaded
from isocenter.core.events import NullObserver
from isocenter.serving.health import Door
from patience import PATIENCE_S

pytestmark = pytest.mark.may_block

HEAD = b"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    """Run a scenario on either event loop: their transports differ."""

    def run_on_it(scenario: Awaitable[None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await scenario

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(bounded())

    return run_on_it


@pytest.fixture(autouse=True)
def nobody_lingers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sees is not the end of this time, but where it is said so."""
    monkeypatch.setattr(module, "_LINGER_S", 3600.0)


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
            observer=NullObserver(),
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


Run = Callable[[Awaitable[None]], None]


@pytest.mark.parametrize("rudely", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_caller_who_hangs_up_while_his_answer_is_made_is_noticed(run: Run, version: str, rudely: bool) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(f"POST /predict HTTP/{version}\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".encode())
            assert [await stage.arrived.get(), await stage.arrived.get()] == ["", " read"]

            caller.leave(rudely=rudely)

            assert await stage.ended.get() == " abandoned"
            await server.until_left()
            assert stage.door.inside == 0

    run(scenario())


def test_a_caller_who_hangs_up_while_sending_is_noticed(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(HEAD % 100 + b"half")
            await stage.arrived.get()

            caller.leave()

            assert await stage.ended.get() == " abandoned"

    run(scenario())


def test_a_caller_who_hangs_up_after_his_answer_disturbs_nothing(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.go_on.set()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.post("first")
            await caller.answer()

            caller.leave()
            await server.until_left()

            assert stage.ended.get_nowait() == "first answered"
            assert stage.ended.empty()

    run(scenario())


def test_on_a_kept_connection_the_request_that_runs_is_the_one_that_is_left(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.go_on.set()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.post("first")
            assert (await caller.answer())[2] == b"first 3"
            stage.go_on.clear()
            await caller.post("second")
            while await stage.arrived.get() != "second read":
                pass

            caller.leave()

            assert [await stage.ended.get(), await stage.ended.get()] == ["first answered", "second abandoned"]

    run(scenario())


def test_a_caller_who_leaves_behind_pipelined_requests_is_noticed_and_they_are_not_begun(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.post("first")
            assert [await stage.arrived.get(), await stage.arrived.get()] == ["first", "first read"]
            await caller.post("second")
            await caller.post("third")
            await server.until_pipelined(2)

            caller.leave()
            assert await stage.ended.get() == "first abandoned"
            await server.until_left()

            assert stage.arrived.empty()
            assert not caplog.records

    run(scenario())


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            names = [f"n{number}" for number in range(25)]
            for name in names:
                await caller.post(name, 20_000)
            await stage.arrived.get()

            stage.go_on.set()

            assert [(await caller.answer())[2] for _ in names] == [f"{name} 20000".encode() for name in names]

    run(scenario())


glances = pytest.mark.parametrize("glances", [False, True], ids=["in its turn", "at once"])


@glances
@pytest.mark.parametrize("size", [50_000, 5_000_000])
def test_a_refused_body_that_was_not_read_leaves_the_connection_usable(run: Run, size: int, glances: bool) -> None:
    async def scenario() -> None:
        stage = Stage(glances=glances)
        stage.go_on.set()
        async with serving(stage) as server:
            caller = await server.connect()
            for _ in range(3):
                await caller.post("refused", size)
                status, headers, _ = await caller.answer()
                assert (status, headers["retry-after"], "connection" in headers) == (429, "1", False)
            await caller.post("taken", size)
            assert (await caller.answer())[2] == b"taken %d" % size
            assert stage.called == (1 if glances else 4)

    run(scenario())


def test_a_refusal_does_not_overtake_the_answer_before_it_on_the_same_connection(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage(glances=True)
        async with serving(stage) as server:
            caller = await server.connect()
            for name in ("first", "refused", "refused", "last"):
                await caller.post(name)
            await server.until_pipelined(3)
            stage.go_on.set()

            answers = [await caller.answer() for _ in range(4)]

            assert [status for status, *_ in answers] == [200, 429, 429, 200]
            assert (answers[0][2], answers[3][2]) == (b"first 3", b"last 3")

    run(scenario())


def test_refusals_in_a_row_are_made_without_calling_anybody(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage(glances=True)
        async with serving(stage) as server:
            caller = await server.connect()
            for _ in range(50):
                await caller.post("refused", 20_000)

            answers = [await caller.answer() for _ in range(50)]

            assert {status for status, *_ in answers} == {429}
            assert len({headers["x-request-id"] for _, headers, _ in answers}) == 50
            assert stage.called == 0

    run(scenario())


@pytest.mark.parametrize("body", [b"", b"abc", bytes(300_000)], ids=["no body", "a body", "a large body"])
@pytest.mark.parametrize(
    ("version", "more"),
    [
        pytest.param("1.1", "Connection: close\r\n", id="a caller who closes"),
        pytest.param("1.0", "", id="an old proxy"),
        pytest.param("1.0", "Connection: keep-alive\r\n", id="an old proxy that would stay"),
    ],
)
def test_who_sends_one_request_a_connection_is_refused_without_calling_anybody_and_the_connection_ends(
    run: Run, version: str, more: str, body: bytes
) -> None:
    async def scenario() -> None:
        stage = Stage(glances=True)
        async with serving(stage) as server:
            caller = await server.connect()
            head = f"POST /predict HTTP/{version}\r\nHost: test\r\nX-Name: refused\r\n{more}"
            await caller.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)

            status, headers, problem_body = await caller.answer()

            assert (status, headers["connection"], headers["retry-after"]) == (429, "close", "1")
            assert json.loads(problem_body)["error"]["code"] == "overloaded"
            assert await caller.ended()
            assert stage.called == 0
            await server.until_left()

    run(scenario())


def test_nothing_is_answered_on_a_connection_after_a_refusal_that_ends_it(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage(glances=True)
        stage.go_on.set()
        async with serving(stage) as server:
            caller = await server.connect()
            close = b"X-Name: refused\r\nConnection: close\r\nContent-Length"
            await caller.send(HEAD.replace(b"Content-Length", close) % 3 + b"abc" + HEAD % 3 + b"abc")

            assert (await caller.answer())[0] == 429
            assert await caller.ended()
            assert stage.called == 0

    run(scenario())


@glances
def test_who_asks_whether_he_may_send_is_refused_without_being_asked_for_the_body(run: Run, glances: bool) -> None:
    async def scenario() -> None:
        stage = Stage(glances=glances)
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Name: refused\r\n"
                b"Content-Length: 50000\r\nExpect: 100-continue\r\n\r\n"
            )

            status, headers, _ = await caller.answer()

            # He will not send now: what he sends next would be taken for the body.
            assert (status, headers["connection"]) == (429, "close")
            caller.writer.write_eof()
            assert await caller.ended()

    run(scenario())


def test_who_asks_whether_he_may_send_and_is_taken_is_asked_for_the_body(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.go_on.set()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await caller.send(b"abc")

            status, headers, body = await caller.answer()

            assert (status, "connection" in headers, body) == (200, False, b" 3")

    run(scenario())


@glances
@pytest.mark.parametrize("more", ["Connection: close\r\n", ""], ids=["the caller closes", "the server drains"])
def test_who_sends_before_he_reads_gets_his_refusal_and_not_a_reset(run: Run, more: str, glances: bool) -> None:
    async def scenario() -> None:
        stage = Stage(glances=glances)
        if not more:
            stage.door.close()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.post("refused", 20_000_000, more=more)

            status, headers, _ = await caller.answer()

            assert (status, headers["connection"]) == (429 if more else 503, "close")
            assert await caller.ended()

    run(scenario())


@glances
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"POST /predict HT", id="a part of the head"),
        pytest.param(HEAD.replace(b"Host", b"X-Name: refused\r\nHost") % 50_000 + b"half", id="half of a refused body"),
        pytest.param(HEAD.replace(b"Host", b"X-Name: refused\r\nHost") % 4 + b"body", id="a whole request"),
    ],
)
def test_a_connection_on_which_nothing_comes_any_more_is_closed(run: Run, sent: bytes, glances: bool) -> None:
    async def scenario() -> None:
        stage = Stage(glances=glances)
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(sent)
            if b"refused" in sent:
                assert (await caller.answer())[0] == 429
            await server.until_received(1, len(sent))

            await server.nothing_comes()

            assert await caller.ended()

    run(scenario())


def test_a_connection_on_which_nothing_ever_comes_is_closed(run: Run) -> None:
    async def scenario() -> None:
        async with serving(Stage(), silence_s=0.02) as server:
            assert await (await server.connect()).ended()

    run(scenario())


def test_the_rest_of_a_refused_body_is_not_waited_for_longer_than_a_while(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINGER_S", 0.02)

    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            head = HEAD.replace(b"Host", b"X-Name: refused\r\nConnection: close\r\nHost")

            await caller.send(head % 50_000 + b"half")

            assert (await caller.answer())[0] == 429
            assert await caller.ended()

    run(scenario())


def test_a_request_that_is_worked_on_is_not_silence(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            working, silent = await server.connect(), await server.connect()
            await working.post("long")
            while await stage.arrived.get() != "long read":
                pass
            await server.until_received(2, 3)

            await server.nothing_comes()

            assert await silent.ended()
            stage.go_on.set()
            assert (await working.answer())[2] == b"long 3"

    run(scenario())


def test_connections_beyond_the_bound_are_told_to_come_back_and_closed(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.go_on.set()
        async with serving(stage, max_connections=2) as server:
            inside = [await server.connect(), await server.connect()]
            for caller in inside:
                await caller.post("taken")
                assert (await caller.answer())[0] == 200
            third, prober = await server.connect(), await server.connect()

            await third.post("third", 200_000)
            status, headers, body = await third.answer()
            assert (status, headers["retry-after"], headers["connection"]) == (429, "2", "close")
            assert json.loads(body)["error"]["details"]["limit"] == 2
            assert await third.ended()
            await prober.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await prober.answer())[0] == 200

            inside[0].leave()
            prober.leave()
            await server.until_left(1)
            newcomer = await server.connect()
            await newcomer.post("newcomer")
            assert (await newcomer.answer())[2] == b"newcomer 3"

    run(scenario())


def test_a_thousand_leavers_leave_nothing_behind(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            for _ in range(100):
                callers = [await server.connect() for _ in range(10)]
                for caller in callers:
                    await caller.post("leaver")
                for caller in callers:
                    caller.leave(rudely=True)
                for _ in callers:
                    assert await stage.ended.get() == "leaver abandoned"
            await server.until_left()
            assert stage.door.inside == 0

    run(scenario())
