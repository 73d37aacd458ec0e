"""Who runs jobs: in what order, what becomes of those that are cancelled or refused, and what outlasts a stop."""

import asyncio
import errno
import logging
import math
import sqlite3
import threading
from pathlib import Path

import pytest

from isocenter.core.clock import ManualClock
from isocenter.core.errors import (
    BadImage,
    DiskFull,
    JobNotDone,
    KeyReused,
    Overloaded,
    StoreUnavailable,
    Unavailable,
)
from isocenter.core.events import Answered
from isocenter.serving.jobs import files, runner
from isocenter.serving.jobs.job import Job
from job_stage import ANSWER, FILES, Stage
from patience import PATIENCE_S


async def test_a_job_runs_and_its_answer_is_there(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        job = await stage.add("a")
        held = await stage.work.begun.get()
        assert (await stage.jobs.get(job.id)).state == "running"
        held.answer()
        done = await stage.ended(job)

        assert (done.state, done.attempts, done.files) == ("done", 1, {"json": 17, "nifti": 4})
        assert await stage.jobs.result(done, "json") == FILES["json"]
    (event,) = [each for each in stage.observer.events if isinstance(each, Answered)]
    assert (event.use_case, event.model, event.version, event.code, event.stages_s) == (
        "job", "blobs", 1, "ok", ANSWER.stages_s
    )  # fmt: skip


async def test_jobs_run_by_priority_and_no_more_at_a_time_than_may(tmp_path: Path) -> None:
    async with Stage(tmp_path, jobs_at_once=2) as stage:
        first = [await stage.add("first"), await stage.add("second")]
        held = [await stage.work.begun.get() for _ in first]
        for name, priority in (("late", 5), ("usual", 0), ("soon", -5)):
            last = await stage.add(name, priority=priority)
        while stage.jobs.queued + len(stage.work.names) < 5:  # until the runner has looked at all of them
            await stage.jobs.list(limit=1)
        while len(stage.work.names) < 5:
            held.pop(0).answer()
            held.append(await stage.work.begun.get())
        for each in held:
            each.answer()
        await stage.ended(last)

    assert stage.work.names == ["first", "second", "soon", "usual", "late"]
    assert stage.work.most == 2
    assert stage.codes == ["ok"] * 5


async def test_progress_reaches_who_watches_and_the_last_thing_told_is_the_end(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        job = await stage.add()
        held = await stage.work.begun.get()
        held.tell("windows", 0.5)
        found = await stage.until(job, lambda found: found.share == 0.5)
        assert (found.state, found.stage) == ("running", "windows")
        for share in range(50, 100):
            held.tell("windows", share / 100)
        held.answer()

        told = [found async for found in stage.jobs.watch(job.id)]
        assert told[-1].state == "done"
        assert len(told) < 5
        assert [found.state async for found in stage.jobs.watch(job.id)] == ["done"]


async def test_a_running_job_is_given_up_when_it_is_cancelled(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        job, after = await stage.add("cancelled"), await stage.add("after")
        held = await stage.work.begun.get()

        assert (await stage.jobs.cancel(job.id)).state == "cancelled"
        (await stage.work.begun.get()).answer()
        await stage.ended(after)

        assert held.left
        assert (await stage.jobs.get(job.id)).state == "cancelled"
    assert sorted(stage.codes) == ["abandoned", "ok"]


async def test_a_waiting_job_that_is_cancelled_never_begins(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        await stage.add("first")
        held = await stage.work.begun.get()
        waiting, last = await stage.add("cancelled"), await stage.add("last")
        await stage.jobs.cancel(waiting.id)
        held.answer()
        (await stage.work.begun.get()).answer()
        await stage.ended(last)

    assert stage.work.names == ["first", "last"]


async def test_a_cancelled_or_failed_job_has_no_result_and_says_its_state(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        job = await stage.add()
        with pytest.raises(JobNotDone):
            await stage.jobs.result(job, "json")
        held = await stage.work.begun.get()
        held.end.set_exception(BadImage("broken"))
        failed = await stage.ended(job)
        with pytest.raises(JobNotDone) as caught:
            await stage.jobs.result(failed, "json")

    error = {"code": "bad_image", "message": "broken", "details": {}}
    assert caught.value.details == {"state": "failed", "error": error}
    assert stage.codes == ["bad_image"]


async def test_a_bug_fails_its_job_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with Stage(tmp_path) as stage:
        job, after = await stage.add("bug"), await stage.add("after")
        (await stage.work.begun.get()).end.set_exception(ValueError("Max Muster"))
        (await stage.work.begun.get()).answer()

        failed = await stage.ended(job)
        assert (await stage.ended(after)).state == "done"

    assert failed.error == {"code": "internal", "message": "an unexpected error; this is a bug", "details": {}}
    assert [record.getMessage() for record in caplog.records] == ["unexpected"]


async def test_a_job_that_is_refused_for_the_moment_is_asked_for_again(tmp_path: Path) -> None:
    clock = ManualClock()
    async with Stage(tmp_path, clock=clock) as stage:
        job = await stage.add()
        (await stage.work.begun.get()).end.set_exception(Unavailable("restarting", retry_after_s=3.0))
        await stage.until(job, lambda found: found.stage == "waiting")
        assert stage.work.begun.empty()
        clock.advance(3.0)
        (await stage.work.begun.get()).answer()
        done = await stage.ended(job)

    assert (done.state, done.attempts) == ("done", 1)


async def test_patience_has_an_end(tmp_path: Path) -> None:
    clock = ManualClock()
    async with Stage(tmp_path, clock=clock) as stage:
        job = await stage.add()
        held = await stage.work.begun.get()
        clock.advance(runner.PATIENCE_S)
        held.end.set_exception(Overloaded("full"))

        failed = await stage.ended(job)

    assert failed.error is not None
    assert failed.error["code"] == "overloaded"


async def test_a_job_that_runs_at_a_stop_runs_again_at_the_next_start(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        job = await stage.add(key="k")
        held = await stage.work.begun.get()
    assert held.left
    assert stage.codes == ["abandoned"]

    async with Stage(tmp_path, at_once=True) as stage:
        done = await stage.ended(job)
        assert (done.state, done.attempts) == ("done", 1)
        assert await stage.add(key="k") == done
        with pytest.raises(KeyReused):
            await stage.add("another", key="k")


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_job_that_is_slow_to_leave_is_back_in_the_queue_before_it_has(tmp_path: Path, deleted: bool) -> None:
    stage = Stage(tmp_path)
    async with stage:
        job = await stage.add()
        held = await stage.work.begun.get()
        held.may_leave.clear()
        stopping = asyncio.create_task(stage.jobs.__aexit__(None, None, None))
        async with asyncio.timeout(PATIENCE_S):
            while (found := await asyncio.to_thread(stage.store.get, job.id)).state != "queued":  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert held.left
        assert not stopping.done()
        if deleted:
            await asyncio.to_thread(stage.store.cancel, job.id)
            await asyncio.to_thread(stage.store.expire, math.inf)
        held.may_leave.set()
        await stopping

    assert found.attempts == 0
    assert stage.codes == ["abandoned"]


async def test_a_job_of_a_process_that_was_killed_runs_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed = Stage(tmp_path).store
    job = await asyncio.to_thread(killed.add, None, "scan", {})
    await asyncio.to_thread(killed.claim, "killed")
    await asyncio.to_thread(killed.close)

    with caplog.at_level(logging.WARNING):
        async with Stage(tmp_path, at_once=True) as stage:
            done = await stage.ended(job)

    assert (done.state, done.attempts) == ("done", 2)
    assert [record.getMessage() for record in caplog.records] == ["jobs_recovered"]


async def test_one_process_runs_the_jobs_of_all_and_another_takes_over(tmp_path: Path) -> None:
    async with Stage(tmp_path, at_once=True, shared=True) as second:
        async with Stage(tmp_path, at_once=True, shared=True) as first:
            job = await first.add("a")
            assert (await first.ended(job)).state == "done"
            runs, looks = (first, second) if first.work.names else (second, first)
            job = await looks.add("b")
            assert (await looks.ended(job)).state == "done"
            assert (runs.work.names, looks.work.names) == (["a", "b"], [])
            assert (await looks.jobs.result(await looks.jobs.get(job.id), "nifti")) == b"mask"
        job = await second.add("c")
        assert (await second.ended(job)).state == "done"


async def test_an_answer_that_the_disk_had_no_room_for_is_recorded_when_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    async with Stage(tmp_path, clock=clock) as stage:
        job = await stage.add()
        held = await stage.work.begun.get()
        full = Full(monkeypatch)
        held.answer()
        await full.met.get()
        full.has_room()
        await until_done(stage, job, clock)

    assert stage.codes == ["ok"]
    assert [record.getMessage() for record in caplog.records] == ["jobs_unavailable"]


async def test_an_answer_that_the_disk_never_has_room_for_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with Stage(tmp_path, clock=clock) as stage:
        job = await stage.add()
        held = await stage.work.begun.get()
        Full(monkeypatch)
        held.answer()
        failed = await until_done(stage, job, clock)

    assert failed.error is not None
    assert failed.error["code"] == "disk_full"
    assert stage.codes == ["disk_full"]


class Full:
    """A disk without room for results."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.met: asyncio.Queue[None] = asyncio.Queue()
        self._patch = monkeypatch
        self._write = files._write_through
        loop = asyncio.get_running_loop()

        def refuse(path: Path, data: bytes) -> None:
            loop.call_soon_threadsafe(self.met.put_nowait, None)
            raise OSError(errno.ENOSPC, "no")

        monkeypatch.setattr(files, "_write_through", refuse)

    def has_room(self) -> None:
        """From now on."""
        self._patch.setattr(files, "_write_through", self._write)


async def until_done(stage: Stage, job: Job, clock: ManualClock) -> Job:
    """The job when it has ended, time passing meanwhile."""
    while not (found := await stage.jobs.get(job.id)).ended:
        clock.advance(1.0)
    await stage.idle()
    return found


async def test_a_broken_file_keeps_nobody_from_starting_and_is_used_when_it_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 1000)
    async with Stage(tmp_path, clock=clock, at_once=True) as stage:
        for call in (stage.add(), stage.jobs.get("0"), stage.jobs.list(limit=1), stage.jobs.cancel("0")):
            with pytest.raises(StoreUnavailable, match="broken"):
                await call
        while not caplog.records:  # until the runner has met it too
            with pytest.raises(StoreUnavailable):
                await stage.jobs.get("0")
        (tmp_path / "jobs.sqlite").unlink()
        job = await stage.add()
        done = await until_done(stage, job, clock)

    assert done.state == "done"
    assert [record.getMessage() for record in caplog.records] == ["jobs_unavailable"]


async def test_what_nobody_runs_in_a_copy_that_was_brought_back_runs_again(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        lost = await stage.add("lost")
        held = await stage.work.begun.get()
        with sqlite3.connect(tmp_path / "jobs.sqlite") as file, sqlite3.connect(tmp_path / "copy") as copy:
            file.backup(copy)
        copy.close()
        held.answer()
        await stage.ended(lost)
        await stage.idle()

        for name in ("jobs.sqlite-wal", "jobs.sqlite-shm"):
            (tmp_path / name).unlink()
        (tmp_path / "copy").replace(tmp_path / "jobs.sqlite")
        stage.jobs._runner.ring()
        held = await stage.work.begun.get()
        held.answer()
        done = await stage.ended(lost)

    assert (held.job.id, done.state, done.attempts) == (lost.id, "done", 2)


async def test_what_was_sent_is_kept_until_the_job_ends(tmp_path: Path) -> None:
    def keep(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "0").write_bytes(b"scan")

    async with Stage(tmp_path, limits={"max_disk_bytes": 6}) as stage:
        job = await stage.add(input_bytes=4, keep=keep)
        held = await stage.work.begun.get()
        assert await asyncio.to_thread((held.folder / "input" / "0").read_bytes) == b"scan"
        with pytest.raises(Overloaded):
            await stage.add("another", input_bytes=4, keep=keep)
        held.answer()
        await stage.ended(job)

    assert names_in(stage.store.folder_of(job.id)) == ["result-1"]


async def test_a_job_whose_caller_leaves_while_it_is_written_down_runs_all_the_same(tmp_path: Path) -> None:
    writes, go_on = threading.Event(), threading.Event()

    def keep(folder: Path) -> None:
        writes.set()
        assert go_on.wait(PATIENCE_S)
        folder.mkdir(parents=True)

    async with Stage(tmp_path, clock=ManualClock()) as stage:  # nobody looks by himself: time stands still
        before = await stage.add("before")
        (await stage.work.begun.get()).answer()
        await stage.ended(before)
        for _ in range(9):  # the runner has nothing left to look at
            await stage.jobs.list(limit=1)
        asking = asyncio.create_task(stage.add("left", keep=keep))
        await asyncio.to_thread(writes.wait, PATIENCE_S)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()

        (await stage.work.begun.get()).answer()
        await stage.idle()
    assert stage.work.names == ["before", "left"]


async def test_nothing_stays_of_what_was_sent_for_a_job_that_could_not_be_kept(tmp_path: Path) -> None:
    def keep(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "0").write_bytes(b"sc")
        raise DiskFull("no room")

    async with Stage(tmp_path) as stage:
        with pytest.raises(DiskFull):
            await stage.add(input_bytes=4, keep=keep)
        assert await stage.jobs.list(limit=9) == ()
    assert names_in(stage.store.folder_of("x").parent) == []


async def test_the_same_key_in_two_requests_at_once_is_one_job(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True)

    async with Stage(tmp_path) as stage:
        found = await asyncio.gather(*(stage.add("a", key="k", keep=make) for _ in range(8)))
        assert len({job.id for job in found}) == 1
        assert names_in(stage.store.folder_of("x").parent) == [found[0].id]


async def test_a_job_is_deleted_when_its_time_is_over(tmp_path: Path) -> None:
    clock, wall = ManualClock(), [1_000.0]
    async with Stage(tmp_path, clock=clock, at_once=True, retention_s=100.0, wall_s=lambda: wall[0]) as stage:
        stage.store._now_s = lambda: wall[0]
        job = await stage.add()
        await stage.ended(job)
        wall[0] += 101
        await stage.until_deleted(job, clock)


async def test_who_watches_may_leave(tmp_path: Path) -> None:
    clock = ManualClock()
    async with Stage(tmp_path, clock=clock) as stage:
        job = await stage.add()
        await stage.work.begun.get()
        told: list[Job] = []
        async for found in stage.jobs.watch(job.id, leave=lambda: len(told) == 2):
            told.append(found)
            asyncio.get_running_loop().call_soon(clock.advance, 16)  # nothing happens, and so much time passes
        assert [each.state for each in told] == ["running", "running"]


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())
