"""A scan goes in, sent or named, and findings with a checked mask on its own grid come out."""

import asyncio
import base64
import hashlib
import io
import os
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

import dicom_files
from cell_models import write_cells
from isocenter import Service
from isocenter.api.http.scan_form import SCAN_FIELDS
from isocenter.api.http.schemas import ProblemShape
from isocenter.api.http.schemas_scans import ScanShape
from isocenter.app import Composition, open_service
from isocenter.core.errors import BadInput, InputNotAccepted
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.volume_files import read_volume
from isocenter.imaging.limits import VolumeLimits
from isocenter.settings import load_settings
from model_folders import png, write_model
from onnx_writer import Node, Port, write_onnx
from patience import PATIENCE_S
from scan_files import RAS, SHAPE, ball, blobs, nifti
from segmenters import write_segmenter

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]

BALL = nifti(ball())
VOXELS = int((ball() > 0).sum())
VOXEL_ML = 1.5 * 2 * 1 / 1000
FINDINGS = {"labels": ["blob"], "min_volume_ml": 0.05}
STAGES = [
    "receive", "read_wait", "read", "wait", "preprocess", "windows", "postprocess", "findings", "write"
]  # fmt: skip


def _output(**more: Any) -> dict[str, Any]:
    return {"tensor": "scores", "activation": "softmax", "labels": ["background", "blob"], **more}


