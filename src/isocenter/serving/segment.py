"""Segment: one volume or picture in, a mask on its own grid out.

Windows of one volume form a group: they share batches with whoever else is there, and take turns with them.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded, InputNotAccepted, Overloaded, RuntimeFault
from isocenter.core.events import Observer, Shed
from isocenter.core.request import Request, Result
from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.image import Note
from isocenter.imaging.sliding.labels import LabelRule, Labels
from isocenter.imaging.sliding.merge import MERGED_BYTES as ROWS_BYTES
from isocenter.imaging.sliding.merge import Merge, Sink
from isocenter.imaging.sliding.plan import Sliding, WindowPlan
from isocenter.imaging.sliding.weights import importance
from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline, PreparedVolume
from isocenter.imaging.volume import Volume
from isocenter.repository.load import ServedModel
from isocenter.repository.manifest import Manifest
from isocenter.repository.repository import Repository
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.on_thread import on_thread
from isocenter.serving.predict import fallback_note, own_deadline, refuse_other_task
from isocenter.serving.volume_memory import BATCHES_AHEAD, MERGED_BYTES, VolumeMemory, volume_bytes, windows_of

T = TypeVar("T")

_RANK = {"image2d": 2, "volume3d": 3}
_AGAIN_AFTER_S = 0.05
# Batches of one volume cost memory: only where windows get clearly quicker, by more than the noise of a warm-up.
_PAYS_FROM = 1.3


class Threads(Protocol):
    """Where a volume is prepared: a `CpuPool`, or a share of one."""

    async def run(self, function: Callable[[], T], deadline: Deadline, *, admitted: bool = False) -> T:
        """Run a function on a thread; see `CpuPool.run`."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmentation:
    """The answer for one volume."""

    mask: Array
    """On the source grid. Labels that exclude each other: [*spatial], the number of each voxel's label, 0 is the
    background. Labels that may overlap: [K, *spatial] of 0 and 1, one layer a label."""
    labels: tuple[str | int, ...]
    geometry: Geometry
    """Of the source, and so of the mask."""
    probabilities: FloatArray | None
    """[K, *spatial] on the source grid, if they were asked for."""
    model: str
    version: int
    windows: int
    """Runs of the model that the answer was merged from."""
    warnings: tuple[Note, ...]
    stages_s: dict[str, float]
    """Seconds by stage, in the order in which they happened."""
    fallback: str = ""
    """What answered windows in place of the model's own runtime; empty: the model's own did."""
    batch_size: int = 1
    """Items in the largest batch that a window was run in."""

    def of(self, label: str | int) -> Array:
        """Which voxels have a label, [*spatial] of True and False.

        Raises:
            ValueError: there is no such label.
        """
        number = self.labels.index(label)
        exclusive = self.mask.ndim == len(self.geometry.shape)
        return np.asarray(self.mask == number if exclusive else self.mask[number] == 1)


