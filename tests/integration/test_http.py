"""The whole service behind its HTTP application, without a network."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from conftest import MODELS
from isocenter.api.http import schemas
from isocenter.app import Composition, open_service
from isocenter.core.errors import SetupError
from isocenter.imaging.phantoms import brain_slice
from isocenter.settings import load_settings
from model_folders import write_model
from patience import PATIENT

SEED = 3_000_000
LABELS = {"Glioma", "Meningioma", "Pituitary", "No Tumor"}


def encoded(pixels: Any, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


PHANTOM = brain_slice(SEED, label="Glioma")
PNG = encoded(PHANTOM.pixels)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Composition]:
    async with open_service(load_settings(models=MODELS, limits={"max_bytes": 1_000_000})) as service:
        yield service


pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"files": {"image": ("x.png", PNG, "image/png")}}, id="field image"),
        pytest.param({"files": {"file": ("x.png", PNG, "image/png")}}, id="field file"),
        pytest.param({"content": PNG, "headers": {"content-type": "image/png"}}, id="raw body"),
        pytest.param(
            {"content": PNG, "headers": {"content-type": "application/x-www-form-urlencoded"}}, id="curl --data-binary"
        ),
        pytest.param({"content": PNG, "params": {"model": "brain-mri-classifier", "version": "1"}}, id="named model"),
    ],
)
async def test_an_image_is_answered_however_it_is_sent(client: httpx.AsyncClient, how: dict[str, Any]) -> None:
    answer = await client.post("/predict", **how)

    assert answer.status_code == 200
    found = schemas.PredictionShape.model_validate(answer.json())
    assert found.prediction == "Glioma"
    assert found.confidence == max(found.probabilities.values())
    assert set(found.probabilities) == LABELS
    assert sum(found.probabilities.values()) == pytest.approx(1.0)
    assert found.latency_ms > 0
    assert {"receive", "decode", "preprocess", "queue", "infer"} <= set(found.timings_ms)
    assert found.request_id == answer.headers["x-request-id"]


async def test_a_16_bit_image_gives_the_answer_of_the_8_bit_one_and_says_what_was_done(
    client: httpx.AsyncClient,
) -> None:
    deep = encoded(PHANTOM.pixels.astype(np.uint16) * 16)

    answer = (await client.post("/predict", content=deep)).json()

    assert answer["prediction"] == "Glioma"
    assert [warning["code"] for warning in answer["warnings"]] == ["windowed"]


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        pytest.param({"content": b""}, 400, "missing_image", id="nothing"),
        pytest.param({"content": b"hello, this is text"}, 415, "unsupported_media", id="text"),
        pytest.param({"content": PNG[:-200]}, 422, "truncated_image", id="truncated"),
        pytest.param({"content": encoded(np.zeros((64, 64), np.uint8))}, 422, "empty_input", id="constant"),
        pytest.param({"content": b"x" * 2_000_000}, 413, "too_many_bytes", id="too many bytes"),
        pytest.param({"content": PNG, "params": {"model": "hearts"}}, 404, "unknown_model", id="unknown model"),
        pytest.param({"content": PNG, "params": {"version": "7"}}, 404, "unknown_version", id="unknown version"),
        pytest.param({"content": PNG, "params": {"version": "x"}}, 400, "bad_request", id="version is no number"),
        pytest.param({"content": PNG, "params": {"modle": "x"}}, 400, "bad_request", id="misspelt parameter"),
        pytest.param({"content": PNG, "headers": {"x-timeout-ms": "soon"}}, 400, "bad_request", id="bad timeout"),
        pytest.param({"content": PNG, "headers": {"x-timeout-ms": "1_000"}}, 400, "bad_request", id="Python's number"),
        pytest.param({"content": PNG, "headers": {"x-timeout-ms": "5e-324"}}, 400, "bad_request", id="no time at all"),
        pytest.param(
            {"content": PNG, "params": [("model", "x"), ("model", "brain-mri-classifier")]},
            400,
            "bad_request",
            id="twice",
        ),
        pytest.param({"content": PNG, "headers": {"x-timeout-ms": "-1"}}, 400, "bad_request", id="negative timeout"),
        pytest.param({"content": PNG, "headers": {"x-timeout-ms": "0.001"}}, 504, "deadline_exceeded", id="too late"),
        pytest.param({"files": {"picture": ("x", PNG)}}, 400, "missing_image", id="another field"),
    ],
)
async def test_what_cannot_be_answered_is_refused_with_code_sentence_and_details(
    client: httpx.AsyncClient, how: dict[str, Any], status: int, code: str
) -> None:
    answer = await client.post("/predict", **how)

    problem = schemas.ProblemShape.model_validate(answer.json())
    assert (answer.status_code, problem.error.code) == (status, code)
    assert problem.error.message


async def test_a_body_that_never_ends_is_given_up_at_the_deadline(client: httpx.AsyncClient) -> None:
    never = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield PNG[:100]
        await never.wait()

    answer = await client.post("/predict", content=trickle(), headers={"x-timeout-ms": "5000"})

    assert (answer.status_code, answer.json()["error"]["details"]["where"]) == (504, "receive")


async def test_a_limit_below_the_golden_image_stops_the_start() -> None:
    with pytest.raises(SetupError, match="golden image was answered with"):
        async with open_service(load_settings(models=MODELS, limits={"max_pixels": 100})):
            pass


async def test_a_machine_that_is_too_slow_at_the_start_for_a_models_own_timeout_starts(tmp_path: Path) -> None:
    write_model(tmp_path, slo={"timeout_ms": 0.01})
    async with open_service(load_settings(models=tmp_path)) as service:
        assert service.health.ready()


async def test_a_request_id_is_echoed(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict", content=PNG, headers={"x-request-id": "scan-7"})

    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "scan-7"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/predict", 405, "method_not_allowed"), ("GET", "/nowhere", 404, "not_found")],
)
async def test_wrong_paths_and_methods_have_the_same_error_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_the_probes_tell_their_truths(client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez")).json() == {"status": "alive"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    health = schemas.HealthShape.model_validate((await client.get("/health")).json())
    assert health.status == "ok"
    assert [(model.model, model.state) for model in health.models] == [("brain-mri-classifier", "ready")]


async def test_a_model_describes_itself(client: httpx.AsyncClient) -> None:
    listed = schemas.ModelListShape.model_validate((await client.get("/v1/models")).json())
    described = (await client.get(f"/v1/models/{listed.models[0].name}")).json()

    found = schemas.ModelShape.model_validate(described)
    assert set(found.labels) == LABELS
    assert found.input.tensor_shape == [3, 224, 224]
    assert found.limits.max_bytes == 1_000_000
    assert len(found.digest) == 64
    assert (await client.get("/v1/models/hearts")).status_code == 404
    assert (await client.get("/v1/models/brain-mri-classifier/versions/1")).json() == described
    assert (await client.get("/v1/models/brain-mri-classifier/versions/2")).status_code == 404


async def test_metrics_count_what_was_answered(client: httpx.AsyncClient) -> None:
    def count(text: str) -> float:
        line = next(
            (line for line in text.splitlines() if line.startswith('isocenter_requests_total{code="ok"')), "x 0"
        )
        return float(line.split()[-1])

    before = count((await client.get("/metrics")).text)
    await client.post("/predict", content=PNG)
    scraped = await client.get("/metrics")

    assert count(scraped.text) == before + 1
    assert scraped.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "isocenter_request_duration_seconds_bucket" in scraped.text
    assert "isocenter_queue_items" in scraped.text


async def test_the_schema_describes_every_route(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()

    assert {"/predict", "/health", "/livez", "/readyz", "/metrics", "/v1/models", "/v1/models/{name}"} <= set(
        schema["paths"]
    )
    predict = schema["paths"]["/predict"]["post"]
    kinds = {"multipart/form-data", "application/octet-stream", "application/json"}
    assert set(predict["requestBody"]["content"]) == kinds
    assert "422" in predict["responses"]


async def test_the_interactive_description_asks_no_other_host(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text

    linked = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(linked) >= 2
    for link in linked:
        assert link.startswith("/")
        assert (await client.get(link)).status_code == 200


async def test_callers_who_share_batches_get_their_own_answers(client: httpx.AsyncClient) -> None:
    images = [encoded(brain_slice(SEED + n).pixels) for n in range(24)]
    alone = [(await client.post("/predict", content=image)).json()["probabilities"] for image in images]

    asked = (client.post("/predict", content=image, headers=PATIENT) for image in images * 3)
    together = await asyncio.gather(*asked)

    for lone, answer in zip(alone * 3, together, strict=True):
        assert answer.json()["probabilities"] == pytest.approx(lone, abs=1e-5)


async def test_nothing_of_a_caller_reaches_the_metrics(client: httpx.AsyncClient) -> None:
    await client.post("/predict", files={"image": ("Doe^John.png", PNG)}, headers={"x-request-id": "Doe-John"})
    await client.post("/predict", content=PNG, params={"model": "Doe"})

    assert "Doe" not in (await client.get("/metrics")).text


async def test_every_schema_is_valid_json_schema() -> None:
    for name in dir(schemas):
        shape = getattr(schemas, name)
        if isinstance(shape, type) and issubclass(shape, schemas.Shape):
            json.dumps(shape.model_json_schema())
