"""What is served follows the folder; whoever asks meanwhile notices nothing."""

import asyncio
import logging
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isocenter.core.clock import ManualClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import Draining, GoldenMismatch, ReloadRefused, UnknownModel
from isocenter.core.events import RecordingObserver, Reloaded, StateChanged
from isocenter.core.request import Request
from isocenter.core.tensor import Tensors
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.engine import InlineEngine
from isocenter.engine.lifecycle import State
from isocenter.engine.memory import Footprint
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.repository.layout import ModelFolder, scan
from isocenter.repository.load import ServedModel
from isocenter.repository.reload import Reloader
from isocenter.repository.repository import Repository
from isocenter.runtimes.synthetic import OUTPUT, SyntheticSession, checksum, item
from isocenter.serving.reloading import LocalReload, Reloading
from model_folders import runtime_part, write_model

NEVER = Deadline.never()
BOUND_S = 20.0
FOOTPRINT = Footprint(1000, {1: 10})
# Checksums are below this, so an answer tells from which load it is.
_APART = 2**33


class Numbered(SyntheticSession):
    """Answers with the checksum of an item and the number of the load that it came with."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def run(self, batch: Tensors) -> Tensors:
        return {OUTPUT: super().run(batch)[OUTPUT] + self._number * _APART}


class House:
    """A repository, who reloads it, and a loader in the hands of a test."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.clock = ManualClock(100.0)
        self.observer = RecordingObserver()
        self.repository = Repository()
        self.made: list[ServedModel] = []
        self.failure: Exception | None = None
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.loading = 0
        self.most_loading = 0
        self.swaps = 0
        self.reloader = Reloader(
            self.repository,
            models,
            load=self.load,
            observer=self.observer,
            drain_bound_s=BOUND_S,
            on_change=self._count,
        )

    def _count(self) -> None:
        self.swaps += 1

    async def load(self, folder: ModelFolder) -> ServedModel:
        """Open an engine, without proofs; fail after warming, as a real one may."""
        self.loading += 1
        self.most_loading = max(self.most_loading, self.loading)
        engine = InlineEngine(
            model=folder.manifest.name,
            version=folder.manifest.version,
            sessions=[Numbered(len(self.made))],
            rules=BatchRules(max_batch_size=4, max_queue_delay_s=0.0),
            max_queue_size=100,
            clock=self.clock,
            observer=self.observer,
        )
        await engine.start()
        try:
            await self.may_load.wait()
            if self.failure is not None:
                raise self.failure
        except BaseException:
            await engine.stop()
            raise
        finally:
            self.loading -= 1
        engine.open()
        digest, pipeline = folder.manifest.runtime.sha256 or "", FastPipeline(folder.manifest.transforms)
        made = ServedModel(folder, digest, pipeline, engine, {}, None, engine)
        self.made.append(made)
        return made

    async def write(self, name: str = "lungs", **changes: Any) -> None:
        """On a thread: reading files on the loop is not even allowed to a test, so that it shows who does."""
        await asyncio.to_thread(write_model, self.models, name, **changes)

    async def changed(self) -> None:
        """Other weights, and a manifest that names them."""
        weights = f"weights {len(self.made)}".encode()
        await self.write(weights=weights, runtime=runtime_part(weights))

    def served(self, version: int | None = None) -> ServedModel:
        return self.repository.resolve("lungs", version)

    def number_of(self, served: ServedModel) -> int:
        return next(number for number, made in enumerate(self.made) if made.engine is served.engine)

    async def ask(self, marker: float, *, decoding_turns: int = 0, version: int | None = None) -> tuple[int, int]:
        """As a request does it: resolve and hold a place in one turn, decode, infer. Which load was meant, and came."""
        served = self.served(version)
        place = served.engine.reserve(NEVER)
        try:
            for _ in range(decoding_turns):
                await asyncio.sleep(0)
            result = await served.engine.infer(Request(str(marker), item(marker), NEVER), place)
        finally:
            place.release()
        number, found = divmod(float(result.outputs[OUTPUT]), _APART)
        assert found == checksum(item(marker)["x"])
        return self.number_of(served), int(number)

    async def until(self, fact: Callable[[], bool]) -> None:
        while not fact():  # noqa: ASYNC110 - threads report to this loop
            await asyncio.sleep(0)

    def last_state(self, version: int = 1) -> str:
        events = [event for event in self.observer.events if isinstance(event, StateChanged)]
        return [event.state for event in events if event.version == version][-1]

    def said(self) -> list[tuple[int, str]]:
        return [(event.version, event.what) for event in self.observer.events if isinstance(event, Reloaded)]


@asynccontextmanager
async def house(models: Path, *versions: int) -> AsyncIterator[House]:
    made = House(models)
    for version in versions or (1,):
        await made.write(version=version)
    for folder in await asyncio.to_thread(scan, models):
        made.repository.add(await made.load(folder))
    try:
        yield made
    finally:
        await asyncio.gather(*(each.retire(0.0) for each in made.made))


# Nobody is lost