class Segment:
    """The use case. One line a stage; every refusal that a volume can earn comes before any model time."""

    def __init__(
        self,
        repository: Repository,
        pool: CpuPool,
        *,
        clock: Clock,
        observer: Observer,
        memory: VolumeMemory | None = None,
    ) -> None:
        """`memory`: what all volumes in progress may hold together; None: as much as there is."""
        self._repository = repository
        self._pool = pool
        self._memory = memory
        self._clock = clock
        self._observer = observer

    async def __call__(
        self,
        volume: Volume,
        *,
        request_id: str,
        model: str | None = None,
        version: int | None = None,
        deadline: Deadline | None = None,
        priority: int = 0,
        probabilities: bool = False,
        group: str = "",
        threads: Threads | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Segmentation:
        """Answer one volume. Without a deadline, the model's own timeout counts.

        Args:
            volume: what is segmented.
            request_id: names the windows.
            model: see `Repository.resolve`.
            version: see `Repository.resolve`.
            deadline: after which nobody waits.
            priority: smaller is sooner.
            probabilities: keep them for the answer.
            group: a larger piece of work that the volume belongs to; its volumes take turns with others as one.
            threads: where it is prepared; the pool, if left out.
            progress: is told how many windows are done, of how many; on the event loop.

        Raises:
            BadInput: the volume or the name of the model cannot be answered.
            VolumeTooLarge: it would hold more memory than all volumes together may.
            Refused: not now, or not in the time that is given.
            DeadlineExceeded: too late.
            ModelFault: the model failed.
        """
        entered_s = self._clock.now_s()
        served = self._repository.resolve(model, version, task="segmentation")
        refuse_other_task(served, "segmentation")
        deadline = deadline or own_deadline(served, entered_s)
        served.engine.check(deadline, priority=priority, ready_in_s=self._pool.ready_in_s())
        output = served.manifest.output
        try:
            with self._room(served, volume, probabilities):
                started_s, prepared = await self._prepared(served, volume, deadline, threads or self._pool)
                prepared_s = self._clock.now_s()
                windows, notes = windows_of(served.manifest, prepared.tensor.shape[1:]), prepared.notes
                self._refuse_too_many(served, windows, deadline)
                labels = Labels(windows.shape, prepared.trail, _rule(served.manifest), probabilities=probabilities)
                run = WindowRun(
                    served,
                    windows,
                    partial(windows.cut, prepared.tensor),
                    deadline,
                    priority,
                    request_id,
                    group,
                    self._clock,
                    merged_bytes=MERGED_BYTES,
                )
                del prepared  # the run holds what it needs of it, and lets go of it
                await run.into(labels, progress)
                merged_s = self._clock.now_s()
                mask, found = await on_thread(labels.finish)
        except DeadlineExceeded:
            served.engine.note_late()
            raise
        return Segmentation(
            mask=mask,
            labels=tuple(output.labels),
            geometry=volume.geometry,
            probabilities=found,
            model=served.name,
            version=served.version,
            windows=len(windows),
            warnings=(*volume.notes, *notes, *fallback_note(run.fallback)),
            fallback=run.fallback,
            batch_size=run.batch_size,
            stages_s={
                "wait": started_s - entered_s,
                "preprocess": prepared_s - started_s,
                "windows": merged_s - prepared_s,
                "postprocess": self._clock.now_s() - merged_s,
            },
        )

    def _room(self, served: ServedModel, volume: Volume, probabilities: bool) -> AbstractContextManager[None]:
        """Room for everything that a volume will hold, before any of it is; pictures have limits of their own."""
        manifest, geometry = served.manifest, volume.geometry
        if self._memory is None or manifest.input.kind != "volume3d" or len(geometry.shape) != _RANK["volume3d"]:
            return nullcontext()
        needed = volume_bytes(
            manifest,
            geometry,
            channels=len(volume.voxels),
            voxel_bytes=volume.voxels.itemsize,
            probabilities=probabilities,
        )
        return self._memory.held(
            needed, on_full=lambda: self._observer.observe(Shed(served.name, served.version, "memory"))
        )

    async def _prepared(
        self, served: ServedModel, volume: Volume, deadline: Deadline, threads: Threads
    ) -> tuple[float, PreparedVolume]:
        def prepare() -> tuple[float, PreparedVolume]:
            started_s = self._clock.now_s()
            return started_s, prepare_volume(served.manifest, served.pipeline, volume)

        try:
            return await threads.run(prepare, deadline)
        except Overloaded:
            self._observer.observe(Shed(served.name, served.version, "decode_full"))
            raise

    def _refuse_too_many(self, served: ServedModel, windows: WindowPlan, deadline: Deadline) -> None:
        """Refuse a volume whose windows cannot all be run in time, before the first one is."""
        runs_s = [seconds / size for size, seconds in served.engine.service_s.items()]
        left_s = deadline.left_s(self._clock.now_s())
        needed_s = len(windows) * min(runs_s, default=0.0) / max(1, served.engine.instances)
        if needed_s > left_s:
            self._observer.observe(Shed(served.name, served.version, "would_be_late"))
            raise Overloaded(
                f"{len(windows)} windows take {needed_s:.3f} s, {left_s:.3f} s are left",
                details={"windows": len(windows), "needed_s": round(needed_s, 3), "left_s": round(left_s, 3)},
                retry_after_s=max(_AGAIN_AFTER_S, needed_s - left_s),
            )


class WindowRun:
    """The windows of one volume on their way through the engine: so many at once, merged in their order."""

    def __init__(
        self,
        served: ServedModel,
        windows: WindowPlan,
        cut: Callable[[tuple[int, ...]], FloatArray],
        deadline: Deadline,
        priority: int,
        request_id: str,
        group: str,
        clock: Clock,
        *,
        merged_bytes: int = ROWS_BYTES,
    ) -> None:
        self._served, self._windows, self._merged_bytes = served, windows, merged_bytes
        self._cut: Callable[[tuple[int, ...]], FloatArray] | None = cut
        self._deadline, self._priority, self._id = deadline, priority, request_id
        self._group = group or (request_id if len(windows) > 1 else "")
        self._clock = clock
        self._answered = 0
        self.fallback = ""
        self.batch_size = 1

    async def into(self, sink: Sink, progress: Callable[[int, int], object] | None = None) -> None:
        """What the model says of every voxel, row after row into a sink, on threads. To be called once.

        `progress` is told how many windows of how many are done.
        """
        manifest = self._served.manifest
        sliding = manifest.sliding or Sliding(roi=self._windows.roi)
        weights, half = importance(sliding), sliding.sums == "fp16"
        merge = Merge(self._windows, weights, sink, half=half, merged_bytes=self._merged_bytes)
        at_once = max(1, BATCHES_AHEAD * self._batch_size_that_pays() * self._served.engine.instances)
        under_way: deque[asyncio.Task[Result]] = deque()
        try:
            for number, at in enumerate(self._windows):
                if len(under_way) >= at_once:
                    await self._merge_next(under_way, merge, progress)
                under_way.append(asyncio.create_task(self._infer(number, at)))
            while under_way:
                await self._merge_next(under_way, merge, progress)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            self._cut = None  # and with it the prepared tensor
        await on_thread(merge.finish)

    def _batch_size_that_pays(self) -> int:
        """More windows of one volume on their way would only be held: where one fills the machine, it is one."""
        costs = {size: seconds / size for size, seconds in self._served.engine.service_s.items()}
        enough = _PAYS_FROM * min(costs.values(), default=0.0)
        paying = (size for size, cost in costs.items() if cost <= enough)
        return min(paying, default=self._served.manifest.batching.max_batch_size)

    async def _merge_next(
        self,
        under_way: "deque[asyncio.Task[Result]]",
        merge: Merge,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        result = await under_way[0]
        under_way.popleft()
        self._answered += 1
        self.fallback = self.fallback or result.fallback
        self.batch_size = max(self.batch_size, result.timings.batch_size)
        output = result.outputs[self._served.manifest.output.tensor]
        if output.shape[1:] != self._windows.roi:  # an open specification lets anything pass
            raise RuntimeFault(
                f"a window of {list(self._windows.roi)} voxels was answered with {list(output.shape)}",
                details={"roi": [*self._windows.roi], "output": [*output.shape]},
            )
        await on_thread(partial(merge.add, output))
        if progress is not None:
            progress(self._answered, len(self._windows))

    async def _infer(self, number: int, at: tuple[int, ...]) -> Result:
        assert self._cut is not None
        window = await on_thread(partial(self._cut, at))
        request = Request(
            f"{self._id}/{number}",
            {self._served.manifest.input.tensor: window},
            self._deadline,
            self._priority,
            group=self._group,
        )
        while True:
            try:
                return await self._served.engine.infer(request)
            except Overloaded as error:
                if not self._answered:
                    raise
                # Refused in the middle: what was computed already shall not be lost to a queue that is full for once.
                again_s = self._clock.now_s() + (error.retry_after_s or _AGAIN_AFTER_S)
                await self._clock.sleep_until(min(again_s, self._deadline.at_s))


def prepare_volume(manifest: Manifest, pipeline: object, volume: Volume) -> PreparedVolume:
    """A volume as the model takes it.

    Raises:
        BadInput: it is of another rank, lacks a channel, holds nothing, or a step cannot take it.
    """
    assert isinstance(pipeline, ArrayPipeline)
    rank = _RANK[manifest.input.kind]
    if len(volume.geometry.shape) != rank:
        raise InputNotAccepted(
            f"the model takes {manifest.input.kind}, this has {len(volume.geometry.shape)} spatial axes",
            details={"axes": len(volume.geometry.shape), "wanted": rank},
        )
    chosen = volume.select(manifest.input.channels)
    chosen.refuse_unusable(each=rank == 3)
    if manifest.input.extent_mm is not None:
        _refuse_extent(chosen, *manifest.input.extent_mm)
    return pipeline(chosen)


def _refuse_extent(volume: Volume, least_mm: float, most_mm: float) -> None:
    """See that a scan is as large as what it shows: a lone slice or a wrong unit is answered with confidence."""
    geometry = volume.geometry
    for axis, (size, spacing_mm) in enumerate(zip(geometry.shape, geometry.spacing_mm, strict=True)):
        extent_mm = size * spacing_mm
        if not least_mm <= extent_mm <= most_mm:
            raise InputNotAccepted(
                f"the scan measures {extent_mm:.6g} mm along axis {axis} ({size} times {spacing_mm:.6g} mm); the model "
                f"accepts {least_mm:g} to {most_mm:g} mm",
                details={"axis": axis, "extent_mm": extent_mm, "min_mm": least_mm, "max_mm": most_mm},
            )


def _rule(manifest: Manifest) -> LabelRule:
    output = manifest.output
    half = manifest.sliding is not None and manifest.sliding.sums == "fp16"
    return LabelRule(
        activation=output.activation,
        threshold=output.threshold,
        foreground=output.foreground_threshold,
        back=output.back,
        half=half,
    )