def _write_two_channels(models: Path) -> None:
    """A voxel is in the blob where its flair is above its t1."""
    weights = models / "two.onnx"
    axes = ("batch", 2, "d", "h", "w")
    write_onnx(
        weights, [Node("Neg", ["x"], ["n"]), Node("Neg", ["n"], ["scores"])], [Port("x", axes)], [Port("scores", axes)]
    )
    data = weights.read_bytes()
    folder = write_segmenter(
        models,
        "two",
        onnx=True,
        runtime={"kind": "onnxruntime", "file": "model.onnx", "sha256": hashlib.sha256(data).hexdigest()},
        input={"kind": "volume3d", "tensor": "x", "channels": ["t1", "flair"]},
        sliding=None,
    ).path
    weights.rename(folder / "model.onnx")
    case = np.random.default_rng(0).standard_normal((2, 8, 8, 8), dtype=np.float32)
    np.save(folder / "golden" / "noise.input.npy", case)
    np.save(folder / "golden" / "noise.output.npy", case)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root below which scans may be named."""
    root = tmp_path_factory.mktemp("scans")
    (root / "brain.nii").write_bytes(BALL)
    (root / "series").mkdir()
    for name, data in _series().items():
        (root / "series" / name).write_bytes(data)
    return root


def _series() -> dict[str, bytes]:
    """A DICOM series of a bright block in the dark."""
    stored = np.full((12, 10, 11), -400, np.int16)
    stored[3:9, 3:7, 2:8] = 400
    return dicom_files.files(dicom_files.slices(stored))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory, scans: Path) -> AsyncIterator[Composition]:
    models = tmp_path_factory.mktemp("models")
    write_segmenter(models, "tumors", output=_output(findings=FINDINGS))
    write_model(models)
    write_cells(models)
    settings = load_settings(models=models, scans={"roots": str(scans), "max_bytes": 2_000_000})
    async with open_service(settings) as service:
        yield service


def _mask(found: ScanShape) -> Array:
    volume = read_volume(base64.b64decode(found.mask.data), limits=VolumeLimits())
    assert np.allclose(volume.geometry.lps_from_voxel, found.grid.lps_from_voxel, atol=1e-5)
    return np.asarray(volume.voxels[0])


async def test_a_named_scan_is_answered_with_present_mask_and_timings(client: httpx.AsyncClient, scans: Path) -> None:
    answer = await client.post("/predict", json={"scan_path": str(scans / "brain.nii")})

    assert answer.status_code == 200, answer.text
    found = ScanShape.model_validate(answer.json())
    assert (found.prediction, found.present, found.model, found.version) == ("present", True, "tumors", 1)
    assert found.probability is not None
    assert found.probability > 0.9
    assert np.array_equal(_mask(found), ball() > 0)
    assert found.mask.voxels == [ball().size - VOXELS, VOXELS]
    assert np.allclose(found.grid.ras_from_voxel, RAS)
    assert found.grid.spacing_mm == [1.5, 2, 1]
    (lesion,) = found.lesions
    assert (lesion.number, lesion.label, lesion.voxels) == (1, "blob", VOXELS)
    assert lesion.volume_ml == pytest.approx(VOXELS * VOXEL_ML)
    assert lesion.centroid_voxel == pytest.approx(tuple((size - 1) / 2 for size in SHAPE))
    assert list(found.timings_ms) == STAGES
    assert 0 < sum(found.timings_ms.values()) <= found.latency_ms + 1
    assert found.request_id == answer.headers["x-request-id"]
    assert len(found.sha256) == 64
    assert (found.scan.format, found.scan.files, found.scan.channels) == ("nifti", 1, {})


def _form(**fields: Any) -> dict[str, Any]:
    return {"files": fields}


def _zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        pytest.param({"content": BALL, "params": {"model": "tumors"}}, "nifti", id="raw body"),
        pytest.param({"content": BALL}, "nifti", id="raw body that begins as a scan"),
        pytest.param({"content": BALL, "headers": {"content-type": "application/x-nifti"}}, "nifti", id="by type"),
        pytest.param(_form(file=("b.nii.gz", nifti(ball(), packed=True))), "nifti", id="file, packed"),
        pytest.param(_form(scan=("b.nii", BALL)), "nifti", id="scan"),
        pytest.param({**_form(file=("b.nii", BALL)), "data": {"model": "tumors"}}, "nifti", id="model in the form"),
        pytest.param({**_form(image=BALL), "params": {"model": "tumors"}}, "nifti", id="image"),
        pytest.param(_form(t1=("b.nii", BALL)), "nifti", id="a channel by its name"),
        pytest.param({"files": [("files", each) for each in _series().items()]}, "dicom", id="slices"),
        pytest.param({"files": [("file", each) for each in _series().items()]}, "dicom", id="slices as file"),
        pytest.param(_form(file=("s.zip", _zipped(_series()))), "dicom", id="zip of slices"),
        pytest.param({"json": {"scan_path": "series"}}, "dicom", id="a folder below the root"),
    ],
)
@pytest.mark.parametrize("route", ["/predict", "/segment"])
async def test_a_scan_is_found_however_it_is_sent(
    client: httpx.AsyncClient, how: dict[str, Any], kind: str, route: str
) -> None:
    if route == "/segment":  # pictures are what is meant there, unless a model is named
        if "json" in how:
            how = {"json": {**how["json"], "model": "tumors"}}
        else:
            how = {**how, "params": {"model": "tumors"}, "data": None}
    answer = await client.post(route, **how)

    assert answer.status_code == 200, answer.text
    found = ScanShape.model_validate(answer.json())
    assert (found.present, found.scan.format, len(found.lesions)) == (True, kind, 1)
    assert found.mask.voxels[1] == (VOXELS if kind == "nifti" else 6 * 4 * 6)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other(tmp_path_factory: pytest.TempPathFactory, scans: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A server with two models of volumes, of which one takes two channels, and none of pictures."""
    models = tmp_path_factory.mktemp("models")
    write_segmenter(models, "tumors")
    _write_two_channels(models)
    async with open_service(load_settings(models=models, scans={"roots": str(scans)})) as service:
        transport = httpx.ASGITransport(service.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE_S) as client:
            yield client


