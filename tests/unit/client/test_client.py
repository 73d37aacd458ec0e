"""One call is one deadline, however many attempts it takes; only what was refused before any work is asked again."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from isocenter.client import AsyncClient, Client, NoConnection, NotAnAnswer, Patience, ServerRefused
from isocenter.client.image import encode
from isocenter.core.clock import ManualClock
from isocenter.core.errors import (
    BadImage,
    BadRequest,
    DeadlineExceeded,
    Draining,
    MissingExtra,
    MissingImage,
    Overloaded,
    Unavailable,
    UnknownModel,
    UnsupportedMedia,
)
from isocenter.imaging.codecs.raster import decode
from isocenter.imaging.limits import ImageLimits

ANSWER = {
    "prediction": "Glioma",
    "confidence": 0.9,
    "latency_ms": 3.5,
    "probabilities": {"Glioma": 0.9, "No Tumor": 0.1},
    "model": "brain",
    "version": 2,
    "request_id": "r",
    "timings_ms": {"decode": 1.0},
    "warnings": [{"code": "windowed", "message": "from 0 to 9"}],
    "new_in_a_later_server": 1,
}
Scripted = tuple[int, dict[str, str], Any]


class JumpingClock(ManualClock):
    """Whoever sleeps on it wakes at once, later."""

    def __init__(self) -> None:
        super().__init__(1000.0)
        self.naps_s: list[float] = []

    async def sleep_until(self, instant_s: float) -> None:
        self.naps_s.append(instant_s - self.now_s())
        self.advance(max(0.0, instant_s - self.now_s()))
        await asyncio.sleep(0)


class Script:
    """What the server answers, request after request; the last line holds for all that follow."""

    def __init__(self, *answers: Scripted, takes_s: float = 0.0, clock: ManualClock | None = None) -> None:
        self.answers = list(answers)
        self.seen: list[httpx.Request] = []
        self.clock = clock or JumpingClock()
        self._takes_s = takes_s

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        self.clock.advance(self._takes_s)
        await asyncio.sleep(0)
        status, headers, content = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return httpx.Response(status, headers=headers, content=data)

    @property
    def timeouts_ms(self) -> list[float]:
        return [float(each.headers["x-timeout-ms"]) for each in self.seen]


def problem(code: str, **details: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": "why", "details": details}}


FULL: Scripted = (429, {"Retry-After": "2"}, problem("overloaded", retry_after_s=1.5))


@asynccontextmanager
async def asking(script: Script | Callable[[httpx.Request], Any], **options: Any) -> AsyncIterator[AsyncClient]:
    clock = script.clock if isinstance(script, Script) else ManualClock()
    given = {"clock": clock, "transport": httpx.MockTransport(script), "chance": lambda: 0.0, **options}
    async with AsyncClient("http://server/below/", **given) as client:
        yield client


async def test_an_answer_has_types() -> None:
    script = Script((200, {}, ANSWER))
    async with asking(script) as client:
        answer = await client.predict(b"pixels", model="brain", version=2, request_id="r")

    assert (answer.label, answer.confidence, answer.model, answer.version) == ("Glioma", 0.9, "brain", 2)
    assert [each.code for each in answer.warnings] == ["windowed"]
    (request,) = script.seen
    assert (request.method, str(request.url)) == ("POST", "http://server/below/predict?model=brain&version=2")
    assert (request.content, request.headers["x-request-id"]) == (b"pixels", "r")
    assert request.headers["content-type"] == "application/octet-stream"


async def test_not_now_is_asked_again_after_the_time_that_was_named() -> None:
    clock = JumpingClock()
    script = Script(FULL, (503, {"Retry-After": "3"}, b"<html>"), (200, {}, ANSWER), clock=clock)
    async with asking(script) as client:
        await client.predict(b"pixels")

    assert clock.naps_s == [2.0, 3.0]
    assert len({request.headers["x-request-id"] for request in script.seen}) == 1


async def test_a_date_to_come_back_is_kept_without_a_date_of_the_server() -> None:
    clock = JumpingClock()
    seven = datetime(2025, 11, 22, 7, tzinfo=UTC).timestamp()
    script = Script((503, {"Retry-After": "Sat, 22 Nov 2025 07:00:09 GMT"}, b""), (200, {}, ANSWER), clock=clock)
    async with asking(script, wall_s=lambda: seven) as client:
        await client.predict(b"pixels")
    assert clock.naps_s == [9.0]


async def test_the_timeout_is_one_instant_for_all_attempts() -> None:
    script = Script(FULL, FULL, (200, {}, ANSWER), takes_s=0.25)
    async with asking(script, timeout_s=10.0) as client:
        await client.predict(b"pixels")

    assert script.timeouts_ms == pytest.approx([10_000, 7_750, 5_500])


async def test_nobody_waits_for_a_time_after_the_deadline() -> None:
    clock = JumpingClock()
    script = Script(FULL, takes_s=0.25, clock=clock)
    async with asking(script) as client:
        with pytest.raises(Overloaded) as caught:
            await client.predict(b"pixels", timeout_s=4.0)

    assert caught.value.retry_after_s == 1.5
    assert clock.naps_s == [2.0]
    assert clock.now_s() < 1004.0


async def test_attempts_are_counted() -> None:
    script = Script((503, {}, problem("draining")))
    async with asking(script, patience=Patience(attempts=3)) as client:
        with pytest.raises(Draining):
            await client.predict(b"pixels")
    assert len(script.seen) == 3


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        ((422, {}, problem("bad_image")), BadImage, "bad_image"),
        ((404, {"Retry-After": "1"}, problem("unknown_model")), UnknownModel, "unknown_model"),
        ((504, {}, problem("deadline_exceeded")), DeadlineExceeded, "deadline_exceeded"),
        ((500, {}, problem("internal")), ServerRefused, "internal"),
        ((502, {}, b"<html>"), NotAnAnswer, "http_502"),
        ((302, {"Location": "http://elsewhere/"}, b""), NotAnAnswer, "http_302"),
        ((200, {}, b"<html>"), NotAnAnswer, "not_an_answer"),
        ((200, {}, {"prediction": "Glioma"}), NotAnAnswer, "not_an_answer"),
        ((200, {}, [1]), NotAnAnswer, "not_an_answer"),
        ((200, {"Content-Encoding": "gzip"}, b"<html>"), NotAnAnswer, "not_an_answer"),
    ],
)
async def test_what_is_no_not_now_is_asked_once(answer: Scripted, kind: type[Exception], code: str) -> None:
    script = Script(answer)
    async with asking(script) as client:
        with pytest.raises(kind) as caught:
            await client.predict(b"pixels")
    assert type(caught.value) is kind
    assert getattr(caught.value, "code", "") == code
    assert len(script.seen) == 1


async def test_a_broken_connection_is_said_and_not_asked_again() -> None:
    asked = 0

    def broken(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        raise httpx.ReadError("reset by peer", request=request)

    async with asking(broken) as client:
        with pytest.raises(NoConnection, match="reset by peer") as caught:
            await client.predict(b"pixels")
    assert (asked, caught.value.code) == (1, "no_connection")


async def test_a_server_that_says_nothing_is_left_at_the_deadline() -> None:
    clock, asked, left = ManualClock(), asyncio.Event(), asyncio.Event()

    async def silent(request: httpx.Request) -> httpx.Response:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    async with asking(silent, clock=clock, timeout_s=5.0) as client:
        call = asyncio.create_task(client.predict(b"pixels"))
        await asked.wait()
        clock.advance(4.999)
        await asyncio.sleep(0)
        assert not call.done()
        clock.advance(0.001)
        with pytest.raises(DeadlineExceeded, match=r"no answer within 5\.000 s"):
            await call
    assert left.is_set()


async def test_calls_beyond_the_connections_wait_and_say_what_is_left_to_them_then() -> None:
    clock, come, go = ManualClock(), asyncio.Event(), asyncio.Event()
    seen: list[float] = []

    async def slow(request: httpx.Request) -> httpx.Response:
        seen.append(float(request.headers["x-timeout-ms"]))
        come.set()
        await go.wait()
        return httpx.Response(200, json=ANSWER)

    async with asking(slow, clock=clock, timeout_s=5.0, max_connections=1) as client:
        calls = [asyncio.create_task(client.predict(b"pixels")) for _ in range(2)]
        await come.wait()
        clock.advance(1.0)
        go.set()
        await asyncio.gather(*calls)
    assert seen == [5000.0, 4000.0]


async def test_without_a_timeout_the_models_own_counts() -> None:
    script = Script((200, {}, ANSWER))
    async with asking(script, timeout_s=None) as client:
        await client.predict(b"pixels")
    assert "x-timeout-ms" not in script.seen[0].headers


async def test_health_of_a_server_that_cannot_answer_is_an_answer() -> None:
    health = {"status": "unavailable", "uptime_s": 1.5, "server": "0.1.0", "models": []}
    script = Script((503, {}, health), (503, {}, problem("unavailable")), (200, {}, {**health, "status": "ok"}))
    async with asking(script) as client:
        assert (await client.health()).status == "unavailable"
        with pytest.raises(Unavailable, match="why"):
            await client.health()
        assert (await client.health()).status == "ok"
    assert len(script.seen) == 3


async def test_models_and_stats_have_their_paths() -> None:
    summary = {"name": "a b", "version": 1, "task": "segmentation", "title": "t", "state": "ready"}
    script = Script((200, {}, {"models": [summary]}), (200, {}, {"name": "a b"}), (200, {}, {"answered": 4}))
    async with asking(script) as client:
        assert [each.name for each in await client.models()] == ["a b"]
        assert await client.model("a b") == {"name": "a b"}
        assert await client.stats("a/b", 3) == {"answered": 4}
    assert [each.url.raw_path.decode() for each in script.seen] == [
        "/below/v1/models",
        "/below/v1/models/a%20b",
        "/below/v1/models/a%2Fb/versions/3/stats",
    ]


async def test_cells_come_in_the_format_that_was_asked_for() -> None:
    labels = np.zeros((4, 5), np.uint16)
    labels[1:3, 1:4] = 300
    script = Script(
        (200, {"Content-Type": "application/geo+json", "X-Request-ID": "r"}, {"features": []}),
        (200, {"Content-Type": "image/png"}, encode(labels)),
        (200, {"Content-Type": "image/png"}, encode(labels)),
    )
    async with asking(script) as client:
        cells = await client.segment(b"pixels", format="geojson", threshold=0.4, detect_holes=False, channel="DAPI")
        assert (cells.json(), cells.request_id) == ({"features": []}, "r")
        with pytest.raises(ValueError, match="is a document"):
            cells.pixels()
        picture = await client.segment(b"pixels", format="labels")
        assert np.array_equal(picture.pixels(), labels)
        with pytest.raises(ValueError, match="is a picture"):
            picture.json()
        with pytest.raises(NotAnAnswer, match="coco was asked for and image/png came"):
            await client.segment(b"pixels", format="coco")
        with pytest.raises(BadRequest, match="svg"):
            await client.segment(b"pixels", format="svg")  # type: ignore[arg-type]
    assert dict(script.seen[0].url.params) == {
        "format": "geojson",
        "threshold": "0.4",
        "detect_holes": "false",
        "channel": "DAPI",
    }
    assert dict(script.seen[1].url.params) == {"format": "labels"}


@pytest.mark.parametrize(
    "pixels",
    [
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        np.arange(36, dtype=np.uint8).reshape(3, 4, 3),
        np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000,
        np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    ],
    ids=["gray", "colour", "16 bits", "floats"],
)
def test_arrays_are_sent_without_loss(pixels: Any) -> None:
    found = decode(encode(pixels), limits=ImageLimits()).pixels
    assert found.dtype == pixels.dtype
    assert np.array_equal(found.squeeze(), pixels)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (b"", MissingImage),
        (Path("nowhere.png"), MissingImage),
        ("nowhere\0.png", MissingImage),
        (3, BadRequest),
        (np.zeros((3, 4), np.int32), UnsupportedMedia),
        (np.zeros((3, 4, 2), np.uint8), UnsupportedMedia),
        (np.zeros((0, 4), np.uint8), UnsupportedMedia),
        (np.ma.masked_greater(np.arange(12, dtype=np.uint8).reshape(3, 4), 5), UnsupportedMedia),
    ],
    ids=["nothing", "no file", "no path", "no image", "type", "channels", "empty", "masked"],
)
async def test_what_is_no_image_is_not_sent(image: Any, kind: type[Exception]) -> None:
    script = Script((200, {}, ANSWER))
    async with asking(script) as client:
        with pytest.raises(kind) as caught:
            await client.predict(image)
    assert script.seen == []
    assert "nowhere" not in str(caught.value)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"request_id": "ä"}, "request_id 'ä'; 1 to 128 letters of ASCII, digits and . _ : - are allowed"),
    ({"request_id": "a\nb"}, r"request_id 'a\nb'; 1 to 128 letters"),
    ({"request_id": ""}, "request_id ''; 1 to 128 letters"),
    ({"request_id": 7}, "request_id 7; 1 to 128 letters"),
    ({"timeout_s": 0}, "timeout_s 0; a positive number of seconds is allowed"),
    ({"timeout_s": -1.5}, "timeout_s -1.5; a positive"),
    ({"timeout_s": float("nan")}, "timeout_s nan; a positive"),
    ({"timeout_s": "5"}, "timeout_s '5'; a positive"),
    ({"model": "\udcff"}, r"model '\udcff'; text that UTF-8 can write is allowed"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
async def test_what_cannot_be_said_is_refused_and_nothing_is_sent(wrong: dict[str, Any], said: str) -> None:
    script = Script((200, {}, ANSWER))
    async with asking(script) as client:
        for call in (client.predict, client.segment):
            with pytest.raises(BadRequest, match=re.escape(said)):
                await call(b"pixels", **wrong)
    assert script.seen == []


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_a_plain_program_is_told_the_same(wrong: dict[str, Any], said: str) -> None:
    with (
        Client("http://server", transport=httpx.MockTransport(Script((200, {}, ANSWER)))) as client,
        pytest.raises(BadRequest, match=re.escape(said)),
    ):
        client.segment(b"pixels", **wrong)


async def test_questions_without_an_image_are_checked_too() -> None:
    script = Script((200, {}, {}))
    async with asking(script) as client:
        with pytest.raises(BadRequest, match="timeout_s '5'"):
            await client.models(timeout_s="5")  # type: ignore[arg-type]
        with pytest.raises(BadRequest, match=r"model '\\udcff'"):
            await client.stats("\udcff")
    assert script.seen == []


async def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"pixels")
    script = Script((200, {}, ANSWER))
    async with asking(script) as client:
        await client.predict(str(file))
        await client.predict(file)
        await client.predict(memoryview(b"pixels"))
    assert [request.content for request in script.seen] == [b"pixels"] * 3


async def test_an_answer_that_never_ends_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isocenter.client.asynchronous._MOST_BYTES", 1000)

    async def for_ever() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 100

    async with asking(lambda request: httpx.Response(200, content=for_ever())) as client:
        with pytest.raises(NotAnAnswer, match="more than 1000 bytes"):
            await client.predict(b"pixels")


@pytest.mark.parametrize(
    "url", ["server", "ftp://x", "http://", "http://x:99999", "http://x:port", "http://\0", "http://x.\u2024."]
)
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(ValueError, match="no address of a server"):
        AsyncClient(url)


@pytest.mark.parametrize(
    "wrong", [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"timeout_s": "5"}, {"max_connections": 0}]
)
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"positive number|at least one"):
        AsyncClient("http://server", **wrong)


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtra, match=r"isocenter\[client\]"):
        Client("http://server")


def test_a_plain_program_needs_no_loop() -> None:
    clock = JumpingClock()
    script = Script(FULL, (200, {}, ANSWER), (404, {}, problem("unknown_model")), clock=clock)
    transport = httpx.MockTransport(script)
    with Client("http://server", transport=transport, clock=clock, chance=lambda: 0.0) as client:
        assert client.predict(b"pixels", timeout_s=30.0).label == "Glioma"
        with pytest.raises(UnknownModel):
            client.stats("nope")
    assert clock.naps_s == [2.0]
    assert script.timeouts_ms[:2] == [30_000.0, 28_000.0]
    client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.models()


def test_a_client_that_was_never_used_has_no_thread_to_end() -> None:
    with Client("http://server") as client:
        assert client.url == "http://server"
