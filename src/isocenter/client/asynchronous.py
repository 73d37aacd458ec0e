"""The client: one call is one deadline, however many attempts it takes."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ssl import SSLContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from isocenter.client.answers import FORMATS, Cells, Format, Health, Model, Prediction, Reply, read_object
from isocenter.client.asked import check, given, model_path, wrong_timeout
from isocenter.client.errors import NoConnection, NotAnAnswer, error_from, named_s
from isocenter.client.image import Image, to_bytes
from isocenter.client.patience import NOT_NOW, Patience, again_at_s
from isocenter.core.clock import Clock, SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadRequest, DeadlineExceeded, MissingExtra

if TYPE_CHECKING:
    import httpx

TIMEOUT_S: Final = 60.0
_LONGEST_TIMEOUT_MS: Final = 3_600_000.0
"""The server takes no longer one; who waits for longer is bound by this end alone."""
_SHORTEST_TIMEOUT_MS: Final = 0.001
_MOST_BYTES: Final = 2**30
"""Of one answer, unpacked: far more than labels and outlines of any image that a server takes."""
_IDLE_S: Final = 5.0
"""How long a connection that nobody uses is kept: less than the server's 75 s, which would close it under a call."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What is sent, the same at every attempt."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class AsyncClient:
    """A server at an address, for programs with an event loop.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            answer = await client.predict("slice.png")

    Any number of calls may be under way at once; they share connections. A refusal that comes before any work (429,
    503) is asked again, not before the server's `Retry-After` and never beyond the deadline; nothing else is.
    Cancelling a call closes its connection, by which the server knows that nobody waits any more.

    Proxies and credentials of the environment are not used: images go to the server that is named.

    Args:
        url: Such as `http://127.0.0.1:8000`; a path in front of the routes may follow.
        timeout_s: Seconds from a call to its answer, all attempts and pauses included; the server is told at each
            attempt what is left. None: the model's own timeout counts, at each attempt anew.
        patience: How often a refused call is made again.
        headers: Sent with every request, such as `{"Authorization": "Bearer …"}`.
        max_connections: Calls beyond them wait, inside their deadline.
        verify: False or a context of your own, for a server whose certificate the system does not know.
        transport: What carries requests; for tests.
        clock: For tests, and so are `chance` and `wall_s`.

    Raises:
        MissingExtra: httpx is not installed.
        ValueError: that is no address, or a limit is not positive.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float | None = TIMEOUT_S,
        patience: Patience | None = None,
        headers: Mapping[str, str] | None = None,
        max_connections: int = 32,
        verify: bool | SSLContext = True,
        transport: "httpx.AsyncBaseTransport | None" = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        httpx = _httpx()
        parts = urlsplit(url)
        try:
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # the port is no number, or too large a one
            known = False
        if not known:
            raise ValueError(f"{url!r} is no address of a server, such as http://127.0.0.1:8000")
        if max_connections < 1:
            raise ValueError(f"max_connections is {max_connections}; at least one is needed")
        self.url = url
        if wrong := wrong_timeout(timeout_s):
            raise ValueError(wrong)
        self._clock = clock or SystemClock()
        self._wall_s = wall_s
        self._timeout_s = timeout_s
        self._patience = patience or Patience()
        self._chance = chance
        self._free = asyncio.Semaphore(max_connections)
        self._broken = httpx.TransportError
        try:
            self._http = httpx.AsyncClient(
                base_url=url.rstrip("/"),
                headers=dict(headers or {}),
                verify=verify if parts.scheme == "https" else False,  # certificates are not read for nothing
                timeout=None,  # the deadline bounds the whole call
                limits=httpx.Limits(max_keepalive_connections=max_connections, keepalive_expiry=_IDLE_S),
                trust_env=False,
                transport=transport,
            )
        except httpx.InvalidURL as error:  # a name that no host can have
            raise ValueError(f"{url!r} is no address of a server: {error}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Twice is once."""
        await self._http.aclose()

    async def predict(
        self,
        image: Image,
        *,
        model: str | None = None,
        version: int | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Classify one image.

        Args:
            image: The bytes of a file, a path, or an array; arrays are sent as PNG or TIFF, without loss.
            model: May be left out if one model is served.
            version: The highest if left out.
            timeout_s: For this call; the client's own if left out.
            request_id: Goes into the server's log and into the answer; made here if left out. 1 to 128 letters of
                ASCII, digits and `. _ : -`.

        Raises:
            BadInput: the image or the name of the model cannot be answered, or what is said beside them is not allowed.
            Refused: not now, and not again before the deadline; `retry_after_s` says when.
            DeadlineExceeded: too late.
            ModelFault: the model failed.
            ServerRefused: any other refusal; NoConnection and NotAnAnswer are such.
        """
        query = given(model=model, version=version)
        reply = await self._send_image("/predict", query, image, timeout_s, request_id)
        return Prediction.read(reply)

    async def segment(
        self,
        image: Image,
        *,
        format: Format = "json",
        model: str | None = None,
        version: int | None = None,
        threshold: float | None = None,
        detect_holes: bool | None = None,
        channel: str | int | None = None,
        page: int | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Cells:
        """Find the objects of one image. What is left out is as the model declares it; the rest as `predict`.

        Args:
            format: `json`, `geojson` (QuPath opens it), `coco` (polygons) or `coco-rle`, `labels` (a picture of the
                objects' numbers) or `overlay` (a PNG for the eye).
            threshold: The probability from which a pixel is in an object.
            detect_holes: False: a gap within one object is part of it.
            channel: Which channel of the file is meant, by its name or, where none is called so, its number from 0.
            page: Which page of it, from 0.

        Raises:
            BadRequest: there is no such format.
        """
        if format not in FORMATS:
            raise BadRequest(f"format {format!r} is none of {', '.join(FORMATS)}")
        query = given(
            format=format,
            model=model,
            version=version,
            threshold=threshold,
            detect_holes=None if detect_holes is None else str(detect_holes).lower(),
            channel=channel,
            page=page,
        )
        reply = await self._send_image("/segment", query, image, timeout_s, request_id)
        return Cells.read(reply, format)

    async def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """Every served version."""
        return Model.read_all(await self._send(_Call("GET", "/v1/models"), timeout_s))

    async def model(self, name: str, version: int | None = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Everything that a caller of one version may want to know, as `GET /v1/models/{name}` says it.

        Raises:
            UnknownModel, UnknownVersion: it is not there.
        """
        return read_object(await self._send(_Call("GET", model_path(name, version)), timeout_s))

    async def stats(self, model: str, version: int | None = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        """How one version did in the last minute, as `GET /v1/models/{name}/stats` says it.

        Raises:
            UnknownModel, UnknownVersion: it is not there.
        """
        return read_object(await self._send(_Call("GET", f"{model_path(model, version)}/stats"), timeout_s))

    async def health(self, *, timeout_s: float | None = None) -> Health:
        """How the server is. A server that cannot answer says so here without an error; it is asked once."""
        reply = await self._send(_Call("GET", "/health"), timeout_s, take=frozenset({200, 503}))
        if reply.status == 503:
            refusal = error_from(reply.status, reply.headers, reply.content, wall_s=self._wall_s)
            if not isinstance(refusal, NotAnAnswer):
                raise refusal
        return Health.read(reply)

    async def _send_image(
        self, path: str, query: Mapping[str, str], image: Image, timeout_s: float | None, request_id: str | None
    ) -> Reply:
        # The deadline begins with the call: reading and writing the image is part of it.
        started_s = self._clock.now_s()
        check(timeout_s, request_id)  # before anything is read
        body = await to_bytes(image)
        call = _Call("POST", path, query, body, **({} if request_id is None else {"request_id": request_id}))
        return await self._send(call, timeout_s, started_s=started_s)

    async def _send(
        self,
        call: _Call,
        timeout_s: float | None,
        *,
        started_s: float | None = None,
        take: frozenset[int] = frozenset({200}),
    ) -> Reply:
        """The first answer with a status that is taken; anything else is raised."""
        check(timeout_s, call.request_id)
        began_s = self._clock.now_s() if started_s is None else started_s
        deadline = _deadline(self._timeout_s if timeout_s is None else timeout_s, began_s)
        attempt = 0
        async with self._until(deadline, began_s):
            while True:
                reply = await self._attempt(call, deadline)
                attempt += 1
                if reply.status in take:
                    return reply
                error = error_from(reply.status, reply.headers, reply.content, wall_s=self._wall_s)
                again_s = None
                if reply.status in NOT_NOW:
                    again_s = again_at_s(
                        # The header binds, also where it is a rounded figure of the details.
                        max(error.retry_after_s or 0.0, named_s(reply.headers, wall_s=self._wall_s) or 0.0),
                        attempt=attempt,
                        now_s=self._clock.now_s(),
                        deadline=deadline,
                        patience=self._patience,
                        chance=self._chance(),
                    )
                if again_s is None:
                    raise error
                await self._clock.sleep_until(again_s)

    async def _attempt(self, call: _Call, deadline: Deadline) -> Reply:
        async with self._free:
            headers = {"X-Request-ID": call.request_id}
            if call.body is not None:
                headers["Content-Type"] = "application/octet-stream"
            if deadline != Deadline.never():
                left_ms = deadline.left_s(self._clock.now_s()) * 1e3
                headers["X-Timeout-Ms"] = f"{min(max(left_ms, _SHORTEST_TIMEOUT_MS), _LONGEST_TIMEOUT_MS):.3f}"
            asked = {"params": call.query or None, "content": call.body, "headers": headers}
            try:
                async with self._http.stream(call.method, call.path, **asked) as answer:
                    content = await _content(answer)
            except self._broken as error:
                raise NoConnection(f"the connection to the server failed: {_reason(error)}") from error
            except _httpx().DecodingError as error:
                raise NotAnAnswer("the answer is not packed as it says") from error
        return Reply(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, content)

    @asynccontextmanager
    async def _until(self, deadline: Deadline, began_s: float) -> AsyncIterator[None]:
        """Give up what is inside when the deadline passes on our clock."""
        if deadline == Deadline.never():
            yield
            return
        waited_s = deadline.at_s - began_s
        late = DeadlineExceeded(
            f"no answer within {waited_s:.3f} s", details={"waited_s": round(waited_s, 3), "where": "client"}
        )
        if deadline.expired(self._clock.now_s()):
            raise late
        loop = asyncio.get_running_loop()
        timer = None
        try:
            async with asyncio.timeout(None) as bound:
                timer = self._clock.call_at(deadline.at_s, lambda: bound.reschedule(loop.time()))
                yield
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise late from error
        finally:
            if timer is not None:
                timer.cancel()


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise MissingExtra(
            'the client needs httpx, which is not installed: pip install "isocenter[client]"',
            details={"needs": "httpx"},
        ) from error
    return httpx


async def _content(answer: "httpx.Response") -> bytes:
    """All of it, as far as an answer can be: what sends for ever is not waited for until memory ends."""
    parts, size = list[bytes](), 0
    async for part in answer.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise NotAnAnswer(
                f"status {answer.status_code}, more than {_MOST_BYTES} bytes", details={"status": answer.status_code}
            )
    return b"".join(parts)


def _deadline(timeout_s: float | None, now_s: float) -> Deadline:
    return Deadline.never() if timeout_s is None else Deadline.after(timeout_s, now_s=now_s)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
