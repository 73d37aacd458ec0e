"""The one loop that runs jobs: claims, runs, records; and gives up what was cancelled.

Nothing is lost: a job that could not be recorded as ended is still recorded as running, and is queued again by
`JobStore.recover`. Nothing is answered twice: only an attempt that is still the running one can end a job.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

from isocenter.core.clock import Clock, Timer
from isocenter.core.errors import Abandoned, DiskFull, IsocenterError, Refused, StoreUnavailable, without_frames
from isocenter.core.events import Answered, Observer
from isocenter.serving.jobs.job import Job
from isocenter.serving.jobs.news import News
from isocenter.serving.jobs.store import JobStore

T = TypeVar("T")

Tell: TypeAlias = Callable[[str, float], None]
"""Is told the stage, and how much of it is done, from 0 to 1."""

PATIENCE_S: Final = 600.0
"""How long a job is asked for again that is refused for the moment, as by a full queue or an engine that restarts."""
_TOLD_EVERY_S: Final = 0.25
_AGAIN_S: Final = 2.0
_LOOKED_EVERY_S: Final = 0.25
_EXPIRED_EVERY_S: Final = 60.0
_MOST_TRIED: Final = 4
"""How often a full disk is tried before an answer is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAnswer:
    """What came out of a job."""

    model: str
    version: int
    summary: Mapping[str, object]
    """Small, and without anything of a patient: it stands in the file of jobs."""
    files: Mapping[str, bytes] = field(repr=False)
    stages_s: dict[str, float]


class Work(Protocol):
    """What is done for a job."""

    async def __call__(self, job: Job, folder: Path, tell: Tell) -> JobAnswer:
        """Answer a job; `folder` is its own. Cancelling the call abandons it."""
        ...

    def meant_by(self, job: Job) -> tuple[str, int]:
        """The name and version of the model that a job means; an empty name and 0 if none that is served."""
        ...


class OnThread(Protocol):
    """Runs a function that blocks."""

    async def __call__(self, function: Callable[..., T], /, *args: object) -> T: ...


