"""Scans: files go in, and findings with a checked mask on the scan's own grid come out.

A scan is read on a decode thread, segmented as any volume is, and its findings are told and written on a decode thread
again. What was written is opened again and held against the mask before anybody gets it. Scans never take all decode
threads: a picture need not wait until a scan is unpacked.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias, TypeVar

import numpy as np

from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import (
    Abandoned,
    DeadlineExceeded,
    Overloaded,
)
from isocenter.core.events import Observer, Shed
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.dicom_seg import refuse_unreferable, seg_of
from isocenter.imaging.codecs.montage import montage_of
from isocenter.imaging.codecs.nifti_write import nifti_of
from isocenter.imaging.codecs.released import check_nifti, check_seg
from isocenter.imaging.codecs.volume_files import Pick
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.postprocess.findings import findings_of
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.predict import own_deadline
from isocenter.serving.scan_answer import ScanAnswer, ScanFormat
from isocenter.serving.scan_paths import ScanRoots
from isocenter.serving.scan_reading import Files as Files
from isocenter.serving.scan_reading import GivenScan as GivenScan
from isocenter.serving.scan_reading import ReadScan, ScanOrChannels, ScanReader, by_channel
from isocenter.serving.segment import Segment, Segmentation
from isocenter.serving.segmenters import Segmenters

T = TypeVar("T")

_MOST_WAITING: Final = 64
"""Scans that may wait for a decode thread."""


Progress: TypeAlias = Callable[[str, float], object]
"""Is told the stage and how much of it is done, from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanAsked:
    """What is asked of a scan."""

    model: str | None = None
    """Left out: the default model if it segments volumes, else the only one that does."""
    version: int | None = None
    """Left out: the highest."""
    pick: Pick = field(default_factory=Pick)
    """Which series and volume of files that hold several."""
    formats: tuple[ScanFormat, ...] = ("json",)
    """As what the answer is written."""
    priority: int = 0
    """Smaller is sooner."""


