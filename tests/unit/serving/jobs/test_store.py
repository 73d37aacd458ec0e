"""The file of jobs: what is recorded stays, each job ends once, and trouble with the disk is told by its name."""

import errno
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isocenter.core.errors import (
    BadValue,
    DiskFull,
    IsocenterError,
    JobExpired,
    KeyReused,
    Overloaded,
    StoreUnavailable,
    UnknownJob,
)
from isocenter.serving.jobs import database, files
from isocenter.serving.jobs.job import ENDED, NEXT, STATES, Job, State
from isocenter.serving.jobs.store import JobStore

HOUR_S = 3_600.0


class Wall:
    """A wall clock that is set."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def store(tmp_path: Path, wall: Wall) -> Iterator[JobStore]:
    with JobStore(tmp_path / "jobs.sqlite", now_s=wall) as store:
        yield store


def begun(store: JobStore, **asked: Any) -> Job:
    store.add(None, "scan", asked)
    job = store.claim("here")
    assert job is not None
    return job


def ids(*jobs: Job | None) -> list[str]:
    return [job.id for job in jobs if job is not None]


def test_what_was_put_in_is_there_after_the_file_was_opened_anew(tmp_path: Path, store: JobStore) -> None:
    job = store.add("a key", "scan", {"scan_path": "/scans/x", "formats": ["json"]}, priority=3)
    store.close()

    with JobStore(tmp_path / "jobs.sqlite") as again:
        assert again.get(job.id) == job == again.by_key("a key")
    assert (job.state, job.attempts, job.share, job.created_at) == ("queued", 0, 0.0, 1_000_000.0)


def test_jobs_begin_by_priority_and_then_by_age(store: JobStore) -> None:
    late, soon, first, second = (store.add(None, "scan", {}, priority) for priority in (5, -1, 0, 0))

    assert ids(*(store.claim("here") for _ in range(5))) == ids(soon, first, second, late)


def test_the_same_key_is_the_same_job_whatever_became_of_it(store: JobStore) -> None:
    job = store.add("k", "scan", {"a": 1, "b": [2]})

    assert store.add("k", "scan", {"b": [2], "a": 1}) == job
    store.claim("here")
    store.finish(job.id, {})
    assert store.add("k", "scan", {"a": 1, "b": [2]}).state == "done"
    assert len(store.list()) == 1


@pytest.mark.parametrize("other", [("scan", {"a": 2}, 0), ("other", {"a": 1}, 0), ("scan", {"a": 1}, 1)])
def test_a_key_is_not_used_for_two_requests(store: JobStore, other: tuple[str, dict[str, int], int]) -> None:
    job = store.add("k", "scan", {"a": 1})

    with pytest.raises(KeyReused) as caught:
        store.add("k", *other)
    assert caught.value.details == {"id": job.id}


def test_an_answer_and_its_files_are_there_once_the_job_is_done(store: JobStore, tmp_path: Path, wall: Wall) -> None:
    moved = tmp_path / "big"
    moved.write_bytes(b"many bytes")
    job = begun(store)
    (store.folder_of(job.id) / "input").mkdir(parents=True)
    wall.now_s += 5

    done = store.finish(job.id, {"present": False}, {"mask": b"0101", "map": moved})

    assert (done.state, done.summary, done.files) == ("done", {"present": False}, {"mask": 4, "map": 10})
    assert done.finished_at == wall.now_s
    assert (store.result(job.id, "mask"), store.result(job.id, "map")) == (b"0101", b"many bytes")
    assert not (store.folder_of(job.id) / "input").exists()
    with pytest.raises(BadValue, match="there are mask, map"):
        store.result(job.id, "../mask")


def test_a_job_is_not_ended_twice(store: JobStore) -> None:
    job = begun(store)
    done = store.finish(job.id, {"n": 1}, {"mask": b"one"})

    assert store.finish(job.id, {"n": 2}, {"mask": b"two"}) == done
    assert store.fail(job.id, "code", "message") == done
    assert store.cancel(job.id) == done
    assert store.result(job.id, "mask") == b"one"


def test_an_attempt_that_was_given_up_answers_nothing(store: JobStore) -> None:
    first = begun(store)
    store.recover()
    second = store.claim("here")

    late = store.finish(first.id, {"n": 1}, {"mask": b"old"}, attempt=first.attempts)
    failed = store.fail(first.id, "code", "late", attempt=first.attempts)

    assert late == failed == second
    store.finish(first.id, {"n": 2}, {"mask": b"new"}, attempt=2)
    assert store.result(first.id, "mask") == b"new"


def test_an_answer_that_comes_after_the_cancelling_is_not_kept(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begun(store)
    written = files.write_folder

    def cancelled_meanwhile(*args: Any) -> dict[str, int]:
        store.cancel(job.id)
        return written(*args)

    monkeypatch.setattr("isocenter.serving.jobs.store.write_folder", cancelled_meanwhile)

    assert store.finish(job.id, {}, {"mask": b"01"}).state == "cancelled"
    assert list(store.folder_of(job.id).rglob("*")) == []


def test_a_failed_job_says_why(store: JobStore) -> None:
    job = begun(store)

    failed = store.fail(job.id, "missing_slices", "3 of 20 slices are missing", {"missing": 3})

    assert failed.error == {
        "code": "missing_slices", "message": "3 of 20 slices are missing", "details": {"missing": 3}
    }  # fmt: skip
    assert (failed.state, failed.ended) == ("failed", True)


def test_progress_is_told_of_running_jobs_only(store: JobStore) -> None:
    job = begun(store)
    store.progress(job.id, "windows", 0.25)
    assert (store.get(job.id).stage, store.get(job.id).share) == ("windows", 0.25)

    done = store.finish(job.id, {})
    store.progress(job.id, "windows", 0.5)
    assert store.get(job.id) == done


def test_jobs_of_a_process_that_died_wait_again_and_are_lost_after_three_attempts(store: JobStore) -> None:
    job = begun(store)
    (store.folder_of(job.id) / "result-1").mkdir(parents=True)  # written, and never recorded
    (store.folder_of(job.id) / "input").mkdir()

    for attempts in (1, 2):
        assert [(each.state, each.attempts) for each in store.recover()] == [("queued", attempts)]
        assert [each.name for each in store.folder_of(job.id).iterdir()] == ["input"]
        assert ids(store.claim("here")) == ids(job)
    (lost,) = store.recover()

    assert lost.state == "failed"
    assert lost.error is not None
    assert lost.error["code"] == "job_lost"
    assert store.claim("here") is None
    assert not store.folder_of(job.id).exists()


def test_a_stop_in_order_is_no_attempt(store: JobStore) -> None:
    job = begun(store)

    released = store.release(job.id)

    assert (released.state, released.attempts, released.started_at) == ("queued", 0, None)
    assert store.release(job.id).attempts == 0


def test_what_has_ended_is_deleted_when_its_time_is_over(store: JobStore, tmp_path: Path, wall: Wall) -> None:
    old = begun(store, scan_path="/scans/Muster_Max.nii")
    store.finish(old.id, {}, {"mask": b"01"})
    waiting = store.add(None, "scan", {}, priority=9)
    wall.now_s += 10
    young = begun(store)
    store.cancel(young.id)

    assert store.expire(wall.now_s - 5) == 1

    with pytest.raises(JobExpired):
        store.get(old.id)
    assert not store.folder_of(old.id).exists()
    assert {each.id for each in store.list()} == {waiting.id, young.id}
    assert all(b"Muster" not in each.read_bytes() for each in tmp_path.glob("jobs.sqlite*") if each.is_file())
    wall.now_s += 31 * 24 * HOUR_S
    store.expire(0)
    with pytest.raises(UnknownJob) as caught:
        store.get(old.id)
    assert type(caught.value) is UnknownJob


def test_a_key_is_free_again_when_its_job_is_deleted(store: JobStore, wall: Wall) -> None:
    job = store.add("k", "scan", {"a": 1})
    store.cancel(job.id)
    store.expire(wall.now_s + 1)

    assert store.add("k", "scan", {"a": 2}).id != job.id


def test_folders_of_no_job_are_swept_when_they_are_old(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store.add(None, "scan", {})
    for name in ("0" * 32, kept.id):
        (store.folder_of(name) / "input").mkdir(parents=True)

    store.expire(0)
    assert store.folder_of("0" * 32).exists()  # it may be that of a job to come
    monkeypatch.setattr("isocenter.serving.jobs.store._ORPHAN_S", -1.0)
    store.expire(0)

    assert not store.folder_of("0" * 32).exists()
    assert store.folder_of(kept.id).exists()


def test_no_more_jobs_wait_than_may(tmp_path: Path) -> None:
    with JobStore(tmp_path / "jobs.sqlite", max_queued=2) as store:
        store.add("k", "scan", {})
        store.add(None, "scan", {})
        with pytest.raises(Overloaded, match="2 jobs wait, the limit is 2") as caught:
            store.add(None, "scan", {})
        assert caught.value.details["where"] == "jobs"
        assert store.add("k", "scan", {}).key == "k"  # nothing new
        store.claim("here")
        store.add(None, "scan", {})


def test_files_take_no_more_room_than_they_may(tmp_path: Path) -> None:
    with JobStore(tmp_path / "jobs.sqlite", max_disk_bytes=100) as store:
        job = store.add(None, "scan", {}, input_bytes=90)
        for refused in (lambda: store.check_room(11), lambda: store.add(None, "scan", {}, input_bytes=11)):
            with pytest.raises(Overloaded, match="take 90 bytes, 11 more would exceed the limit of 100"):
                refused()
        store.check_room(10)
        store.claim("here")
        store.finish(job.id, {}, {"mask": b"0" * 40})  # what was sent is gone
        store.add(None, "scan", {}, input_bytes=60)
        with pytest.raises(Overloaded):
            store.check_room(1)


def test_every_job_is_begun_once_whoever_asks(tmp_path: Path) -> None:
    stores = [JobStore(tmp_path / "jobs.sqlite").open() for _ in range(2)]
    put = [stores[0].add(None, "scan", {"n": number}).id for number in range(40)]
    found: list[str] = []

    def work(store: JobStore) -> None:
        while (job := store.claim("x")) is not None:
            found.append(job.id)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(found) == sorted(put)
    for store in stores:
        store.close()


def test_one_process_at_a_time_runs_jobs(tmp_path: Path) -> None:
    with JobStore(tmp_path / "jobs.sqlite") as one, JobStore(tmp_path / "jobs.sqlite") as other:
        assert [one.lock_for_running(), other.lock_for_running(), one.lock_for_running()] == [True, False, True]
        one.close()
        assert other.lock_for_running()


def test_a_change_is_seen_from_another_process(tmp_path: Path, store: JobStore) -> None:
    with JobStore(tmp_path / "jobs.sqlite") as other:
        before, of_other = store.version(), other.version()
        assert store.version() == before
        store.add(None, "scan", {})
        assert store.version() != before
        assert other.version() != of_other


def test_a_locked_file_is_told_and_usable_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_S", 0.0)
    with JobStore(tmp_path / "jobs.sqlite") as store:
        other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreUnavailable, match="locked") as caught:
            store.add(None, "scan", {})
        assert caught.value.retry_after_s == 1.0
        assert store.list() == ()  # who writes keeps nobody from reading
        other.close()
        store.add(None, "scan", {})


def test_whoever_opens_a_new_file_waits_for_another_who_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
    other.execute("CREATE TABLE here (first INTEGER)")
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(database, "_pause", lambda: other.execute("COMMIT"))

    with JobStore(tmp_path / "jobs.sqlite") as store:
        store.add(None, "scan", {})

        assert len(store.list()) == 1
    other.close()


def test_a_broken_file_is_told_until_it_is_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(b"no database, but long enough to be taken for one" * 100)
    store = JobStore(path)

    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="broken"):
            store.add(None, "scan", {})
    path.unlink()
    assert store.add(None, "scan", {}).state == "queued"
    store.close()


def test_a_file_that_breaks_while_it_is_open_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with JobStore(path) as store:
        store.add(None, "scan", {})
    whole = path.read_bytes()
    with JobStore(path) as store:
        path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
        with pytest.raises(StoreUnavailable):
            store.list()
        path.write_bytes(whole)
        assert len(store.list()) == 1


def test_a_file_that_is_moved_away_while_it_is_open_takes_nothing_with_it(tmp_path: Path, store: JobStore) -> None:
    before = store.add("before", "scan", {})
    for name in ("jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")

    after = store.add("after", "scan", {})

    with JobStore(tmp_path / "jobs.sqlite") as there, JobStore(tmp_path / "moved-jobs.sqlite") as moved:
        assert [ids(*there.list()), ids(*moved.list())] == [[after.id], [before.id]]


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    with JobStore(tmp_path / "jobs.sqlite"):
        pass
    db = sqlite3.connect(tmp_path / "jobs.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(StoreUnavailable, match="format 99"):
        JobStore(tmp_path / "jobs.sqlite").open()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EACCES, StoreUnavailable),
        (errno.EIO, StoreUnavailable),
    ],
)
def test_an_answer_that_cannot_be_written_leaves_the_job_running_and_nothing_behind(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[IsocenterError]
) -> None:
    job = begun(store)

    def refuse(path: Path, data: bytes) -> None:
        path.write_bytes(data[:1])
        raise OSError(number, "no", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_through", refuse)
        with pytest.raises(kind) as caught:
            store.finish(job.id, {}, {"mask": b"0101"})

    assert str(store.path.parent) not in caught.value.message
    assert list(store.folder_of(job.id).iterdir()) == []
    assert store.finish(job.id, {}, {"mask": b"0101"}).state == "done"


def test_a_file_that_has_no_room_to_grow_is_a_full_disk(store: JobStore) -> None:
    with store._database.reading() as db:
        db.execute("PRAGMA max_page_count = 1").fetchall()

    with pytest.raises(DiskFull):
        store.add(None, "scan", {"long": "x" * 100_000})
    assert store.list() == ()


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_durably(tmp_path / "table.csv", b"old")

    def refuse(path: Path, data: bytes) -> None:
        path.write_bytes(data[:1])
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(files, "_write_through", refuse)
    with pytest.raises(DiskFull):
        files.write_durably(tmp_path / "table.csv", b"new")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("table.csv", b"old")]


def reopened(store: JobStore) -> JobStore:
    store.close()
    return store.open()


MOVES: dict[str, Callable[[JobStore, str], object]] = {
    "claim": lambda store, _: store.claim("x"),
    "finish": lambda store, job_id: store.finish(job_id, {}, {"mask": b"01"}),
    "fail": lambda store, job_id: store.fail(job_id, "code", "message"),
    "cancel": lambda store, job_id: store.cancel(job_id),
    "release": lambda store, job_id: store.release(job_id),
    "recover": lambda store, _: store.recover(),
    "progress": lambda store, job_id: store.progress(job_id, "windows", 0.5),
    "reopen": lambda store, _: reopened(store),
}


@settings(
    max_examples=15, suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture]
)
@given(moves=st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 2)), max_size=10))
def test_no_sequence_of_calls_leaves_the_table_of_states(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, int]]
) -> None:
    with JobStore(tmp_path_factory.mktemp("s") / "jobs.sqlite") as store:
        jobs = [store.add(None, "scan", {}).id for _ in range(3)]
        before = {job_id: store.get(job_id) for job_id in jobs}
        for name, which in moves:
            MOVES[name](store, jobs[which])
            for job_id in jobs:
                was, now = before[job_id], store.get(job_id)
                assert now.state == was.state or now.state in NEXT[was.state]
                assert now == was or not was.ended
                assert now.revision >= was.revision
                assert (now.finished_at is not None) == now.ended
                assert bool(now.files) == (now.state == "done")
                before[job_id] = now


def test_the_table_of_states_ends() -> None:
    state: State
    for state in STATES:
        assert (state in ENDED) == (not NEXT[state])
