"""What is no HTTP/1.1, or more of it than anyone needs: refused like everything else, and at nobody else's expense."""

import json

import pytest

from http_stage import Caller, Run, Stage, serving
from isocenter.api.http import protocol as module

pytestmark = [pytest.mark.may_block, pytest.mark.usefixtures("nobody_lingers")]

OFFER = b"POST /predict HTTP/1.1\r\nHost: t\r\nX-Name: n\r\nConnection: Upgrade, HTTP2-Settings, keep-alive\r\n"
OFFER += b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nContent-Length: %d\r\n\r\n"
HEAD = b"POST /predict HTTP/1.1\r\nHost: t\r\nX-Name: n\r\n"


async def refusal(caller: Caller) -> tuple[int, str]:
    """Status and code of the next answer, which is the last one."""
    status, headers, body = await caller.answer()
    assert (headers["connection"], headers["content-type"], "x-request-id" in headers) == (
        "close",
        "application/json",
        True,
    )
    assert await caller.ended()
    return status, json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: x\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"BREW /predict HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: t\r\n\r\n",
        b"CONNECT t:80 HTTP/1.1\r\nHost: t\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nHost: t\r\n\r\n",
        b"GET /livez HTTP/0.9\r\nHost: t\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_with_a_code(run: Run, sent: bytes) -> None:
    async def scenario() -> None:
        async with serving(Stage()) as server:
            caller = await server.connect()
            await caller.send(sent)
            assert await refusal(caller) == (400, "bad_request")

    run(scenario())


