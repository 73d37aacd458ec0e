"""`/v1/models/{name}/stats` tells what the callers of the last minute felt."""

import asyncio
import io
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from conftest import MODELS
from isocenter.api.http.stats import StatsShape
from isocenter.app import open_service
from isocenter.imaging.phantoms import brain_slice
from isocenter.settings import load_settings
from patience import PATIENCE_S

MODEL = "brain-mri-classifier"

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(brain_slice(3_000_000).pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with open_service(load_settings(models=MODELS)) as service:
        transport = httpx.ASGITransport(service.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE_S) as client:
            yield client


async def told(client: httpx.AsyncClient, path: str = f"/v1/models/{MODEL}/stats") -> StatsShape:
    return StatsShape.model_validate((await client.get(path)).json())


async def test_a_server_that_answered_nobody_says_so(client: httpx.AsyncClient) -> None:
    found = await told(client)

    assert (found.answered, found.throughput_per_s, found.batches, found.mean_batch_size) == (0, 0.0, 0, None)
    assert found.latency_ms.p95 is None
    assert (found.state, found.instances) == ("ready", 1)


async def test_answers_and_failures_are_counted(client: httpx.AsyncClient) -> None:
    image = png()
    before = await told(client)

    answers = await asyncio.gather(*(client.post("/predict", content=image) for _ in range(12)))
    await client.post("/predict", content=b"no picture")

    after = await told(client, f"/v1/models/{MODEL}/versions/1/stats")
    slowest = max(answer.json()["latency_ms"] for answer in answers)
    assert after.answered == after.latency_ms.count == before.answered + 12
    assert after.latency_ms.max == pytest.approx(slowest, abs=0.01)
    assert after.failures == {"unsupported_media": 1}
    assert after.mean_batch_size is not None
    assert after.mean_batch_size * after.batches == pytest.approx(after.answered, abs=0.1)
    assert after.throughput_per_s == pytest.approx(after.answered / after.span_s, rel=0.01)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/models/hearts/stats", 404, "unknown_model"),
        (f"/v1/models/{MODEL}/versions/9/stats", 404, "unknown_version"),
        (f"/v1/models/{MODEL}/versions/x/stats", 400, "bad_request"),
    ],
)
async def test_what_is_not_here_is_not_found(client: httpx.AsyncClient, path: str, status: int, code: str) -> None:
    answer = await client.get(path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_the_schema_names_both_routes(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    assert {"/v1/models/{name}/stats", "/v1/models/{name}/versions/{version}/stats"} <= set(paths)