class SegmentScan:
    """The use case. Every refusal that a scan can earn comes before any model time."""

    def __init__(
        self,
        repository: Repository,
        pool: CpuPool,
        segment: Segment,
        *,
        roots: ScanRoots,
        limits: VolumeLimits,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self.models = Segmenters(repository, "volume3d", refuse_none=True)
        """Those that segment scans."""
        self._pool = pool
        self._threads = _FewThreads(pool, clock)
        self._segment = segment
        self._roots = roots
        self._reader = ScanReader(roots, limits)
        self._clock = clock
        self._observer = observer

    @property
    def roots(self) -> ScanRoots:
        """Where a `ScanPath` may lead."""
        return self._roots

    async def __call__(
        self,
        source: ScanOrChannels,
        asked: ScanAsked,
        *,
        request_id: str,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
    ) -> ScanAnswer:
        """Answer one scan. Without a deadline, the model's own timeout counts.

        A plain mapping holds one scan for each of the model's channels, by name.

        Raises:
            BadInput: the scan, or what is asked of it, cannot be answered.
            Refused: not now, or not in the time that is given.
            DeadlineExceeded: too late.
            ModelFault: the model failed, or what was written is not what was found.
        """
        entered_s = self._clock.now_s()
        served = self.models.served(asked.model, asked.version)
        given = by_channel(source, served.manifest.input.channels, model=served.name)
        deadline = deadline or own_deadline(served, entered_s)
        self.check(served, deadline, priority=asked.priority)
        tell = progress or _tell_nobody
        tell("read", 0.0)
        started_s, read = await self._read(given, served, asked, deadline)
        read_s = self._clock.now_s()
        tell("windows", 0.0)
        found = await self._segment(
            read.volume,
            request_id=request_id,
            model=served.name,
            version=served.version,
            deadline=deadline,
            priority=asked.priority,
            probabilities=served.manifest.output.findings is not None or "probabilities" in asked.formats,
            threads=self._threads,
            progress=lambda done, of: tell("windows", done / of),
        )
        segmented_s = self._clock.now_s()
        tell("write", 0.0)
        answer, found_s = await self._threads.run(
            lambda: self._written(served, read, found, asked), deadline, admitted=True
        )
        ended_s = self._clock.now_s()
        tell("write", 1.0)
        stages_s = {"read_wait": started_s - entered_s, "read": read_s - started_s, **found.stages_s}
        stages_s |= {"findings": found_s - segmented_s, "write": ended_s - found_s}
        return replace(answer, stages_s=stages_s, request_id=request_id, total_s=ended_s - entered_s)

    def check(self, served: ServedModel, deadline: Deadline, *, priority: int = 0) -> None:
        """Refuse a request by its head alone; see `Engine.check`."""
        served.engine.check(deadline, priority=priority, ready_in_s=self._pool.ready_in_s())

    async def _read(
        self, given: Mapping[str, GivenScan], served: ServedModel, asked: ScanAsked, deadline: Deadline
    ) -> tuple[float, ReadScan]:
        def read() -> tuple[float, ReadScan]:
            started_s = self._clock.now_s()
            found = self._reader.read(given, asked.pick)
            if "dicom-seg" in asked.formats:
                refuse_unreferable(found.first)
            return started_s, found

        try:
            return await self._threads.run(read, deadline)
        except Overloaded:
            self._observer.observe(Shed(served.name, served.version, "decode_full"))
            raise

    def _written(
        self, served: ServedModel, read: ReadScan, found: Segmentation, asked: ScanAsked
    ) -> tuple[ScanAnswer, float]:
        """The answer in its formats, and when the findings were told."""
        rule = served.manifest.output.findings
        findings, mask = None, found.mask
        geometry, labels, probabilities = found.geometry, found.labels, found.probabilities
        if rule is not None:
            findings, mask = findings_of(mask, labels, geometry, rule, probabilities=probabilities)
        found_s = self._clock.now_s()
        parts: dict[ScanFormat, bytes] = {}
        if "nifti" in asked.formats or "json" in asked.formats:
            parts["nifti"] = nifti_of(mask, geometry)
            check_nifti(parts["nifti"], mask, geometry)
        if "dicom-seg" in asked.formats:
            parts["dicom-seg"] = seg_of(
                mask,
                labels,
                read.first,
                model=served.name,
                version=served.version,
                sha256=served.digest,
                findings=() if rule is None else rule.labels,
            )
            check_seg(parts["dicom-seg"], mask, geometry, labels)
        if "montage" in asked.formats:
            lesions = () if findings is None else findings.lesions
            parts["montage"] = montage_of(read.volume, mask, lesions=lesions)
        if "probabilities" in asked.formats:
            assert probabilities is not None
            maps = _of_labels(probabilities, exclusive=mask.ndim == len(geometry.shape))
            parts["probabilities"] = nifti_of(maps, geometry)
            check_nifti(parts["probabilities"], maps, geometry)
        kept = probabilities if "probabilities" in asked.formats else None
        answer = ScanAnswer(
            findings=findings,
            segmentation=replace(found, mask=mask, probabilities=kept),
            facts=read.first.facts,
            channels=read.channels,
            model=served.name,
            version=served.version,
            sha256=served.digest,
            warnings=found.warnings,
            stages_s={},
            voxels=_counts(mask, len(labels), exclusive=mask.ndim == len(geometry.shape)),
            formats=asked.formats,
            parts=parts,
        )
        return answer, found_s


class _FewThreads:
    """The decode threads but one, if there are several: what is left is for pictures."""

    def __init__(self, pool: CpuPool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._free = asyncio.Semaphore(max(1, pool.threads - 1))
        self._waiting = 0

    async def run(self, function: Callable[[], T], deadline: Deadline, *, admitted: bool = False) -> T:
        """Run a function in its turn; see `CpuPool.run`."""
        if self._waiting >= _MOST_WAITING and not admitted:
            raise Overloaded(
                f"{self._waiting} scans wait to be read, the limit is {_MOST_WAITING}",
                details={"where": "decode", "waiting": self._waiting, "limit": _MOST_WAITING},
                retry_after_s=max(0.1, self._pool.ready_in_s()),
            )
        left_s = deadline.left_s(self._clock.now_s())
        self._waiting += 1
        try:
            async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                await self._free.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed before a thread was free for the scan", details={"where": "decode"}
            ) from None
        finally:
            self._waiting -= 1
        seat = _Seat(self._free)
        try:
            return await self._pool.run(lambda: seat.taken_for(function), deadline, admitted=admitted)
        finally:
            seat.leave()


class _Seat:
    """A thread's place, free again when its work has ended: who leaves, or is too late, does not take that along."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free = free
        self._loop = asyncio.get_running_loop()
        self._ticket = [True]
        """Whoever takes it out, in one step of the interpreter, gives the place back."""

    def taken_for(self, function: Callable[[], T]) -> T:
        """Run the work; on its thread."""
        try:
            self._ticket.pop()
        except IndexError:
            raise Abandoned("the caller left before it was his turn") from None
        try:
            return function()
        finally:
            with suppress(RuntimeError):  # the loop is closed: nobody waits for the place
                self._loop.call_soon_threadsafe(self._free.release)

    def leave(self) -> None:
        """Nobody waits any more; on the event loop."""
        with suppress(IndexError):
            self._ticket.pop()
            self._free.release()


def _of_labels(probabilities: Array, *, exclusive: bool) -> Array:
    """The map of every label: without the background, and without an axis where one label is left."""
    maps = probabilities[1:] if exclusive else probabilities
    return np.ascontiguousarray(maps[0] if len(maps) == 1 else maps, np.float32)


def _counts(mask: Array, labels: int, *, exclusive: bool) -> tuple[int, ...]:
    """Voxels of every label."""
    if not exclusive:
        return tuple(int(np.count_nonzero(layer)) for layer in mask)
    some = [int(np.count_nonzero(mask == label)) for label in range(1, labels)]
    return mask.size - sum(some), *some


def _tell_nobody(stage: str, share: float) -> None:
    """Nobody asked for progress."""
