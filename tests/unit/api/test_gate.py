"""The gate gives every request an id, keeps the door, and lets no exception out."""

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isocenter.api.http.answer import Answer
from isocenter.api.http.connection import CONNECTION, Connection
from isocenter.api.http.gate import HEADERS, REQUEST_ID, STARTED_S, Gate
from isocenter.core.clock import ManualClock
from isocenter.core.events import NullObserver
from isocenter.serving.health import Door

LOGGER = logging.getLogger("test-gate")


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


async def ask(
    app: ASGIApp,
    path: str = "/predict",
    headers: list[tuple[bytes, bytes]] | None = None,
    connection: Connection | None = None,
    method: str = "POST",
) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": headers or []}
    if connection is not None:
        scope[CONNECTION] = connection
    await app(scope, receive, send)
    return sent


def gate(app: ASGIApp, door: Door, **more: Any) -> Gate:
    return Gate(app, door=door, clock=ManualClock(), logger=LOGGER, observer=NullObserver(), **more)


def headers_of(messages: list[Message]) -> dict[bytes, bytes]:
    return dict(messages[0]["headers"])


async def test_a_request_id_that_is_safe_to_log_is_kept() -> None:
    sent = await ask(gate(hello, Door()), headers=[(b"x-request-id", b"abc-1.2:3_4")])

    assert headers_of(sent)[b"x-request-id"] == b"abc-1.2:3_4"


@pytest.mark.parametrize("unsafe", [b"", b"a b", b"a\nb", b"x" * 129, b"<script>", "ä".encode()])
async def test_any_other_request_id_is_replaced(unsafe: bytes) -> None:
    sent = await ask(gate(hello, Door()), headers=[(b"x-request-id", unsafe)])

    assert headers_of(sent)[b"x-request-id"] != unsafe
    assert len(headers_of(sent)[b"x-request-id"]) == 32


async def test_no_two_requests_get_the_same_id() -> None:
    apps = [gate(hello, Door()) for _ in range(3)]

    ids = [headers_of(await ask(app))[b"x-request-id"] for app in apps for _ in range(50)]

    assert len(set(ids)) == 150


async def test_a_closed_door_answers_503_with_a_time_to_come_back_and_closes_the_connection() -> None:
    door = Door()
    door.close()

    sent = await ask(gate(hello, door))

    assert sent[0]["status"] == 503
    assert int(headers_of(sent)[b"retry-after"]) >= 1
    assert headers_of(sent)[b"connection"] == b"close"
    assert json.loads(sent[1]["body"])["error"]["code"] == "draining"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
async def test_probes_pass_a_closed_door(path: str) -> None:
    door = Door()
    door.close()

    sent = await ask(gate(hello, door), path)

    assert sent[0]["status"] == 200


async def test_the_door_knows_when_the_last_one_has_left() -> None:
    door = Door()
    go_on = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await hello(scope, receive, send)

    asking = asyncio.create_task(ask(gate(slow, door)))
    await asyncio.sleep(0)
    door.close()
    assert door.inside == 1
    emptied = asyncio.create_task(door.emptied())
    await asyncio.sleep(0)
    assert not emptied.done()

    go_on.set()
    await emptied

    assert (await asking)[0]["status"] == 200
    assert door.inside == 0


async def test_an_unexpected_error_is_a_500_that_says_nothing_of_the_inside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("patient name")

    door = Door()

    sent = await ask(gate(broken, door))

    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"])["error"]["code"] == "internal"
    assert b"patient" not in sent[1]["body"]
    assert door.inside == 0


async def test_a_direct_endpoint_takes_its_posts_and_leaves_the_rest_to_the_application() -> None:
    async def direct(_: Request) -> Response:
        return PlainTextResponse("direct")

    app = gate(hello, Door(), direct={"/predict": direct})

    assert (await ask(app, "/predict"))[1]["body"] == b"direct"
    assert (await ask(app, "/other"))[1]["body"] == b"hello"


async def test_a_direct_answer_is_written_with_its_headers_and_those_of_every_answer() -> None:
    async def direct(request: Request) -> Response:
        assert request.scope[HEADERS] == {b"x-request-id": b"scan-7", b"a": b"first"}
        return Answer(b"{}", 429, [(b"retry-after", b"3")])

    app = gate(hello, Door(), direct={"/predict": direct})
    sent = await ask(app, headers=[(b"a", b"first"), (b"x-request-id", b"scan-7"), (b"a", b"second")])

    assert sent == [
        {
            "type": "http.response.start",
            "status": 429,
            "headers": [
                (b"content-length", b"2"),
                (b"content-type", b"application/json"),
                (b"retry-after", b"3"),
                (b"x-request-id", b"scan-7"),
            ],
        },
        {"type": "http.response.body", "body": b"{}"},
    ]


def refused(_: Scope) -> Answer | None:
    return Answer(b"{}", 429)


def let_in(_: Scope) -> Answer | None:
    return None


def head(*headers: tuple[bytes, bytes], number: int = 1) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers), "query_string": b"", CONNECTION: Connection(number)}


def test_who_has_to_be_refused_is_refused_by_his_head_with_the_headers_of_every_answer() -> None:
    app = gate(hello, Door(), glances={"/predict": refused})

    answered = app.refuse_at_once(b"/predict", head((b"x-request-id", b"scan-7")))

    assert answered is not None
    answer, headers = answered
    assert (answer.status_code, dict(headers)[b"x-request-id"]) == (429, b"scan-7")


