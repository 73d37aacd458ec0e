"""The service inside a program: the answers of HTTP, typed errors, shared batches, and nothing left behind."""

import asyncio
import io
import math
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from conftest import MODELS
from isocenter import Answer, IsocenterError, Service
from isocenter.app import open_service
from isocenter.core.errors import (
    BadRequest,
    BadSettings,
    DeadlineExceeded,
    Draining,
    MissingImage,
    Overloaded,
    UnknownModel,
    UnknownVersion,
    UnsupportedMedia,
)
from isocenter.imaging.codecs.raster import decode
from isocenter.imaging.image import RasterImage
from isocenter.imaging.phantoms import brain_slice
from isocenter.settings import load_settings
from patience import PATIENCE_S

SEED = 3_000_000
MODEL = "brain-mri-classifier"
PIXELS = brain_slice(SEED, label="Glioma").pixels


def png_of(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


PNG = png_of(PIXELS)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    async with Service(MODELS) as service:
        yield service


async def failures(service: Service) -> dict[str, int]:
    return (await service.stats(MODEL)).failures


async def test_the_answer_is_that_of_http(service: Service) -> None:
    async with open_service(load_settings(models=MODELS)) as other:
        transport = httpx.ASGITransport(other.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            over_http = (await client.post("/predict", content=PNG)).json()

    answer = await service.infer(PNG)

    assert answer.as_json().keys() == over_http.keys()
    assert answer.as_json()["timings_ms"].keys() == over_http["timings_ms"].keys()
    assert answer.label == over_http["prediction"] == "Glioma"
    assert answer.probabilities == pytest.approx(over_http["probabilities"], abs=1e-6)
    assert 0 < answer.as_json()["latency_ms"] == round(answer.total_s * 1e3, 3)


async def test_bytes_path_and_pixels_of_one_picture_give_one_answer(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "slice.png"
    file.write_bytes(PNG)

    answers = [await service.infer(each, model=MODEL, version=1) for each in (PNG, file, str(file), PIXELS)]

    for answer in answers:
        assert answer.probabilities == pytest.approx(answers[0].probabilities, abs=1e-6)


async def test_16_bit_pixels_are_windowed_as_in_a_file(service: Service) -> None:
    deep = PIXELS.astype(np.uint16) * 16

    given, filed = await service.infer(deep), await service.infer(png_of(deep))

    assert [note.code for note in given.warnings] == [note.code for note in filed.warnings] == ["windowed"]
    assert given.probabilities == pytest.approx(filed.probabilities, abs=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
async def test_a_threshold_lists_what_reaches_it_and_an_empty_list_says_none(
    service: Service, threshold: float
) -> None:
    answer = await service.infer(PNG, threshold=threshold)

    reached = {label for label, probability in answer.probabilities.items() if probability >= threshold}
    assert answer.labels is not None
    assert set(answer.labels) == reached
    assert answer.labels == sorted(answer.labels, key=lambda label: -answer.probabilities[str(label)])
    assert answer.as_json()["labels"] == answer.labels
    assert answer.label == "Glioma"


async def test_without_a_threshold_nothing_was_asked_so_nothing_is_listed(service: Service) -> None:
    answer = await service.infer(PNG)

    assert answer.labels is None
    assert "labels" not in answer.as_json()


@pytest.mark.parametrize(
    ("image", "asked", "kind"),
    [
        pytest.param(b"no picture", {}, UnsupportedMedia, id="text"),
        pytest.param(PIXELS[None], {}, UnsupportedMedia, id="an axis too many"),
        pytest.param([[1, 2]], {}, BadRequest, id="a list"),
        pytest.param(PNG, {"model": "hearts"}, UnknownModel, id="model"),
        pytest.param(PNG, {"version": 9}, UnknownVersion, id="version"),
        pytest.param(PNG, {"model": 5}, BadRequest, id="model is a number"),
        pytest.param(PNG, {"model": [1]}, BadRequest, id="model is a list"),
        pytest.param(PNG, {"version": [1]}, BadRequest, id="version is a list"),
        pytest.param(PNG, {"threshold": 1.5}, BadRequest, id="threshold"),
        pytest.param(PNG, {"threshold": float("nan")}, BadRequest, id="threshold is not a number"),
        pytest.param(PNG, {"threshold": "x"}, BadRequest, id="threshold is a text"),
        pytest.param(PNG, {"threshold": [0.5]}, BadRequest, id="threshold is a list"),
        pytest.param(PNG, {"threshold": 1j}, BadRequest, id="threshold is complex"),
        pytest.param(PNG, {"threshold": np.array([0.1, 0.5])}, BadRequest, id="threshold is an array"),
        pytest.param(PNG, {"threshold": 10**5000}, BadRequest, id="threshold is endless"),
        pytest.param(b"no picture", {"priority": "high"}, BadRequest, id="priority is a text"),
        pytest.param(b"no picture", {"priority": None}, BadRequest, id="priority is nothing"),
        pytest.param(b"no picture", {"priority": math.nan}, BadRequest, id="priority is not a number"),
        pytest.param(b"no picture", {"priority": -math.inf}, BadRequest, id="priority before all others"),
        pytest.param("MUELLER\0.png", {}, MissingImage, id="path with a zero"),
        pytest.param("\ud800MUELLER.png", {}, MissingImage, id="path beyond Unicode"),
        pytest.param(PNG, {"timeout": 0}, BadRequest, id="no time"),
        pytest.param(PNG, {"timeout": float("nan")}, BadRequest, id="time is not a number"),
        pytest.param(PNG, {"timeout": "x"}, BadRequest, id="time is a text"),
        pytest.param(PNG, {"timeout": np.array([1.0])}, BadRequest, id="time is an array"),
        pytest.param(PNG, {"timeout": 1e-9}, DeadlineExceeded, id="too late"),
    ],
)
async def test_what_cannot_be_answered_is_a_typed_error_and_is_counted(
    service: Service, image: Any, asked: dict[str, Any], kind: type[IsocenterError]
) -> None:
    before = await failures(service)

    with pytest.raises(kind) as refused:
        await service.infer(image, **asked)

    assert type(refused.value) is kind
    meant_none = issubclass(kind, UnknownModel) or not isinstance(asked.get("model", ""), str)
    meant_none |= isinstance(asked.get("version"), list)
    assert (await failures(service)).get(kind.code, 0) == before.get(kind.code, 0) + (not meant_none)


@pytest.mark.parametrize(
    "seconds",
    [1e12, 1e13, sys.maxsize, 1e300, 1e308, 10**400, math.inf],
    ids=lambda s: f"{s:.2}" if isinstance(s, float) else f"{len(str(s))} digits",
)
async def test_any_time_that_is_given_is_time_enough(service: Service, seconds: float) -> None:
    assert (await service.infer(PNG, timeout=seconds)).label == "Glioma"


async def test_calls_at_the_same_time_get_their_own_answers(service: Service) -> None:
    pictures = [brain_slice(SEED + number).pixels for number in range(24)]
    alone = [(await service.infer(picture)).probabilities for picture in pictures]
    before = await service.stats(MODEL)

    together = await asyncio.gather(*(service.infer(picture) for picture in pictures * 3))

    after = await service.stats(MODEL)
    assert after.answered - before.answered == 72
    assert 0 < after.batches - before.batches <= 72, "how many share one, the machine's speed decides"
    for lone, answer in zip(alone * 3, together, strict=True):
        assert answer.probabilities == pytest.approx(lone, abs=1e-5)


async def test_a_cancelled_call_is_abandoned_and_strands_nobody(service: Service) -> None:
    before = (await failures(service)).get("abandoned", 0)
    calls = [asyncio.create_task(service.infer(PNG)) for _ in range(12)]
    await asyncio.sleep(0)

    for call in calls[::2]:
        call.cancel()
    ended = await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(each, asyncio.CancelledError) for each in ended[::2])
    assert all(isinstance(each, Answer) for each in ended[1::2])
    assert (await failures(service))["abandoned"] == before + 6


async def test_many_images_keep_their_order_and_one_bad_one_costs_only_itself(service: Service) -> None:
    images: list[Any] = [PNG, b"no picture", PIXELS, "nowhere.png", "scan\0x.png", PNG]

    answers = await service.infer_many(iter(images), at_once=2, threshold=0.9)

    assert [getattr(each, "code", "answered") for each in answers] == [
        "answered", "unsupported_media", "answered", "missing_image", "missing_image", "answered"
    ]  # fmt: skip
    assert [each.labels for each in answers if isinstance(each, Answer)] == [["Glioma"]] * 3


@pytest.mark.parametrize("at_once", [0, 2.5, "x"])
async def test_at_least_one_image_is_asked_for_at_a_time(service: Service, at_once: Any) -> None:
    with pytest.raises(BadRequest, match="at least one image"):
        await service.infer_many([PNG], at_once=at_once)


async def test_voxels_without_a_place_are_no_volume(service: Service) -> None:
    with pytest.raises(BadRequest, match="is a Volume"):
        await service.segment(PIXELS)  # type: ignore[arg-type]


async def test_what_the_images_raise_is_raised(service: Service) -> None:
    def images() -> Iterator[bytes]:
        yield PNG
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        await service.infer_many(images())


async def test_metrics_tell_percentiles_with_their_count_throughput_queue_batches_memory(service: Service) -> None:
    await service.infer(PNG)

    found = (await service.get_metrics())[MODEL]

    assert found["latency_ms"]["count"] == found["answered"] >= 1
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"] <= found["latency_ms"]["p99"]
    assert found["throughput_per_s"] == pytest.approx(found["answered"] / found["span_s"], rel=0.01)
    assert (found["queued"], found["instances"], found["state"]) == (0, 1, "ready")
    assert found["mean_batch_size"] >= 1
    assert found["memory"]["process_rss_bytes"] > 2**20
    assert found["service_ms"]["1"] > 0


async def test_models_introduce_themselves(service: Service) -> None:
    found = service.models()

    assert [(each.name, each.version, each.state) for each in found] == [(MODEL, 1, "ready")]
    assert "Glioma" in found[0].labels


async def test_too_many_at_once_are_shed_with_a_time_to_come_back() -> None:
    async with Service(MODELS, decode={"threads": 1, "max_waiting": 8}) as service:
        ended = await asyncio.gather(*(service.infer(PIXELS) for _ in range(40)), return_exceptions=True)

        shed = [each for each in ended if isinstance(each, Overloaded)]
        assert len(shed) + sum(isinstance(each, Answer) for each in ended) == 40
        assert shed
        assert all(each.retry_after_s for each in shed)
        assert sum((await service.stats(MODEL)).shed.values()) == len(shed)


async def test_what_is_in_is_answered_when_the_block_ends_and_later_calls_are_refused() -> None:
    async with Service(MODELS, drain={"bound_s": PATIENCE_S}) as service:
        calls = [asyncio.create_task(service.infer(PNG)) for _ in range(160)]
        await asyncio.sleep(0)

    assert [answer.label for answer in await asyncio.gather(*calls)] == ["Glioma"] * 160
    with pytest.raises(Draining):
        await service.infer(PNG)


async def test_a_service_is_opened_once_and_answers_inside_its_block_only() -> None:
    service = Service(MODELS)
    with pytest.raises(RuntimeError, match="inside its `async with`"):
        await service.infer(PNG)
    async with service:
        with pytest.raises(RuntimeError, match="opened once"):
            await service.__aenter__()


@pytest.mark.parametrize(
    "settings", [{"frontends": 2}, {"modles": "x"}, {"limits": {"max_pixels": 0}}], ids=["frontends", "typo", "range"]
)
async def test_settings_are_checked_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(BadSettings):
        Service(MODELS, **settings)


async def test_a_variable_for_the_server_gives_no_front_ends_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_FRONTENDS", "4")

    assert Service(MODELS)._settings.frontends == 0


def jpeg_of(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "jpeg", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("cores", "picture", "place"),
    [
        (2, jpeg_of(), "the event loop"),
        (2, jpeg_of(progressive=True), "a thread"),  # its header does not say how long it takes
        (3, jpeg_of(), "a thread"),
    ],
    ids=["few cores", "few cores, progressive", "more cores"],
)
async def test_small_pictures_are_decoded_on_the_event_loop_of_few_cores(
    cores: int, picture: bytes, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def noticing(*args: Any, **named: Any) -> RasterImage:
        found.append("the event loop" if threading.current_thread() is loop_thread else "a thread")
        return decode(*args, **named)

    loop_thread = threading.current_thread()
    monkeypatch.setattr("isocenter.app.usable_cores", lambda: cores)
    monkeypatch.setattr("isocenter.serving.predict.decode", noticing)
    async with Service(MODELS) as service:
        found.clear()  # what the rehearsal of the start decoded
        await service.infer(picture, model=MODEL)

    assert found == [place]
