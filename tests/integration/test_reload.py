"""A new version takes over while callers go on: nobody is lost, and nobody gets an answer of what was not live."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

from conftest import MODELS
from fault_table import Fault
from isocenter.core.clock import SystemClock
from isocenter.core.errors import IsocenterError, ReloadRefused, UnknownModel
from isocenter.core.events import RecordingObserver, Reloaded
from isocenter.engine.lifecycle import State
from isocenter.imaging.limits import ImageLimits
from isocenter.repository.layout import scan
from isocenter.repository.load import load
from isocenter.repository.reload import Reloader
from isocenter.repository.repository import Repository
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.predict import Predict, Prediction
from patience import PATIENCE_S

NAME = "brain-mri-classifier"
IMAGE = sorted((MODELS / NAME / "1" / "golden").glob("*.png"))[0].read_bytes()


def write_version(models: Path, version: int, *, title: str = "", **changes: object) -> Path:
    """A version of the shipped model that says of itself what a test wants."""
    folder = models / NAME / str(version)
    if not folder.exists():
        shutil.copytree(MODELS / NAME / "1", folder)
    manifest = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
    manifest.update(version=version, title=title, **changes)
    manifest["batching"] = {"max_batch_size": 2}  # few sizes to warm
    (folder / "model.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    return folder


class House:
    """A repository, who reloads it, and callers."""

    def __init__(self, models: Path, repository: Repository, pool: CpuPool) -> None:
        clock = SystemClock()
        self.models = models
        self.repository = repository
        self.observer = RecordingObserver()
        self.swaps = 0
        self.reloader = Reloader(
            repository,
            models,
            load=partial(load, clock=clock, observer=self.observer, measure_memory=False),
            observer=self.observer,
            drain_bound_s=PATIENCE_S,
            on_change=self._count,
        )
        self.predict = Predict(repository, pool, limits=ImageLimits(), clock=clock, observer=self.observer)

    def _count(self) -> None:
        self.swaps += 1

    async def ask(self) -> Prediction:
        return await self.predict(IMAGE, request_id="r")

    def what(self) -> list[str]:
        return [event.what for event in self.observer.events if isinstance(event, Reloaded)]


@asynccontextmanager
async def house(models: Path) -> AsyncIterator[House]:
    clock, repository = SystemClock(), Repository()
    for folder in scan(models):
        repository.add(await load(folder, clock=clock, observer=RecordingObserver(), measure_memory=False))
    try:
        async with CpuPool(threads=1, max_waiting=64, clock=clock) as pool:
            yield House(models, repository, pool)
    finally:
        await asyncio.gather(*(model.retire(5.0) for model in repository))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_version(tmp_path / "models", 1, title="first")
    return tmp_path / "models"


@pytest.mark.may_block
async def test_nothing_changed_nothing_done(models: Path) -> None:
    async with house(models) as h:
        before = h.repository.resolve(NAME)
        report = await h.reloader.reload(NAME)
        assert report.as_json() == {"model": NAME, "versions": [{"version": 1, "what": "unchanged"}]}
        assert h.repository.resolve(NAME) is before
        assert (h.swaps, h.what()) == (0, [])


@pytest.mark.may_block
async def test_a_changed_manifest_is_taken_over_and_the_old_engine_stops(models: Path) -> None:
    async with house(models) as h:
        before = h.repository.resolve(NAME)
        write_version(models, 1, title="second")
        report = await h.reloader.reload(NAME)
        assert [change.what for change in report.versions] == ["replaced"]
        assert h.repository.resolve(NAME).manifest.title == "second"
        assert before.engine.state is State.STOPPED
        assert (await h.ask()).label


@pytest.mark.may_block
async def test_a_new_version_answers_from_now_on_and_one_whose_folder_went_no_more(models: Path) -> None:
    async with house(models) as h:
        write_version(models, 2)
        report = await h.reloader.reload(NAME)
        assert [(c.version, c.what) for c in report.versions] == [(1, "unchanged"), (2, "added")]
        assert (await h.ask()).version == 2
        shutil.rmtree(models / NAME / "1")
        (report,) = await h.reloader.reload_all()
        assert [(c.version, c.what) for c in report.versions] == [(2, "unchanged"), (1, "removed")]
        assert h.what() == ["added", "removed"]


@pytest.mark.may_block
@pytest.mark.parametrize("broken", ["weights", "manifest", "golden"])
async def test_a_version_that_is_not_what_it_claims_leaves_the_old_one_answering(models: Path, broken: str) -> None:
    async with house(models) as h:
        folder = models / NAME / "1"
        if broken == "weights":
            weights = next(folder.glob("*.onnx"))
            weights.write_bytes(weights.read_bytes() + b"x")
        elif broken == "manifest":
            (folder / "model.yaml").write_text("schema: 1\nname: [", encoding="utf-8")
        else:
            write_version(models, 1, title="changed")
            for case in (folder / "golden").glob("*.json"):
                case.write_text('{"logits": [9.0, 9.0, 9.0, 9.0]}', encoding="utf-8")
        before = h.repository.resolve(NAME)
        with pytest.raises(ReloadRefused) as refused:
            await h.reloader.reload(NAME)
        assert "report" in refused.value.details
        assert h.repository.resolve(NAME) is before
        assert (await h.ask()).label


@pytest.mark.may_block
async def test_an_emptied_folder_is_taken_for_a_mishap(models: Path) -> None:
    async with house(models) as h:
        shutil.rmtree(models / NAME)
        with pytest.raises(ReloadRefused, match="no version"):
            await h.reloader.reload(NAME)
        assert (await h.ask()).version == 1
        with pytest.raises(UnknownModel):
            await h.reloader.reload("nobody")


async def reload_under_load(models: Path, times: int) -> dict[str, int]:
    """What became of those who asked meanwhile."""
    async with house(models) as h:
        expected = (await h.ask()).probabilities
        answered: Counter[int] = Counter()
        lost: list[IsocenterError] = []
        asked = 0
        done = False

        async def caller() -> None:
            nonlocal asked
            while not done:
                asked += 1
                try:
                    found = await h.ask()
                except IsocenterError as error:
                    lost.append(error)
                    continue
                answered[found.version] += 1
                assert found.probabilities == pytest.approx(expected, abs=1e-5)

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        for n in range(times):
            if n % 3 == 2:
                write_version(models, 2)
                await h.reloader.reload(NAME)
                shutil.rmtree(models / NAME / "2")
            else:
                write_version(models, 1, title=f"number {n}")
            await h.reloader.reload(NAME)
        while answered.total() <= 10 * times:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        done = True
        await asyncio.gather(*callers)
        assert lost == []
        assert set(answered) <= {1, 2}
        assert h.swaps >= times
    return {"asked": asked, "answered": answered.total(), "told": len(lost)}


@pytest.mark.may_block
async def test_reloads_under_load_lose_nobody(models: Path) -> None:
    await reload_under_load(models, 6)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.may_block
async def test_fifty_reloads_under_load_lose_nobody(models: Path, fault: Fault) -> None:
    fault("50 reloads under load", **await reload_under_load(models, 50))
