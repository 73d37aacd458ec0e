"""Find the objects of images with the models in this process; a TIFF that is too large for memory by its windows."""

import asyncio
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from isocenter.app import Composition, open_service
from isocenter.cli.ask_here import read_image
from isocenter.cli.outcome import Outcome, Tell, failed, refused
from isocenter.cli.segment_files import large_place, told, told_large, write
from isocenter.cli.segment_places import Place
from isocenter.core.clock import SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import IsocenterError, TooManyBytes, TooManyPixels
from isocenter.process import tune_process
from isocenter.serving.segment_large import SegmentLarge
from isocenter.settings import Settings

if TYPE_CHECKING:
    from isocenter.serving.cell_answer import CellFormat
    from isocenter.serving.cells import CellsAsked

_CLOCK = SystemClock()
_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

StepsOf = Callable[[str], Callable[[int, int], None]]
"""For the name of a large file, what is told how many of its windows are done, and how many there are."""


def segment_here(
    files: Sequence[Path],
    settings: Settings,
    asked: "CellsAsked",
    formats: "Iterable[CellFormat]",
    places: Sequence[Place],
    *,
    at_once: int,
    tell: Tell,
    steps_of: StepsOf,
) -> None:
    """Answer every file, `at_once` at a time.

    Raises:
        SetupError: a model of the repository cannot be served.
        BadInput: the model that is named is not there or takes no images, or none is named and several are.
    """
    tune_process()
    asyncio.run(_segment_all(files, settings, asked, [*formats], places, at_once, tell, steps_of))


async def _segment_all(
    files: Sequence[Path],
    settings: Settings,
    asked: "CellsAsked",
    formats: "Sequence[CellFormat]",
    places: Sequence[Place],
    at_once: int,
    tell: Tell,
    steps_of: StepsOf,
) -> None:
    async with open_service(settings, clock=_CLOCK) as service:
        served = service.cells.models.served(asked.model, asked.version)
        asked = replace(asked, model=served.name, version=served.version)
        one = _OneByOne(service, asked, formats, settings.limits.max_bytes, steps_of)
        left = iter(enumerate(zip(files, places, strict=True)))

        async def work(left: "Iterator[tuple[int, tuple[Path, Place]]]") -> None:
            for index, (file, place) in left:
                tell(index, await one(file, place))

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(at_once, len(files))):
                    tasks.create_task(work(left))
        except ExceptionGroup as group:  # of equals, such as "nobody reads stdout any more"
            raise group.exceptions[0] from group


class _OneByOne:
    """Answers files, each for itself."""

    def __init__(
        self,
        service: Composition,
        asked: "CellsAsked",
        formats: "Sequence[CellFormat]",
        max_bytes: int,
        steps_of: StepsOf,
    ) -> None:
        self._service, self._asked, self._formats = service, asked, formats
        self._max_bytes = max_bytes
        self._steps_of = steps_of
        self._large = SegmentLarge(service.repository, clock=_CLOCK)
        # One large image at a time: two of them would need the memory twice.
        self._turn = asyncio.Lock()

    async def __call__(self, file: Path, place: Place) -> Outcome:
        try:
            try:
                return await self._whole(file, place)
            except (TooManyBytes, TooManyPixels):
                if not await asyncio.to_thread(_is_tiff, file):
                    raise
            return await self._by_windows(file, place)
        except IsocenterError as error:
            return refused(file, error)
        except OSError as error:
            return failed(file, "unreadable_file", error.strerror or type(error).__name__)
        except Exception as error:  # one file must not cost the others their answers
            return failed(file, "internal", f"unexpected {type(error).__name__}; this is a bug")

    async def _whole(self, file: Path, place: Place) -> Outcome:
        request_id = uuid.uuid4().hex
        image = await asyncio.to_thread(read_image, file, self._max_bytes)
        started_s = _CLOCK.now_s()
        # Nobody waits with a stop-watch for a file of a folder: it is answered, however long the queue.
        found = await self._service.cells(image, self._asked, request_id=request_id, deadline=Deadline.never())
        total_s = _CLOCK.now_s() - started_s
        try:
            written = await asyncio.to_thread(
                write, found, self._formats, place, request_id=request_id, total_s=total_s
            )
        except OSError as error:
            return _unwritten(file, error)
        return Outcome(file, answer=told(found, written, latency_ms=total_s * 1e3))

    async def _by_windows(self, file: Path, place: Place) -> Outcome:
        async with self._turn:
            started_s = _CLOCK.now_s()
            try:
                found = await self._large(
                    file,
                    self._asked,
                    out=large_place(place),
                    request_id=uuid.uuid4().hex,
                    progress=self._steps_of(file.name),
                )
            except OSError as error:  # its beginning was read just now
                return _unwritten(file, error)
            latency_ms = (_CLOCK.now_s() - started_s) * 1e3
        return Outcome(file, answer=told_large(found, latency_ms=latency_ms))


def _unwritten(file: Path, error: OSError) -> Outcome:
    return failed(file, "unwritten_file", f"the results cannot be written: {error.strerror or type(error).__name__}")


def _is_tiff(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) in _TIFF
