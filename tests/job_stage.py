"""Jobs with work that a test holds in its hand."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isocenter.core.clock import Clock, ManualClock, SystemClock
from isocenter.core.errors import JobExpired
from isocenter.core.events import Answered, RecordingObserver
from isocenter.serving.jobs.job import Job
from isocenter.serving.jobs.jobs import Jobs
from isocenter.serving.jobs.runner import JobAnswer, Tell
from isocenter.serving.jobs.store import JobStore

LOGGER = logging.getLogger("test-jobs")
RESULTS = {
    "json": {"media_type": "application/json", "file": "answer.json"},
    "nifti": {"media_type": "application/gzip", "file": "mask.nii.gz"},
}
FILES = {"json": b'{"present":false}', "nifti": b"mask"}
ANSWER = JobAnswer(
    model="blobs", version=1, summary={"model": "blobs", "results": RESULTS}, files=FILES, stages_s={"read": 0.5}
)


class Held:
    """One job that was begun, and what becomes of it."""

    def __init__(self, job: Job, folder: Path, tell: Tell) -> None:
        self.job = job
        self.folder = folder
        self.tell = tell
        self.left = False
        self.may_leave = asyncio.Event()
        """When it is cancelled, it takes until then."""
        self.may_leave.set()
        self.end: asyncio.Future[JobAnswer] = asyncio.get_running_loop().create_future()

    def answer(self) -> None:
        """Come to an answer."""
        self.end.set_result(ANSWER)


class Work:
    """Work that waits until a test says what comes of it."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.begun: asyncio.Queue[Held] = asyncio.Queue()
        self.names: list[Any] = []
        self.most = 0
        """Jobs at a time."""
        self._now = 0
        self._at_once = at_once

    async def __call__(self, job: Job, folder: Path, tell: Tell) -> JobAnswer:
        self.names.append(job.asked.get("name"))
        held = Held(job, folder, tell)
        self.begun.put_nowait(held)
        if self._at_once:
            return ANSWER
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            return await held.end
        except asyncio.CancelledError:
            held.left = True
            await held.may_leave.wait()
            raise
        finally:
            self._now -= 1

    def meant_by(self, job: Job) -> tuple[str, int]:
        """Always the same."""
        return "blobs", 1


class Stage:
    """Jobs of a folder with such work."""

    def __init__(self, folder: Path, *, at_once: bool = False, clock: Clock | None = None, **more: Any) -> None:
        self.work = Work(at_once=at_once)
        self.observer = RecordingObserver()
        self.store = JobStore(folder / "jobs.sqlite", **more.pop("limits", {}))
        self.jobs = Jobs(
            self.store,
            lambda _: self.work,
            clock=clock or SystemClock(),
            observer=self.observer,
            logger=LOGGER,
            at_once=more.pop("jobs_at_once", 1),
            **more,
        )

    async def __aenter__(self) -> "Stage":
        await self.jobs.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self.jobs.__aexit__(*raised)

    async def add(self, name: str = "", **more: Any) -> Job:
        """Put a job into the queue."""
        return await self.jobs.add("scan", {"name": name}, **more)

    async def ended(self, job: Job) -> Job:
        """A job when it has ended."""
        return await self.until(job, lambda found: found.ended)

    async def until(self, job: Job, condition: Callable[[Job], bool]) -> Job:
        """A job as soon as something is so."""
        async for found in self.jobs.watch(job.id):
            if condition(found):
                return found
        raise AssertionError("it ended otherwise")

    async def idle(self) -> None:
        """Return once nothing runs."""
        while self.jobs.running:
            await self.jobs._news.after(self.jobs._news.revision, within_s=60)

    async def until_deleted(self, job: Job, clock: ManualClock) -> None:
        """Return once a job is not there any more, time passing meanwhile."""
        with contextlib.suppress(JobExpired):
            while await self.jobs.get(job.id):
                clock.advance(60)

    @property
    def codes(self) -> list[str]:
        """What was counted."""
        return [event.code for event in self.observer.events if isinstance(event, Answered)]
