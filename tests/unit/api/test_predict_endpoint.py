"""The endpoint books what it holds, notices who leaves, and gives everything back."""

import asyncio
from typing import Any, cast

import orjson
import pytest
from starlette.requests import Request
from starlette.types import Message

from isocenter.api.http.connection import CONNECTION, Connection
from isocenter.api.http.gate import HEADERS, REQUEST_ID, STARTED_S
from isocenter.api.http.predict import PredictEndpoint
from isocenter.core.clock import ManualClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadImage, IsocenterError
from isocenter.core.events import Answered, Event
from isocenter.serving.budget import ByteBudget
from isocenter.serving.predict import Predict, Prediction

FOUND = Prediction("yes", 0.9, {"yes": 0.9, "no": 0.1}, "lungs", 3, (), {})


class HeldBack:
    """A use case whose answers a test gives."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = asyncio.Event()
        self.refusal: IsocenterError | None = None

    def default_deadline(self, model: str | None, version: int | None, *, arrived_s: float) -> Deadline:
        return Deadline.after(60.0, now_s=arrived_s)

    def check(self, *_: object) -> None:
        pass

    def meant_by(self, *_: object) -> tuple[str, int]:
        return "lungs", 3

    async def __call__(self, image: bytes, **_: object) -> Prediction:
        self.begun += 1
        await self.go_on.wait()
        if self.refusal is not None:
            raise self.refusal
        return FOUND


class Codes:
    """How requests ended."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def observe(self, event: Event) -> None:
        assert isinstance(event, Answered)
        self.seen.append(event.code)


class Stage:
    """The endpoint between a fake caller and a fake use case."""

    def __init__(self, limit_bytes: int = 100) -> None:
        self.budget = ByteBudget(limit_bytes)
        self.predict = HeldBack()
        self.codes = Codes()
        self.read = 0
        self.endpoint = PredictEndpoint(
            cast(Predict, self.predict), max_bytes=80, bodies=self.budget, clock=ManualClock(), observer=self.codes
        )

    async def ask(self, size: int, *, declared: bool = True, connection: Connection | None = None) -> tuple[int, Any]:
        """Send one body; status and JSON of the answer."""

        async def receive() -> Message:
            self.read += 1
            return {"type": "http.request", "body": bytes(size)}

        scope: dict[str, Any] = {"type": "http", "query_string": b"", "headers": []}
        scope |= {STARTED_S: 0.0, REQUEST_ID: "7", HEADERS: {b"content-length": b"%d" % size} if declared else {}}
        if connection is not None:
            scope[CONNECTION] = connection
        response = await self.endpoint(Request(scope, receive))
        return response.status_code, orjson.loads(response.body)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_body_over_the_budget_is_refused_before_it_is_read() -> None:
    stage = Stage()
    inside = asyncio.create_task(stage.ask(60))
    await turns()
    assert (stage.budget.in_use_bytes, stage.read) == (60, 1)

    status, answer = await stage.ask(41)

    assert (status, answer["error"]["code"], stage.read) == (429, "overloaded", 1)
    assert answer["error"]["details"]["retry_after_s"] > 0
    stage.predict.go_on.set()
    assert (await inside)[0] == 200
    assert stage.budget.in_use_bytes == 0


async def test_a_body_of_unknown_length_over_the_budget_is_refused_as_it_comes() -> None:
    stage = Stage()
    inside = asyncio.create_task(stage.ask(60, declared=False))
    await turns()

    assert (await stage.ask(41, declared=False))[0] == 429

    stage.predict.go_on.set()
    await inside
    assert stage.budget.in_use_bytes == 0


@pytest.mark.parametrize("way", ["answered", "refused", "left", "cancelled"])
async def test_the_booking_is_given_back_on_every_way_out(way: str) -> None:
    stage = Stage()
    connection = Connection(1)
    asking = asyncio.create_task(stage.ask(60, connection=connection))
    await turns()
    assert stage.budget.in_use_bytes == 60

    if way == "left":
        connection.lose()
    elif way == "cancelled":
        asking.cancel()
    elif way == "refused":
        stage.predict.refusal = BadImage("broken")
    stage.predict.go_on.set()
    await asyncio.wait({asking})

    assert stage.budget.in_use_bytes == 0
    ends = {"answered": ["ok"], "refused": ["bad_image"], "left": ["abandoned"], "cancelled": []}
    assert stage.codes.seen == ends[way]


async def test_work_for_a_caller_who_left_is_not_begun() -> None:
    stage = Stage()
    connection = Connection(1)
    connection.lose()

    await stage.ask(60, connection=connection)

    assert (stage.predict.begun, stage.read, stage.codes.seen) == (0, 0, ["abandoned"])
