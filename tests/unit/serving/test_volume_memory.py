"""What a volume will hold is known before it starts, and nobody starts who would hold too much."""

import asyncio
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from isocenter.core.clock import ManualClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import Overloaded, VolumeTooLarge
from isocenter.core.events import RecordingObserver, Shed
from isocenter.core.request import EngineTimings, Request, Result
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.transforms.arrays.ahead import ahead
from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline
from isocenter.imaging.transforms.arrays.steps import (
    ArrayStep,
    CenterCrop,
    CropForeground,
    Orient,
    PadTo,
    PadToMultiple,
    Resample,
    ResizeArray,
    SelectChannels,
    Transpose,
)
from isocenter.imaging.volume import Volume
from isocenter.repository.golden import pipeline_of
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.segment import Segment, Segmentation
from isocenter.serving.volume_memory import VolumeMemory, volume_bytes
from segmenters import scores, write_segmenter

MIB = 2**20
SMALL = np.random.default_rng(2).standard_normal((1, 20, 9, 8)).astype(np.float32)

pytestmark = pytest.mark.may_block  # writes model folders


class Engine:
    """Answers at once; `held` keeps everybody waiting until it is set."""

    model, version, instances = "blobs", 1, 1
    service_s: dict[int, float] = {}  # noqa: RUF012 - nothing is known

    def __init__(self) -> None:
        self.runs = 0
        self.started, self.let_go = asyncio.Event(), asyncio.Event()
        self.let_go.set()

    def check(self, deadline: Deadline, *, priority: int = 0, ready_in_s: float = 0.0) -> None: ...

    def note_late(self) -> None: ...

    async def infer(self, request: Request) -> Result:
        self.runs += 1
        self.started.set()
        await self.let_go.wait()
        return Result({"scores": scores(request.item["x"])}, EngineTimings(0.0, 0.0, 1))


class Stage:
    """The use case over that engine, and what all volumes may hold."""

    def __init__(self, models: Path, limit_bytes: int | None = None, **changes: Any) -> None:
        folder = write_segmenter(models, **changes)
        self.manifest, self.engine, self.clock = folder.manifest, Engine(), ManualClock()
        self.observer = RecordingObserver()
        self.memory = VolumeMemory(limit_bytes, clock=self.clock) if limit_bytes is not None else None
        self.pool = CpuPool(threads=1, max_waiting=4, clock=self.clock)
        repository = Repository()
        repository.add(ServedModel(folder, "", pipeline_of(folder.manifest), cast(Any, self.engine), {}))
        self._segment = Segment(
            repository, self.pool, clock=self.clock, observer=self.observer, memory=self.memory
        )  # fmt: skip

    async def __call__(self, volume: Volume, **asked: Any) -> Segmentation:
        return await self._segment(volume, request_id="r1", **asked)

    def needs(self, volume: Volume, **asked: Any) -> int:
        return volume_bytes(self.manifest, volume.geometry, **asked)


async def test_a_volume_over_the_limit_by_itself_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 1000)
    async with stage.pool:
        with pytest.raises(VolumeTooLarge, match=r"would hold 1 MiB at its peak, .* may hold 1 MiB") as refused:
            await stage(Volume.of(SMALL))

    assert refused.value.details == {"bytes": stage.needs(Volume.of(SMALL), probabilities=False), "limit": 1000}
    assert stage.engine.runs == 0