async def test_a_body_may_name_one_of_several_models(other: httpx.AsyncClient) -> None:
    form = await other.post("/predict", files={"file": BALL}, data={"model": "tumors"})
    named = await other.post("/predict", json={"scan_path": "brain.nii", "model": "tumors"})
    neither = await other.post("/predict", files={"file": BALL})

    assert (form.status_code, named.status_code) == (200, 200)
    assert form.json()["mask"] == named.json()["mask"]
    assert (neither.status_code, neither.json()["error"]["code"]) == (400, "bad_request")
    assert neither.json()["error"]["message"] == "several models segment scans: name one, of ['tumors', 'two']"


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"files": {"flair": ("b.nii", nifti(blobs(2))), "t1": ("a.nii", nifti(blobs(1)))}}, id="sent"),
        pytest.param({"json": {"scan_path": {"flair": "b.nii", "t1": "a.nii"}}}, id="named"),
    ],
)
async def test_channels_go_by_their_names_and_are_told_back(
    other: httpx.AsyncClient, scans: Path, how: dict[str, Any]
) -> None:
    (scans / "a.nii").write_bytes(nifti(blobs(1)))
    (scans / "b.nii").write_bytes(nifti(blobs(2)))

    answer = await other.post("/predict?model=two", **how)

    found = ScanShape.model_validate(answer.json())
    assert np.array_equal(_mask(found), blobs(2) > blobs(1))
    assert found.scan.channels == {"t1": "a.nii", "flair": "b.nii"}


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param({"flair": nifti()}, "input_not_accepted", id="one missing"),
        pytest.param({"scan": nifti()}, "input_not_accepted", id="without a name"),
        pytest.param({"t1": nifti(), "flair": nifti(blobs(1, (13, 9, 16)))}, "channels_differ", id="another grid"),
    ],
)
async def test_channels_that_do_not_fit_are_refused(
    other: httpx.AsyncClient, sent: dict[str, bytes], code: str
) -> None:
    answer = await other.post("/predict?model=two", files=sent)

    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code), answer.text


async def test_pictures_are_answered_as_before(client: httpx.AsyncClient) -> None:
    for how in ({"content": png()}, {"files": {"image": png()}}, {"files": {"file": ("x.png", png())}}):
        answer = await client.post("/predict", **how)
        assert (answer.status_code, answer.json()["model"]) == (200, "lungs")


