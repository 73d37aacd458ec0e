"""Jobs, as the routes ask for them: put in, looked at, watched, cancelled. Nothing here blocks the event loop."""

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from isocenter.core.clock import Clock
from isocenter.core.errors import JobNotDone
from isocenter.core.events import Observer
from isocenter.serving.jobs.job import Job, State
from isocenter.serving.jobs.news import News
from isocenter.serving.jobs.runner import Runner, Work
from isocenter.serving.jobs.store import JobStore, new_id

T = TypeVar("T")

FILE_NAME: Final = "jobs.sqlite"
_GIVEN_AGAIN_S: Final = 15.0
_LOOKED_AT_S: Final = 1.0
"""How often a watched job is looked at where nothing is told."""


class Jobs:
    """The jobs of one folder, for one process. Open it on the event loop that asks.

        async with Jobs(store, work, …) as jobs:
            job = await jobs.add("segment_scan", {…})
            async for job in jobs.watch(job.id): …

    A folder that cannot be used is no reason not to start: every call tells it, until it can be.
    """

    def __init__(
        self,
        store: JobStore,
        work: Callable[["Jobs"], Work],
        *,
        clock: Clock,
        observer: Observer,
        logger: logging.Logger,
        at_once: int = 1,
        retention_s: float = 86_400.0,
        shared: bool = False,
        may_begin: Callable[[], bool] = lambda: True,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.retention_s = retention_s
        self._threads = ThreadPoolExecutor(max_workers=4 + at_once, thread_name_prefix="isocenter-jobs")
        self._clock = clock
        self._news = News(clock)
        self._runner = Runner(
            store,
            work(self),
            on_thread=self.on_thread,
            news=self._news,
            clock=clock,
            wall_s=wall_s,
            observer=observer,
            logger=logger,
            at_once=at_once,
            retention_s=retention_s,
            shared=shared,
            may_begin=may_begin,
        )
        self._running: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        """Jobs that wait, as last looked at; 0 in a process that runs none."""
        return self._runner.queued

    @property
    def running(self) -> int:
        """Jobs that run in this process."""
        return self._runner.running

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._runner.run(), name="jobs")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._running is not None
        self._runner.stop()
        await self._running
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self.store.close)

    async def on_thread(self, function: Callable[..., T], /, *args: object) -> T:
        """Run a function that blocks."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def add(
        self,
        kind: str,
        asked: Mapping[str, Any],
        *,
        key: str | None = None,
        priority: int = 0,
        input_bytes: int = 0,
        keep: Callable[[Path], None] | None = None,
    ) -> Job:
        """Put a job into the queue; `keep` writes the `input_bytes` that were sent with it to a folder.

        Raises:
            KeyReused: the key belongs to another request.
            Overloaded: too many jobs wait, or their files take too much room.
            StoreUnavailable, DiskFull: it could not be recorded; there is no such job.
        """

        def put() -> Job:
            there = self.store.same(key, kind, asked, priority)
            if there is not None:
                return there
            self.store.check_room(input_bytes)
            job_id = new_id()
            folder = self.store.folder_of(job_id)
            try:
                if keep is not None:
                    keep(folder / "input")
                job = self.store.add(key, kind, asked, priority, job_id=job_id, input_bytes=input_bytes)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            if job.id != job_id:  # somebody was faster with the same key
                shutil.rmtree(folder, ignore_errors=True)
            return job

        return await self._changing(put)

    async def same(self, key: str | None, kind: str, asked: Mapping[str, Any], *, priority: int = 0) -> Job | None:
        """The job that a key belongs to, if it is there.

        Raises:
            KeyReused: it was asked for something else.
            StoreUnavailable: that cannot be told now.
        """
        return None if key is None else await self.on_thread(self.store.same, key, kind, asked, priority)

    async def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            UnknownJob, JobExpired: it is not here.
            StoreUnavailable: that cannot be told now.
        """
        return await self.on_thread(self.store.get, job_id)

    async def list(self, states: Collection[State] = (), *, limit: int) -> tuple[Job, ...]:
        """The newest jobs, the newest first."""
        return await self.on_thread(lambda: self.store.list(states, limit=limit, newest_first=True))

    async def cancel(self, job_id: str) -> Job:
        """End a job that waits or runs: what it has not begun never runs. One that has ended stays as it is."""
        return await self._changing(self.store.cancel, job_id)

    async def result(self, job: Job, name: str) -> bytes:
        """One file of a job that is done.

        Raises:
            JobNotDone: it is not, or never will be.
            JobExpired: it was deleted meanwhile.
            BadValue: there is no file of that name.
            StoreUnavailable: it cannot be read.
        """
        if job.state != "done":
            details = {"state": job.state, "error": dict(job.error) if job.error else None}
            raise JobNotDone(_NOT_DONE[job.state], details=details)
        return await self.on_thread(self.store.result, job.id, name)

    async def watch(self, job_id: str, *, leave: Callable[[], bool] = lambda: False) -> AsyncIterator[Job]:
        """A job as it is, and again whenever it has changed, until it has ended; or until `leave` says so, within 1 s.

        One in which nothing happens is given again every 15 s: a line on which nothing comes is cut by many a proxy.

        Raises:
            UnknownJob, JobExpired, StoreUnavailable: as `get`.
        """
        seen, given_s = -1, 0.0
        while not leave():
            revision = self._news.revision
            job = await self.get(job_id)
            if job.revision != seen or self._clock.now_s() - given_s >= _GIVEN_AGAIN_S:
                seen, given_s = job.revision, self._clock.now_s()
                yield job
            if job.ended:
                return
            await self._news.after(revision, within_s=_LOOKED_AT_S)

    async def _changing(self, function: Callable[..., T], /, *args: object) -> T:
        """Run what changes a job, and tell of it whenever it is done: a caller who leaves does not stop it."""
        loop = asyncio.get_running_loop()

        def told(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left who could be told
                loop.call_soon_threadsafe(self._changed)

        done = self._threads.submit(function, *args)
        done.add_done_callback(told)
        return await asyncio.wrap_future(done)

    def _changed(self) -> None:
        self._news.tell()
        self._runner.ring()


_NOT_DONE: Final[Mapping[State, str]] = {
    "queued": "the job waits for its turn; it has no result yet",
    "running": "the job runs; it has no result yet",
    "failed": "the job failed; it has an error and no result",
    "cancelled": "the job was cancelled; it has no result",
}