def test_what_comes_before_garbage_is_answered_first(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            for name in ("first", "second"):
                await caller.post(name)
            await caller.send(b"garbage\r\n\r\n" + HEAD)
            assert await stage.arrived.get() == "first"
            stage.go_on.set()

            assert [(await caller.answer())[2] for _ in range(2)] == [b"first 3", b"second 3"]
            assert await refusal(caller) == (400, "bad_request")
            assert stage.called == 2

    run(scenario())


def test_a_body_that_breaks_off_into_garbage_is_refused_after_the_answers_before_it(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            for name in ("first", "second", "third"):
                await caller.post(name)
            await caller.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nz" + bytes(1_500_000))
            await stage.arrived.get()
            stage.go_on.set()

            answers = [(await caller.answer())[2] for _ in range(3)]
            assert answers == [b"first 3", b"second 3", b"third 3"]
            assert await refusal(caller) == (400, "bad_request")
            assert stage.called == 3

    run(scenario())


@pytest.mark.parametrize("glances", [False, True], ids=["in its turn", "at once"])
def test_a_refused_body_that_breaks_off_into_garbage_ends_the_connection_without_a_word(
    run: Run, glances: bool
) -> None:
    async def scenario() -> None:
        async with serving(Stage(glances=glances)) as server:
            caller = await server.connect()
            refused = HEAD.replace(b": n", b": refused") + b"Transfer-Encoding: chunked\r\n\r\n"
            await caller.send(refused)
            assert (await caller.answer())[0] == 429
            await caller.send(b"z\r\n" + bytes(1_500_000))
            assert await caller.ended()

    run(scenario())


def test_after_the_last_answer_nothing_is_answered_nor_counted(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(b"garbage\r\n\r\n")
            assert await refusal(caller) == (400, "bad_request")
            await caller.send(HEAD + b"\r\n")
            await server.until_received(1, len(b"garbage\r\n\r\n" + HEAD + b"\r\n"))
            assert len(stage.observer.events) == 1

    run(scenario())


def test_what_comes_after_the_last_answer_is_not_waited_for_long(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINGER_S", 1e-3)

    async def scenario() -> None:
        async with serving(Stage()) as server:
            caller = await server.connect()
            await caller.send(b"garbage\r\n\r\n")
            await caller.send(HEAD + b"\r\n")
            assert (await caller.answer())[0] == 400
            await caller.send(HEAD + b"\r\n")
            await server.until_left()

    run(scenario())


def test_who_waits_for_a_body_that_breaks_off_into_garbage_is_told_that_nobody_waits(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            assert await stage.arrived.get() == "n"
            await caller.send(b"z\r\n")

            assert await refusal(caller) == (400, "bad_request")
            assert await stage.ended.get() == "n abandoned"

    run(scenario())


@pytest.mark.parametrize("pieces", [1, 2, 3], ids=["at once", "body later", "body in pieces"])
def test_an_offer_of_another_protocol_is_ignored_and_its_body_is_a_body(run: Run, pieces: int) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.go_on.set()
        body = b"POST /predict HTTP/1.1\r\nHost: t\r\nX-Name: smuggled\r\n\r\n"
        async with serving(stage) as server:
            caller = await server.connect()
            if pieces == 1:
                await caller.send(OFFER % len(body) + body)
            else:
                await caller.send(OFFER % len(body))
                await stage.arrived.get()
                for at in range(0, len(body), 30 if pieces == 3 else len(body)):
                    await caller.send(body[at : at + (30 if pieces == 3 else len(body))])
            await caller.post("next")

            answers = [await caller.answer() for _ in range(2)]

            assert [each[2] for each in answers] == [b"n %d" % len(body), b"next 3"]
            assert stage.called == 2

    run(scenario())


def test_who_offers_another_protocol_and_an_end_of_the_connection_gets_the_end(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.go_on.set()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send((OFFER % 3).replace(b"keep-alive", b"close") + b"abc")
            _, headers, body = await caller.answer()

            assert (headers["connection"], body) == ("close", b"n 3")
            assert await caller.ended()

    run(scenario())


def test_many_offers_at_once_are_answered_in_order(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.go_on.set()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send((OFFER % 3 + b"abc") * 300)

            assert [(await caller.answer())[2] for _ in range(300)] == [b"n 3"] * 300

    run(scenario())


def _headers() -> bytes:
    return b"".join(b"X-%d: 1\r\n" % number for number in range(10_000))


@pytest.mark.parametrize("whole", [False, True], ids=["goes on for ever", "is complete"])
@pytest.mark.parametrize(
    ("begun", "then"),
    [
        pytest.param(HEAD + _headers(), b"\r\n", id="headers"),
        pytest.param(HEAD + b"X-Long: " + b"a" * 70_000, b"\r\n\r\n", id="a header"),
        pytest.param(b"GET /" + b"a" * 70_000, b" HTTP/1.1\r\nHost: t\r\n\r\n", id="a target"),
    ],
)
def test_a_head_that_is_too_long_is_refused_with_the_limit(run: Run, begun: bytes, then: bytes, whole: bool) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(begun + (then + HEAD + b"\r\n" if whole else b""))
            status, _, body = await caller.answer()

            error = json.loads(body)["error"]
            assert (status, error["code"], error["details"]["limit"]) == (413, "too_many_bytes", 65_536)
            assert error["details"]["bytes"] > 65_536
            assert await caller.ended()
            assert stage.called == 0

    run(scenario())


@pytest.mark.parametrize(
    "between", [b"3\r\nabc\r\n0\r\nX-Trailer: ", b"3;of="], ids=["a trailer", "a chunk's extension"]
)
def test_what_stands_beside_a_body_is_bounded_too(run: Run, between: bytes) -> None:
    async def scenario() -> None:
        stage = Stage()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + between)
            await stage.arrived.get()
            await caller.send(b"a" * 70_000)

            assert await refusal(caller) == (413, "too_many_bytes")

    run(scenario())


def test_a_body_of_tiny_chunks_is_a_body(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.go_on.set()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(HEAD + b"Transfer-Encoding: Chunked \r\n\r\n" + b"1\r\na\r\n" * 40_000 + b"0\r\n\r\n")

            assert (await caller.answer())[2] == b"n 40000"

    run(scenario())


def test_trailers_say_nothing_of_the_request(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.go_on.set()
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.post("before")
            chunked = b"POST /predict HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
            await caller.send(chunked + b"X-Name: trailer\r\n\r\n")

            assert [(await caller.answer())[2] for _ in range(2)] == [b"before 3", b" 3"]

    run(scenario())


def test_a_head_behind_a_request_is_bounded_and_has_its_time_too(run: Run) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.go_on.set()
        async with serving(stage, silence_s=1000.0) as server:
            caller = await server.connect()
            whole = HEAD + b"Content-Length: 3\r\n\r\nabc"
            await caller.send(whole + b"POS")
            assert (await caller.answer())[2] == b"n 3"
            began = server.silence_ends_s()
            await caller.send(b"T")
            await server.until_received(1, len(whole) + 4)
            assert server.silence_ends_s() == pytest.approx(began, abs=1e-3)
            await caller.send(whole[4:])
            assert (await caller.answer())[2] == b"n 3"
            assert not server.a_head_has_begun()
            long = HEAD + b"X-Long: " + b"a" * 70_000 + b"\r\nContent-Length: 3\r\n\r\nabc"
            await caller.send(whole + long)
            assert (await caller.answer())[2] == b"n 3"
            assert await refusal(caller) == (413, "too_many_bytes")

    run(scenario())


def test_a_head_has_its_time_from_its_first_byte_on(run: Run) -> None:
    async def scenario() -> None:
        async with serving(Stage(), silence_s=1000.0) as server:
            caller = await server.connect()
            ends: list[float] = []
            for count, byte in enumerate((b"P", b"O", b"S"), 1):
                await caller.send(byte)
                await server.until_received(1, count)
                ends.append(server.silence_ends_s())

            assert ends[1] - ends[0] == pytest.approx(0.0, abs=1e-3)
            assert ends[2] - ends[0] == pytest.approx(0.0, abs=1e-3)

    run(scenario())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"Transfer-Encoding: gzip, chunked\r\n", "chunked is understood"),
        (b"X-Timeout-Ms: 5\r\nX-Timeout-Ms: 50\r\nContent-Length: 3\r\n", "X-Timeout-Ms is given twice"),
    ],
)
@pytest.mark.parametrize("glances", [False, True], ids=["in its turn", "at once"])
def test_a_head_of_which_two_things_could_be_meant_is_refused(run: Run, line: bytes, says: str, glances: bool) -> None:
    async def scenario() -> None:
        stage = Stage(glances=glances)
        async with serving(stage) as server:
            caller = await server.connect()
            await caller.send(HEAD.replace(b": n", b": refused") + line + b"\r\n3\r\nabc\r\n0\r\n\r\n")
            status, headers, body = await caller.answer()

            assert (status, headers["connection"], stage.called) == (400, "close", 0)
            assert says in json.loads(body)["error"]["message"]

    run(scenario())