@pytest.mark.parametrize(
    ("how", "media_type", "names"),
    [
        pytest.param({"params": {"format": "json"}}, "application/json", None, id="json"),
        pytest.param({"headers": {"accept": "text/html"}}, "application/json", None, id="accept what is not written"),
        pytest.param({"params": {"format": "nifti"}}, "application/gzip", "mask.nii.gz", id="nifti"),
        pytest.param({"headers": {"accept": "application/x-nifti"}}, "application/gzip", "mask.nii.gz", id="x-nifti"),
        pytest.param({"headers": {"accept": "application/gzip"}}, "application/gzip", "mask.nii.gz", id="gzip"),
        pytest.param({"params": {"format": "dicom-seg"}}, "application/dicom", "mask.dcm", id="seg"),
        pytest.param({"headers": {"accept": "application/dicom"}}, "application/dicom", "mask.dcm", id="accept seg"),
        pytest.param({"params": {"format": "montage"}}, "image/png", "montage.png", id="montage"),
        pytest.param({"headers": {"accept": "image/png"}}, "image/png", "montage.png", id="accept png"),
        pytest.param({"params": {"format": "probabilities"}}, "application/gzip", "probabilities.nii.gz", id="map"),
        pytest.param(
            {"params": {"format": "json,nifti,dicom-seg,montage,probabilities"}},
            "application/zip",
            ["answer.json", "mask.nii.gz", "mask.dcm", "montage.png", "probabilities.nii.gz"],
            id="all of them",
        ),
        pytest.param(
            {"headers": {"accept": "application/zip"}},
            "application/zip",
            ["answer.json", "mask.nii.gz", "montage.png"],
            id="accept zip",
        ),
    ],
)
async def test_the_answer_is_written_as_it_is_asked_for(
    client: httpx.AsyncClient, how: dict[str, Any], media_type: str, names: str | list[str] | None
) -> None:
    content = _zipped(_series())
    answer = await client.post("/segment", content=content, **{**how, "params": {**how.get("params", {}), "series": 1}})

    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type), answer.text
    files = {names: answer.content} if isinstance(names, str) else {"answer.json": answer.content}
    if isinstance(names, list):
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.namelist() == names
            files = {name: archive.read(name) for name in names}
    elif names:
        assert answer.headers["content-disposition"] == f'attachment; filename="{names}"'
    block = np.zeros((11, 10, 12), bool)
    block[2:8, 3:7, 3:9] = True
    for name, data in files.items():
        if name == "answer.json":
            assert np.array_equal(_mask(ScanShape.model_validate_json(data)), block)
        elif name == "mask.nii.gz":
            assert np.array_equal(read_volume(data, limits=VolumeLimits()).voxels[0], block)
        elif name == "probabilities.nii.gz":
            assert np.array_equal(read_volume(data, limits=VolumeLimits()).voxels[0] >= 0.5, block)
        elif name == "montage.png":
            assert np.asarray(Image.open(io.BytesIO(data))).ndim == 3
        else:
            assert data[128:132] == b"DICM"
            assert b"Doe^Jane" in data  # the object belongs to the patient's study; nothing else says the name


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        pytest.param({"content": b"{"}, 400, "bad_request", id="no JSON"),
        pytest.param({"json": []}, 400, "bad_request", id="a list"),
        pytest.param({"content": b'{"scan_path": "a", "scan_path": "b"}'}, 400, "bad_request", id="a key twice"),
        pytest.param({"content": b"[" * 60_000}, 400, "bad_request", id="deep JSON"),
        pytest.param({"content": b" " * 70_000}, 413, "too_many_bytes", id="long JSON"),
        pytest.param({"json": {}}, 400, "missing_image", id="no path"),
        pytest.param({"json": {"scan_path": 7}}, 422, "bad_value", id="a number"),
        pytest.param({"json": {"scan_path": None}}, 422, "bad_value", id="null"),
        pytest.param({"json": {"scan_path": {}}}, 422, "bad_value", id="no channels"),
        pytest.param({"json": {"scan_path": {"t1": 7}}}, 422, "bad_value", id="a channel that is a number"),
        pytest.param({"json": {"scan_path": "brain.nii", "modle": "x"}}, 400, "bad_request", id="misspelt key"),
        pytest.param({"json": {"scan_path": "../x"}}, 403, "path_not_allowed", id="up"),
        pytest.param({"json": {"scan_path": "/etc/passwd"}}, 403, "path_not_allowed", id="outside"),
        pytest.param({"content": b'{"scan_path": "\\ud800"}'}, 403, "path_not_allowed", id="half a character"),
        pytest.param({"json": {"scan_path": "a\0b"}}, 403, "path_not_allowed", id="NUL"),
        pytest.param({"json": {"scan_path": "brain.nii", "model": "hearts"}}, 404, "unknown_model", id="no model"),
        pytest.param({"json": {"scan_path": "brain.nii", "model": "lungs"}}, 422, "wrong_task", id="a classifier"),
        pytest.param({"json": {"scan_path": "brain.nii", "model": "cells"}}, 422, "wrong_task", id="of pictures"),
        pytest.param({"json": {"scan_path": "brain.nii", "version": 7}}, 404, "unknown_version", id="no version"),
        pytest.param({"json": {"scan_path": "brain.nii", "version": True}}, 422, "bad_value", id="version true"),
        pytest.param({"json": {"scan_path": "brain.nii", "series": 2}}, 422, "several_volumes", id="no such series"),
        pytest.param({"json": {"scan_path": "brain.nii", "series": 0}}, 422, "bad_value", id="series 0"),
        pytest.param({"json": {"scan_path": "brain.nii", "volume": "x"}}, 422, "bad_value", id="volume x"),
        pytest.param({"json": {"scan_path": "brain.nii", "format": "svg"}}, 422, "bad_value", id="format"),
        pytest.param({"json": {"scan_path": "brain.nii", "format": ["dicom-seg"]}}, 422, "not_dicom", id="no DICOM"),
        pytest.param({"json": {"scan_path": "brain.nii", "priority": 101}}, 422, "bad_value", id="priority"),
        pytest.param({"json": {"scan_path": {"flair": "brain.nii"}}}, 422, "input_not_accepted", id="another channel"),
        pytest.param(
            {"json": {"scan_path": "brain.nii", "version": 2}, "params": {"version": "1"}},
            400,
            "bad_request",
            id="said twice",
        ),
    ],
)
async def test_json_that_cannot_be_answered_is_refused_with_a_code(
    client: httpx.AsyncClient, how: dict[str, Any], status: int, code: str
) -> None:
    answer = await client.post("/predict", **{"headers": {"content-type": "application/json"}, **how})

    problem = ProblemShape.model_validate(answer.json())
    assert (answer.status_code, problem.error.code) == (status, code), answer.text


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        pytest.param({"content": b""}, 400, "missing_image", id="nothing"),
        pytest.param({"content": b"hello, this is text"}, 415, "unsupported_media", id="text"),
        pytest.param({"content": BALL[:-100]}, 422, "truncated_image", id="truncated"),
        pytest.param({"content": nifti(np.ones(SHAPE))}, 422, "empty_input", id="constant"),
        pytest.param({"content": nifti(np.full(SHAPE, np.nan))}, 422, "non_finite_pixels", id="NaN"),
        pytest.param({"content": nifti(np.ones((*SHAPE, 2)))}, 422, "several_volumes", id="two volumes"),
        pytest.param({"content": png()}, 422, "wrong_task", id="a picture"),
        pytest.param({"content": bytes(2_100_000)}, 413, "too_many_bytes", id="too many bytes"),
        pytest.param({"content": _zipped({"../x.nii": BALL})}, 422, "unsafe_path", id="zip that leads out"),
        pytest.param({"content": _zipped({"/x.nii": BALL})}, 422, "unsafe_path", id="zip with an absolute path"),
        pytest.param({"content": BALL, "params": {"sries": "1"}}, 400, "bad_request", id="misspelt parameter"),
        pytest.param({"files": {"scan": BALL}, "data": {"sries": "1"}}, 400, "bad_request", id="misspelt field"),
        pytest.param({"files": {"scan": BALL, "t1": BALL}}, 400, "bad_request", id="scan and channel"),
        pytest.param({"files": {"t2": BALL}}, 422, "input_not_accepted", id="another channel"),
        pytest.param({"files": {"scan": b""}}, 400, "missing_image", id="no bytes"),
        pytest.param({"files": [("scan", BALL), ("scan", BALL)]}, 422, "several_volumes", id="two scans"),
        pytest.param({"content": BALL, "headers": {"x-timeout-ms": "0.001"}}, 504, "deadline_exceeded", id="too late"),
    ],
)
async def test_a_scan_that_cannot_be_answered_is_refused_with_a_code(
    client: httpx.AsyncClient, how: dict[str, Any], status: int, code: str
) -> None:
    answer = await client.post("/predict", **{**how, "params": {"model": "tumors", **how.get("params", {})}})

    problem = ProblemShape.model_validate(answer.json())
    assert (answer.status_code, problem.error.code) == (status, code), answer.text


