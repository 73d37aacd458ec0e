"""`/api/v1`: what callers of an earlier cell service send is taken, and what they read is there. A test a field."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from cell_models import picture, png, write_cells
from isocenter.api.http import cells
from isocenter.api.http.form import Form, read_form
from isocenter.api.http.schemas_cells import (
    V1BatchShape,
    V1HealthShape,
    V1ModelsShape,
    V1ProblemShape,
    V1SegmentShape,
    V1StatusShape,
)
from isocenter.app import Composition, open_service
from isocenter.settings import load_settings
from model_folders import write_model
from segmenters import write_segmenter

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]

PNG = png()
DARK = png((np.arange(24 * 40).reshape(24, 40) % 50).astype(np.uint8))
BATCH_LIMIT = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Composition]:
    models = tmp_path_factory.mktemp("models")
    output = {"tensor": "scores", "activation": "softmax", "labels": ["ground", "cell"], "objects": {"threshold": 0.7}}
    write_cells(models, "hrnet", max_batch_size=BATCH_LIMIT, output=output)
    write_cells(models, "cbam_resunet", max_batch_size=2)
    write_model(models)
    write_segmenter(models, "brains")
    async with open_service(load_settings(models=models)) as service:
        yield service


async def segment(
    client: httpx.AsyncClient, image: bytes = PNG, fields: dict[str, str] | None = None
) -> httpx.Response:
    return await client.post("/api/v1/segment", files={"file": ("cells.png", image, "image/png")}, data=fields)


async def batch(client: httpx.AsyncClient, *images: bytes, field: str = "files", **fields: str) -> httpx.Response:
    files = [(field, (f"{number}.png", image, "image/png")) for number, image in enumerate(images)]
    return await client.post("/api/v1/batch-segment", files=files, data=fields)


async def test_a_recorded_request_gets_the_answer_that_its_sender_reads(client: httpx.AsyncClient) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="c.png"\r\nContent-Type: image/png\r\n\r\n'
        + PNG
        + b'\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nhrnet'
        + b'\r\n--b\r\nContent-Disposition: form-data; name="threshold"\r\n\r\n0.5'
        + b'\r\n--b\r\nContent-Disposition: form-data; name="detect_holes"\r\n\r\ntrue\r\n--b--\r\n'
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = await client.post("/api/v1/segment", content=body, headers=headers)

    found = V1SegmentShape.model_validate(answer.json())
    assert answer.status_code == 200
    assert found.success
    assert (found.image_size.width, found.image_size.height) == (40, 24)
    assert 1 <= found.batch_size_used <= BATCH_LIMIT
    assert found.processing_time >= found.inference_time > 0
    assert found.warning is None
    assert [each.type for each in found.polygons] == ["external", "external", "external", "internal"]
    assert found.request_id == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        pytest.param({}, {"model_used": "hrnet"}, id="model defaults to hrnet"),
        pytest.param({"model": "hrnet"}, {"model_used": "hrnet"}, id="model"),
        pytest.param({"model": "cbam_resunet"}, {"model_used": "cbam_resunet"}, id="another model"),
        pytest.param({}, {"threshold_used": 0.5}, id="threshold defaults to 0.5, not to the model's own"),
        pytest.param({"threshold": "0.1"}, {"threshold_used": 0.1}, id="least threshold"),
        pytest.param({"threshold": "0.9"}, {"threshold_used": 0.9}, id="largest threshold"),
        pytest.param({}, {"image_size": {"width": 40, "height": 24}}, id="image_size"),
        pytest.param({"stage": "test"}, {"success": True}, id="an unknown field is left alone"),
        pytest.param({"page": "0"}, {"success": True}, id="page"),
        pytest.param({"channel": "gray"}, {"success": True}, id="channel"),
    ],
)
async def test_fields_and_their_defaults(
    client: httpx.AsyncClient, fields: dict[str, str], read: dict[str, Any]
) -> None:
    found = (await segment(client, fields=fields)).json()

    assert {name: found[name] for name in read} == read


async def test_fields_that_nobody_knows_are_left_alone_whatever_they_hold(client: httpx.AsyncClient) -> None:
    others: dict[str, Any] = {"tag": ["a", "b"], "notes": "x" * 1500}

    assert (await segment(client, fields=others)).status_code == 200


@pytest.mark.parametrize(
    ("given", "status"),
    [({"threshold": "0.95"}, 422), ({"model": "nobody"}, 404), ({"threshold": "0.3", "model": "cbam_resunet"}, 200)],
)
@pytest.mark.parametrize("how", ["as files", "in the query", "in the query of a body without a form"])
@pytest.mark.parametrize("route", ["segment", "batch-segment"])
async def test_what_is_asked_counts_wherever_it_stands(
    client: httpx.AsyncClient, route: str, how: str, given: dict[str, str], status: int
) -> None:
    image: dict[str, Any] = {"file" if route == "segment" else "files": ("c.png", PNG)}
    ways: dict[str, dict[str, Any]] = {
        "as files": {"files": image | {name: (name, text) for name, text in given.items()}},
        "in the query": {"files": image, "params": given},
        "in the query of a body without a form": {"content": PNG, "params": given},
    }
    answer = await client.post(f"/api/v1/{route}", **ways[how])

    assert answer.status_code == status
    if status == 200:
        assert (answer.json()["model_used"], answer.json()["threshold_used"]) == ("cbam_resunet", 0.3)


@pytest.mark.parametrize(("query", "field"), [("", "0.3"), ("0.3", "")])
async def test_an_empty_one_disagrees_with_nothing(client: httpx.AsyncClient, query: str, field: str) -> None:
    answer = await client.post(
        "/api/v1/segment", files={"file": PNG}, data={"threshold": field}, params={"threshold": query}
    )

    assert answer.json()["threshold_used"] == 0.3


async def test_a_query_and_a_form_that_disagree_are_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/api/v1/segment", files={"file": PNG}, data={"threshold": "0.3"}, params={"threshold": "0.4", "_": "1"}
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        pytest.param({}, {"external", "internal"}, id="true if not given"),
        pytest.param({"detect_holes": "true"}, {"external", "internal"}, id="true"),
        pytest.param({"detect_holes": "True"}, {"external", "internal"}, id="as Python writes it"),
        pytest.param({"detect_holes": "1"}, {"external", "internal"}, id="1"),
        pytest.param({"detect_holes": "false"}, {"external"}, id="false"),
        pytest.param({"detect_holes": "0"}, {"external"}, id="0"),
    ],
)
async def test_detect_holes(client: httpx.AsyncClient, fields: dict[str, str], kinds: set[str]) -> None:
    found = (await segment(client, fields=fields)).json()

    assert {each["type"] for each in found["polygons"]} == kinds


async def test_a_polygon_has_the_keys_that_are_read(client: httpx.AsyncClient) -> None:
    found = (await segment(client)).json()["polygons"]

    outlines, holes = found[:3], found[3:]
    for each in found:
        assert set(each["points"][0]) == {"x", "y"}
        assert 0 < each["confidence"] <= 1
        assert each["area"] > 0
    assert all("parentIds" not in each for each in outlines)
    assert holes[0]["parentIds"] == [outlines[2]["id"]]


async def test_the_one_that_finds_nothing_says_so(client: httpx.AsyncClient) -> None:
    found = V1SegmentShape.model_validate((await segment(client, DARK)).json())

    assert found.polygons == []
    assert found.warning


@pytest.mark.parametrize("path", ["segment", "batch-segment"])
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        pytest.param({"model": "unet_spherohq"}, 404, "unknown_model", id="unknown model"),
        pytest.param({"model": "lungs"}, 422, "wrong_task", id="a classifier"),
        pytest.param({"model": "brains"}, 422, "wrong_task", id="of volumes"),
        pytest.param({"threshold": "0.95"}, 422, "bad_value", id="threshold above"),
        pytest.param({"threshold": "0.05"}, 422, "bad_value", id="threshold below"),
        pytest.param({"threshold": "high"}, 422, "bad_value", id="threshold a word"),
        pytest.param({"detect_holes": "maybe"}, 422, "bad_value", id="detect_holes"),
    ],
)
async def test_a_refusal_says_what_those_callers_read_and_its_code(
    client: httpx.AsyncClient, path: str, fields: dict[str, str], status: int, code: str
) -> None:
    answer = await client.post(f"/api/v1/{path}", files={"file": PNG}, data=fields)

    found = V1ProblemShape.model_validate(answer.json())
    assert (answer.status_code, found.error.code) == (status, code)
    assert found.detail == found.error.message
    if code == "bad_value" and "threshold" in fields:
        assert (found.error.details["min"], found.error.details["max"]) == (0.1, 0.9)


@pytest.mark.parametrize("field", ["files", "files[]"])
async def test_every_file_of_a_batch_has_a_result_in_its_place(client: httpx.AsyncClient, field: str) -> None:
    moved = [png(np.roll(picture(), shift, axis=0)) for shift in range(BATCH_LIMIT)]
    answer = await batch(client, *moved, field=field)

    found = V1BatchShape.model_validate(answer.json())
    alone = [(await segment(client, each)).json() for each in moved]
    assert (found.batch_size, found.successful_count, found.failed_count) == (4, 4, 0)
    assert found.total_polygons == sum(len(each["polygons"]) for each in alone)
    assert (found.model_used, found.threshold_used) == ("hrnet", 0.5)
    assert [(each.filename, each.batch_index) for each in found.results] == [(f"{n}.png", n) for n in range(4)]
    assert [each["polygons"] for each in answer.json()["results"]] == [each["polygons"] for each in alone]
    assert found.request_id == answer.headers["x-request-id"]


async def test_one_bad_file_fails_alone(client: httpx.AsyncClient) -> None:
    answer = await batch(client, PNG, PNG[:-20], b"", PNG)

    found = V1BatchShape.model_validate(answer.json())
    assert answer.status_code == 200
    assert [each.success for each in found.results] == [True, False, False, True]
    assert (found.successful_count, found.failed_count) == (2, 2)
    failures = answer.json()["results"][1:3]
    assert [each["code"] for each in failures] == ["truncated_image", "missing_image"]
    assert all(each["error"] and each["polygons"] == [] for each in failures)
    assert [each["filename"] for each in failures] == ["1.png", "2.png"]


@pytest.mark.parametrize(("model", "limit"), [("hrnet", BATCH_LIMIT), ("cbam_resunet", 2)])
async def test_more_files_than_the_model_takes_are_refused_with_the_limit(
    client: httpx.AsyncClient, model: str, limit: int
) -> None:
    assert (await batch(client, *[PNG] * limit, model=model)).status_code == 200

    answer = await batch(client, *[PNG] * (limit + 1), model=model)

    found = V1ProblemShape.model_validate(answer.json())
    assert (answer.status_code, found.error.code) == (400, "bad_request")
    assert found.error.details == {"files": limit + 1, "limit": limit, "model": model}
    assert str(limit) in found.detail


@pytest.mark.parametrize("sent", [{"files": {"pictures": PNG}}, {"content": b""}], ids=["another field", "no body"])
async def test_a_batch_without_files_is_refused(client: httpx.AsyncClient, sent: dict[str, Any]) -> None:
    answer = await client.post("/api/v1/batch-segment", **sent)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "missing_image")


async def test_a_batch_of_which_nothing_can_be_done_in_time_is_refused_as_a_whole(client: httpx.AsyncClient) -> None:
    files = [("files", PNG), ("files", PNG)]
    answer = await client.post("/api/v1/batch-segment", files=files, headers={"x-timeout-ms": "0.001"})

    found = V1ProblemShape.model_validate(answer.json())
    assert (answer.status_code, found.error.code) == (504, "deadline_exceeded")


async def test_batches_at_once_get_their_own_answers(client: httpx.AsyncClient) -> None:
    moved = [png(np.roll(picture(), shift, axis=1)) for shift in range(12)]
    alone = [(await segment(client, each)).json()["polygons"] for each in moved]

    answers = await asyncio.gather(*(batch(client, *moved[first : first + 4]) for first in (0, 4, 8)))

    assert [each["polygons"] for answer in answers for each in answer.json()["results"]] == alone


async def test_the_models_say_what_they_take(client: httpx.AsyncClient) -> None:
    found = V1ModelsShape.model_validate((await client.get("/api/v1/models")).json())

    assert [(each.name, each.batch_limit) for each in found.models] == [("cbam_resunet", 2), ("hrnet", BATCH_LIMIT)]
    assert found.models[1].description == "Bright things on a dark ground"
    assert (found.models[1].input_size, found.models[1].available) == ([16, 16], True)


async def test_the_parameters_of_an_onnx_file_are_counted(tmp_path: Path) -> None:
    write_cells(tmp_path, "hrnet", onnx=True)
    async with open_service(load_settings(models=tmp_path)) as here:
        transport = httpx.ASGITransport(here.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            (found,) = V1ModelsShape.model_validate((await client.get("/api/v1/models")).json()).models
            answer = await segment(client)

    assert (found.parameters, found.input_size) == (1, [])
    assert len(answer.json()["polygons"]) == 4


async def test_health_and_status(client: httpx.AsyncClient) -> None:
    health = V1HealthShape.model_validate((await client.get("/api/v1/health")).json())
    status = V1StatusShape.model_validate((await client.get("/api/v1/status")).json())

    assert (health.status, health.models_loaded, health.models_failed, health.gpu_available) == (
        "healthy",
        4,
        [],
        False,
    )
    assert (status.status, status.is_processing, status.queue_length, status.available) == ("idle", False, 0, True)


async def test_where_no_hrnet_is_served_the_only_model_is_meant(tmp_path: Path) -> None:
    write_cells(tmp_path)
    async with open_service(load_settings(models=tmp_path)) as here:
        transport = httpx.ASGITransport(here.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await segment(client)).json()["model_used"] == "cells"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "segment", 405, "method_not_allowed"), ("POST", "segment-all", 404, "not_found")],
)
async def test_refusals_of_the_framework_have_the_same_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, f"/api/v1/{path}")

    found = V1ProblemShape.model_validate(answer.json())
    assert (answer.status_code, found.error.code) == (status, code)


async def test_a_server_that_stops_says_so_in_the_same_shape(tmp_path: Path) -> None:
    write_cells(tmp_path)
    async with open_service(load_settings(models=tmp_path)) as here:
        here.door.close()
        transport = httpx.ASGITransport(here.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await segment(client)
            health = await client.get("/api/v1/health")

    assert V1ProblemShape.model_validate(answer.json()).error.code == "draining"
    assert answer.headers["retry-after"] == "2"
    assert (health.status_code, health.json()["status"]) == (503, "draining")


async def test_a_large_form_is_taken_apart_on_a_thread(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def noting(*given: Any, **more: Any) -> Form:
        threads.append(threading.current_thread().name)
        return read_form(*given, **more)

    monkeypatch.setattr(cells, "read_form", noting)
    monkeypatch.setattr(cells, "_ON_THE_LOOP_BYTES", 2000)
    assert (await batch(client, png(), png(), png(), png() + b" " * 3000)).status_code == 200
    assert (await segment(client)).status_code == 200

    assert [name == threading.main_thread().name for name in threads] == [False, True]


async def test_errors_are_written_whatever_numbers_they_hold(client: httpx.AsyncClient) -> None:
    answer = await batch(client, PNG, b"\x89PNG\r\n\x1a\n" + b"\0" * 30)

    assert json.loads(answer.content)["results"][1]["success"] is False
