"""Jobs of the whole server: the answer is the one that comes at once, and outlives the process that began it."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from isocenter.app import Composition, open_service
from isocenter.settings import load_settings
from scan_files import ball, nifti
from segmenters import write_segmenter

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]


HEAD = nifti(ball(), packed=True)
"""A scan with one bright ball."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("models", "scans", "jobs")
    folders = {name: tmp_path_factory.mktemp(name) for name in names}
    write_segmenter(folders["models"])
    (folders["scans"] / "head.nii.gz").write_bytes(HEAD)
    return folders


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(folders: dict[str, Path]) -> AsyncIterator[Composition]:
    settings = load_settings(
        models=folders["models"], jobs={"folder": folders["jobs"]}, scans={"roots": (folders["scans"],)}
    )
    async with open_service(settings) as service:
        yield service


@pytest.mark.parametrize("how", [{"json": {"scan_path": "head.nii.gz"}}, {"content": HEAD}], ids=["path", "upload"])
async def test_the_answer_of_a_job_is_that_of_the_route_that_answers_at_once(
    client: httpx.AsyncClient, how: dict[str, Any]
) -> None:
    put = await client.post("/v1/jobs", **how)
    assert put.status_code == 202, put.text
    where = put.headers["location"]
    stream = await client.get(f"{where}/events")  # ends with the job
    found = {form: await client.get(f"{where}/result?format={form}") for form in ("json", "nifti", "montage")}
    at_once = await client.post("/predict", json={"scan_path": "head.nii.gz"}, params={"format": "nifti"})

    assert json.loads(stream.text.rpartition("data: ")[2])["state"] == "done"
    assert [answer.status_code for answer in (*found.values(), at_once)] == [200] * 4
    assert gzip.decompress(found["nifti"].content) == gzip.decompress(at_once.content)
    assert found["montage"].content.startswith(b"\x89PNG")
    assert (found["json"].json()["model"], found["json"].json()["request_id"]) == ("blobs", put.json()["id"])
    shown = (await client.get(where)).json()
    assert (shown["model"], shown["version"], shown["attempts"]) == ("blobs", 1, 1)
    assert "windows" in shown["timings_ms"]


async def test_a_scan_that_cannot_be_answered_ends_in_the_code_of_the_route_that_answers_at_once(
    client: httpx.AsyncClient,
) -> None:
    broken = HEAD[:200]
    at_once = await client.post("/predict", content=broken, headers={"Content-Type": "application/gzip"})
    where = (await client.post("/v1/jobs", content=broken)).headers["location"]
    await client.get(f"{where}/events")

    job = (await client.get(where)).json()
    assert job["state"] == "failed"
    assert job["error"] == at_once.json()["error"]


async def test_paths_outside_of_the_roots_never_become_a_job(client: httpx.AsyncClient) -> None:
    before = (await client.get("/v1/jobs")).json()["counts"]
    for path in ("/etc/passwd", "../models", "nobody.nii", ""):
        answer = await client.post("/v1/jobs", json={"scan_path": path})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "path_not_allowed")
    assert (await client.get("/v1/jobs")).json()["counts"] == before


async def test_jobs_are_counted(client: httpx.AsyncClient, service: Composition) -> None:
    where = (await client.post("/v1/jobs", content=HEAD)).headers["location"]
    await client.get(f"{where}/events")

    counted = 'isocenter_requests_total{code="ok",model="blobs",use_case="job",version="1"}'
    while counted not in (text := (await client.get("/metrics")).text):  # noqa: ASYNC110
        await asyncio.sleep(0)  # a job has ended before it is counted
    for name in ("isocenter_jobs_queued", "isocenter_jobs_running"):
        assert f"\n{name} " in text
