"""The endpoint books what it holds, notices who leaves, and gives everything back."""

import asyncio
from typing import Any, cast

import orjson
import pytest
from starlette.requests import Request
from starlette.types import Message, Scope

from isocenter.api.http.connection import CONNECTION, Connection
from isocenter.api.http.gate import HEADERS, REQUEST_ID, STARTED_S
from isocenter.api.http.predict import PredictEndpoint
from isocenter.api.http.scans import ScansEndpoint
from isocenter.core.clock import ManualClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadImage, IsocenterError, Overloaded
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
        self.at_the_door: IsocenterError | None = None
        self.checked = 0
        self.refused_again = 0

    def default_deadline(self, model: str | None, version: int | None, *, arrived_s: float) -> Deadline:
        return Deadline.after(60.0, now_s=arrived_s)

    def check(self, *_: object) -> None:
        self.checked += 1
        if self.at_the_door is not None:
            raise self.at_the_door

    def note_refused(self) -> None:
        self.refused_again += 1

    def meant_by(self, *_: object) -> tuple[str, int]:
        return "lungs", 3

    async def __call__(self, image: bytes, **_: object) -> Prediction:
        self.begun += 1
        await self.go_on.wait()
        if self.refusal is not None:
            raise self.refusal
        return FOUND


class NoScans:
    """A server without models of volumes."""

    def by_type(self, content_type: bytes | None) -> bool:
        return False

    def meant(self, scope: Scope, *, beside: str) -> bool:
        return False

    def may_be_meant(self, scope: Scope) -> bool:
        return False


class Codes:
    """How requests ended."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.times: list[int] = []

    def observe(self, event: Event) -> None:
        self.times.append(getattr(event, "times", 1))
        self.seen.append(event.code if isinstance(event, Answered) else type(event).__name__)


class Stage:
    """The endpoint between a fake caller and a fake use case."""

    def __init__(self, limit_bytes: int = 100) -> None:
        self.clock = ManualClock()
        self.budget = ByteBudget(limit_bytes)
        self.predict = HeldBack()
        self.codes = Codes()
        self.read = 0
        self.endpoint = PredictEndpoint(
            cast(Predict, self.predict),
            cast(ScansEndpoint, NoScans()),
            max_bytes=80,
            bodies=self.budget,
            clock=self.clock,
            observer=self.codes,
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

    def glance(self, query: bytes = b"", headers: dict[bytes, bytes] | None = None) -> tuple[int, bytes] | None:
        """What a head alone is answered with."""
        scope = {"type": "http", "query_string": query, HEADERS: headers or {}}
        answer = self.endpoint.glance(scope | {STARTED_S: self.clock.now_s(), REQUEST_ID: "7"})
        return None if answer is None else (answer.status_code, bytes(answer.body))


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


def overloaded(holds_s: float = 0.0) -> Overloaded:
    refusal = Overloaded("late", details={"late_s": 0.1}, retry_after_s=0.2)
    refusal.holds_s = holds_s
    return refusal


def test_a_head_is_refused_for_the_reason_that_the_use_case_gives() -> None:
    stage = Stage()
    stage.predict.at_the_door = overloaded()

    found = stage.glance()

    assert found is not None
    assert (found[0], orjson.loads(found[1])["error"]["code"]) == (429, "overloaded")
    assert stage.codes.seen == ["overloaded"]


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        (b"modle=x", {}),
        (b"", {b"x-timeout-ms": b"soon"}),
        (b"", {b"content-length": b"1000000"}),
    ],
)
def test_what_is_wrong_with_a_head_is_not_told_at_a_glance(query: bytes, headers: dict[bytes, bytes]) -> None:
    stage = Stage()
    stage.predict.at_the_door = overloaded()

    assert stage.glance(query, headers) is None
    assert stage.codes.seen == []


async def test_who_was_let_in_by_his_head_is_not_judged_a_second_time() -> None:
    stage = Stage()
    stage.predict.go_on.set()
    scope = {"type": "http", "query_string": b"", "headers": [], HEADERS: {}, STARTED_S: 0.0, REQUEST_ID: "7"}
    assert stage.endpoint.glance(scope) is None
    stage.predict.at_the_door = overloaded()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"abc"}

    assert (await stage.endpoint(Request(scope, receive))).status_code == 200
    assert stage.predict.checked == 1


def test_a_refusal_that_holds_is_given_again_to_whoever_asks_the_same_and_is_counted_each_time() -> None:
    stage = Stage()
    stage.predict.at_the_door = overloaded(holds_s=0.004)
    first = stage.glance(headers={b"x-timeout-ms": b"100"})
    stage.predict.at_the_door = None

    assert [stage.glance(headers={b"x-timeout-ms": b"100"}) for _ in range(3)] == [first] * 3
    assert stage.predict.refused_again == 3
    assert stage.glance(headers={b"x-timeout-ms": b"9000"}) is None, "who gives more time may be let in"
    assert stage.glance(b"model=other", {b"x-timeout-ms": b"100"}) is None
    stage.clock.advance(0.004)
    assert stage.glance(headers={b"x-timeout-ms": b"100"}) is None, "it holds no longer"
    assert stage.codes.seen == ["overloaded", "Shed", "overloaded"]
    assert stage.codes.times == [1, 3, 3], "those of one moment are told together"
