"""The client against the server's own application: answers have types, refusals are the errors that they were."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
import pytest_asyncio

from cell_folders import drawn_cells, write_cell_model
from isocenter.app import open_service
from isocenter.client import AsyncClient
from isocenter.client.answers import FORMATS
from isocenter.core.errors import (
    DeadlineExceeded,
    EmptyInput,
    IsocenterError,
    UnknownModel,
    UnknownVersion,
    UnsupportedMedia,
    WrongTask,
)
from isocenter.settings import load_settings
from model_folders import png as picture
from model_folders import write_model

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncClient]:
    models = tmp_path_factory.mktemp("models")
    write_model(models)
    write_cell_model(models)
    async with (
        open_service(load_settings(models=models)) as service,
        AsyncClient("http://server", transport=httpx.ASGITransport(service.http)) as client,
    ):
        yield client


async def test_a_prediction(client: AsyncClient) -> None:
    answer = await client.predict(picture(), model="lungs", version=1, request_id="case-7")

    assert (answer.model, answer.version, answer.request_id) == ("lungs", 1, "case-7")
    assert answer.probabilities[str(answer.label)] == answer.confidence
    assert "receive" in answer.timings_ms


async def test_cells_in_every_format(client: AsyncClient) -> None:
    pixels, labels = drawn_cells(count=5)
    found = {form: await client.segment(pixels, format=form, model="cells") for form in FORMATS}

    assert found["json"].json()["count"] == 5
    assert len(found["geojson"].json()["features"]) == 5
    assert len(found["coco"].json()["annotations"]) == len(found["coco-rle"].json()["annotations"]) == 5
    assert np.array_equal(found["labels"].pixels() > 0, labels > 0)
    assert found["overlay"].pixels().shape == (*labels.shape, 3)
    assert all(each.request_id for each in found.values())


async def test_what_is_asked_of_cells_arrives(client: AsyncClient) -> None:
    pixels, _ = drawn_cells(count=5)
    answer = await client.segment(pixels, model="cells", threshold=0.25, detect_holes=False, channel=0, page=0)
    said = answer.json()
    assert (said["threshold"], said["detect_holes"]) == (0.25, False)


@pytest.mark.parametrize(
    ("image", "asked", "kind"),
    [
        pytest.param(picture(), {"model": "nope"}, UnknownModel, id="model"),
        pytest.param(b"no picture", {"model": "lungs"}, UnsupportedMedia, id="media"),
        pytest.param(picture(), {"model": "lungs", "version": 2}, UnknownVersion, id="version"),
        pytest.param(picture(), {"model": "cells"}, WrongTask, id="task"),
        pytest.param(picture(), {"model": "lungs", "timeout_s": 1e-6}, DeadlineExceeded, id="late"),
    ],
)
async def test_refusals_are_the_errors_that_they_were(
    image: bytes, asked: dict[str, str], kind: type[IsocenterError], client: AsyncClient
) -> None:
    with pytest.raises(IsocenterError) as caught:
        await client.predict(image, **asked)  # type: ignore[arg-type]
    assert type(caught.value) is kind


async def test_a_picture_of_nothing_is_refused(client: AsyncClient) -> None:
    with pytest.raises(EmptyInput):
        await client.segment(np.full((40, 40), 7, np.uint8), model="cells")


async def test_what_is_served_and_how_it_does(client: AsyncClient) -> None:
    assert {each.name: each.task for each in await client.models()} == {
        "lungs": "classification",
        "cells": "segmentation",
    }
    assert (await client.model("lungs"))["version"] == 1
    assert (await client.stats("cells", 1))["model"] == "cells"
    assert (await client.health()).status == "ok"
    with pytest.raises(UnknownModel):
        await client.stats("nope")


async def test_many_at_once(client: AsyncClient) -> None:
    answers = await asyncio.gather(*(client.segment(drawn_cells(count=n)[0], model="cells") for n in range(1, 9)))
    assert [each.json()["count"] for each in answers] == list(range(1, 9))
