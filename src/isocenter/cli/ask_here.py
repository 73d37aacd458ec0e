"""Ask the models in this process: the same service as behind HTTP, without a network."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

from isocenter.app import Composition, open_service
from isocenter.cli.outcome import Outcome, Tell, answered, failed, refused
from isocenter.core.clock import SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import IsocenterError, TooManyBytes
from isocenter.process import tune_process
from isocenter.settings import Settings

_CLOCK = SystemClock()


def ask_here(
    files: list[Path], settings: Settings, *, model: str | None, version: int | None, at_once: int, tell: Tell
) -> None:
    """Answer every file, `at_once` at a time.

    Raises:
        SetupError: a model of the repository cannot be served.
        BadInput: the model that is named is not there, or none is named and several are.
    """
    tune_process()
    asyncio.run(_ask_all(files, settings, model, version, at_once, tell))


async def _ask_all(
    files: list[Path], settings: Settings, model: str | None, version: int | None, at_once: int, tell: Tell
) -> None:
    async with open_service(settings, clock=_CLOCK) as service:
        served = service.repository.resolve(model, version, task="classification")
        left = iter(enumerate(files))

        async def work(left: Iterator[tuple[int, Path]]) -> None:
            for index, file in left:
                tell(index, await _ask(service, file, served.name, served.version, settings.limits.max_bytes))

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(at_once, len(files))):
                    tasks.create_task(work(left))
        except ExceptionGroup as group:  # of equals, such as "nobody reads stdout any more"
            raise group.exceptions[0] from group


async def _ask(service: Composition, file: Path, model: str, version: int, max_bytes: int) -> Outcome:
    request_id = uuid.uuid4().hex
    try:
        image = await asyncio.to_thread(read_image, file, max_bytes)
        started_s = _CLOCK.now_s()
        # Nobody waits with a stop-watch for a file of a folder: it is answered, however long the queue.
        found = await service.predict(
            image, request_id=request_id, model=model, version=version, deadline=Deadline.never()
        )
        return answered(file, found, request_id=request_id, total_s=_CLOCK.now_s() - started_s)
    except IsocenterError as error:
        return refused(file, error)
    except OSError as error:
        return failed(file, "unreadable_file", error.strerror or type(error).__name__)
    except Exception as error:  # one file must not cost the others their answers
        return failed(file, "internal", f"unexpected {type(error).__name__}; this is a bug")


def read_image(file: Path, max_bytes: int) -> bytes:
    """The bytes of a file, if they are not too many.

    Raises:
        TooManyBytes: they are; none was read.
        OSError: it cannot be read.
    """
    size = file.stat().st_size
    if size > max_bytes:
        raise TooManyBytes(
            f"the file has {size} bytes, the limit for an image is {max_bytes}",
            details={"bytes": size, "limit": max_bytes},
        )
    return file.read_bytes()
