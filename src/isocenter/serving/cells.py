"""Cells: one image in, its objects out as polygons, a label image and measurements.

An image is decoded on a decode thread, segmented as any picture is, and parted into objects on a decode thread again.
Images that were sent together are one group: they fill batches, and take turns with everybody else as one caller.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Final, TypeVar

import numpy as np

from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import (
    BadRequest,
    BadValue,
    InputNotAccepted,
    IsocenterError,
    MissingImage,
    Overloaded,
    TooManyPixels,
    without_frames,
)
from isocenter.core.events import Observer, Shed
from isocenter.core.tensor import Array
from isocenter.imaging.array import from_array
from isocenter.imaging.codecs.microscopy import (
    PixelsAsked,
    as_channels,
    chosen,
    pixel_size_um,
    read_image,
    refuse_other_page,
    volume_of,
)
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.postprocess.activation import threshold_of
from isocenter.imaging.postprocess.contours import polygons_of
from isocenter.imaging.postprocess.objects import ObjectRule, objects_of
from isocenter.imaging.postprocess.quantities import quantities_of
from isocenter.imaging.volume import Volume
from isocenter.repository.load import ServedModel
from isocenter.repository.manifest import Manifest, OutputPart
from isocenter.repository.repository import Repository
from isocenter.serving.cell_answer import CellAnswer, CellFormat, Rendered
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.predict import own_deadline
from isocenter.serving.segment import Segment, Segmentation, Threads
from isocenter.serving.segmenters import Segmenters

T = TypeVar("T")

_MAX_HELD_BYTES: Final = 1 << 30
"""What the model is given, its scores and their probabilities may take, of one image."""
MIN_THRESHOLD: Final = 0.1
MAX_THRESHOLD: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class CellsAsked:
    """What is asked of an image."""

    model: str | None = None
    """Left out: the default model if it segments images, else the only one that does."""
    version: int | None = None
    """Left out: the highest."""
    threshold: float | None = None
    """Probability from which a pixel belongs to an object, 0.1 to 0.9; left out, the model's own."""
    detect_holes: bool = True
    """False: a gap within one object is part of it; one in which another object lies stays."""
    pixels: PixelsAsked = field(default_factory=PixelsAsked)
    """Which page and channel of a file that holds several."""

    def check(self) -> None:
        """See that it can be done at all.

        Raises:
            BadValue: the threshold is out of range.
            BadRequest: it is no number, or `detect_holes` is neither true nor false.
        """
        holes: object = self.detect_holes
        if not isinstance(holes, bool | np.bool_):  # the text "false" would count as true
            raise BadRequest(f"detect_holes is {type(holes).__name__}; it must be True or False")
        given: object = self.threshold
        if given is not None and not isinstance(given, Real):
            kind = type(given).__name__
            raise BadRequest(f"threshold is {kind}; it must be a number from {MIN_THRESHOLD} to {MAX_THRESHOLD}")
        found = self.threshold
        if found is not None and not MIN_THRESHOLD <= found <= MAX_THRESHOLD:
            raise BadValue(
                f"threshold is {found}; it must be from {MIN_THRESHOLD} to {MAX_THRESHOLD}",
                details={"threshold": found, "min": MIN_THRESHOLD, "max": MAX_THRESHOLD},
            )