async def test_what_is_no_scan_is_refused_as_a_picture_where_no_model_is_named(client: httpx.AsyncClient) -> None:
    other = await client.post("/predict", files={"picture": png()})
    named = await client.post("/predict?model=lungs", content=BALL)
    text = await client.post("/predict", content=b"hello, this is text")

    assert (other.status_code, other.json()["error"]["code"]) == (400, "missing_image")
    assert other.json()["error"]["message"].startswith("the form has no field image or file")
    assert (named.status_code, named.json()["error"]["code"]) == (415, "unsupported_media")
    assert (text.status_code, text.json()["error"]["code"]) == (415, "unsupported_media")


async def test_a_misspelt_key_is_told_its_neighbour(client: httpx.AsyncClient) -> None:
    error = (await client.post("/predict", json={"scan_paht": "brain.nii"})).json()["error"]

    assert error["message"] == "unknown key 'scan_paht'; did you mean 'scan_path'?"


async def test_a_file_comes_with_the_codes_of_its_warnings(client: httpx.AsyncClient) -> None:
    beside = _zipped({**_series(), "notes.txt": b"taken twice"})

    told = {
        form: (await client.post("/predict", content=beside, params={"format": form})).headers.get("x-warnings")
        for form in ("json", "nifti", "dicom-seg", "json,montage")
    }
    nothing = await client.post("/predict", content=BALL, params={"format": "nifti"})

    assert told == {"json": None} | dict.fromkeys(("nifti", "dicom-seg", "json,montage"), "files_left_aside")
    assert (nothing.status_code, nothing.headers.get("x-warnings")) == (200, None)


