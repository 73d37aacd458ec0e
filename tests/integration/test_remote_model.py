"""A model on another server that goes away and comes back: with a fallback nobody notices, without one all are told."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from isocenter.api.http.problems import HTTP_STATUS
from isocenter.app import Composition, open_service
from isocenter.core.errors import IsocenterError, NotReady, RuntimeLost, SetupError
from isocenter.serving.predict import Prediction
from isocenter.settings import Settings, load_settings
from model_folders import png, runtime_part, write_model
from patience import PATIENCE_S
from v2_server import Behaviour, HttpV2

pytestmark = pytest.mark.may_block

IMAGE = png()


def remote_model(models: Path, port: int, *, fallback: bool) -> Settings:
    part: dict[str, Any] = {
        "kind": "triton",
        "url": f"http://127.0.0.1:{port}",
        "options": {"model": "lungs", "shared_memory": False},
    }
    spare = runtime_part(b"spare", file="spare.bin") if fallback else None
    folder = write_model(models, runtime=part, fallback=spare).path
    (folder / "spare.bin").write_bytes(b"spare")
    return load_settings(models=models)


async def asked(service: Composition) -> Prediction | IsocenterError:
    try:
        return await service.predict(IMAGE, request_id="r")
    except IsocenterError as error:
        return error


async def until_answered_by(service: Composition, *, fallback: bool) -> None:
    gives_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < gives_up_s:
        found = await asked(service)
        if isinstance(found, Prediction) and bool(found.fallback) is fallback:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"nothing of the kind in {PATIENCE_S} s")


async def load_while_it_stops(service: Composition, server: HttpV2) -> list[Any]:
    """Callers who ask one after the other; the server is stopped when it has answered some of them."""
    found: list[Any] = []
    stopped = asyncio.Event()

    async def caller() -> None:
        left = 10
        while left:
            left -= stopped.is_set()
            found.append(await asked(service))
            await asyncio.sleep(0)  # a refusal may come without a pause, and others want to go on

    callers = [asyncio.create_task(caller()) for _ in range(8)]
    while len(found) < 20:  # noqa: ASYNC110 - the callers count
        await asyncio.sleep(0)
    await asyncio.to_thread(server.stop)
    stopped.set()
    await asyncio.gather(*callers)
    return found


async def test_a_server_that_stops_under_load_costs_no_answer_and_answers_again_when_it_is_back(tmp_path: Path) -> None:
    behaviour = Behaviour()
    server = HttpV2(behaviour)
    async with open_service(remote_model(tmp_path, server.port, fallback=True)) as service:
        found = await load_while_it_stops(service, server)
        assert [each for each in found if not isinstance(each, Prediction)] == []
        assert {each.fallback for each in found} == {"", "synthetic fp32 on cpu"}
        assert len({tuple(each.probabilities.items()) for each in found}) == 1
        assert service.health.ready()
        server = HttpV2(behaviour, server.port)
        await until_answered_by(service, fallback=False)
    server.stop()


async def test_without_a_fallback_every_caller_is_told_503_at_once(tmp_path: Path) -> None:
    behaviour = Behaviour()
    server = HttpV2(behaviour)
    async with open_service(remote_model(tmp_path, server.port, fallback=False)) as service:
        found = await load_while_it_stops(service, server)
        told = [each for each in found if not isinstance(each, Prediction)]
        assert {type(each) for each in told} <= {RuntimeLost, NotReady}
        assert {HTTP_STATUS[each.code] for each in told} == {503}
        assert all(each.retry_after_s for each in told)
        assert not service.health.ready()
        server = HttpV2(behaviour, server.port)
        await until_answered_by(service, fallback=False)
        assert service.health.ready()
    server.stop()


async def test_with_its_server_down_a_model_starts_on_its_fallback_and_changes_over_when_it_is_up(
    tmp_path: Path,
) -> None:
    server = HttpV2(Behaviour())
    server.stop()
    async with open_service(remote_model(tmp_path, server.port, fallback=True)) as service:
        assert service.health.ready()
        found = await asked(service)
        assert isinstance(found, Prediction)
        assert found.fallback == "synthetic fp32 on cpu"
        assert [note.code for note in found.warnings] == ["fallback"]
        server = HttpV2(Behaviour(), server.port)
        await until_answered_by(service, fallback=False)
    server.stop()


async def test_a_server_that_answers_otherwise_than_the_model_does_not_take_over(tmp_path: Path) -> None:
    server = HttpV2(Behaviour())
    server.stop()
    other = Behaviour(rows_short=0)
    other.scores = lambda x: 3 * Behaviour.scores(other, x)  # type: ignore[method-assign]
    async with open_service(remote_model(tmp_path, server.port, fallback=True)) as service:
        server = HttpV2(other, server.port)
        while not other.batches:  # noqa: ASYNC110 - counted on another thread
            await asyncio.sleep(0.01)
        for _ in range(20):
            found = await asked(service)
            assert isinstance(found, Prediction)
            assert found.fallback
    server.stop()


async def test_with_its_server_down_and_no_fallback_nothing_is_served(tmp_path: Path) -> None:
    server = HttpV2(Behaviour())
    server.stop()
    with pytest.raises(SetupError, match="cannot be reached"):
        async with open_service(remote_model(tmp_path, server.port, fallback=False)):
            pass