class Runner:
    """Runs up to `at_once` jobs at a time, in this process if no other one does already.

    `shared`: other processes put jobs into the same file, which is looked at four times a second. While `may_begin`
    says no, as in a drain, what runs goes on and nothing else begins.
    """

    def __init__(
        self,
        store: JobStore,
        work: Work,
        *,
        on_thread: OnThread,
        news: News,
        clock: Clock,
        wall_s: Callable[[], float],
        observer: Observer,
        logger: logging.Logger,
        at_once: int,
        retention_s: float,
        shared: bool,
        may_begin: Callable[[], bool],
    ) -> None:
        self._store = store
        self._work = work
        self._on_thread = on_thread
        self._news = news
        self._clock = clock
        self._wall_s = wall_s
        self._observer = observer
        self._logger = logger
        self._at_once = at_once
        self._retention_s = retention_s
        self._shared = shared
        self._may_begin = may_begin
        self._bell = News(clock)
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._may_run = False
        self._stopping = False
        self._trouble = ""
        self._seen: tuple[int, ...] = ()
        self._recovered = 0
        self._expired_s: float | None = None
        self._running: dict[str, tuple[Job, asyncio.Task[JobAnswer], asyncio.Task[None]]] = {}
        self.queued = 0
        """Jobs that wait, as last looked at; 0 where another process runs them."""

    @property
    def running(self) -> int:
        """Jobs that run here."""
        return len(self._running)

    def ring(self) -> None:
        """Something is to be done: a job came, or was cancelled."""
        self._bell.tell()

    async def run(self) -> None:
        """Run jobs until `stop`; trouble with the file is waited out."""
        while not self._stopping:
            heard = self._bell.revision
            wait_s = _LOOKED_EVERY_S if self._shared else _EXPIRED_EVERY_S
            try:
                await self._turn()
                self._trouble = ""
            except (StoreUnavailable, DiskFull) as error:
                wait_s = _AGAIN_S
                self._note(error)
            except Exception:
                wait_s = _AGAIN_S
                self._logger.exception("unexpected")
            await self._bell.after(heard, within_s=wait_s)
        given_up = [job for job, work, _ in self._running.values() if work.cancel()]
        for job in given_up:  # before it is waited for: who stops this process may have less patience than it takes
            await self._release(job)
        await asyncio.gather(*(whole for _, _, whole in self._running.values()))

    def stop(self) -> None:
        """Begin nothing more; give up what runs, which then waits for the next start."""
        self._stopping = True
        self.ring()

    async def _turn(self) -> None:
        if not self._may_run:
            if not self._may_begin() or not await self._on_thread(self._store.lock_for_running):
                await self._look()
                return
            self._may_run = True
        await self._recover()
        if self._shared:
            await self._look()
        for job, work, _ in list(self._running.values()):
            if not await self._still_runs(job):
                work.cancel()
        await self._expire()
        while not self._stopping and self._may_begin() and len(self._running) < self._at_once:
            claimed = await self._on_thread(self._store.claim, self._worker)
            if claimed is None:
                break
            self._begin(claimed)
        counts = await self._on_thread(self._store.counts)
        self.queued = counts.get("queued", 0)

    async def _recover(self) -> None:
        """Put back what nobody runs: at the start, and where another file was put in the place of the first."""
        opened, *_ = await self._on_thread(self._store.version)
        if opened != self._recovered:
            mine = tuple(self._running)
            changed = await self._on_thread(lambda: self._store.recover(besides=mine))
            self._recovered = opened
            if changed:
                self._logger.warning("jobs_recovered", extra={"left": len(changed)})

    async def _look(self) -> None:
        """Tell those who watch if another process changed something."""
        found = await self._on_thread(self._store.version)
        if found != self._seen:
            self._seen = found
            self._news.tell()

    async def _still_runs(self, job: Job) -> bool:
        try:
            found = await self._on_thread(self._store.get, job.id)
        except (StoreUnavailable, DiskFull):
            raise
        except IsocenterError:  # it is not there any more
            return False
        return found.state == "running" and found.attempts == job.attempts

    async def _expire(self) -> None:
        now_s = self._clock.now_s()
        if self._expired_s is None or now_s - self._expired_s >= min(_EXPIRED_EVERY_S, self._retention_s):
            self._expired_s = now_s
            await self._on_thread(self._store.expire, self._wall_s() - self._retention_s)

    def _begin(self, job: Job) -> None:
        tell = _Telling(self._store, job, self._on_thread, self._news, self._clock)
        work = asyncio.create_task(self._answer(job, tell), name=f"job {job.id}")
        whole = asyncio.create_task(self._settle(job, work, tell), name=f"job {job.id}, whole")
        self._running[job.id] = job, work, whole
        self._news.tell()

    async def _settle(self, job: Job, work: asyncio.Task[JobAnswer], tell: "_Telling") -> None:
        began_s = self._clock.now_s()
        code = "internal"
        answer: JobAnswer | None = None
        try:
            answer = await work
            await tell.close()
            code = await self._finish(job, answer)
        except asyncio.CancelledError:
            code = Abandoned.code
            if self._stopping:
                await self._release(job)
            else:  # nothing, where it was cancelled; no job runs that nobody runs
                await self._fail(job, Abandoned("the job was given up"))
        except IsocenterError as error:
            code = without_frames(error).code
            await self._fail(job, error)
        except Exception:
            self._logger.exception("unexpected", extra={"request_id": job.id})
            await self._fail(job, IsocenterError("an unexpected error; this is a bug"), code=code)
        finally:
            await tell.close()
            del self._running[job.id]
            self._news.tell()
            self.ring()
        meant = (answer.model, answer.version) if answer is not None else self._work.meant_by(job)
        stages_s = answer.stages_s if answer is not None and code == "ok" else {}
        self._observer.observe(Answered("job", *meant, code, self._clock.now_s() - began_s, stages_s))

    async def _release(self, job: Job) -> None:
        """Put it back into the queue, as if it had not been begun; twice is once, and of what is gone it is nothing."""
        with suppress(IsocenterError):
            await self._on_thread(self._store.release, job.id)

    async def _answer(self, job: Job, tell: "_Telling") -> JobAnswer:
        """Its answer, asked for again while it is refused for the moment."""
        until_s = self._clock.now_s() + PATIENCE_S
        while True:
            try:
                return await self._work(job, self._store.folder_of(job.id), tell)
            except Refused as refusal:
                again_s = self._clock.now_s() + min(30.0, max(0.5, refusal.retry_after_s or 1.0))
                if again_s > until_s:
                    raise
                without_frames(refusal)
            tell("waiting", 0.0)
            await self._clock.sleep_until(again_s)

    async def _finish(self, job: Job, answer: JobAnswer) -> str:
        """Record an answer; the code that it counts as."""

        def finish() -> Job:
            return self._store.finish(job.id, answer.summary, answer.files, attempt=job.attempts)

        tried = 0
        while True:
            tried += 1
            try:
                found = await self._on_thread(finish)
            except (StoreUnavailable, DiskFull) as error:
                self._note(error)
                if self._stopping:
                    return Abandoned.code  # it is recorded as running, and runs again at the next start
                if isinstance(error, DiskFull) and tried >= _MOST_TRIED:
                    raise
            else:
                return "ok" if found.state == "done" and found.attempts == job.attempts else Abandoned.code
            await self._bell_or(_AGAIN_S)

    async def _fail(self, job: Job, error: IsocenterError, *, code: str = "") -> None:
        """Record why there is no answer, as soon as that can be done."""

        def fail() -> Job:
            return self._store.fail(
                job.id, code or error.code, error.message, dict(error.details), attempt=job.attempts
            )

        while True:
            try:
                await self._on_thread(fail)
            except (StoreUnavailable, DiskFull) as trouble:
                self._note(trouble)
                if self._stopping:
                    return
            except IsocenterError:  # it is not there any more
                return
            else:
                return
            await self._bell_or(_AGAIN_S)

    async def _bell_or(self, seconds: float) -> None:
        await self._bell.after(self._bell.revision, within_s=seconds)

    def _note(self, error: IsocenterError) -> None:
        """One line for a trouble, however long it lasts."""
        if error.code != self._trouble:
            self._trouble = error.code
            self._logger.error("jobs_unavailable", extra={"code": error.code})