async def test_the_schema_knows_every_way_a_scan_is_sent_and_answered(client: httpx.AsyncClient) -> None:
    predict = (await client.get("/openapi.json")).json()["paths"]["/predict"]["post"]
    written = {
        (await client.post("/predict", files={"scan": BALL}, params={"format": form})).headers["content-type"]
        for form in ("json", "nifti", "montage", "probabilities", "json,nifti")
    }

    assert set(predict["responses"]["200"]["content"]) == {*written, "application/dicom"}
    assert "500" in predict["responses"]  # faults of a model, files that are not what was found
    form = predict["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(form) == set(SCAN_FIELDS)


async def test_nothing_found_is_an_answer(client: httpx.AsyncClient) -> None:
    quiet = ball(radius=0.4)  # one voxel: too small to count
    answer = await client.post("/predict?format=json,nifti", content=nifti(quiet))

    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        found = ScanShape.model_validate_json(archive.read("answer.json"))
    assert (found.prediction, found.present, found.lesions, found.volume_ml) == ("absent", False, [], 0)
    assert found.removed is not None
    assert (found.removed.count, found.mask.voxels[1]) == (1, 0)
    assert not _mask(found).any()


async def test_scans_at_once_get_the_answers_of_lone_ones(client: httpx.AsyncClient) -> None:
    given = [nifti(blobs(seed)) for seed in range(6)]

    answers = await asyncio.gather(*(client.post("/predict", content=each) for each in given))
    pictures = await asyncio.gather(*(client.post("/predict", content=png()) for _ in range(4)))

    assert [each.status_code for each in pictures] == [200] * 4
    for each, answer in zip(given, answers, strict=True):
        alone = (await client.post("/predict", content=each)).json()
        assert answer.json()["mask"] == alone["mask"]
        assert answer.json()["lesions"] == alone["lesions"]


async def test_a_body_that_never_ends_is_given_up_at_the_deadline(client: httpx.AsyncClient) -> None:
    never = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield BALL[:100]
        await never.wait()

    answer = await client.post("/predict?model=tumors", content=trickle(), headers={"x-timeout-ms": "5000"})

    assert (answer.status_code, answer.json()["error"]["details"]["where"]) == (504, "receive")


async def test_metrics_count_it_and_hold_nothing_of_the_caller(client: httpx.AsyncClient) -> None:
    await client.post("/predict", files={"scan": ("Doe^John.nii", BALL)})
    await client.post("/predict", json={"scan_path": "Doe^John.nii"})
    text = (await client.get("/metrics")).text

    assert 'isocenter_requests_total{code="ok",model="tumors",use_case="scan",version="1"}' in text
    assert 'isocenter_requests_total{code="path_not_allowed",model="tumors",use_case="scan",version="1"}' in text
    assert "Doe" not in text


async def test_hostile_paths_over_http_are_403_or_422_and_nothing_is_read(
    client: httpx.AsyncClient, scans: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.nii").write_bytes(BALL)
    for name, target in {"out": tmp_path / "secret.nii", "zero": Path("/dev/zero")}.items():
        (scans / name).symlink_to(target)
    os.mkfifo(scans / "pipe")
    with (scans / "sparse.nii").open("wb") as file:
        file.truncate(1 << 42)
    paths = ["out", "zero", "pipe", "sparse.nii", "..", "", "/", str(tmp_path / "secret.nii"), "x" * 9_000, "."]

    answers = {path[:20]: await client.post("/predict", json={"scan_path": path}) for path in paths}

    for name in ("out", "zero", "pipe", "sparse.nii"):
        (scans / name).unlink()
    assert {path: each.status_code for path, each in answers.items() if each.status_code not in (403, 422)} == {}
    assert answers["sparse.nii"].json()["error"]["code"] == "scan_too_large"


async def test_without_roots_no_path_is_read(tmp_path: Path, scans: Path) -> None:
    write_segmenter(tmp_path)
    async with open_service(load_settings(models=tmp_path)) as here:
        transport = httpx.ASGITransport(here.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            refused = await client.post("/predict", json={"scan_path": str(scans / "brain.nii")})
            sent = await client.post("/predict", content=BALL)

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "path_not_allowed")
    assert "scans.roots" in refused.json()["error"]["message"]
    found = ScanShape.model_validate(sent.json())
    assert (found.prediction, found.lesions) == (None, [])  # the manifest has no rule for what a finding is
    assert found.volume_ml_by_label == {"blob": pytest.approx(VOXELS * VOXEL_ML)}


async def test_inside_a_program_a_scan_and_its_channels(tmp_path: Path, scans: Path) -> None:
    write_segmenter(tmp_path, "tumors", output=_output(findings=FINDINGS))
    told: list[tuple[str, float]] = []
    async with Service(tmp_path) as service:
        found = await service.segment_scan(
            scans / "series", formats=("nifti", "montage"), progress=lambda *each: told.append(each)
        )
        named = await service.segment_scan({"t1": BALL})
        with pytest.raises(InputNotAccepted):
            await service.segment_scan({"t2": BALL})

    assert found.findings is not None
    assert (found.findings.present, set(found.parts)) == (True, {"nifti", "montage"})
    assert found.rendered().filename == "answer.zip"
    assert [stage for stage, share in told if share in (0.0, 1.0)] == ["read", "windows", "windows", "write", "write"]
    assert [share for _, share in told] == [0.0, 0.0, *[share for stage, share in told if stage == "windows"][1:], 0, 1]
    assert named.as_json()["present"] is True
    assert named.total_s is not None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service inside this program."""
    async with Service(write_segmenter(tmp_path_factory.mktemp("own"), "tumors").path.parent.parent) as service:
        yield service


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        pytest.param({"formats": ["bogus"]}, "bad_value", id="a format that is not written"),
        pytest.param({"formats": [1]}, "bad_value", id="a format that is a number"),
        pytest.param({"formats": ()}, "bad_value", id="no format"),
        pytest.param({"formats": ""}, "bad_value", id="a format without a name"),
        pytest.param({"formats": None}, "bad_value", id="None for formats"),
        pytest.param({"series": "1"}, "bad_value", id="a series that is a text"),
        pytest.param({"series": True}, "bad_value", id="a series that is true"),
        pytest.param({"series": 0}, "bad_value", id="series 0"),
        pytest.param({"volume": "0"}, "bad_value", id="a volume that is a text"),
        pytest.param({"volume": 0.0}, "bad_value", id="a volume that is no whole number"),
        pytest.param({"version": True}, "bad_request", id="a version that is true"),
        pytest.param({"source": None}, "bad_request", id="no source"),
        pytest.param({"source": 7}, "bad_request", id="a source that is a number"),
        pytest.param({"source": ball()}, "bad_request", id="a source that is an array"),
        pytest.param({"source": [BALL]}, "bad_request", id="bytes where a path is meant"),
        pytest.param({"source": ""}, "bad_request", id="an empty path"),
        pytest.param({"source": [""]}, "bad_request", id="an empty path of several"),
        pytest.param({"source": "a\0b"}, "bad_request", id="NUL in a path"),
        pytest.param({"source": {1: BALL}}, "bad_request", id="a channel that is a number"),
        pytest.param({"source": {"t1": None}}, "bad_request", id="a channel that is nothing"),
    ],
)
async def test_what_a_program_asks_wrongly_is_refused_with_a_code_and_counted(
    own: Service, asked: dict[str, Any], code: str
) -> None:
    before = (await own.stats("tumors")).failures.get(code, 0)
    with pytest.raises(BadInput) as refused:
        await own.segment_scan(**{"source": BALL, "model": "tumors", **asked})

    assert refused.value.code == code, refused.value
    assert (await own.stats("tumors")).failures[code] == before + 1


@pytest.mark.parametrize(
    ("formats", "parts"),
    [
        pytest.param("json", {"nifti"}, id="a text"),
        pytest.param("nifti, montage", {"nifti", "montage"}, id="a text with a comma"),
        pytest.param(["montage", "montage"], {"montage"}, id="one twice"),
    ],
)
async def test_a_program_may_name_formats_as_http_does(own: Service, formats: Any, parts: set[str]) -> None:
    found = await own.segment_scan(BALL, formats=formats)

    assert set(found.parts) == parts
    assert len(found.formats) == len({*found.formats})
