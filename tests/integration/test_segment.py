"""A volume goes in, and a mask comes out on the same grid."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from isocenter import Service
from isocenter.app import Composition, open_service
from isocenter.core.errors import (
    BadManifest,
    BadRequest,
    Draining,
    EmptyInput,
    GoldenMismatch,
    InputNotAccepted,
    NonFinitePixels,
    Overloaded,
    UnknownModel,
    WrongTask,
)
from isocenter.core.tensor import Array
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.volume import Volume
from isocenter.settings import load_settings
from model_folders import png, write_model
from patience import PATIENCE_S
from segmenters import ROI, write_segmenter

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]

SHAPE = (13, 9, 17)
PLACE = np.array([[0, -1.5, 0, 4], [0, 0, 2, -7], [-1, 0, 0, 30], [0, 0, 0, 1]], np.float64)


def blobs(shape: tuple[int, ...] = SHAPE) -> Array:
    return np.random.default_rng(5).standard_normal((1, *shape)).astype(np.float32)


def volume(voxels: Array | None = None, **more: Any) -> Volume:
    voxels = blobs() if voxels is None else voxels
    return Volume(voxels, Geometry(voxels.shape[1:], PLACE), **more)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    models = tmp_path_factory.mktemp("models")
    write_model(models)
    write_segmenter(models)
    write_segmenter(models, "real", onnx=True)
    write_segmenter(models, "whole", onnx=True, sliding=None)
    output = {"tensor": "scores", "activation": "sigmoid", "labels": ["less", "more"], "threshold": 0.7}
    write_segmenter(models, "layers", onnx=True, output=output)
    finer = [{"kind": "orient", "axcodes": "LPS"}, {"kind": "resample", "spacing_mm": [1, 1, 1]}]
    for back in ("probabilities", "scores", "labels"):
        output = {"tensor": "scores", "activation": "softmax", "labels": ["background", "blob"], "back": back}
        write_segmenter(models, back, onnx=True, steps=finer, output=output)
        cut = [*finer, {"kind": "crop_foreground", "above": 3.0}]
        write_segmenter(models, f"cut-{back}", onnx=True, steps=cut, output=output)
    write_segmenter(models, "slow", runtime=_slow_runtime())
    async with Service(models) as service:
        yield service


def _slow_runtime(**cost_ms: float) -> dict[str, Any]:
    cost = cost_ms or {"per_item_ms": 25}
    options = {"image": "x".join(map(str, (1, *ROI))), "labels": 2, "voxels": True, "busy": False, **cost}
    digest = hashlib.sha256(b"weights").hexdigest()
    return {"kind": "synthetic", "file": "model.bin", "sha256": digest, "options": options}


@pytest.mark.parametrize("model", ["blobs", "real", "whole"])
async def test_the_mask_lies_on_the_grid_of_the_volume(service: Service, model: str) -> None:
    answer = await service.segment(volume(), model=model)

    assert answer.mask.dtype == np.uint8
    assert np.array_equal(answer.mask, blobs()[0] > 0)
    assert np.array_equal(answer.of("blob"), blobs()[0] > 0)
    assert np.array_equal(answer.of("background"), blobs()[0] <= 0)
    assert np.array_equal(answer.geometry.lps_from_voxel, PLACE)
    assert answer.windows == (1 if model == "whole" else 4 * 2 * 3)
    assert (answer.labels, answer.probabilities, answer.warnings) == (("background", "blob"), None, ())
    assert list(answer.stages_s) == ["wait", "preprocess", "windows", "postprocess"]


async def test_probabilities_come_if_they_are_asked_for(service: Service) -> None:
    answer = await service.segment(volume(), model="real", probabilities=True)

    assert answer.probabilities is not None
    assert np.allclose(answer.probabilities[1], 1 / (1 + np.exp(-2 * blobs()[0])), atol=1e-5)
    assert np.allclose(answer.probabilities.sum(axis=0), 1, atol=1e-6)


async def test_labels_that_may_overlap_have_a_layer_each(service: Service) -> None:
    answer = await service.segment(volume(), model="layers")

    assert answer.mask.shape == (2, *SHAPE)
    least = np.log(0.7 / 0.3)
    assert np.array_equal(answer.of("more"), blobs()[0] >= least)
    assert np.array_equal(answer.of("less"), blobs()[0] <= -least)


@pytest.mark.parametrize("back", ["probabilities", "scores", "labels"])
async def test_what_was_resampled_comes_back_to_the_voxels_that_it_came_from(service: Service, back: str) -> None:
    solid = np.full((1, *SHAPE), -4.0, np.float32)
    solid[0, 3:9, 2:7, 4:14] = 4.0

    answer = await service.segment(volume(solid), model=back)

    assert np.array_equal(answer.mask, solid[0] > 0)


@pytest.mark.parametrize("back", ["probabilities", "scores", "labels"])
async def test_what_was_cut_away_is_background(service: Service, back: str) -> None:
    # Everything is above zero, and only the middle is prepared at all.
    solid = np.full((1, *SHAPE), 2.0, np.float32)
    solid[0, 3:9, 2:7, 4:14] = 4.0

    answer = await service.segment(volume(solid), model=f"cut-{back}", probabilities=True)

    assert answer.probabilities is not None
    assert answer.mask[5, 4, 8] == 1
    assert answer.mask[0].max() == answer.mask[:, 0].max() == answer.mask[:, :, 16].max() == 0
    assert answer.probabilities[:, 0, 0, 0].tolist() == [1, 0]


async def test_volumes_at_once_get_the_answers_of_lone_ones(service: Service) -> None:
    given = [volume(np.roll(blobs(), shift, axis=1)) for shift in range(6)]

    answers = await asyncio.gather(*(service.segment(each, model="blobs") for each in given))

    for each, answer in zip(given, answers, strict=True):
        assert np.array_equal(answer.mask, each.voxels[0] > 0)
    stats = await service.stats("blobs")
    assert stats.failures == {}


async def test_windows_of_volumes_at_once_share_runs_where_that_pays_and_no_label_changes(tmp_path: Path) -> None:
    # A run of four costs about what a run of one does.
    write_segmenter(tmp_path, runtime=_slow_runtime(base_ms=20, per_item_ms=0.1))
    given = [volume(np.roll(blobs(), shift, axis=1)) for shift in range(8)]

    async with open_service(load_settings(models=tmp_path)) as here:
        lone = [await here.segment(each, request_id="lone", model="blobs") for each in given]
        shared_by_lone = _runs_shared(here)
        work = (here.segment(each, request_id=str(number), model="blobs") for number, each in enumerate(given))
        answers = await asyncio.gather(*work)

        assert shared_by_lone == 0
        assert _runs_shared(here) > 0
    assert max(answer.batch_size for answer in answers) == 4
    for alone, answer in zip(lone, answers, strict=True):
        assert np.array_equal(answer.mask, alone.mask)


def _runs_shared(here: Composition) -> float:
    lines = here.metrics.text().decode().splitlines()
    found = [line for line in lines if line.startswith('isocenter_batches_shared_total{model="blobs"')]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


@pytest.mark.parametrize(
    ("given", "asked", "kind"),
    [
        pytest.param(volume(blobs((9, 9))), {}, InputNotAccepted, id="a picture"),
        pytest.param(volume(channels=("flair",)), {}, InputNotAccepted, id="another channel"),
        pytest.param(volume(np.repeat(blobs(), 2, axis=0)), {}, InputNotAccepted, id="two channels without names"),
        pytest.param(volume(np.ones((1, *SHAPE))), {}, EmptyInput, id="constant"),
        pytest.param(volume(np.full((1, *SHAPE), np.nan)), {}, NonFinitePixels, id="NaN"),
        pytest.param(volume(), {"model": "lungs"}, WrongTask, id="a classifier"),
        pytest.param(volume(), {"model": "hearts"}, UnknownModel, id="no such model"),
        pytest.param(volume(), {"timeout": 0}, BadRequest, id="timeout"),
    ],
)
async def test_what_cannot_be_answered_says_why(
    service: Service, given: Volume, asked: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        await service.segment(given, **{"model": "blobs", **asked})


async def test_a_classifier_is_not_asked_for_masks_nor_a_segmenter_for_a_class(service: Service) -> None:
    with pytest.raises(WrongTask) as caught:
        await service.infer(png(), model="blobs")

    assert caught.value.details == {"task": "segmentation", "asked": "classification"}


async def test_a_volume_that_cannot_be_done_in_time_is_refused_before_a_window_is_run(service: Service) -> None:
    before = (await service.stats("slow")).failures.get("overloaded", 0)

    with pytest.raises(Overloaded, match=r"\d{5} windows take \d+\.\d+ s"):
        await service.segment(volume(blobs((112, 112, 112))), model="slow", timeout=PATIENCE_S)

    assert (await service.stats("slow")).failures["overloaded"] == before + 1


async def test_whoever_leaves_leaves_nothing_behind(service: Service) -> None:
    asking = asyncio.create_task(service.segment(volume(blobs((64, 64, 64))), model="slow", timeout=PATIENCE_S * 10))
    while (await service.stats("slow")).queued == 0:
        assert not asking.done()
        await asyncio.sleep(0.001)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    while (await service.stats("slow")).queued:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_a_model_is_described_whatever_its_task(service: Service) -> None:
    assert {info.name: info.task for info in service.models()}["blobs"] == "segmentation"


async def test_over_http_a_segmenter_is_listed_and_says_that_it_is_no_classifier(tmp_path: Path) -> None:
    write_segmenter(tmp_path)
    async with open_service(load_settings(models=tmp_path)) as here:
        transport = httpx.ASGITransport(here.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            listed = (await client.get("/v1/models")).json()["models"]
            about = (await client.get("/v1/models/blobs")).json()
            answer = await client.post("/predict", content=png())
            ready = await client.get("/readyz")

    assert [each["task"] for each in listed] == ["segmentation"]
    assert (about["labels"], about["input"]["tensor_shape"]) == (["background", "blob"], [1, *ROI])
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "wrong_task")
    assert ready.status_code == 200


@pytest.mark.parametrize(("write", "there"), [(write_segmenter, True), (write_model, False)])
async def test_what_writes_dicom_is_loaded_before_the_first_caller_if_there_are_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object], there: bool
) -> None:
    pytest.importorskip("highdicom")
    monkeypatch.delitem(sys.modules, "highdicom", raising=False)
    write(tmp_path)
    async with Service(tmp_path):
        assert ("highdicom" in sys.modules) == there


async def test_a_closed_service_takes_no_volume(tmp_path: Path) -> None:
    write_segmenter(tmp_path)
    async with Service(tmp_path) as closing:
        pass
    with pytest.raises(Draining):
        await closing.segment(volume())


@pytest.mark.parametrize(
    ("changes", "spoilt", "kind", "says"),
    [
        pytest.param({}, "output", GoldenMismatch, "golden values are off", id="other output"),
        pytest.param({}, "shape", GoldenMismatch, "shape", id="output of another shape"),
        pytest.param({}, "gone", BadManifest, "not complete", id="no output"),
        pytest.param({}, "pickle", BadManifest, "not complete", id="a pickle"),
        pytest.param({"sliding": {"roi": [8, 8, 4]}}, "", BadManifest, "sliding.roi", id="another window"),
        pytest.param(
            {"input": {"kind": "volume3d", "tensor": "x", "channels": ["a", "b"]}},
            "",
            BadManifest,
            "names 2, the model takes 1",
            id="another number of channels",
        ),
        pytest.param(
            {"output": {"tensor": "scores", "activation": "softmax", "labels": ["a", "b", "c"]}},
            "",
            BadManifest,
            "3 labels",
            id="another number of labels",
        ),
    ],
)
async def test_a_segmenter_that_is_not_what_it_claims_to_be_is_not_served(
    tmp_path: Path, changes: dict[str, Any], spoilt: str, kind: type[Exception], says: str
) -> None:
    folder = write_segmenter(tmp_path, **changes)
    output = folder.golden / "noise.output.npy"
    if spoilt == "output":
        np.save(output, np.load(output) + 1)
    elif spoilt == "shape":
        np.save(output, np.load(output)[:, 1:])
    elif spoilt == "gone":
        output.unlink()
    elif spoilt == "pickle":
        np.save(output, np.array([{"a": 1}], object), allow_pickle=True)

    with pytest.raises(kind, match=says):
        async with Service(tmp_path):
            pass
