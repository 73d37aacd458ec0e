"""Against a real tritonserver: the exported repository loads, answers as the local runtime does, and may be killed."""

import asyncio
import importlib.util
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from conftest import MODELS
from isocenter.api.http.problems import HTTP_STATUS
from isocenter.app import Composition, open_service
from isocenter.core.errors import IsocenterError, NotReady, RuntimeLost
from isocenter.core.tensor import FloatArray
from isocenter.importers.triton_repository import write_triton_repository
from isocenter.repository.integrity import sha256_of
from isocenter.repository.layout import ModelFolder, find
from isocenter.repository.manifest import read_manifest
from isocenter.repository.sessions import open_one
from isocenter.runtimes.base import SessionOptions
from isocenter.runtimes.registry import open_runtime
from isocenter.runtimes.triton import TritonSession
from isocenter.serving.predict import Prediction
from isocenter.settings import load_settings
from patience import PATIENCE_S
from tritonserver import HOME, TritonServer, tritonserver

pytestmark = [
    pytest.mark.real,
    pytest.mark.may_block,
    pytest.mark.skipif(
        not (HOME / "bin" / "python").exists(),
        reason=f"no tritonserver in {HOME.name}: tests/real/install_tritonserver.sh, or TRITONSERVER_HOME",
    ),
]

DEMO = "brain-mri-classifier"
HAS_TORCH = importlib.util.find_spec("torch") is not None
WAYS = [("http", False), ("http", True), ("grpc", False), ("grpc", True)]


