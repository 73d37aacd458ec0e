"""Without authentication, a reload is taken from this machine only, and a refusal says what was wrong."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from isocenter.api.http.problems import problem
from isocenter.api.http.reload import ReloadFrom, ReloadShape, reload_routes
from isocenter.core.errors import IsocenterError, ReloadRefused, UnknownModel

REPORT = {"model": "lungs", "versions": [{"version": 3, "what": "replaced"}]}
REFUSED: dict[str, Any] = {
    "model": "lungs",
    "versions": [{"version": 3, "what": "refused", "code": "golden_mismatch", "message": "4 values are off"}],
}


class OneModel:
    """Reloads lungs; hearts are broken."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def reload(self, name: str) -> dict[str, Any]:
        self.asked.append(name)
        if name == "hearts":
            raise ReloadRefused("hearts 3 was not taken over: 4 values are off", details={"report": REFUSED})
        if name != "lungs":
            raise UnknownModel("no such model")
        return REPORT


async def typed(_: Request, error: Exception) -> Response:
    assert isinstance(error, IsocenterError)
    return problem(error)


async def posted(
    name: str = "lungs",
    *,
    allowed_from: ReloadFrom = "loopback",
    client: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> tuple[httpx.Response, list[str]]:
    """The answer, and what was reloaded."""
    app, models = FastAPI(), OneModel()
    app.include_router(reload_routes(models, allowed_from))
    app.add_exception_handler(IsocenterError, typed)
    transport = httpx.ASGITransport(app, client=(client, 5000))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
        return await http.post(f"/v1/models/{name}:reload", headers=headers), models.asked


async def test_the_report_is_the_answer() -> None:
    answer, asked = await posted()
    assert (answer.status_code, answer.json(), asked) == (200, REPORT, ["lungs"])
    ReloadShape.model_validate(answer.json())


@pytest.mark.parametrize(
    ("name", "status", "code"), [("kidneys", 404, "unknown_model"), ("hearts", 409, "reload_refused")]
)
async def test_what_was_not_taken_over_is_said_with_its_reason(name: str, status: int, code: str) -> None:
    answer, _ = await posted(name)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    if name == "hearts":
        assert error["details"]["report"] == REFUSED


@pytest.mark.parametrize(
    ("allowed_from", "client", "allowed"),
    [
        ("loopback", "127.0.0.1", True),
        ("loopback", "127.8.9.10", True),
        ("loopback", "::1", True),
        ("loopback", "::ffff:127.0.0.1", True),
        ("loopback", "::ffff:10.0.0.7", False),
        ("loopback", "10.0.0.7", False),
        ("loopback", "", False),
        ("loopback", "localhost", False),
        ("anywhere", "10.0.0.7", True),
        ("nowhere", "127.0.0.1", False),
    ],
)
async def test_the_address_decides_who_may(allowed_from: ReloadFrom, client: str, allowed: bool) -> None:
    answer, asked = await posted(allowed_from=allowed_from, client=client)
    assert answer.status_code == (200 if allowed else 403)
    assert asked == (["lungs"] if allowed else [])
    if not allowed:
        assert answer.json()["error"]["code"] == "forbidden"


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"origin": "http://127.0.0.1:8000"}, True),
        ({"origin": "http://elsewhere.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://[not-an-address"}, False),
        ({"X-Forwarded-For": "10.0.0.7"}, False),
        ({"Forwarded": "for=10.0.0.7"}, False),
        ({"Via": "1.1 proxy"}, False),
    ],
    ids=["own page", "another page", "no page", "nonsense", "x-forwarded-for", "forwarded", "via"],
)
async def test_whoever_speaks_through_this_machine_is_not_this_machine(headers: dict[str, str], allowed: bool) -> None:
    answer, asked = await posted(headers=headers)
    assert answer.status_code == (200 if allowed else 403)
    assert bool(asked) is allowed
    assert (await posted(headers=headers, allowed_from="anywhere"))[0].status_code == 200
