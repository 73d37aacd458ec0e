"""Ask a running server over HTTP, with the standard library, a few threads and a bounded patience."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from isocenter.cli.errors import Hopeless
from isocenter.cli.outcome import Outcome, Tell, failed

_NOT_NOW: Final = (429, 503)
_ATTEMPTS: Final = 5
_LONGEST_WAIT_S: Final = 10.0
_TIMEOUT_S: Final = 60.0
_MOST_BYTES: Final = 2**30
"""Of an image, and of an answer: what has more is not held."""
UNREADABLE: Final = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)
"""What comes of reading an answer that is none."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer."""

    status: int
    retry_after_s: float
    body: dict[str, Any]


class Server:
    """A server at an address; each thread keeps a connection of its own."""

    def __init__(self, url: str, *, sleep: Callable[[float], object] | None = None) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
            known = parts.scheme in ("http", "https") and bool((host or "").encode("idna"))
            parts.path.encode("ascii")  # others stand there as %-codes
        except ValueError:
            known = False
        if not known:
            raise Hopeless(f"{url!r} is no address of a server", hint="--url http://127.0.0.1:8000")
        self.url = url
        self._secure = parts.scheme == "https"
        self._host, self._port, self._path = host or "", port, parts.path.rstrip("/")
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._mine = threading.local()
        self._all: list[HTTPConnection] = []

    def check(self, model: str | None, version: int | None) -> None:
        """See that it answers and has the model.

        Raises:
            Hopeless: it does not.
        """
        path = "/v1/models"
        if model is not None:
            path += f"/{quote(model, safe='')}" + (f"/versions/{version}" if version is not None else "")
        try:
            reply = self._send("GET", path)
        except (OSError, HTTPException) as error:
            raise Hopeless(f"no server answers at {self.url}: {_reason(error)}", hint="isocenter serve") from error
        if reply.status != 200:
            raise Hopeless(
                f"{self.url} says: {_problem(reply)['message']}", hint="isocenter models; or another --url or --model"
            )

    def predict(self, image: bytes, model: str | None, version: int | None) -> Reply:
        """One image, asked again as often as is decent while the server says "not now".

        Raises:
            OSError, HTTPException: the connection is broken.
        """
        return self.ask("/predict", image, {"model": model, "version": version})

    def ask(self, path: str, image: bytes, query: Mapping[str, object]) -> Reply:
        """The same for any route that takes an image; what is None is not said.

        Raises:
            OSError, HTTPException: the connection is broken.
        """
        wanted = {name: str(value) for name, value in query.items() if value is not None}
        path += f"?{urlencode(wanted)}" if wanted else ""
        reply = self._send("POST", path, image)
        for _ in range(_ATTEMPTS - 1):
            if reply.status not in _NOT_NOW:
                break
            self._sleep(min(reply.retry_after_s, _LONGEST_WAIT_S))
            reply = self._send("POST", path, image)
        return reply

    def stop(self) -> None:
        """Ask nothing more; whoever waits for an answer, or for the time to ask again, stops waiting."""
        self._stopped.set()
        for connection in self._all:
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give every connection back. No thread uses one any more."""
        for connection in self._all:
            connection.close()

    def _send(self, method: str, path: str, body: bytes | None = None) -> Reply:
        try:
            return self._send_once(method, path, body)
        except (ConnectionError, HTTPException):
            if self._stopped.is_set():
                raise
            # A kept connection may have been closed on the other side in the meantime; a fresh one tells.
            self._connection().close()
            return self._send_once(method, path, body)

    def _send_once(self, method: str, path: str, body: bytes | None) -> Reply:
        if self._stopped.is_set():
            raise ConnectionAbortedError("interrupted")
        connection = self._connection()
        headers = {"Content-Type": "application/octet-stream"} if body is not None else {}
        try:
            connection.request(method, self._path + path, body, headers)
        except BrokenPipeError:
            # The server may refuse a body by its length alone: its answer stands in the socket already.
            if body is None:
                raise
        response = connection.getresponse()
        content = response.read(_MOST_BYTES)
        if len(content) == _MOST_BYTES or response.length:
            connection.close()
            cut = len(content) < _MOST_BYTES
            raise HTTPException("the answer is cut" if cut else f"an answer of more than {_MOST_BYTES} bytes")
        try:
            parsed = json.loads(content)
        except (ValueError, RecursionError):
            parsed = None
        retry_after = response.headers.get("Retry-After", "")
        wait_s = float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 1.0
        return Reply(response.status, wait_s, parsed if isinstance(parsed, dict) else {})

    def _connection(self) -> HTTPConnection:
        connection: HTTPConnection | None = getattr(self._mine, "connection", None)
        if connection is None:
            kind = HTTPSConnection if self._secure else HTTPConnection
            connection = self._mine.connection = kind(self._host, self._port, timeout=_TIMEOUT_S)
            self._all.append(connection)
        return connection


def ask_server(
    files: list[Path],
    server: Server,
    *,
    model: str | None,
    version: int | None,
    at_once: int,
    tell: Tell,
    ask: Callable[[Server, Path], Outcome] | None = None,
) -> None:
    """Answer every file, `at_once` at a time; `ask` is called on threads, and asks for its class if it is left out.

    Raises:
        Hopeless: there is no server, or not the model.
    """
    server.check(model, version)
    pool = ThreadPoolExecutor(max_workers=min(at_once, len(files)), thread_name_prefix="isocenter-ask")
    try:
        one = ask or partial(_ask, model=model, version=version)
        waiting = {pool.submit(one, server, file): index for index, file in enumerate(files)}
        for done in as_completed(waiting):
            tell(waiting[done], done.result())
    finally:
        server.stop()
        pool.shutdown(cancel_futures=True)
        server.close()


def _ask(server: Server, file: Path, model: str | None, version: int | None) -> Outcome:
    query = {"model": model, "version": version}
    return asked(server, file, "/predict", query, lambda body, _: _classified(file, body), key="prediction")


def _classified(file: Path, body: dict[str, Any]) -> Outcome:
    """The answer as it is, if it can be shown.

    Raises:
        LookupError, TypeError, ValueError: it is none.
    """
    confidence, latency_ms = body["confidence"], body["latency_ms"]
    if not all(isinstance(each, int | float) for each in (confidence, latency_ms)) or not 0 <= confidence <= 1:
        raise ValueError("no such probability, or no such time")
    if not isinstance(body["prediction"], str | int) or not isinstance(body["probabilities"], dict):
        raise TypeError("no class, or no probabilities of classes")
    if not all(isinstance(each["code"], str) for each in body["warnings"]):
        raise TypeError("a warning without a code")
    if {"model", "version"} - body.keys():
        raise LookupError("nobody answered")
    return Outcome(file, answer=body)


def asked(
    server: Server,
    file: Path,
    path: str,
    query: Mapping[str, object],
    read: Callable[[dict[str, Any], bytes], Outcome],
    *,
    key: str,
) -> Outcome:
    """Ask about one file; `read` is given the body, which has the key, and the bytes of the file.

    What it raises for a body that is no answer (`UNREADABLE`) is the end of this file, and of no other.
    """
    try:
        if (size := file.stat().st_size) > _MOST_BYTES:
            return failed(file, "too_many_bytes", f"the file has {size} bytes, at most {_MOST_BYTES} are sent")
        image = file.read_bytes()
    except OSError as error:
        return failed(file, "unreadable_file", _reason(error))
    try:
        reply = server.ask(path, image, query)
    except (OSError, HTTPException) as error:
        return failed(file, "no_connection", f"the connection to the server failed: {_reason(error)}")
    if reply.status == 200 and key in reply.body:
        try:
            return read(reply.body, image)
        except UNREADABLE as error:
            return failed(file, "not_an_answer", f"the server's answer cannot be read: {type(error).__name__}")
    return Outcome(file, error=_problem(reply))


def _problem(reply: Reply) -> dict[str, Any]:
    problem = reply.body.get("error")
    if isinstance(problem, dict) and {"code", "message"} <= problem.keys():
        return problem
    return {
        "code": f"http_{reply.status}",
        "message": f"status {reply.status}, not an answer of Isocenter",
        "details": {},
    }


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
