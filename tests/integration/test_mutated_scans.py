"""Broken scans: 200 or a typed 4xx, never anything else, and memory stays as it is."""

import gc
import io
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio

import dicom_files
from isocenter.app import open_service
from isocenter.settings import load_settings
from mutations import mutate
from patience import PATIENCE_S
from scan_files import ball, nifti
from segmenters import write_segmenter

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]

COUNT = 2000
GROWTH_BOUND_MB = 30


def originals() -> dict[str, bytes]:
    series = dicom_files.files(dicom_files.slices())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in series.items():
            archive.writestr(name, data)
    head = b"ObjectType = Image\nNDims = 3\nDimSize = 8 9 7\nElementType = MET_FLOAT\nElementSpacing = 1 1 2.5\n"
    head += b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -10 5 30\nElementDataFile = LOCAL\n"
    voxels = np.random.default_rng(1).standard_normal((7, 9, 8)).astype("<f4")
    return {
        "nii": nifti(ball()),
        "nii.gz": nifti(ball(), packed=True),
        "mha": head + voxels.tobytes(),
        "dcm.zip": packed.getvalue(),
        "enhanced.dcm": dicom_files.coded(dicom_files.enhanced(dicom_files.voxels())),
    }


def mutated(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    whole = list(originals().items())
    for number in range(count):
        name, data = whole[int(rng.integers(len(whole)))]
        for _ in range(int(rng.integers(1, 4))):
            data = mutate(rng, data)
        yield f"{number}-{name}", data


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    models = tmp_path_factory.mktemp("models")
    output = {"tensor": "scores", "activation": "softmax", "labels": ["background", "blob"]}
    write_segmenter(models, onnx=True, sliding=None, output={**output, "findings": {"labels": ["blob"]}})
    async with open_service(load_settings(models=models, scans={"max_voxels": 2_000_000})) as here:
        transport = httpx.ASGITransport(here.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE_S) as client:
            yield client


async def send(client: httpx.AsyncClient, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    outcomes: Counter[str] = Counter()
    broken = []
    for name, data in mutated(count, seed):
        how = {"files": {"scan": ("x", data)}} if len(data) % 2 else {"content": data}
        answer = await client.post("/predict", **how)
        if answer.status_code == 200:
            outcomes["200"] += 1
        elif 400 <= answer.status_code < 500 and {"code", "message", "details"} == set(answer.json()["error"]):
            outcomes[f"{answer.status_code} {answer.json()['error']['code']}"] += 1
        else:
            broken.append(f"{name}: {answer.status_code} {answer.text[:200]}")
    return outcomes, broken


def memory_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


async def test_broken_scans_are_answered_with_a_code_and_leave_nothing_behind(client: httpx.AsyncClient) -> None:
    # Once through a few of every kind, so that what libraries allocate only once is not called growth.
    await send(client, 60, seed=1)
    before_mb = memory_mb()

    outcomes, broken = await send(client, COUNT, seed=2)

    assert broken == []
    assert sum(outcomes.values()) == COUNT
    assert len(outcomes) > 5, outcomes
    assert outcomes["200"] < COUNT / 2, outcomes
    assert memory_mb() - before_mb < GROWTH_BOUND_MB, outcomes
    assert (await client.post("/predict", content=nifti(ball()))).json()["present"] is True