class _Telling:
    """How far a job is, written down four times a second at most. Any thread may tell."""

    def __init__(self, store: JobStore, job: Job, on_thread: OnThread, news: News, clock: Clock) -> None:
        self._store = store
        self._job = job
        self._on_thread = on_thread
        self._news = news
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._latest: tuple[str, float] | None = None
        self._timer: Timer | None = None
        self._writing: asyncio.Task[None] | None = None
        self._next_s = 0.0
        self._closed = False

    def __call__(self, stage: str, share: float) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody watches
            self._loop.call_soon_threadsafe(self._take, stage, share)

    async def close(self) -> None:
        """Write nothing more. A second time does nothing."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)

    def _take(self, stage: str, share: float) -> None:
        if self._latest == (stage, share):
            return
        self._latest = stage, share
        if self._timer is None and not self._closed:
            self._timer = self._clock.call_at(max(self._next_s, self._clock.now_s()), self._write)

    def _write(self) -> None:
        self._timer = None
        if self._closed or (self._writing is not None and not self._writing.done()):
            return
        self._next_s = self._clock.now_s() + _TOLD_EVERY_S
        self._writing = self._loop.create_task(self._written(), name=f"job {self._job.id}, progress")

    async def _written(self) -> None:
        assert self._latest is not None
        told = self._latest
        with suppress(IsocenterError):  # it is only progress
            await self._on_thread(self._store.progress, self._job.id, *told)
        self._news.tell()
        if self._latest != told and not self._closed and self._timer is None:
            self._timer = self._clock.call_at(self._next_s, self._write)