async def test_fifty_reloads_under_callers_lose_nobody_and_answer_by_the_version_that_was_resolved(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as h:
        chance = random.Random(0)
        answered: Counter[int] = Counter()
        asked = 0
        done = False

        async def caller() -> None:
            nonlocal asked
            while not done:
                asked += 1
                meant, came = await h.ask(asked, decoding_turns=chance.randrange(5))
                assert meant == came
                answered[came] += 1

        callers = [asyncio.create_task(caller()) for _ in range(16)]
        for swap in range(1, 51):
            at = answered.total()
            await h.until(lambda at=at: answered.total() > at)  # type: ignore[misc]
            await h.changed()
            report = await h.reloader.reload("lungs")
            assert [change.what for change in report.versions] == ["replaced"]
            assert h.swaps == swap
        done = True
        await asyncio.gather(*callers)
        assert answered.total() == asked
        assert [made.engine.state for made in h.made] == [State.STOPPED] * 50 + [State.READY]


async def test_who_resolved_the_old_version_before_the_swap_is_answered_by_it(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        old = h.served()
        place = old.engine.reserve(NEVER)  # its picture is being decoded
        await h.changed()
        reloading = asyncio.create_task(h.reloader.reload("lungs"))
        await h.until(lambda: old.engine.state is State.DRAINING)
        assert await h.ask(1.0) == (1, 1)
        assert not reloading.done()
        result = await old.engine.infer(Request("r", item(2.0), NEVER), place)
        assert result.outputs[OUTPUT] == checksum(item(2.0)["x"])
        await reloading
        assert old.engine.state is State.STOPPED


async def test_who_does_not_come_within_the_bound_is_told_and_holds_nobody_up(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        old = h.served()
        place = old.engine.reserve(NEVER)
        await h.changed()
        reloading = asyncio.create_task(h.reloader.reload("lungs"))
        await h.until(lambda: old.engine.state is State.DRAINING)
        await asyncio.sleep(0)
        h.clock.advance(BOUND_S)
        await reloading
        with pytest.raises(Draining):
            await old.engine.infer(Request("r", item(2.0), NEVER), place)


# What changed


async def test_what_is_as_it_was_is_left_alone(tmp_path: Path) -> None:
    async with house(tmp_path, 1, 2) as h:
        report = await h.reloader.reload("lungs")
        assert [(change.version, change.what) for change in report.versions] == [(1, "unchanged"), (2, "unchanged")]
        assert (h.swaps, len(h.made)) == (0, 2)


async def test_a_new_version_answers_and_one_whose_folder_has_gone_does_not(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.write(version=2)
        await h.reloader.reload("lungs")
        assert await h.ask(1.0) == (1, 1)
        first = h.served(1)
        shutil.rmtree(tmp_path / "lungs" / "1")
        report = await h.reloader.reload("lungs")
        assert [(change.version, change.what) for change in report.versions] == [(2, "unchanged"), (1, "removed")]
        assert first.engine.state is State.STOPPED
        assert h.said() == [(2, "added"), (1, "removed")]


async def test_a_fallback_that_is_another_file_now_is_a_change(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        spare = tmp_path / "lungs" / "1" / "spare.bin"
        spare.write_bytes(b"spare")
        await h.write(fallback=runtime_part(b"spare", file="spare.bin"))
        await h.reloader.reload("lungs")
        assert (await h.reloader.reload("lungs")).versions[0].what == "unchanged"
        spare.write_bytes(b"another")
        h.failure = GoldenMismatch("no")
        with pytest.raises(ReloadRefused):
            await h.reloader.reload("lungs")


async def test_memory_that_cannot_be_measured_beside_other_work_is_what_it_was_before(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.repository.add(replace(h.served(), footprint=FOOTPRINT))
        await h.write(title="another title")
        await h.reloader.reload("lungs")
        assert h.served().manifest.title == "another title"
        assert h.served().footprint == FOOTPRINT
        await h.changed()
        await h.reloader.reload("lungs")
        assert h.served().footprint is None


# Refusals


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (GoldenMismatch("4 values are off"), "golden_mismatch", "4 values are off"),
        (OSError(5, "a text that may hold anything"), "setup_error", "loading it raised OSError"),
        (ValueError("pixels: 1, 2"), "setup_error", "loading it raised ValueError"),
    ],
    ids=["a proof", "the disk", "a framework"],
)
async def test_what_fails_leaves_the_old_one_answering_and_says_why(
    failure: Exception, code: str, says: str, tmp_path: Path
) -> None:
    async with house(tmp_path) as h:
        await h.changed()
        h.failure = failure
        with pytest.raises(ReloadRefused, match=says) as refused:
            await h.reloader.reload("lungs")
        change = {"version": 1, "what": "refused", "code": code, "message": says}
        assert refused.value.details["report"] == {"model": "lungs", "versions": [change]}
        assert await h.ask(1.0) == (0, 0)
        assert h.swaps == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_the_last_word_on_a_state_is_about_the_engine_that_answers(fails: bool, tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.changed()
        h.failure = GoldenMismatch("no") if fails else None
        await h.reloader.reload_all()
        assert h.last_state() == "ready"


async def test_a_version_whose_folder_has_gone_stays_if_the_one_that_should_follow_it_is_refused(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as h:
        await h.write(version=2)
        shutil.rmtree(tmp_path / "lungs" / "1")
        h.failure = GoldenMismatch("no")
        (report,) = await h.reloader.reload_all()
        assert [(change.version, change.what) for change in report.versions] == [(2, "refused"), (1, "kept")]
        assert await h.ask(1.0) == (0, 0)
        h.failure = None
        (report,) = await h.reloader.reload_all()
        assert [(change.version, change.what) for change in report.versions] == [(2, "added"), (1, "removed")]


async def test_an_emptied_folder_stops_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        shutil.rmtree(tmp_path / "lungs" / "1")
        with pytest.raises(ReloadRefused, match="no version of lungs is left"):
            await h.reloader.reload("lungs")
        assert await h.ask(1.0) == (0, 0)


async def test_a_manifest_that_cannot_be_read_is_told_as_such(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        (tmp_path / "lungs" / "1" / "model.yaml").write_text("schema: 1\nname: [")
        with pytest.raises(ReloadRefused, match="not YAML"):
            await h.reloader.reload("lungs")


async def test_a_manifest_that_has_gone_is_named_by_where_it_is_below_the_models(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        (tmp_path / "lungs" / "1" / "model.yaml").unlink()
        with pytest.raises(ReloadRefused, match=r"cannot read lungs/1/model\.yaml: No such file") as refused:
            await h.reloader.reload("lungs")
        assert str(tmp_path) not in f"{refused.value.message} {refused.value.details}"


async def test_what_a_caller_is_refused_is_written_down_as_what_a_signal_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with house(tmp_path) as h:
        await h.changed()
        h.failure = GoldenMismatch("4 values are off")
        with pytest.raises(ReloadRefused, match="4 values are off"):
            await LocalReload(h.reloader, logging.getLogger("test")).reload("lungs")
        Reloading(h.reloader, logging.getLogger("test")).begin()
        await h.until(lambda: len(refusals(caplog)) == 2)
        assert refusals(caplog) == [("lungs", 1, "golden_mismatch", "ERROR")] * 2


def refusals(caplog: pytest.LogCaptureFixture) -> list[tuple[object, ...]]:
    lines = [line.__dict__ for line in caplog.records if line.getMessage() == "reload_refused"]
    return [(line["model"], line["version"], line["code"], line["levelname"]) for line in lines]


async def test_what_is_neither_served_nor_there_is_unknown(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        (tmp_path / "empty").mkdir()
        for name in ("nobody", "empty", "..", "lungs/../lungs", "x" * 5000):
            with pytest.raises(UnknownModel):
                await h.reloader.reload(name)


async def test_of_all_models_one_that_is_refused_does_not_keep_the_others(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        (tmp_path / "empty").mkdir()
        await h.write("aorta")
        (tmp_path / "aorta" / "1" / "model.yaml").write_text("- 1")
        await h.changed()
        reports = await h.reloader.reload_all()
        found = [(each.model, each.versions[0].what) for each in reports]
        assert found == [("aorta", "refused"), ("lungs", "replaced")]


# One at a time, and to its end


async def test_a_second_reload_waits_for_the_first(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.may_load.clear()
        await h.changed()
        first = asyncio.create_task(h.reloader.reload("lungs"))
        await h.until(lambda: h.loading == 1)
        second = asyncio.create_task(h.reloader.reload("lungs"))
        third = asyncio.create_task(h.reloader.reload_all())
        for _ in range(100):
            await asyncio.sleep(0)
        h.may_load.set()
        assert (await first).versions[0].what == "replaced"
        assert (await second).versions[0].what == "unchanged"
        assert (await third)[0].versions[0].what == "unchanged"
        assert h.most_loading == 1


async def test_who_asked_for_a_reload_may_leave_and_it_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        old = h.served()
        place = old.engine.reserve(NEVER)
        await h.changed()
        asking = asyncio.create_task(h.reloader.reload("lungs"))
        await h.until(lambda: old.engine.state is State.DRAINING)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        place.release()
        await h.until(lambda: old.engine.state is State.STOPPED)


async def test_a_stop_gives_up_what_is_being_loaded(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.may_load.clear()
        await h.changed()
        asking = asyncio.create_task(h.reloader.reload("lungs"))
        await h.until(lambda: h.loading == 1)
        await h.reloader.close()
        with pytest.raises(Draining):
            await asking
        with pytest.raises(Draining):
            await h.reloader.reload("lungs")
        assert await h.ask(1.0) == (0, 0)


async def test_a_stop_leaves_no_engine_behind_that_is_being_drained(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        old = h.served()
        old.engine.reserve(NEVER)
        await h.changed()
        asking = asyncio.create_task(h.reloader.reload("lungs"))
        await h.until(lambda: old.engine.state is State.DRAINING)
        await h.reloader.close()
        with pytest.raises(Draining):
            await asking
        assert old.engine.state is State.STOPPED
        assert h.served().engine.state is State.READY
