"""Answer every scan of a cohort once, whatever ends the process in between; the same command goes on."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from isocenter.cli.cohort_ledger import CohortAnswer, Ledger, Task, series_of
from isocenter.cli.cohort_rows import Row
from isocenter.core.errors import IsocenterError

T = TypeVar("T")

Progress: TypeAlias = Callable[[str, float], object]
"""Is told the stage and how much of it is done, from 0 to 1."""


class Answer(Protocol):
    """What segments a scan."""

    async def __call__(
        self, source: Path | tuple[Path, ...], *, series: int | None, progress: Progress
    ) -> CohortAnswer:
        """Answer one scan.

        Raises:
            IsocenterError: it has no answer.
        """
        ...


class Watch(Protocol):
    """Whoever looks on."""

    def begun(self, name: str) -> Progress:
        """One scan begins; give what is told how far it is."""
        ...

    def ended(self, row: Row | None, *, scans: int) -> None:
        """A scan ended, or was found to be several: then there are more `scans` now."""
        ...


async def answer_all(ledger: Ledger, answer: Answer, watch: Watch, *, at_once: int) -> None:
    """Answer what waits in a ledger, `at_once` at a time. One scan that cannot be answered never stops the rest.

    Raises:
        StoreUnavailable, DiskFull: what was found cannot be kept.
    """
    thread = ThreadPoolExecutor(1, "cohort-ledger")
    run = _Run(ledger, answer, watch, thread)
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(run.work())
    except ExceptionGroup as group:  # of equals: what is kept cannot be written
        raise group.exceptions[0] from group
    finally:
        await asyncio.shield(run.on_thread(ledger.write_sheets))
        thread.shutdown(wait=False)  # nothing is left on it


class _Run:
    def __init__(self, ledger: Ledger, answer: Answer, watch: Watch, thread: ThreadPoolExecutor) -> None:
        self._ledger, self._answer, self._watch, self._thread = ledger, answer, watch, thread

    async def on_thread(self, function: Callable[[], T]) -> T:
        """The ledger waits for the disk: it has a thread of its own, and is asked one thing at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def work(self) -> None:
        """One scan after the other until none is left."""
        while (task := await self.on_thread(self._ledger.next)) is not None:
            try:
                row = await self._one(task)
            except asyncio.CancelledError:
                with contextlib.suppress(IsocenterError):
                    await asyncio.shield(self.on_thread(partial(self._ledger.release, task)))
                raise
            scans = await self.on_thread(lambda: self._ledger.write_sheets(now=False))
            self._watch.ended(row, scans=scans)

    async def _one(self, task: Task) -> Row | None:
        """Answer and keep it. None: it is several series, which are asked for each by itself."""
        series = task.series
        name = Row(path=task.scan.path, series=series).name
        read = True
        try:
            found = await self._answer(task.scan.source, series=series, progress=self._watch.begun(name))
        except IsocenterError as error:
            count = series_of(error) if series is None else None
            if count is not None:
                await self.on_thread(lambda: self._ledger.split(task, count))
                return None
            code, message, read = error.code, error.message, not _of_the_disk(error)
        except OSError as error:
            code, message = "unreadable_file", error.strerror or type(error).__name__
        except Exception as error:  # one scan must not cost the others their answers
            code, message = "internal", f"unexpected {type(error).__name__}; this is a bug"
        else:
            return await self.on_thread(lambda: self._ledger.answered(task, found))
        return await self.on_thread(lambda: self._ledger.failed(task, code, message, read=read))


def _of_the_disk(error: BaseException) -> bool:
    """Whether the system did not let a file be read: that says nothing of the scan, and may be over without a trace."""
    cause = error.__cause__
    # What decompresses raises errors of this class too, without a number.
    return cause is not None and ((isinstance(cause, OSError) and cause.errno is not None) or _of_the_disk(cause))
