"""Statistics are plain data: they travel, and HTTP shows all of them."""

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from isocenter.api.http.problems import problem
from isocenter.api.http.stats import StatsShape, stats_routes
from isocenter.core.errors import IsocenterError, UnknownModel, UnknownVersion
from isocenter.measure.histogram import Histogram
from isocenter.serving.stats import MemoryStats, ModelStats, SummaryMs


def samples(*seconds: float) -> Histogram:
    made = Histogram()
    for each in seconds:
        made.add(each)
    return made


STATS = ModelStats(
    model="lungs",
    version=3,
    state="ready",
    span_s=42.5,
    answered=3,
    throughput_per_s=0.071,
    latency_ms=SummaryMs.of(samples(0.010, 0.020, 0.100)),
    queue_delay_ms=SummaryMs.of(samples(0.001)),
    service_time_ms=SummaryMs.of(Histogram()),
    batches=2,
    mean_batch_size=1.5,
    queued=4,
    instances=1,
    service_ms={1: 3.5, 8: 12.25},
    shed={"queue_full": 2},
    expired=1,
    abandoned=0,
    failures={"bad_image": 1},
    batch_failures={},
    memory=MemoryStats(process_rss_bytes=123_456_789),
)


class OneModel:
    """Knows lungs, version 3."""

    async def stats(self, name: str, version: int | None = None) -> ModelStats:
        if name != "lungs":
            raise UnknownModel("no such model")
        if version not in (None, 3):
            raise UnknownVersion("no such version")
        return STATS


async def refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, IsocenterError)
    return problem(error)


async def asked(path: str) -> httpx.Response:
    app = FastAPI()
    app.include_router(stats_routes(OneModel()))
    app.add_exception_handler(IsocenterError, refused)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


def test_statistics_are_the_same_after_a_journey() -> None:
    assert ModelStats.from_json(json.loads(json.dumps(STATS.as_json()))) == STATS


@pytest.mark.parametrize("missing", ["latency_ms", "memory", "answered"])
def test_what_is_incomplete_is_refused(missing: str) -> None:
    given = STATS.as_json()
    del given[missing]

    with pytest.raises(ValueError, match=missing):
        ModelStats.from_json(given)


def test_a_summary_counts_its_samples_and_has_no_percentile_of_nothing() -> None:
    found = SummaryMs.of(samples(0.010, 0.020, 0.100))

    assert (found.count, found.max) == (3, 100.0)
    assert found.p50 == pytest.approx(20.0, rel=0.02)
    assert SummaryMs.of(Histogram()) == SummaryMs(0, None, None, None, None)


@pytest.mark.parametrize("path", ["/v1/models/lungs/stats", "/v1/models/lungs/versions/3/stats"])
async def test_http_shows_every_key(path: str) -> None:
    answer = await asked(path)

    told: dict[str, Any] = answer.json()
    assert answer.status_code == 200
    assert told == STATS.as_json()
    assert StatsShape.model_validate(told)


@pytest.mark.parametrize(
    ("path", "code"),
    [("/v1/models/hearts/stats", "unknown_model"), ("/v1/models/lungs/versions/4/stats", "unknown_version")],
)
async def test_http_refuses_what_is_not_here(path: str, code: str) -> None:
    answer = await asked(path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, code)