def resnet50(folder: Path) -> ModelFolder:
    """The network of that name with random weights, as a version that the exporter takes."""
    from isocenter.networks.export import to_onnx
    from isocenter.networks.registry import NETWORKS

    entry = NETWORKS["resnet50"]
    version = folder / "resnet50" / "1"
    version.mkdir(parents=True)
    file = to_onnx(entry.build(4), version, item_shape=entry.input_shape)
    data = yaml.safe_load((MODELS / DEMO / "1" / "model.yaml").read_text())
    data["name"] = "resnet50"
    data["runtime"] |= {"file": file.name, "sha256": sha256_of(file)}
    (version / "model.yaml").write_text(yaml.safe_dump(data))
    return ModelFolder(version, read_manifest(version / "model.yaml"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFolder]:
    """Every model that is exported."""
    found = {DEMO: find(MODELS, DEMO)}
    if HAS_TORCH:
        found["resnet50"] = resnet50(tmp_path_factory.mktemp("models"))
    return found


@pytest.fixture(scope="module")
def server(folders: dict[str, ModelFolder], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with all of them."""
    out = tmp_path_factory.mktemp("repository")
    for folder in folders.values():
        write_triton_repository(folder, out, backend="python", max_queue_delay_us=0)
    with tritonserver(out) as running:
        yield running


def opened(server: TritonServer, scheme: str, model: str, **options: Any) -> TritonSession:
    given = SessionOptions(url=server.url(scheme), options={"model": model, **options})
    session = open_runtime("triton").open(Path(), given)
    assert isinstance(session, TritonSession)
    return session


def noise(items: int) -> FloatArray:
    return np.random.default_rng(items).standard_normal((items, 3, 224, 224), dtype=np.float32)


@pytest.mark.parametrize(("scheme", "shared"), WAYS)
@pytest.mark.parametrize(
    "model", [DEMO, pytest.param("resnet50", marks=pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed"))]
)
def test_answers_equal_the_local_runtime_s(
    model: str, scheme: str, shared: bool, server: TritonServer, folders: dict[str, ModelFolder]
) -> None:
    local = open_one(folders[model])
    remote = opened(server, scheme, model, shared_memory=shared)
    assert remote.shares_memory is shared
    assert (remote.inputs, remote.outputs) == (local.inputs, local.outputs)
    for items in (1, 7, 16):
        batch = {"image": noise(items)}
        here, there = local.run(batch)["logits"], remote.run(batch)["logits"]
        assert float(np.abs(here - there).max()) <= 1e-5
    remote.close()


def test_several_instances_share_one_server(server: TritonServer, folders: dict[str, ModelFolder]) -> None:
    sessions = [opened(server, scheme, DEMO, shared_memory=True) for scheme in ("http", "grpc", "http")]
    answers = [session.run({"image": noise(2)})["logits"].copy() for session in sessions]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    for session in sessions:
        session.close()
    status = httpx.get(f"{server.url('http')}/v2/systemsharedmemory/status").json()
    assert status == []


def test_a_stock_server_reads_the_native_configuration_too(
    folders: dict[str, ModelFolder], tmp_path: Path, server: TritonServer
) -> None:
    """This build has no ONNX Runtime backend, which it says; it would not get there with a text it cannot read."""
    write_triton_repository(folders[DEMO], tmp_path)
    name = f"{DEMO}-native"
    (tmp_path / DEMO).rename(tmp_path / name)
    config = tmp_path / name / "config.pbtxt"
    config.write_text(config.read_text().replace(f'name: "{DEMO}"', f'name: "{name}"'))
    shutil.copytree(tmp_path / name, server.repository / name)
    try:
        told = httpx.post(f"{server.url('http')}/v2/repository/models/{name}/load", timeout=PATIENCE_S)
        listed = httpx.post(f"{server.url('http')}/v2/repository/index").json()
    finally:
        shutil.rmtree(server.repository / name)
    reason = told.text + json.dumps([each for each in listed if each["name"] == name])
    assert "unable to find backend library for backend 'onnxruntime'" in reason
    assert "parse" not in reason.lower()


def remote_models(models: Path, server: TritonServer, scheme: str, *, fallback: bool) -> Path:
    """The demonstration model, served by that server."""
    version = models / DEMO / "1"
    shutil.copytree(MODELS / DEMO / "1", version)
    data = yaml.safe_load((version / "model.yaml").read_text())
    if fallback:
        data["fallback"] = data["runtime"]
    data["runtime"] = {"kind": "triton", "url": server.url(scheme), "options": {"model": DEMO}}
    (version / "model.yaml").write_text(yaml.safe_dump(data))
    return models


async def loaded(service: Composition, server: TritonServer, how: signal.Signals) -> list[Prediction | IsocenterError]:
    """Callers who ask one after the other; the server is stopped in the middle, and they go on for a while."""
    image = (MODELS / DEMO / "1" / "golden" / "case-1.png").read_bytes()
    found: list[Prediction | IsocenterError] = []

    stopped = asyncio.Event()

    async def caller() -> None:
        left = 10
        while left:
            left -= stopped.is_set()
            try:
                found.append(await service.predict(image, request_id="r"))
            except IsocenterError as error:
                found.append(error)
                await asyncio.sleep(0.01)

    callers = [asyncio.create_task(caller()) for _ in range(16)]
    while len(found) < 100:  # noqa: ASYNC110 - the callers count
        await asyncio.sleep(0.001)
    await asyncio.to_thread(server.stop, how)
    stopped.set()
    await asyncio.gather(*callers)
    return found


@pytest.fixture
def own_server(folders: dict[str, ModelFolder], tmp_path: Path) -> Iterator[TritonServer]:
    """A server that a test may kill."""
    out = tmp_path / "repository"
    write_triton_repository(folders[DEMO], out, backend="python", max_queue_delay_us=0)
    with tritonserver(out) as running:
        yield running


@pytest.mark.parametrize(
    ("scheme", "how"),
    [("http", signal.SIGKILL), ("grpc", signal.SIGKILL), ("http", signal.SIGTERM), ("grpc", signal.SIGTERM)],
)
async def test_stopping_it_under_load_costs_no_answer_where_a_fallback_is_declared(
    scheme: str, how: signal.Signals, own_server: TritonServer, tmp_path: Path
) -> None:
    models = remote_models(tmp_path / "models", own_server, scheme, fallback=True)
    async with open_service(load_settings(models=models)) as service:
        found = await loaded(service, own_server, how)
        told = [each for each in found if isinstance(each, IsocenterError)]
        answers = [each for each in found if isinstance(each, Prediction)]
        assert [(error.code, error.message) for error in told] == []
        assert {each.fallback for each in answers} == {"", "onnxruntime fp32 on cpu"}
        spread = np.ptp([list(each.probabilities.values()) for each in answers], axis=0)
        assert float(spread.max()) <= 1e-5
        await asyncio.to_thread(own_server.start)
        image = (MODELS / DEMO / "1" / "golden" / "case-1.png").read_bytes()
        while (await service.predict(image, request_id="r")).fallback:  # noqa: ASYNC110 - it changes over by itself
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_stopping_it_without_a_fallback_is_told_503(
    scheme: str, own_server: TritonServer, tmp_path: Path
) -> None:
    models = remote_models(tmp_path / "models", own_server, scheme, fallback=False)
    async with open_service(load_settings(models=models)) as service:
        found = await loaded(service, own_server, signal.SIGKILL)
        told = [each for each in found if isinstance(each, IsocenterError)]
        assert told
        assert {type(error) for error in told} <= {RuntimeLost, NotReady}
        assert {HTTP_STATUS[error.code] for error in told} == {503}
        assert not service.health.ready()
