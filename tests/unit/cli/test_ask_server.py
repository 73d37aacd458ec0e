"""Asking a server: patience with "not now", none with "never", and no file costs another its answer."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from isocenter.cli.ask_server import Server, ask_server
from isocenter.cli.errors import Hopeless
from isocenter.cli.outcome import Outcome

ANSWER: dict[str, Any] = {
    "prediction": "Glioma",
    "confidence": 1.0,
    "probabilities": {"Glioma": 1.0},
    "latency_ms": 2.5,
    "model": "brain",
    "version": 3,
    "warnings": [{"code": "windowed"}],
}
Scripted = tuple[int, dict[str, str], Any]


class Script:
    """What the server answers, request after request; the last line holds for all that follow."""

    def __init__(self, *answers: Scripted) -> None:
        self.answers = list(answers)
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self._lock = threading.Lock()

    def next(self, path: str, body: bytes) -> Scripted:
        with self._lock:
            self.paths.append(path)
            self.bodies.append(body)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def serving(script: Script) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            predicting = self.command == "POST"
            status, headers, content = script.next(self.path, body) if predicting else (200, {}, {"models": []})
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(script: Script, files: list[Path], **options: Any) -> tuple[dict[int, Outcome], list[float]]:
    outcomes: dict[int, Outcome] = {}
    naps: list[float] = []
    with serving(script) as url:
        ask_server(
            files,
            Server(url, sleep=naps.append),
            model=options.get("model"),
            version=options.get("version"),
            at_once=2,
            tell=lambda index, outcome: outcomes.update({index: outcome}),
        )
    return outcomes, naps


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "a.png"
    file.write_bytes(b"pixels")
    return file


def test_the_answer_is_passed_on_as_it_is(image: Path) -> None:
    script = Script((200, {}, ANSWER))
    outcomes, naps = ask(script, [image], model="brain", version=3)
    assert outcomes[0] == Outcome(image, answer=ANSWER)
    assert (script.paths, script.bodies) == (["/predict?model=brain&version=3"], [b"pixels"])
    assert naps == []


@pytest.mark.parametrize("status", [429, 503])
def test_not_now_is_asked_again_after_the_time_that_was_named(status: int, image: Path) -> None:
    script = Script((status, {"Retry-After": "2"}, {}), (status, {}, {}), (200, {}, ANSWER))
    outcomes, naps = ask(script, [image])
    assert outcomes[0].answer == ANSWER
    assert naps == [2.0, 1.0]


def test_patience_is_bounded_in_number_and_length(image: Path) -> None:
    problem = {"error": {"code": "overloaded", "message": "full", "details": {}}}
    script = Script((429, {"Retry-After": "3600"}, problem))
    outcomes, naps = ask(script, [image])
    assert outcomes[0].error == problem["error"]
    assert naps == [10.0] * 4


def test_a_refusal_of_one_file_leaves_the_others_alone(image: Path, tmp_path: Path) -> None:
    problem = {"error": {"code": "bad_image", "message": "broken", "details": {}}}
    script = Script((422, {}, problem), (200, {}, ANSWER))
    outcomes, naps = ask(script, [image, tmp_path / "gone.png", image])
    assert outcomes[1].error is not None
    assert outcomes[1].error["code"] == "unreadable_file"
    both = (outcomes[0], outcomes[2])
    assert [each.error for each in both if each.error] == [problem["error"]]
    assert [each.answer for each in both if each.answer] == [ANSWER]
    assert naps == []


def test_an_answer_of_somebody_else_is_no_answer(image: Path) -> None:
    outcomes, _ = ask(Script((502, {}, b"<html>Bad Gateway</html>")), [image])
    assert outcomes[0].error is not None
    assert outcomes[0].error["code"] == "http_502"


@pytest.mark.parametrize(
    "strange",
    [
        {"prediction": "Glioma"},
        ANSWER | {"confidence": float("nan")},
        ANSWER | {"confidence": "high"},
        ANSWER | {"latency_ms": None},
        ANSWER | {"prediction": {"a": 1}},
        ANSWER | {"probabilities": [1.0]},
        ANSWER | {"warnings": [1]},
        b"[" * 200_000,
    ],
    ids=lambda strange: str(strange)[-40:],
)
def test_a_strange_answer_costs_the_others_nothing(strange: Any, image: Path) -> None:
    outcomes, _ = ask(Script((200, {}, strange), (200, {}, ANSWER)), [image] * 3)
    assert sorted(outcome.error["code"] for outcome in outcomes.values() if outcome.error) in (
        ["not_an_answer"],
        ["http_200"],
    )
    assert [each.answer for each in outcomes.values() if each.answer] == [ANSWER] * 2


def test_an_answer_that_never_ends_is_none(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isocenter.cli.ask_server._MOST_BYTES", 1000)
    outcomes, _ = ask(Script((200, {}, b" " * 2000)), [image])
    assert outcomes[0].error is not None
    assert outcomes[0].error["code"] == "no_connection"
    assert "more than 1000 bytes" in outcomes[0].error["message"]


def test_a_server_that_is_not_there_is_said_once(image: Path) -> None:
    with serving(Script((200, {}, ANSWER))) as url:
        pass
    with pytest.raises(Hopeless, match="no server answers at"):
        ask_server([image] * 3, Server(url), model=None, version=None, at_once=2, tell=lambda *_: None)


def test_nobody_is_asked_again_once_everything_stops() -> None:
    script = Script((503, {"Retry-After": "9"}, {}))
    with serving(script) as url:
        server = Server(url, sleep=lambda _: server.stop())
        with pytest.raises(ConnectionAbortedError):
            server.predict(b"pixels", None, None)
        server.close()
    assert len(script.paths) == 1


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "http://", "http://x:99999", "http://x:port", "http://[::1", "http://x..", "http://" + 64 * "x", "x/ü"],
    ids=lambda url: url[:12],
)
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(Hopeless, match="no address"):
        Server(url)