@pytest.mark.parametrize(
    ("path", "scope", "is_open"),
    [
        pytest.param(b"/other", head(), True, id="another path"),
        pytest.param(b"/predict", head(number=8), True, id="a connection too many"),
        pytest.param(b"/predict", head((b"expect", b"100-continue")), True, id="who asks first"),
        pytest.param(b"/predict", head(), False, id="a closed door"),
    ],
)
def test_what_is_out_of_the_ordinary_is_called_as_usual(path: bytes, scope: dict[str, Any], is_open: bool) -> None:
    door = Door()
    if not is_open:
        door.close()

    assert gate(hello, door, max_connections=7, glances={"/predict": refused}).refuse_at_once(path, scope) is None


async def test_who_is_let_in_by_his_head_keeps_his_request_id_and_his_arrival() -> None:
    seen: list[tuple[str, float]] = []

    async def direct(request: Request) -> Response:
        seen.append((request.scope[REQUEST_ID], request.scope[STARTED_S]))
        return Answer(b"{}")

    clock = ManualClock(5.0)
    app = Gate(
        hello,
        door=Door(),
        clock=clock,
        logger=LOGGER,
        observer=NullObserver(),
        direct={"/predict": direct},
        glances={"/predict": let_in},
    )
    scope = head() | {"method": "POST", "path": "/predict"}
    assert app.refuse_at_once(b"/predict", scope) is None
    given = scope[REQUEST_ID]
    clock.advance(1.0)

    async def send(_: Message) -> None: ...

    async def receive() -> Message:
        return {"type": "http.request"}

    await app(scope, receive, send)

    assert seen == [(given, 5.0)]


def test_an_unexpected_error_at_a_glance_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Scope) -> Answer | None:
        raise ValueError("patient name")

    answered = gate(hello, Door(), glances={"/predict": broken}).refuse_at_once(b"/predict", head())

    assert answered is not None
    assert answered[0].status_code == 500
    assert b"patient" not in bytes(answered[0].body)
    assert [record.message for record in caplog.records] == ["unexpected"]


async def test_a_direct_answer_during_a_drain_closes_the_connection() -> None:
    door = Door()

    async def direct(_: Request) -> Response:
        door.close()
        return Answer(b"{}")

    sent = await ask(gate(hello, door, direct={"/predict": direct}))

    assert headers_of(sent)[b"connection"] == b"close"


@pytest.mark.parametrize("direct", [False, True])
async def test_who_is_cut_off_at_the_end_of_a_drain_is_told_to_ask_another_server(direct: bool) -> None:
    door, begun = Door(), asyncio.Event()

    async def for_ever(*_: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    app = gate(hello, door, direct={"/predict": for_ever}) if direct else gate(for_ever, door)
    asking = asyncio.create_task(ask(app))
    await begun.wait()
    door.close()
    asking.cancel()
    sent = await asking

    assert (sent[0]["status"], headers_of(sent)[b"connection"], headers_of(sent)[b"retry-after"]) == (
        503,
        b"close",
        b"2",
    )
    assert json.loads(sent[1]["body"])["error"]["code"] == "draining"
    assert door.inside == 0


@pytest.mark.parametrize("direct", [False, True])
async def test_a_cancellation_while_the_door_is_open_is_a_cancellation(direct: bool) -> None:
    begun = asyncio.Event()

    async def for_ever(*_: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    app = gate(hello, Door(), direct={"/predict": for_ever}) if direct else gate(for_ever, Door())
    asking = asyncio.create_task(ask(app))
    await begun.wait()
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_who_asks_for_the_head_of_an_answer_gets_that_of_its_get() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(scope["method"])(scope, receive, send)

    sent = await ask(gate(answer, Door()), "/livez", method="HEAD")

    assert (sent[0]["status"], sent[1]["body"]) == (200, b"GET")


async def test_an_unexpected_error_of_a_direct_endpoint_is_a_500_too(caplog: pytest.LogCaptureFixture) -> None:
    async def direct(_: Request) -> Response:
        raise ValueError("patient name")

    door = Door()

    sent = await ask(gate(hello, door, direct={"/predict": direct}))

    assert sent[0]["status"] == 500
    assert b"patient" not in sent[1]["body"]
    assert [record.message for record in caplog.records] == ["unexpected"]
    assert door.inside == 0


@pytest.mark.parametrize(("path", "status"), [("/predict", 400), ("/elsewhere", 404)])
async def test_who_asked_whether_he_may_send_and_is_refused_gets_no_second_request_on_the_connection(
    path: str, status: int
) -> None:
    async def direct(_: Request) -> Response:
        return Answer(b"{}", 400)

    app = gate(PlainTextResponse("nothing", 404), Door(), direct={"/predict": direct})

    asked = await ask(app, path, headers=[(b"expect", b"100-continue")])
    plain = await ask(app, path)

    assert (asked[0]["status"], headers_of(asked)[b"connection"]) == (status, b"close")
    assert b"connection" not in headers_of(plain)


@pytest.mark.parametrize(("number", "status"), [(1, 200), (7, 200), (8, 429)])
async def test_connections_beyond_the_bound_are_refused_and_closed(number: int, status: int) -> None:
    door = Door()

    sent = await ask(gate(hello, door, max_connections=7), connection=Connection(number))

    assert sent[0]["status"] == status
    if status == 429:
        assert headers_of(sent)[b"connection"] == b"close"
        assert int(headers_of(sent)[b"retry-after"]) >= 1
        assert json.loads(sent[1]["body"])["error"]["details"] == {
            "connections": 8,
            "limit": 7,
            "where": "door",
            "retry_after_s": 2.0,
        }


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
async def test_probes_pass_on_any_connection(path: str) -> None:
    sent = await ask(gate(hello, Door(), max_connections=7), path, connection=Connection(8))

    assert sent[0]["status"] == 200


async def test_an_error_after_the_answer_began_sends_no_second_answer() -> None:
    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError

    sent = await ask(gate(half, Door()))

    assert [message["type"] for message in sent] == ["http.response.start"]
