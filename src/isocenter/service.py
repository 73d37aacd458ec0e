"""Isocenter inside a Python program: the same service as behind HTTP, without a network."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from isocenter.app import Composition, open_service
from isocenter.core.errors import (
    BadSettings,
    IsocenterError,
    without_frames,
)
from isocenter.core.loop_thread import LoopThread
from isocenter.imaging.codecs.microscopy import PixelsAsked
from isocenter.imaging.volume import Volume
from isocenter.serving.calls import Call, one_call
from isocenter.serving.cell_answer import CellAnswer
from isocenter.serving.cells import CellsAsked
from isocenter.serving.embedded import (
    Answer,
    Asked,
    AskedOfCells,
    AskedOfScan,
    AskedOfVolume,
    ModelInfo,
    at_least,
    check_at_once,
    check_priority,
    check_threshold,
    check_version,
    check_volume,
    deadline_of,
    formats_of,
    info_of,
    pick_of,
    scan_of,
)
from isocenter.serving.given import Image, bytes_or_pixels
from isocenter.serving.predict import Prediction, own_deadline
from isocenter.serving.scan_answer import ScanAnswer, ScanFormat
from isocenter.serving.scan_reading import OwnScanOrChannels
from isocenter.serving.scans import Progress, ScanAsked
from isocenter.serving.segment import Segmentation
from isocenter.serving.stats import ModelStats
from isocenter.settings import load_settings

T = TypeVar("T")

AT_ONCE = 32


class Service:
    """The models of a folder, ready to answer on this event loop. Many calls at once share batches.

    `async with` loads, proves and warms the models; on the way out, what is in gets its answer first. The settings are
    those of the server (`ISOCENTER_*` variables count, what is given here wins), groups as mappings:
    `Service("models", limits={"max_pixels": 10_000_000})`. Nothing that belongs to the whole process is touched;
    a program that is all yours may call `isocenter.process.tune_process()` first.

    Raises:
        SetupError: a setting is wrong, or (on entering) a model is not what it claims to be.
    """

    def __init__(self, models: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        if settings.get("frontends"):
            raise BadSettings("frontends is for `isocenter serve`: a service inside a program has one process")
        given = settings if models is None else {"models": Path(models), **settings}
        self._settings = load_settings(**{**given, "frontends": 0})
        self._stack = AsyncExitStack()
        self._here: Composition | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def sync(cls, models: str | os.PathLike[str] | None = None, **settings: Any) -> "SyncService":
        """The same for programs without an event loop."""
        return SyncService(models, **settings)

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError("a service is opened once; make another one")
        self._loop = asyncio.get_running_loop()
        self._here = await self._stack.enter_async_context(open_service(self._settings))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        door = self._opened().door
        door.close()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain.bound_s):
                    await door.emptied()
        finally:
            await self._stack.aclose()

    async def infer(
        self,
        image: Image,
        *,
        model: str | None = None,
        version: int | None = None,
        threshold: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline for the whole service, not for this coroutine
        priority: int = 0,
    ) -> Answer:
        """Answer one image. Cancelling the call abandons it; nothing is run for it that has not begun.

        An array is taken as it is, upright and in RGB order, without a copy: leave it alone until the answer is there.

        Args:
            model: May be left out if one model is served, or `default_model` is set.
            version: The highest if left out.
            threshold: 0 to 1. `answer.labels` then lists every label whose probability is at least this, and is an
                empty list if there is none. `answer.label` is the most probable one all the same.
            timeout: Seconds until the answer is of no use any more; the model's `slo.timeout_ms` if left out.
            priority: Smaller is sooner.

        Raises:
            BadInput: the image or the name of the model cannot be answered.
            Refused: not now; `retry_after_s` says when.
            DeadlineExceeded: too late.
            ModelFault: the model failed.
        """
        here = self._opened()
        async with self._call("predict", model, version) as call:
            check_threshold(threshold)
            check_priority(priority)
            deadline = deadline_of(timeout, call.started_s) or here.predict.default_deadline(
                model, version, arrived_s=call.started_s
            )
            served = here.repository.resolve(model, version, task="classification")
            names = {str(label): label for label in served.manifest.output.labels}
            limit = self._settings.limits.max_bytes
            given = await bytes_or_pixels(image, limit, deadline=deadline, clock=here.clock)
            received_s = here.clock.now_s()
            found = await here.predict(
                given, request_id=call.request_id, model=model, version=version, deadline=deadline, priority=priority
            )
        parts = {field.name: getattr(found, field.name) for field in fields(Prediction)}
        parts["stages_s"] = {"receive": received_s - call.started_s, **found.stages_s}
        total_s = call.answered(found.model, found.version, parts["stages_s"])
        labels = None if threshold is None else [names.get(key, key) for key in at_least(found, threshold)]
        return Answer(**parts, request_id=call.request_id, total_s=total_s, labels=labels)

    async def infer_many(
        self, images: Iterable[Image], *, at_once: int = AT_ONCE, **asked: Unpack[Asked]
    ) -> list[Answer | IsocenterError]:
        """Answer every image, `at_once` at a time, in the order in which they were given; the rest as `infer`.

        An image that cannot be answered costs the others nothing: its error stands in its place. The timeout counts
        for each image from its own turn; `images` is asked for the next one, on the event loop, when its turn comes.
        """
        check_at_once(at_once)
        left = enumerate(images)
        answers: dict[int, Answer | IsocenterError] = {}

        async def work(left: Iterator[tuple[int, Image]]) -> None:
            for index, image in left:
                try:
                    answers[index] = await self.infer(image, **asked)
                except IsocenterError as error:
                    answers[index] = without_frames(error)
                    await asyncio.sleep(0)  # what is refused at once must not keep the loop from its other work

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(at_once):
                    tasks.create_task(work(left))
        except BaseExceptionGroup as group:  # of what `images` raised, or a defect of ours
            raise group.exceptions[0] from None
        return [answers[index] for index in sorted(answers)]

    async def segment(
        self,
        volume: Volume,
        *,
        model: str | None = None,
        version: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline for the whole service, not for this coroutine
        priority: int = 0,
        probabilities: bool = False,
    ) -> Segmentation:
        """Segment one volume or picture: a mask on its own grid, and the probabilities there if they are asked for.

        Cancelling the call abandons it. The arguments are those of `infer`; the voxels are left alone until the answer
        is there. Windows of large volumes take turns with everything else.

        Raises:
            BadInput: the volume or the name of the model cannot be answered.
            Refused: not now, or not in the time that is given.
            DeadlineExceeded: too late.
            ModelFault: the model failed.
        """
        here = self._opened()
        async with self._call("segment", model, version) as call:
            check_priority(priority)
            check_volume(volume)
            found = await here.segment(
                volume,
                request_id=call.request_id,
                model=model,
                version=version,
                deadline=deadline_of(timeout, call.started_s),
                priority=priority,
                probabilities=probabilities,
            )
        call.answered(found.model, found.version, found.stages_s)
        return found

    async def segment_scan(
        self,
        source: OwnScanOrChannels,
        *,
        model: str | None = None,
        version: int | None = None,
        formats: str | Sequence[ScanFormat] = ("json",),
        series: int | None = None,
        volume: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline for the whole service, not for this coroutine
        priority: int = 0,
        progress: Progress | None = None,
    ) -> ScanAnswer:
        """Find what a model of volumes looks for in one scan: findings and a checked mask on the scan's own grid.

        Cancelling the call abandons it. What is not told here is as for `infer`.

        Args:
            source: A path of a file or folder, several paths, the bytes of a file; or a mapping of these by channel.
            model: May be left out if one model segments volumes, or `default_model` does.
            version: The highest if left out.
            formats: What is written: names of json, nifti, dicom-seg, montage, probabilities, or a text of them with
                commas; `answer.parts` holds the files.
            series: Which one of several, from 1.
            volume: Which one of several in a series or file, from 0.
            timeout: Seconds until the answer is of no use any more.
            priority: Smaller is sooner.
            progress: Is told the stage and its share that is done, on the event loop.

        Raises:
            BadInput: the scan, or what is asked of it, cannot be answered.
            Refused: not now, or not in the time that is given.
            DeadlineExceeded: too late.
            ModelFault: the model failed.
        """
        here = self._opened()
        async with self._call("scan", model, version) as call:
            check_priority(priority)
            check_version(version)
            pick, wanted, deadline = pick_of(series, volume), formats_of(formats), deadline_of(timeout, call.started_s)
            asked = ScanAsked(model=model, version=version, pick=pick, formats=wanted, priority=priority)
            given = scan_of(source)
            found = await here.scans(given, asked, request_id=call.request_id, deadline=deadline, progress=progress)
        return replace(found, total_s=call.answered(found.model, found.version, found.stages_s))

    async def segment_image(
        self,
        image: Image | Volume,
        *,
        model: str | None = None,
        version: int | None = None,
        threshold: float | None = None,
        detect_holes: bool = True,
        channel: str | int | None = None,
        page: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline for the whole service, not for this coroutine
        priority: int = 0,
    ) -> CellAnswer:
        """Find the objects in one image of cells: polygons, a label image, measurements; see `CellAnswer`.

        Cancelling the call abandons it. What is not told here is as for `infer`.

        Args:
            image: A file's bytes, its path, pixels (HxW or HxWx3), or a `Volume` [C, H, W] with names of its channels.
            model: May be left out if one model segments images, or `default_model` does.
            version: The highest if left out.
            threshold: 0.1 to 0.9: the probability from which a pixel belongs to an object; the model's own if left out.
            detect_holes: False: a gap within one object is part of it.
            channel: One channel, by its name or its number from 0; those of an array are gray, or red, green, blue.
            page: One page of the file, from 0; pixels and volumes have no other.
            timeout: Seconds until the answer is of no use any more.
            priority: Smaller is sooner.

        Raises:
            BadInput: the image, or what is asked of it, cannot be answered.
            Refused: not now, or not in the time that is given.
            DeadlineExceeded: too late.
            ModelFault: the model failed.
        """
        here = self._opened()
        async with self._call("segment", model, version) as call:
            check_priority(priority)
            pixels = PixelsAsked(channel=channel, page=page)
            asked = CellsAsked(
                model=model, version=version, threshold=threshold, detect_holes=detect_holes, pixels=pixels
            )
            asked.check()
            served, given = here.cells.models.served(model, version), image
            deadline = deadline_of(timeout, call.started_s) or own_deadline(served, call.started_s)
            if not isinstance(given, Volume):
                limit = self._settings.limits.max_bytes
                given = await bytes_or_pixels(given, limit, deadline=deadline, clock=here.clock)
            received_s = here.clock.now_s()
            found = await here.cells(given, asked, request_id=call.request_id, deadline=deadline, priority=priority)
        stages_s = {"receive": received_s - call.started_s, **found.stages_s}
        total_s = call.answered(found.model, found.version, stages_s)
        return replace(found, stages_s=stages_s, request_id=call.request_id, total_s=total_s)

    async def get_metrics(self) -> dict[str, dict[str, Any]]:
        """How each model did in the last minute, by name: `stats` of the version that answers, as plain data."""
        names = dict.fromkeys(each.name for each in self._opened().repository)
        return {name: (await self.stats(name)).as_json() for name in names}

    async def stats(self, model: str, version: int | None = None) -> ModelStats:
        """How one version did in the last minute, and what it holds now.

        Raises:
            UnknownModel, UnknownVersion: it is not here.
        """
        return await self._opened().stats.stats(model, version)

    def models(self) -> list[ModelInfo]:
        """Every served version."""
        return [info_of(each) for each in self._opened().repository]

    def _opened(self) -> Composition:
        if self._here is None or asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "a service answers inside its `async with`, on its event loop; elsewhere use SyncService"
            )
        return self._here

    def _call(self, use_case: str, model: str | None, version: int | None) -> AbstractAsyncContextManager[Call]:
        here = self._opened()
        return one_call(
            use_case,
            door=here.door,
            clock=here.clock,
            observer=here.observer,
            meant=lambda: here.predict.meant_by(model, version),
        )


class SyncService:
    """`Service` for plain scripts and threads; any number of threads may ask at once, and share batches.

    `with SyncService("models") as service: service.infer("slice.png")`. The event loop runs on a thread of its own,
    which ends with the block. Ctrl-C during a call abandons that call. A notebook may use `open` and `close`.

    Raises:
        SetupError: as `Service`.
    """

    def __init__(self, models: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        self._service = Service(models, **settings)
        self._thread = LoopThread(self._service, name="isocenter-service")

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> Self:
        """Load the models; return when they are ready. Once."""
        self._thread.open()
        return self

    def close(self) -> None:
        """Give what is in its answer, then end the thread. Calls that come later get `Draining`. Twice is once."""
        self._thread.close()

    def infer(self, image: Image, **asked: Unpack[Asked]) -> Answer:
        """Answer one image; see `Service.infer`."""
        return self._thread.call(self._service.infer(image, **asked))

    def infer_many(
        self, images: Iterable[Image], *, at_once: int = AT_ONCE, **asked: Unpack[Asked]
    ) -> list[Answer | IsocenterError]:
        """Answer every image, an error in the place of what cannot be answered; see `Service.infer_many`."""
        return self._thread.call(self._service.infer_many(images, at_once=at_once, **asked))

    def segment(self, volume: Volume, **asked: Unpack[AskedOfVolume]) -> Segmentation:
        """Segment one volume or picture; see `Service.segment`."""
        return self._thread.call(self._service.segment(volume, **asked))

    def segment_scan(self, source: OwnScanOrChannels, **asked: Unpack[AskedOfScan]) -> ScanAnswer:
        """Find what a model of volumes looks for in one scan; see `Service.segment_scan`."""
        return self._thread.call(self._service.segment_scan(source, **asked))

    def segment_image(self, image: Image | Volume, **asked: Unpack[AskedOfCells]) -> CellAnswer:
        """Find the objects in one image of cells; see `Service.segment_image`."""
        return self._thread.call(self._service.segment_image(image, **asked))

    def get_metrics(self) -> dict[str, dict[str, Any]]:
        """How each model did in the last minute; see `Service.get_metrics`."""
        return self._thread.call(self._service.get_metrics())

    def stats(self, model: str, version: int | None = None) -> ModelStats:
        """How one version did in the last minute; see `Service.stats`."""
        return self._thread.call(self._service.stats(model, version))

    def models(self) -> list[ModelInfo]:
        """Every served version."""
        return self._thread.call(_soon(self._service.models))


async def _soon(function: Callable[[], T]) -> T:
    return function()
