"""Real sockets at the protocol that the server runs: who leaves is noticed, who is refused gets his answer."""

import json

import pytest

from http_stage import Run, Stage, serving
from isocenter.api.http import protocol as module

pytestmark = [pytest.mark.may_block, pytest.mark.usefixtures("nobody_lingers")]

HEAD = b"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"


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
