"""Jobs in a SQLite file, their results in folders beside it. What is recorded stays, whatever kills the process.

Results are written to a folder of another name, synced, renamed, and only then recorded, in one transaction that also
ends the job: it is answered exactly once. Any thread may ask; any number of processes may read and add. Only one at a
time runs jobs: the one that holds the lock (`lock_for_running`).
"""

import fcntl
import json
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from isocenter.core.errors import (
    BadValue,
    Detail,
    JobExpired,
    JobLost,
    KeyReused,
    StoreUnavailable,
    UnknownJob,
)
from isocenter.serving.jobs.database import Database
from isocenter.serving.jobs.files import refusal_of, typed, write_folder
from isocenter.serving.jobs.job import COLUMNS, Job, State, job_of
from isocenter.serving.jobs.room import Room

MAX_ATTEMPTS: Final = 3
_ORPHAN_S: Final = 3_600.0
_REMEMBERED_S: Final = 30 * 86_400.0
"""How long ids of deleted jobs are known as such."""


class JobStore:
    """The jobs of one file; `<name>.files` beside it holds what was sent and what came out, a folder a job.

        with JobStore(Path("out/jobs.sqlite")) as store:
            job = store.add("scan-7", "segment", {"path": "scan-7.nii"})
            job = store.claim("me")
            store.finish(job.id, {"present": False}, {"mask.nii.gz": mask})

    `now_s` is the wall clock, in seconds since 1970. Over `max_queued` jobs that wait, or `max_disk_bytes` of files,
    new ones are refused.
    """

    def __init__(
        self,
        path: Path,
        *,
        now_s: Callable[[], float] = time.time,
        max_queued: int | None = None,
        max_disk_bytes: int | None = None,
    ) -> None:
        self.path = path
        self._now_s = now_s
        self._room = Room(max_queued, max_disk_bytes)
        self._files = path.with_name(f"{path.name}.files")
        self._database = Database(path)
        self._lock_fd: int | None = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> Self:
        """Open the file, or make it. A second time does nothing.

        Raises:
            StoreUnavailable: it cannot be opened, is none of these, or was written by a later version.
            DiskFull: there is no room for it.
        """
        self._database.open()
        return self

    def close(self) -> None:
        """Close it; jobs that run stay recorded as running until `recover`. A second time does nothing."""
        self._database.close()
        number, self._lock_fd = self._lock_fd, None
        if number is not None:
            os.close(number)

    @typed
    def lock_for_running(self) -> bool:
        """Whether this process may run jobs: it alone until it closes the store or ends, however it ends."""
        if self._lock_fd is not None:
            return True
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = self.path.with_name(f"{self.path.name}.lock")
        number = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
            return False
        self._lock_fd = number
        return True

    def folder_of(self, job_id: str) -> Path:
        """Where the files of a job are; `input` in it is what was sent, and goes when the job ends."""
        return self._files / job_id

    def add(
        self,
        key: str | None,
        kind: str,
        asked: Mapping[str, Any],
        priority: int = 0,
        *,
        job_id: str | None = None,
        input_bytes: int = 0,
    ) -> Job:
        """Put a job into the queue. The same key, asked for the same, is the job that is there already.

        `job_id` is given where its `input` folder was written before: `new_id()`.

        Raises:
            KeyReused: the key's job was asked for something else.
            Overloaded: too many jobs wait, or their files take too much room.
            StoreUnavailable, DiskFull: it could not be recorded.
        """
        number = job_id or new_id()
        text = _canonical(asked)
        with self._database.transaction() as db:
            if (there := self._same(db, key, kind, text, priority)) is not None:
                return there
            self._room.check(db, input_bytes)
            db.execute(
                "INSERT INTO jobs (id, key, kind, asked, priority, state, created_at, input_bytes) "
                "VALUES (?, ?, ?, ?, ?, 'queued', ?, ?)",
                (number, key, kind, text, priority, self._now_s(), input_bytes),
            )
            return self._known(db, number)

    def same(self, key: str | None, kind: str, asked: Mapping[str, Any], priority: int = 0) -> Job | None:
        """What `add` would find there.

        Raises:
            KeyReused: the key's job was asked for something else.
        """
        with self._database.reading() as db:
            return self._same(db, key, kind, _canonical(asked), priority)

    def check_room(self, more_bytes: int) -> None:
        """Refuse a job that `add` would refuse, before its files are written.

        Raises:
            Overloaded: too many jobs wait, or their files take too much room.
        """
        with self._database.reading() as db:
            self._room.check(db, more_bytes)

    def claim(self, worker: str) -> Job | None:
        """Begin the next job, by priority and then by age; None if none waits. No two callers get the same one."""
        with self._database.transaction() as db:
            changed = db.execute(
                "UPDATE jobs SET state = 'running', worker = ?, attempts = attempts + 1, started_at = ?, stage = '', "
                "share = 0, revision = revision + 1 WHERE number = (SELECT number FROM jobs WHERE state = 'queued' "
                f"ORDER BY priority, number LIMIT 1) RETURNING {COLUMNS}",
                (worker, self._now_s()),
            ).fetchall()
            return job_of(changed[0]) if changed else None

    def progress(self, job_id: str, stage: str, share: float) -> None:
        """Tell how far a running job is. What is told last may be lost with the machine's power."""
        with self._database.transaction(durable=False) as db:
            db.execute(
                "UPDATE jobs SET stage = ?, share = ?, revision = revision + 1 WHERE id = ? AND state = 'running'",
                (stage, min(1.0, max(0.0, share)), job_id),
            )

    def finish(
        self,
        job_id: str,
        summary: Mapping[str, Any],
        files: Mapping[str, bytes | Path] | None = None,
        *,
        attempt: int | None = None,
    ) -> Job:
        """Record the answer of a running job and its files, all of it or nothing; a path is moved to the store.

        A job that is not running, or in another attempt than `attempt`, stays as it is: see the state of what comes
        back. What was sent for it is deleted.

        Raises:
            UnknownJob: it is not here.
            DiskFull, StoreUnavailable: it could not be recorded; the job still runs.
        """
        job = self.get(job_id)
        mine = job.attempts if attempt is None else attempt
        if job.state != "running" or job.attempts != mine:
            return job
        result = self._result_of(job_id, mine)
        sizes = write_folder(result, files) if files else {}
        given = (self._now_s(), _json(summary), _json(sizes), sum(sizes.values()), job_id, mine)
        with self._database.transaction() as db:
            changed = db.execute(
                "UPDATE jobs SET state = 'done', finished_at = ?, share = 1, stage = '', worker = NULL, summary = ?, "
                "files = ?, result_bytes = ?, input_bytes = 0, revision = revision + 1 "
                "WHERE id = ? AND attempts = ? AND state = 'running'",
                given,
            ).rowcount
            found = self._known(db, job_id)
        shutil.rmtree(self.folder_of(job_id) / "input" if changed else result, ignore_errors=True)
        return found

    def fail(
        self,
        job_id: str,
        code: str,
        message: str,
        details: Mapping[str, Detail] | None = None,
        *,
        attempt: int | None = None,
    ) -> Job:
        """Record why a running job has no answer; one that is not running stays as it is."""
        error = {"code": code, "message": message, "details": dict(details or {})}
        return self._end(job_id, "failed", ("running",), error=error, attempt=attempt)

    def cancel(self, job_id: str) -> Job:
        """End a job that waits or runs; one that has ended stays as it is. Who runs it is not told here."""
        return self._end(job_id, "cancelled", ("queued", "running"))

    def release(self, job_id: str) -> Job:
        """Put a running job back into its place in the queue, as if it had not been begun: a stop in order."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'queued', attempts = attempts - 1, worker = NULL, started_at = NULL, "
                "stage = '', share = 0, revision = revision + 1 WHERE id = ? AND state = 'running'",
                (job_id,),
            )
            return self._known(db, job_id)

    def get(self, job_id: str) -> Job:
        """One job as it stands.

        Raises:
            UnknownJob: it was never here.
            JobExpired: it was deleted.
        """
        with self._database.reading() as db:
            return self._known(db, job_id)

    def by_key(self, key: str) -> Job | None:
        """The job of a key."""
        with self._database.reading() as db:
            return self._row(db, "key = ?", key)

    def result(self, job_id: str, name: str) -> bytes:
        """One file of a job that is done.

        Raises:
            UnknownJob, JobExpired: the job is not here.
            BadValue: it has no such file.
            StoreUnavailable: it is not where it was written.
        """
        job = self.get(job_id)
        if name not in job.files:
            raise BadValue(f"there is no result {name!r}; there are {', '.join(job.files)}")
        try:
            return (self._result_of(job_id, job.attempts) / name).read_bytes()
        except OSError as error:
            self.get(job_id)  # it may have expired meanwhile
            raise refusal_of(error) from None

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state that some are in."""
        with self._database.reading() as db:
            return dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())

    def version(self) -> tuple[int, int, int]:
        """How often it was opened, and what differs if anything changed since, here or in another process."""
        with self._database.reading() as db:
            return self._database.times_opened, db.execute("PRAGMA data_version").fetchone()[0], db.total_changes

    def recover(self, *, max_attempts: int = MAX_ATTEMPTS, besides: Collection[str] = ()) -> tuple[Job, ...]:
        """Put jobs that nobody runs any more, all `besides` those of these ids, back into their places; give them.

        One that was begun `max_attempts` times is failed as `job_lost`. Call it before the first `claim`, holding the
        lock: then whoever ran the others is gone.
        """
        error = {
            "code": JobLost.code,
            "message": f"the process ended {max_attempts} times while it ran this job",
            "details": {"attempts": max_attempts},
        }
        which = f"state = 'running' AND id NOT IN ({', '.join('?' * len(besides))})"
        with self._database.transaction() as db:
            lost = db.execute(
                "UPDATE jobs SET state = 'failed', worker = NULL, finished_at = ?, error = ?, input_bytes = 0, "
                f"revision = revision + 1 WHERE {which} AND attempts >= ? RETURNING {COLUMNS}",
                (self._now_s(), _json(error), *besides, max_attempts),
            ).fetchall()
            again = db.execute(
                "UPDATE jobs SET state = 'queued', worker = NULL, started_at = NULL, stage = '', share = 0, "
                f"revision = revision + 1 WHERE {which} RETURNING {COLUMNS}",
                (*besides,),
            ).fetchall()
        for row in lost:
            self._drop_files(row[0])
        for row in again:  # results that were never recorded
            for folder in self.folder_of(row[0]).glob("*result-*"):
                shutil.rmtree(folder, ignore_errors=True)
        return tuple(job_of(row) for row in (*lost, *again))

    def expire(self, before: float) -> int:
        """Delete jobs that ended before an instant, with their files; how many. Their ids stay known for 30 days.

        Folders that belong to no job, as a crash leaves them, go too once they are an hour old.
        """
        with self._database.transaction() as db:
            ended = db.execute("DELETE FROM jobs WHERE finished_at < ? RETURNING id", (before,)).fetchall()
            now_s = self._now_s()
            db.executemany("INSERT OR REPLACE INTO gone VALUES (?, ?)", [(row[0], now_s) for row in ended])
            db.execute("DELETE FROM gone WHERE at < ?", (now_s - _REMEMBERED_S,))
        if ended:
            self._shorten_log()
        for row in ended:
            shutil.rmtree(self.folder_of(row[0]), ignore_errors=True)
        self._sweep()
        return len(ended)

    def list(
        self, states: Collection[State] | None = None, *, limit: int | None = None, newest_first: bool = False
    ) -> tuple[Job, ...]:
        """Jobs by age."""
        wanted = tuple(states or ())
        where = f"WHERE state IN ({', '.join('?' * len(wanted))})" if wanted else ""
        order = "DESC" if newest_first else "ASC"
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT {COLUMNS} FROM jobs {where} ORDER BY number {order} LIMIT ?",
                (*wanted, -1 if limit is None else limit),
            ).fetchall()
        return tuple(map(job_of, rows))

    def _end(
        self,
        job_id: str,
        state: State,
        before: tuple[State, ...],
        *,
        error: Mapping[str, Any] | None = None,
        attempt: int | None = None,
    ) -> Job:
        with self._database.transaction() as db:
            changed = db.execute(
                "UPDATE jobs SET state = ?, finished_at = ?, worker = NULL, stage = '', error = ?, input_bytes = 0, "
                f"revision = revision + 1 WHERE id = ? AND state IN ({', '.join('?' * len(before))}) "
                "AND (? IS NULL OR attempts = ?)",
                (state, self._now_s(), error and _json(error), job_id, *before, attempt, attempt),
            ).rowcount
            found = self._known(db, job_id)
        if changed:
            self._drop_files(job_id)
        return found

    def _same(self, db: sqlite3.Connection, key: str | None, kind: str, text: str, priority: int) -> Job | None:
        there = None if key is None else self._row(db, "key = ?", key)
        if there is not None and (there.kind, _canonical(there.asked), there.priority) != (kind, text, priority):
            raise KeyReused("the key belongs to another request", details={"id": there.id})
        return there

    def _known(self, db: sqlite3.Connection, job_id: str) -> Job:
        found = self._row(db, "id = ?", job_id)
        if found is not None:
            return found
        if db.execute("SELECT 1 FROM gone WHERE id = ?", (job_id,)).fetchone():
            raise JobExpired("the job and its results were deleted when their time was over")
        raise UnknownJob("there is no job of this id")

    def _row(self, db: sqlite3.Connection, where: str, value: str) -> Job | None:
        row = db.execute(f"SELECT {COLUMNS} FROM jobs WHERE {where}", (value,)).fetchone()
        return None if row is None else job_of(row)

    def _result_of(self, job_id: str, attempt: int) -> Path:
        return self.folder_of(job_id) / f"result-{attempt}"

    def _drop_files(self, job_id: str) -> None:
        shutil.rmtree(self.folder_of(job_id), ignore_errors=True)

    def _sweep(self) -> None:
        with suppress(OSError):
            for folder in self._files.iterdir():
                # Real time: a folder that is being filled for a job to come is young.
                if time.time() - folder.stat().st_mtime > _ORPHAN_S and not self._is_known(folder.name):
                    shutil.rmtree(folder, ignore_errors=True)

    def _is_known(self, job_id: str) -> bool:
        with self._database.reading() as db:
            return self._row(db, "id = ?", job_id) is not None

    def _shorten_log(self) -> None:
        """What was deleted is in the write-ahead log too, until it is written anew."""
        with suppress(StoreUnavailable), self._database.reading() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def new_id() -> str:
    """An id that nobody guesses: whoever knows it may see the job."""
    return uuid.uuid4().hex


def _json(given: Mapping[str, Any]) -> str:
    return json.dumps(given, separators=(",", ":"), default=str)


def _canonical(given: Mapping[str, Any]) -> str:
    """The same mapping is the same text, whatever the order of its keys."""
    return json.dumps(given, sort_keys=True, separators=(",", ":"), default=str)