async def test_a_volume_that_is_too_many_is_told_when_to_come_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    room = stage.needs(Volume.of(SMALL), probabilities=False)
    stage = Stage(tmp_path / "again", room + room // 2)
    assert stage.memory is not None
    async with stage.pool:
        await stage(Volume.of(SMALL))
        stage.engine.let_go.clear()
        stage.engine.started.clear()
        first = asyncio.create_task(stage(Volume.of(SMALL)))
        await stage.engine.started.wait()
        with pytest.raises(Overloaded) as refused:
            await stage(Volume.of(SMALL))
        assert refused.value.details == {"bytes": 2 * room, "limit": room + room // 2, "where": "volumes"}
        assert refused.value.retry_after_s == 1.0
        assert stage.observer.events == [Shed("blobs", 1, "memory")]
        stage.engine.let_go.set()
        await first
        assert stage.memory.in_use_bytes == 0
        await stage(Volume.of(SMALL))


async def test_room_is_given_back_whatever_happens(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 100 * MIB)
    assert stage.memory is not None
    async with stage.pool:
        stage.engine.let_go.clear()
        stage.engine.started.clear()
        work = asyncio.create_task(stage(Volume.of(SMALL)))
        await stage.engine.started.wait()
        assert stage.memory.in_use_bytes > 0
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    assert stage.memory.in_use_bytes == 0


def test_the_oldest_volume_says_when_there_is_room_again() -> None:
    clock = ManualClock()
    memory = VolumeMemory(100, clock=clock)
    with memory.held(60):
        clock.advance(30.0)
    with ExitStack() as stack:
        stack.enter_context(memory.held(60))
        clock.advance(10.0)
        with pytest.raises(Overloaded) as refused:
            stack.enter_context(memory.held(50))

    assert refused.value.retry_after_s == pytest.approx(20.0)


STEPS: list[tuple[ArrayStep, ...]] = [
    (Orient(kind="orient", axcodes="SPL"), Resample(kind="resample", spacing_mm=(2.0, 0.7, None))),
    (Transpose(kind="transpose", axes=(2, 0, 1)), ResizeArray(kind="resize", size=(7, None, 30))),
    (PadTo(kind="pad_to", size=(30, 4, None)), CenterCrop(kind="center_crop", size=(8, None, 3))),
    (Resample(kind="resample", spacing_mm=(1.5, 1.5, 1.5), extent="centres"), PadToMultiple(
        kind="pad_to_multiple", multiple_of=16
    )),
    (SelectChannels(kind="select_channels", channels=(1,)), CropForeground(
        kind="crop_foreground", margin=3, above=-99.0, multiple_of=4
    )),
]  # fmt: skip


@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: "-".join(each.kind for each in steps))
def test_what_steps_will_make_is_known_before(steps: tuple[ArrayStep, ...]) -> None:
    given = Volume.of(np.random.default_rng(0).random((2, 13, 9, 11), np.float32), spacing_mm=(1.0, 1.2, 2.5))

    *_, last = ahead(steps, given.geometry, 2)
    prepared = ArrayPipeline(steps)(given)

    assert (last.channels, *last.geometry.shape) == prepared.tensor.shape
    assert last.geometry.spacing_mm == pytest.approx(prepared.geometry.spacing_mm)
    assert last.geometry.axcodes == prepared.geometry.axcodes
    assert last.resampled == prepared.trail.resamples


def test_more_voxels_hold_more(tmp_path: Path) -> None:
    manifest = Stage(tmp_path).manifest
    sizes = [volume_bytes(manifest, Geometry.of((side, side, side))) for side in (40, 80, 160, 320)]

    assert sizes == sorted(sizes)
    assert volume_bytes(manifest, Geometry.of((80, 80, 80)), probabilities=False) < sizes[1]


SIGMOID = {"tensor": "scores", "activation": "sigmoid", "labels": ["one", "two"]}
FINER = [{"kind": "resample", "spacing_mm": [0.9, 1.1, 0.8]}]
TURNED = [{"kind": "orient", "axcodes": "RAS"}, {"kind": "standardize"}]
WINDOWS = {"roi": [64, 64, 64], "overlap": 0.25, "mode": "gaussian"}


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start(1)
    yield
    tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{"steps": []}, {"steps": TURNED}, {"steps": FINER}, {"steps": FINER, "output": SIGMOID | {"back": "scores"}}],
    ids=["as it is", "turned", "resampled", "regions by scores"],
)
async def test_no_more_is_held_than_was_said(
    tmp_path: Path, changes: dict[str, Any], probabilities: bool, traced: None
) -> None:
    stage = Stage(tmp_path, sliding=WINDOWS, batching={"max_batch_size": 1}, **changes)
    volume = Volume.of(np.random.default_rng(1).standard_normal((1, 150, 120, 100)).astype(np.float32))
    async with stage.pool:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        await stage(volume, probabilities=probabilities)
        _, peak = tracemalloc.get_traced_memory()

    measured = peak - before + volume.voxels.nbytes  # which were there before
    said = stage.needs(volume, probabilities=probabilities)
    assert measured <= said <= 2 * measured
