"""`POST /segment`: an image of cells goes in, and its objects come out in the pixels of that image."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from cell_models import picture, png, write_cells
from isocenter.api.http.schemas import ProblemShape
from isocenter.api.http.schemas_cells import SegmentationShape
from isocenter.app import Composition, open_service
from isocenter.cli.segment_server import rebuilt
from isocenter.imaging.codecs.coco import document
from isocenter.imaging.postprocess.contours import polygons_of
from isocenter.settings import load_settings
from model_folders import png as brain_png
from model_folders import write_model
from segmenters import write_segmenter

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]

PNG = png()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Composition]:
    models = tmp_path_factory.mktemp("models")
    write_cells(models)
    write_cells(models, version=2, output={**_output(), "objects": {"min_area_px": 40, "threshold": 0.7}})
    write_cells(models, "many", output={**_output(), "activation": "sigmoid", "labels": ["a", "b"]})
    write_model(models)
    write_segmenter(models, "brains")
    settings = load_settings(models=models, default_model="cells", limits={"max_bytes": 100_000})
    async with open_service(settings) as service:
        yield service


def _output() -> dict[str, Any]:
    return {"tensor": "scores", "activation": "softmax", "labels": ["ground", "cell"]}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"content": PNG}, id="raw body"),
        pytest.param({"files": {"image": ("x.png", PNG)}}, id="field image"),
        pytest.param({"files": {"file": ("x.png", PNG)}}, id="field file"),
        pytest.param({"files": {"file": PNG}, "data": {"model": "cells", "version": "2"}}, id="fields of the form"),
        pytest.param({"content": PNG, "params": {"model": "cells", "version": "2"}}, id="parameters"),
        pytest.param({"content": png(form="tiff")}, id="TIFF"),
        pytest.param({"content": png(np.stack([picture()] * 3, axis=2))}, id="colour"),
    ],
)
async def test_objects_are_found_however_the_image_is_sent(client: httpx.AsyncClient, how: dict[str, Any]) -> None:
    answer = await client.post("/segment", **how)

    assert answer.status_code == 200, answer.text
    found = SegmentationShape.model_validate(answer.json())
    assert (found.image_size.width, found.image_size.height, found.count) == (40, 24, 1)  # two are below 40 pixels
    assert [each.type for each in found.polygons] == ["external", "internal"]
    assert (found.model, found.version, found.threshold) == ("cells", 2, 0.7)
    assert found.request_id == answer.headers["x-request-id"]
    assert found.latency_ms > 0
    assert list(found.timings_ms) == [
        "receive", "decode_wait", "decode", "wait", "preprocess", "windows", "postprocess", "objects"
    ]  # fmt: skip


async def test_a_hole_names_the_outline_that_it_lies_in(client: httpx.AsyncClient) -> None:
    found = SegmentationShape.model_validate((await client.post("/segment?version=1", content=PNG)).json())

    outlines = {each.id: each for each in found.polygons if each.type == "external"}
    (hole,) = (each for each in found.polygons if each.type == "internal")
    assert len(outlines) == found.count == 3
    assert hole.parent_ids is not None
    (parent,) = (outlines[each] for each in hole.parent_ids)
    assert (parent.label, parent.area, hole.label, hole.area) == (3, 120.0, 3, 12.0)
    assert {(point.x, point.y) for point in hole.points} == {(15, 13), (19, 13), (19, 16), (15, 16)}
    assert [each.area_px for each in found.objects] == [36, 36, 108]
    assert found.objects[0].mean_intensity == {"gray": 250.0}
    assert found.objects[1].confidence == pytest.approx(1 / (1 + np.exp(-12 / 16)), abs=1e-4)
    assert found.pixel_size_um is None


async def test_holes_are_filled_where_they_are_not_wanted(client: httpx.AsyncClient) -> None:
    asked = {"version": "1", "detect_holes": "false"}
    found = SegmentationShape.model_validate((await client.post("/segment", params=asked, content=PNG)).json())
    labels = _image((await client.post("/segment", params={**asked, "format": "labels"}, content=PNG)).content)

    assert {each.type for each in found.polygons} == {"external"}
    assert found.objects[2].area_px == np.count_nonzero(labels == 3) == 120
    assert not found.detect_holes


async def test_an_object_within_another_is_no_part_of_it_where_holes_are_not_wanted(client: httpx.AsyncClient) -> None:
    rings = np.zeros((24, 24), np.uint8)
    rings[2:22, 2:22] = 250
    rings[6:18, 6:18] = 0
    rings[9:15, 9:15] = 250
    asked = {"version": "1", "detect_holes": "false"}
    body = (await client.post("/segment", params=asked, content=png(rings))).json()
    labels = _image((await client.post("/segment", params={**asked, "format": "labels"}, content=png(rings))).content)

    assert [(each["type"], each["area"]) for each in body["polygons"]] == [
        ("external", 400.0), ("internal", 144.0), ("external", 36.0)
    ]  # fmt: skip
    assert [each["area_px"] for each in body["objects"]] == [400 - 144, 36]
    np.testing.assert_array_equal(rebuilt(body, None).labels.labels, labels)


@pytest.mark.parametrize(("threshold", "count"), [("0.1", 3), ("0.67", 3), ("0.69", 2), ("0.9", 2)])
async def test_the_threshold_says_what_belongs_to_an_object(
    client: httpx.AsyncClient, threshold: str, count: int
) -> None:
    asked = {"version": "1", "threshold": threshold}
    found = (await client.post("/segment", params=asked, content=PNG)).json()

    assert (found["count"], found["threshold"]) == (count, float(threshold))


@pytest.mark.parametrize(
    ("how", "media_type"),
    [
        pytest.param({"params": {"format": "json"}}, "application/json", id="json"),
        pytest.param({"headers": {"accept": "application/json, */*"}}, "application/json", id="accept json"),
        pytest.param({"headers": {"accept": "text/html"}}, "application/json", id="accept what is not written"),
        pytest.param({"params": {"format": "geojson"}}, "application/geo+json", id="geojson"),
        pytest.param({"headers": {"accept": "application/geo+json"}}, "application/geo+json", id="accept geojson"),
        pytest.param({"params": {"format": "coco"}}, "application/json", id="coco"),
        pytest.param({"params": {"format": "coco-rle"}}, "application/json", id="coco-rle"),
        pytest.param({"params": {"format": "labels"}}, "image/png", id="labels"),
        pytest.param({"headers": {"accept": "image/tiff;q=0.9, image/png;q=0.1"}}, "image/tiff", id="accept TIFF"),
        pytest.param(
            {"params": {"format": "labels"}, "headers": {"accept": "image/tiff"}}, "image/tiff", id="labels as TIFF"
        ),
        pytest.param({"params": {"format": "overlay"}}, "image/png", id="overlay"),
    ],
)
async def test_the_answer_is_written_as_it_is_asked_for(
    client: httpx.AsyncClient, how: dict[str, Any], media_type: str
) -> None:
    how = {**how, "params": {"version": "1", **how.get("params", {})}}
    answer = await client.post("/segment", content=PNG, **how)

    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    form = how["params"].get("format", {"application/geo+json": "geojson", "image/tiff": "labels"}.get(media_type))
    if media_type.startswith("image/"):
        shown = _image(answer.content)
        assert shown.shape[:2] == (24, 40)
        assert form == "overlay" or [*np.bincount(shown.ravel())] == [24 * 40 - 180, 36, 36, 108]
        return
    found = answer.json()
    if form == "geojson":
        assert [len(each["geometry"]["coordinates"]) for each in found["features"]] == [1, 1, 2]
        assert found["features"][0]["properties"]["classification"]["name"] == "cell"
        assert found["features"][0]["properties"]["measurements"]["Mean gray"] == 250
    elif form in ("coco", "coco-rle"):
        labels = _labels(await client.post("/segment", params={"version": "1", "format": "labels"}, content=PNG))
        polygons = polygons_of(labels)
        written = document(labels, polygons, form="rle") if form == "coco-rle" else document(labels, polygons)
        meant = json.loads(written)
        assert [each["segmentation"] for each in found["annotations"]] == [
            each["segmentation"] for each in meant["annotations"]
        ]
    else:
        assert found["count"] == 3


def _labels(answer: httpx.Response) -> Any:
    return _image(answer.content).astype(np.uint32)


def _image(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        pytest.param({"content": b""}, 400, "missing_image", id="nothing"),
        pytest.param({"files": {"picture": PNG}}, 400, "missing_image", id="another field"),
        pytest.param({"data": {"model": "cells"}, "files": {"x": b""}}, 400, "missing_image", id="no file"),
        pytest.param({"files": [("file", PNG), ("file", PNG)]}, 400, "bad_request", id="two files"),
        pytest.param({"content": b"hello, this is text"}, 415, "unsupported_media", id="text"),
        pytest.param({"content": PNG[:-20]}, 422, "truncated_image", id="truncated"),
        pytest.param({"content": png(np.full((9, 9), 7, np.uint8))}, 422, "empty_input", id="constant"),
        pytest.param({"content": b"x" * 200_000}, 413, "too_many_bytes", id="too many bytes"),
        pytest.param({"content": PNG, "params": {"model": "hearts"}}, 404, "unknown_model", id="unknown model"),
        pytest.param({"content": PNG, "params": {"version": "7"}}, 404, "unknown_version", id="unknown version"),
        pytest.param({"content": PNG, "params": {"version": "x"}}, 400, "bad_request", id="version is no number"),
        pytest.param({"content": PNG, "params": {"model": "lungs"}}, 422, "wrong_task", id="a classifier"),
        pytest.param({"content": PNG, "params": {"model": "brains"}}, 422, "wrong_task", id="of volumes"),
        pytest.param({"content": PNG, "params": {"threshold": "0.95"}}, 422, "bad_value", id="threshold"),
        pytest.param({"content": PNG, "params": {"threshold": "nan"}}, 422, "bad_value", id="threshold nan"),
        pytest.param({"content": PNG, "params": {"threshold": "high"}}, 422, "bad_value", id="threshold a word"),
        pytest.param({"content": PNG, "params": {"threshold": "5_0e-2"}}, 422, "bad_value", id="Python's number"),
        pytest.param({"content": PNG, "params": {"detect_holes": "maybe"}}, 422, "bad_value", id="detect_holes"),
        pytest.param({"content": PNG, "params": {"page": "-1"}}, 422, "bad_value", id="page"),
        pytest.param({"content": PNG, "params": {"page": "3"}}, 422, "input_not_accepted", id="no such page"),
        pytest.param({"content": PNG, "params": {"channel": "GFP"}}, 422, "input_not_accepted", id="no such channel"),
        pytest.param({"content": PNG, "params": {"format": "svg"}}, 422, "bad_value", id="format"),
        pytest.param({"content": PNG, "params": {"treshold": "0.5"}}, 400, "bad_request", id="misspelt parameter"),
        pytest.param({"files": {"file": PNG}, "data": {"treshold": "0.5"}}, 400, "bad_request", id="misspelt field"),
        pytest.param(
            {"files": {"file": PNG}, "data": {"threshold": "0.4"}, "params": {"threshold": "0.5"}},
            400,
            "bad_request",
            id="said twice",
        ),
        pytest.param({"content": PNG, "headers": {"x-timeout-ms": "soon"}}, 400, "bad_request", id="bad timeout"),
        pytest.param({"content": PNG, "headers": {"x-timeout-ms": "0.001"}}, 504, "deadline_exceeded", id="too late"),
    ],
)
async def test_what_cannot_be_answered_is_refused_with_code_sentence_and_details(
    client: httpx.AsyncClient, how: dict[str, Any], status: int, code: str
) -> None:
    answer = await client.post("/segment", **how)

    problem = ProblemShape.model_validate(answer.json())
    assert (answer.status_code, problem.error.code) == (status, code)
    assert problem.error.message


async def test_what_is_asked_counts_if_it_is_sent_as_a_file(client: httpx.AsyncClient) -> None:
    files: dict[str, Any] = {"image": PNG, "format": ("format", b"geojson"), "threshold": ("threshold", b"0.1")}
    answer = await client.post("/segment", files=files, params={"model": "cells"})

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/geo+json")


async def test_empty_fields_of_a_form_say_nothing(client: httpx.AsyncClient) -> None:
    fields = dict.fromkeys(("version", "threshold", "detect_holes", "channel", "page", "format"), "")
    answer = await client.post("/segment", files={"image": PNG}, data={**fields, "model": "cells"})

    assert answer.status_code == 200


async def test_a_threshold_out_of_range_is_told_the_range(client: httpx.AsyncClient) -> None:
    error = (await client.post("/segment?threshold=0.95", content=PNG)).json()["error"]

    assert error["message"] == "threshold is 0.95; it must be from 0.1 to 0.9"
    assert error["details"] == {"threshold": 0.95, "min": 0.1, "max": 0.9}


async def test_a_model_of_volumes_says_so_in_words(client: httpx.AsyncClient) -> None:
    error = (await client.post("/segment?model=brains", content=PNG)).json()["error"]

    assert error["message"] == "brains 1 segments volumes (volume3d); this is a picture (png)"


async def test_a_body_that_never_ends_is_given_up_at_the_deadline(client: httpx.AsyncClient) -> None:
    never = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield PNG[:100]
        await never.wait()

    answer = await client.post("/segment", content=trickle(), headers={"x-timeout-ms": "300"})

    assert (answer.status_code, answer.json()["error"]["details"]["where"]) == (504, "receive")


async def test_pictures_at_once_get_the_answers_of_lone_ones(client: httpx.AsyncClient) -> None:
    given = [png(np.roll(picture(), shift, axis=1)) for shift in range(12)]

    answers = await asyncio.gather(*(client.post("/segment?version=1", content=each) for each in given))

    for shift, answer in enumerate(answers):
        labels = np.asarray([[point["x"] for point in each["points"]] for each in answer.json()["polygons"][:1]])
        alone = (await client.post("/segment?version=1", content=given[shift])).json()
        assert answer.json()["polygons"] == alone["polygons"]
        assert labels.size


async def test_metrics_count_it_and_hold_nothing_of_the_caller(client: httpx.AsyncClient) -> None:
    await client.post("/segment", files={"image": ("Doe^John.png", PNG)}, params={"model": "cells"})
    await client.post("/segment", content=PNG, params={"model": "Doe"})
    text = (await client.get("/metrics")).text

    assert 'isocenter_requests_total{code="ok",model="cells",use_case="segment",version="2"}' in text
    assert 'isocenter_requests_total{code="unknown_model",model="",use_case="segment",version=""}' in text
    assert "Doe" not in text


async def test_without_a_default_the_only_model_of_images_is_meant(tmp_path: Path) -> None:
    write_cells(tmp_path)
    write_model(tmp_path)
    async with open_service(load_settings(models=tmp_path)) as here:
        transport = httpx.ASGITransport(here.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            one = await client.post("/segment", content=PNG)
            other = await client.post("/predict?model=lungs", content=brain_png())

    assert (one.status_code, one.json()["model"]) == (200, "cells")
    assert other.status_code == 200
