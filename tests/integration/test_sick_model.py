"""A model breaks while it is served: its fallback answers, says so, and steps back when the model is well again."""

import asyncio
import time
from pathlib import Path

import pytest

from isocenter.app import Composition, open_service
from isocenter.core.errors import DeadlineExceeded, IsocenterError, NotReady, Overloaded, RuntimeFault
from isocenter.serving.predict import Prediction
from isocenter.settings import load_settings
from model_folders import png, runtime_part, write_model
from patience import PATIENCE_S

pytestmark = pytest.mark.may_block

# What callers may be told until a broken instance has been seen through.
HONEST = (RuntimeFault, NotReady, Overloaded, DeadlineExceeded)
IMAGE = png()


async def asked(service: Composition) -> Prediction | IsocenterError:
    try:
        return await service.predict(IMAGE, request_id="r")
    except IsocenterError as error:
        await asyncio.sleep(0)  # a refusal takes no turn of the loop, and others need one
        return error


async def until(service: Composition, *, fallback: bool) -> list[IsocenterError]:
    """Ask until an answer comes from the one or the other; what went wrong before."""
    gives_up_s = time.monotonic() + PATIENCE_S
    wrong: list[IsocenterError] = []
    while time.monotonic() < gives_up_s:
        found = await asked(service)
        if isinstance(found, IsocenterError):
            wrong.append(found)
            await asyncio.sleep(0.01)
        elif bool(found.fallback) is fallback:
            return wrong
    raise AssertionError(f"nothing of the kind in {PATIENCE_S} s; errors: {[error.code for error in wrong[-5:]]}")


def sick_model(models: Path, *, fallback: bool) -> Path:
    """A model that is sick while the file that is returned is there."""
    part = runtime_part(b"spare", file="spare.bin") if fallback else None
    # Who is in the queue when the last instance is lost waits for the next one: the fallback, or his deadline.
    slo = {"timeout_ms": 1e3 * PATIENCE_S if fallback else 500.0}
    folder = write_model(models, runtime=runtime_part(fails_while="sick"), fallback=part, slo=slo).path
    (folder / "spare.bin").write_bytes(b"spare")
    return folder / "sick"


async def test_while_no_instance_works_the_fallback_answers_and_says_so(tmp_path: Path) -> None:
    sick = sick_model(tmp_path, fallback=True)
    async with open_service(load_settings(models=tmp_path)) as service:
        well = await asked(service)
        assert isinstance(well, Prediction)
        sick.touch()
        wrong = await until(service, fallback=True)
        assert [error for error in wrong if not isinstance(error, HONEST)] == []
        assert service.health.ready()
        found = await asked(service)
        assert isinstance(found, Prediction)
        assert found.fallback == "synthetic fp32 on cpu"
        assert [note.code for note in found.warnings] == ["fallback"]
        assert found.probabilities == well.probabilities
        sick.unlink()
        assert await until(service, fallback=False) == []


async def test_without_a_fallback_the_model_is_not_ready_until_it_is_well(tmp_path: Path) -> None:
    sick = sick_model(tmp_path, fallback=False)
    async with open_service(load_settings(models=tmp_path)) as service:
        sick.touch()
        while service.health.ready():
            await asked(service)
        found = await asked(service)
        assert isinstance(found, NotReady)
        assert found.retry_after_s
        sick.unlink()
        wrong = await until(service, fallback=False)
        assert [error for error in wrong if not isinstance(error, HONEST)] == []
        assert service.health.ready()


async def test_a_broken_instance_is_not_rebuilt_from_weights_that_were_not_taken_over(tmp_path: Path) -> None:
    sick = sick_model(tmp_path, fallback=True)
    async with open_service(load_settings(models=tmp_path)) as service:
        sick.touch()
        await until(service, fallback=True)
        (sick.parent / "model.bin").write_bytes(b"other weights")
        sick.unlink()
        for _ in range(50):  # several attempts to open it again
            found = await asked(service)
            assert isinstance(found, Prediction)
            assert found.fallback
            await asyncio.sleep(0.01)
        (sick.parent / "model.bin").write_bytes(b"weights")
        await until(service, fallback=False)