class SegmentImage:
    """The use case. Every refusal that an image can earn comes before any model time."""

    def __init__(
        self,
        repository: Repository,
        pool: CpuPool,
        segment: Segment,
        *,
        limits: ImageLimits,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self.models = Segmenters(repository, "image2d", refuse_none=False)
        """Those that segment images."""
        self._pool = pool
        self._segment = segment
        self._limits = limits
        self._clock = clock
        self._observer = observer

    async def __call__(
        self,
        image: bytes | Array | Volume,
        asked: CellsAsked,
        *,
        request_id: str,
        deadline: Deadline | None = None,
        priority: int = 0,
        form: CellFormat | None = None,
    ) -> CellAnswer:
        """Answer one image. Without a deadline, the model's own timeout counts.

        `form` is what it will be written as: as much of that as can be is done on a thread.

        Raises:
            BadInput: the image, or what is asked of it, cannot be answered.
            Refused: not now, or not in the time that is given.
            DeadlineExceeded: too late.
            ModelFault: the model failed.
        """
        served = self.models.served(asked.model, asked.version)
        asked.check()
        work = _Work(self._pool, served, asked, request_id, "", deadline, priority, form)
        return await self._one(image, work)

    async def many(
        self,
        images: Sequence[bytes],
        asked: CellsAsked,
        *,
        request_id: str,
        deadline: Deadline | None = None,
        priority: int = 0,
        form: CellFormat | None = None,
    ) -> list[CellAnswer | IsocenterError]:
        """Answer several images as one caller. One that cannot be answered costs the others nothing.

        No more of them are on decode threads at a time than there are threads: another caller's image waits for one.

        Raises:
            BadInput: what is asked of them cannot be answered.
        """
        served = self.models.served(asked.model, asked.version)
        asked.check()
        threads = _Share(self._pool)
        tasks = []
        for number, image in enumerate(images):
            work = _Work(threads, served, asked, f"{request_id}.{number}", request_id, deadline, priority, form)
            tasks.append(asyncio.ensure_future(self._one_of_many(image, work)))
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def rendered(
        self, answer: CellAnswer, form: CellFormat, deadline: Deadline, *, tiff: bool = False
    ) -> Rendered:
        """Write an answer, on a thread; see `CellAnswer.render`."""
        return await self._pool.run(lambda: answer.render(form, tiff=tiff), deadline, admitted=True)

    def check(self, served: ServedModel, deadline: Deadline) -> None:
        """Refuse a request by its head alone; see `Engine.check`."""
        served.engine.check(deadline, ready_in_s=self._pool.ready_in_s())

    async def _one_of_many(self, image: bytes, work: "_Work") -> CellAnswer | IsocenterError:
        try:
            return await self._one(image, work)
        except IsocenterError as error:
            return without_frames(error)

    async def _one(self, image: bytes | Array | Volume, work: "_Work") -> CellAnswer:
        entered_s = self._clock.now_s()
        served, asked = work.served, work.asked
        deadline = work.deadline or own_deadline(served, entered_s)
        served.engine.check(deadline, priority=work.priority, ready_in_s=self._pool.ready_in_s())
        try:
            started_s, source, volume = await work.threads.run(
                lambda: self._decoded(image, served, asked.pixels), deadline
            )
        except Overloaded:
            self._observer.observe(Shed(served.name, served.version, "decode_full"))
            raise
        decoded_s = self._clock.now_s()
        found = await self._segment(
            volume,
            request_id=work.request_id,
            model=served.name,
            version=served.version,
            deadline=deadline,
            priority=work.priority,
            probabilities=True,
            group=work.group,
            threads=work.threads,
        )
        segmented_s = self._clock.now_s()
        answer = await work.threads.run(
            lambda: _parted(source, volume, found, served.manifest.output, asked, work.form), deadline, admitted=True
        )
        ended_s = self._clock.now_s()
        stages_s = {"decode_wait": started_s - entered_s, "decode": decoded_s - started_s, **found.stages_s}
        return replace(answer, stages_s=stages_s | {"objects": ended_s - segmented_s})

    def _decoded(
        self, image: bytes | Array | Volume, served: ServedModel, asked: PixelsAsked
    ) -> tuple[float, Volume, Volume]:
        """When it began; the image, and the image with the channels that the model takes."""
        started_s = self._clock.now_s()
        if not isinstance(image, bytes):
            source = self._taken(image, asked)
        elif image:
            source = read_image(image, limits=self._limits, asked=asked)
        else:
            raise MissingImage("the image is empty: 0 bytes", details={"bytes": 0})
        _refuse_too_large(source, served.manifest)
        return started_s, source, as_channels(source, served.manifest.input.channels)

    def _taken(self, image: Array | Volume, asked: PixelsAsked) -> Volume:
        """What is asked of pixels that a caller already holds: as of a file with one page."""
        refuse_other_page(asked.page)
        if isinstance(image, Volume):
            shape = image.geometry.shape
            if len(shape) != 2:
                raise InputNotAccepted(
                    f"a volume of {' x '.join(map(str, shape))} voxels, and the model takes images: of one plane",
                    details={"shape": [*shape]},
                )
            return chosen(image, asked.channel)
        source = chosen(volume_of(from_array(image, limits=self._limits)), asked.channel)
        source.refuse_unusable(each=False)
        return source


@dataclass(frozen=True, slots=True)
class _Work:
    """One image on its way."""

    threads: Threads
    served: ServedModel
    asked: CellsAsked
    request_id: str
    group: str
    deadline: Deadline | None
    priority: int
    form: CellFormat | None


class _Share:
    """The decode threads, for one caller's images: as many jobs of theirs at a time as there are threads."""

    def __init__(self, pool: CpuPool) -> None:
        self._pool = pool
        self._free = asyncio.Semaphore(pool.threads)

    async def run(self, function: Callable[[], T], deadline: Deadline, *, admitted: bool = False) -> T:
        """Run a function in its turn; see `CpuPool.run`."""
        async with self._free:
            return await self._pool.run(function, deadline, admitted=admitted)


def rule_of(output: OutputPart, asked: CellsAsked) -> ObjectRule:
    """How pixels become objects: as the manifest declares it, and as is asked.

    Where nothing is declared, connected pixels are an object: of every label but the background, or of every label if
    they may overlap.
    """
    rule = output.objects
    if rule is None:
        threshold = threshold_of(output.activation, output.threshold)
        from_there_on = threshold or output.foreground_threshold or 0.5
        rule = ObjectRule(inside=[*output.labels] if threshold is not None else [], threshold=from_there_on)
    changes: dict[str, object] = {} if asked.threshold is None else {"threshold": asked.threshold}
    if not asked.detect_holes:
        changes |= {"fill_holes": True, "max_hole_px": None}
    return rule.model_copy(update=changes)


def _refuse_too_large(source: Volume, manifest: Manifest) -> None:
    """See that an image can be held as a whole, in float32, several times over."""
    height, width = source.geometry.shape
    each_bytes = 4 * (len(manifest.input.channels) + 2 * len(manifest.output.labels))
    most = _MAX_HELD_BYTES // each_bytes
    if height * width > most:
        raise TooManyPixels(
            f"the image has {height * width} pixels, at most {most} are segmented at once by {manifest.name}; "
            "`isocenter segment` takes larger ones by their windows",
            details={"width_px": width, "height_px": height, "pixels": height * width, "limit_pixels": most},
        )


def _parted(
    source: Volume, volume: Volume, found: Segmentation, output: OutputPart, asked: CellsAsked, form: CellFormat | None
) -> CellAnswer:
    """Probabilities to objects, and as much of the writing as can be done before the end."""
    assert found.probabilities is not None
    rule = rule_of(output, asked)
    labels = objects_of(found.probabilities, rule, found.labels)
    pixel = pixel_size_um(source)
    names = [str(label) for label in rule.inside or output.labels[1:]]
    given = [source.channels.index(name) for name in volume.channels if name in source.channels]
    answer = CellAnswer(
        labels=labels,
        polygons=polygons_of(labels.labels),
        quantities=quantities_of(labels.labels, source.voxels, pixel_size_um=pixel),
        model=found.model,
        version=found.version,
        threshold=rule.threshold,
        detect_holes=asked.detect_holes,
        batch_size=found.batch_size,
        warnings=found.warnings,
        stages_s={},
        pixel_size_um=pixel,
        volume=source,
        name=names[0] if len(names) == 1 else "cell",
        shown=min(given, default=0),
        fallback=found.fallback,
    )
    if form == "json":
        answer.polygons_json()
    return answer
