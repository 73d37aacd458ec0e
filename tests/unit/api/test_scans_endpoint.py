"""The endpoint for scans books what it holds, notices who leaves, and gives everything back."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import orjson
from starlette.requests import Request
from starlette.types import Message

from isocenter.api.http.connection import CONNECTION, Connection
from isocenter.api.http.gate import HEADERS, REQUEST_ID, STARTED_S
from isocenter.api.http.scans import BODY, ScansDoor, ScansEndpoint
from isocenter.core.clock import ManualClock
from isocenter.core.errors import BadVolume, DeadlineExceeded
from isocenter.core.events import Answered, Event
from isocenter.repository.repository import Repository
from isocenter.serving.budget import ByteBudget
from isocenter.serving.scans import SegmentScan

MODEL = SimpleNamespace(
    name="tumors",
    version=3,
    manifest=SimpleNamespace(
        slo=SimpleNamespace(timeout_ms=60_000.0), task="segmentation", input=SimpleNamespace(channels=["ct"])
    ),
)


class OnlyOne:
    """The one model that there is."""

    def all(self) -> list[Any]:
        return [MODEL]

    def served(self, *_: object) -> Any:
        return MODEL

    def meant_by(self, *_: object) -> tuple[str, int]:
        return "tumors", 3


class HeldBack:
    """A use case whose end a test gives."""

    def __init__(self) -> None:
        self.models = OnlyOne()
        self.begun = 0
        self.late = False
        self.go_on = asyncio.Event()

    def check(self, *_: object, **__: object) -> None:
        """Let everybody in, or nobody."""
        if self.late:
            raise DeadlineExceeded("too late")

    async def __call__(self, *_: object, **__: object) -> Any:
        self.begun += 1
        await self.go_on.wait()
        raise BadVolume("a test says so")


class Stage:
    """The endpoint between a fake caller and a fake use case."""

    def __init__(self, limit_bytes: int = 100) -> None:
        self.budget = ByteBudget(limit_bytes)
        self.scans = HeldBack()
        self.codes: list[str] = []
        self.read = 0
        door = ScansDoor(cast(SegmentScan, self.scans), cast(Repository, [MODEL]), 80, self.budget, ManualClock(), self)
        self.endpoint = ScansEndpoint(door)

    def observe(self, event: Event) -> None:
        """Note how a request ended."""
        assert isinstance(event, Answered)
        self.codes.append(event.code)

    async def ask(self, size: int, connection: Connection | None = None) -> tuple[int, Any]:
        """Send one body; status and JSON of the answer."""

        async def receive() -> Message:
            self.read += 1
            return {"type": "http.request", "body": b"x" * size}

        scope: dict[str, Any] = {"type": "http", "query_string": b"", "headers": []}
        scope |= {STARTED_S: 0.0, REQUEST_ID: "7", HEADERS: {b"content-length": b"%d" % size}}
        if connection is not None:
            scope[CONNECTION] = connection
        response = await self.endpoint(Request(scope, receive))
        return response.status_code, orjson.loads(response.body)


async def begun(stage: Stage) -> None:
    while not stage.scans.begun:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)


async def test_a_scan_over_the_budget_is_refused_before_it_is_read() -> None:
    stage = Stage()
    inside = asyncio.create_task(stage.ask(60))
    await begun(stage)

    status, answer = await stage.ask(41)

    assert (status, answer["error"]["code"], stage.read, stage.budget.in_use_bytes) == (429, "overloaded", 1, 60)
    stage.scans.go_on.set()
    assert (await inside)[0] == 422
    assert stage.budget.in_use_bytes == 0
    assert stage.codes == ["overloaded", "bad_volume"]


async def test_whoever_leaves_is_given_up_and_his_room_comes_back() -> None:
    stage, connection = Stage(), Connection(1)
    inside = asyncio.create_task(stage.ask(60, connection))
    await begun(stage)

    connection.lose()

    assert (await inside)[0] == 499
    assert (stage.codes, stage.budget.in_use_bytes) == (["abandoned"], 0)


async def test_what_is_too_late_and_no_scan_is_not_counted_as_one() -> None:
    stage = Stage()
    stage.scans.late = True
    scope: dict[str, Any] = {"type": "http", "query_string": b"", "headers": [], BODY: b"no scan"}
    scope |= {STARTED_S: 0.0, REQUEST_ID: "7", HEADERS: {b"content-length": b"7"}}

    async def receive() -> Message:
        raise AssertionError("the body is here already")

    assert await stage.endpoint.perhaps(Request(scope, receive)) is None
    assert stage.codes == []
    assert stage.budget.in_use_bytes == 0
