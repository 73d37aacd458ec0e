"""Images of cells inside a program: the same answers as over HTTP."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from cell_models import picture, png, write_cells
from isocenter import Service
from isocenter.core.errors import BadRequest, BadValue, InputNotAccepted, MissingImage, TooManyBytes
from isocenter.imaging.volume import Volume
from patience import PATIENCE_S

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    models = tmp_path_factory.mktemp("models")
    write_cells(models)
    write_cells(models, "slow", per_item_ms=10)
    async with Service(models, default_model="cells", limits={"max_bytes": 20_000}) as service:
        yield service


async def test_bytes_paths_pixels_and_volumes_give_the_same_objects(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "cells.png"
    file.write_bytes(png())

    for given in (png(), file, str(file), picture(), Volume.of(picture()[None], channels=["gray"])):
        answer = await service.segment_image(given)

        assert (answer.count, answer.model, answer.threshold) == (3, "cells", 0.5)
        assert [polygon.area_px for polygon in answer.polygons] == [36, 36, 108]
        assert answer.total_s is not None
        assert next(iter(answer.stages_s)) == "receive"
        assert answer.as_json()["request_id"] == answer.request_id != ""


async def test_every_form_is_written_and_says_what_it_is(service: Service) -> None:
    answer = await service.segment_image(picture())

    assert {form: answer.render(form).media_type for form in ("json", "geojson", "coco", "labels", "overlay")} == {
        "json": "application/json",
        "geojson": "application/geo+json",
        "coco": "application/json",
        "labels": "image/png",
        "overlay": "image/png",
    }
    assert answer.render("labels", tiff=True).media_type == "image/tiff"


async def test_what_cannot_be_answered_says_why(service: Service, tmp_path: Path) -> None:
    with pytest.raises(BadValue):
        await service.segment_image(picture(), threshold=0.95)
    with pytest.raises(BadRequest, match="timeout"):
        await service.segment_image(picture(), timeout=-1)
    for threshold in ("x", [0.5], 1j, np.array([0.5, 0.5])):
        with pytest.raises(BadRequest, match="threshold"):
            await service.segment_image(picture(), threshold=threshold)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="priority"):
        await service.segment_image(picture(), priority="high")  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="model"):
        await service.segment_image(picture(), model=5)  # type: ignore[arg-type]
    with pytest.raises(MissingImage):
        await service.segment_image(tmp_path / "nothing.png")
    with pytest.raises(TooManyBytes):
        await service.segment_image(b"x" * 30_000)
    with pytest.raises(InputNotAccepted, match="GFP"):
        await service.segment_image(png(), channel="GFP")


@pytest.mark.parametrize("seconds", [sys.maxsize, 1e300])
async def test_any_time_that_is_given_is_time_enough(service: Service, seconds: float) -> None:
    assert (await service.segment_image(picture(), timeout=seconds)).count == 3


async def test_failures_are_counted_by_their_code(service: Service) -> None:
    before = (await service.stats("cells")).failures.get("bad_value", 0)
    with pytest.raises(BadValue):
        await service.segment_image(picture(), threshold=2)

    assert (await service.stats("cells")).failures["bad_value"] == before + 1


async def test_whoever_leaves_leaves_nothing_behind(service: Service) -> None:
    pixels = np.tile(picture(), (32, 32))
    asking = asyncio.create_task(service.segment_image(pixels, model="slow", timeout=PATIENCE_S * 10))
    while (await service.stats("slow")).queued == 0:
        assert not asking.done()
        await asyncio.sleep(0.001)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    while (await service.stats("slow")).queued:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert (await service.stats("slow")).failures["abandoned"] == 1
