"""Windows on their way: one group, so many at once, merged in their order whatever the order of the answers."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from isocenter.core.clock import ManualClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded, InputNotAccepted, Overloaded, RuntimeFault
from isocenter.core.events import RecordingObserver, Shed
from isocenter.core.request import EngineTimings, Request, Result
from isocenter.core.tensor import Array, Tensors
from isocenter.imaging.volume import Volume
from isocenter.repository.golden import pipeline_of
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.segment import Segment, Segmentation
from segmenters import scores, write_segmenter

VOXELS = np.random.default_rng(2).standard_normal((1, 20, 9, 8)).astype(np.float32)
AT_ONCE = 2 * 4

pytestmark = pytest.mark.may_block  # writes model folders


class Clock(ManualClock):
    """Nobody waits; it is written down for how long he would have."""

    def __init__(self) -> None:
        super().__init__()
        self.slept_s: list[float] = []

    async def sleep_until(self, instant_s: float) -> None:
        self.slept_s.append(instant_s - self.now_s())
        await asyncio.sleep(0)


class Engine:
    """Answers when it is told to."""

    model, version, instances = "blobs", 1, 1

    def __init__(self, answer: Callable[[Request], Tensors] | None = None) -> None:
        self.service_s: dict[int, float] = {1: 0.010, 4: 0.020}
        self.requests: list[Request] = []
        self.late = 0
        self.refuse: list[int] = []
        """Numbers of the calls that are refused."""
        self.calls = 0
        self.backwards = False
        self.under_way = self.most = 0
        self._answer = answer or (lambda request: {"scores": scores(request.item["x"])})

    def check(self, deadline: Deadline, *, priority: int = 0, ready_in_s: float = 0.0) -> None: ...

    def note_late(self) -> None:
        self.late += 1

    async def infer(self, request: Request) -> Result:
        self.calls += 1
        if self.calls in self.refuse:
            raise Overloaded("the queue is full", retry_after_s=0.3)
        self.requests.append(request)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        turns = (len(self.requests) * 7) % 5 if self.backwards else 0
        try:
            for _ in range(1 + turns):
                await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        return Result(self._answer(request), EngineTimings(0.0, 0.0, 1))


class Stage:
    """The use case between a fake engine and a clock that stands still."""

    def __init__(self, models: Path, engine: Engine, **changes: Any) -> None:
        folder = write_segmenter(models, **changes)
        self.engine, self.clock, self.recorder = engine, Clock(), RecordingObserver()
        self.pool = CpuPool(threads=1, max_waiting=4, clock=self.clock)
        repository = Repository()
        repository.add(ServedModel(folder, "", pipeline_of(folder.manifest), cast(Any, engine), {}))
        self._segment = Segment(repository, self.pool, clock=self.clock, observer=self.recorder)

    async def __call__(self, voxels: Array = VOXELS, **asked: Any) -> Segmentation:
        async with self.pool:
            return await self._segment(Volume.of(voxels), request_id="r1", **asked)


async def test_windows_of_a_volume_are_one_group_of_its_own_name_and_priority(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Engine())
    await stage(priority=3, deadline=Deadline(9.0))

    requests = stage.engine.requests
    assert {request.group for request in requests} == {"r1"}
    assert sorted(request.id for request in requests) == sorted(f"r1/{number}" for number in range(len(requests)))
    assert {(request.priority, request.deadline.at_s) for request in requests} == {(3, 9.0)}


@pytest.mark.parametrize(("extent_mm", "axis"), [([8, 20], None), ([8, 19], 0), ([9, 20], 2)])
async def test_a_scan_that_is_not_as_large_as_what_it_shows_is_refused_before_any_window(
    tmp_path: Path, extent_mm: list[float], axis: int | None
) -> None:
    given = {"kind": "volume3d", "tensor": "x", "channels": ["t1"], "extent_mm": extent_mm}
    stage = Stage(tmp_path, Engine(), input=given)
    if axis is None:
        assert (await stage()).mask.shape == (20, 9, 8)
        return

    with pytest.raises(InputNotAccepted) as caught:
        await stage()
    measured = float(VOXELS.shape[1 + axis])
    assert caught.value.details == {
        "axis": axis, "extent_mm": measured, "min_mm": extent_mm[0], "max_mm": extent_mm[1]
    }  # fmt: skip
    assert stage.engine.requests == []


async def test_a_lone_window_is_by_itself(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Engine())
    await stage(VOXELS[:, :8, :8])

    assert [request.group for request in stage.engine.requests] == [""]


async def test_no_more_windows_are_on_their_way_than_two_batches_an_instance(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Engine())
    answer = await stage(np.tile(VOXELS, (1, 2, 2, 1)))

    assert answer.windows > 2 * AT_ONCE
    assert 1 < stage.engine.most <= AT_ONCE


async def test_the_order_of_the_answers_does_not_matter(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Engine())
    stage.engine.backwards = True

    assert np.array_equal((await stage()).mask, VOXELS[0] > 0)


async def test_who_is_refused_at_once_hears_of_it_at_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Engine())
    stage.engine.refuse = [1]

    with pytest.raises(Overloaded, match="the queue is full"):
        await stage()

    assert stage.clock.slept_s == []
    assert stage.engine.under_way == 0


async def test_who_is_refused_in_the_middle_comes_again_when_he_was_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Engine())
    stage.engine.refuse = [AT_ONCE + 1, AT_ONCE + 2]
    voxels = np.tile(VOXELS, (1, 2, 2, 1))

    answer = await stage(voxels)

    assert np.array_equal(answer.mask, voxels[0] > 0)
    assert stage.clock.slept_s == pytest.approx([0.3, 0.3])


async def test_who_is_refused_in_the_middle_waits_no_longer_than_until_his_deadline(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Engine())
    stage.engine.refuse = [AT_ONCE + 1]

    await stage(np.tile(VOXELS, (1, 2, 2, 1)), deadline=Deadline(stage.clock.now_s() + 0.2))

    assert stage.clock.slept_s == pytest.approx([0.2])


async def test_a_volume_is_refused_if_its_windows_need_more_time_than_is_left(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Engine())  # 5 ms a window, in batches of 4
    column = np.tile(VOXELS, (1, 3, 1, 1))[:, :44, :8]  # 10 windows

    with pytest.raises(Overloaded) as caught:
        await stage(column, deadline=Deadline(0.049))

    assert caught.value.details == {"windows": 10, "needed_s": 0.05, "left_s": 0.049}
    assert caught.value.retry_after_s == pytest.approx(0.05)
    assert stage.recorder.events == [Shed("blobs", 1, "would_be_late")]
    assert stage.engine.requests == []


async def test_a_volume_is_taken_if_its_windows_fit_into_the_time_that_is_left(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Engine())
    column = np.tile(VOXELS, (1, 3, 1, 1))[:, :44, :8]

    assert (await stage(column, deadline=Deadline(0.051))).windows == 10


async def test_a_deadline_that_passes_is_told_to_the_door(tmp_path: Path) -> None:
    def too_late(request: Request) -> Tensors:
        raise DeadlineExceeded("too late")

    stage = Stage(tmp_path, Engine(too_late))
    with pytest.raises(DeadlineExceeded):
        await stage()

    assert stage.engine.late == 1


async def test_an_answer_of_another_size_is_the_fault_of_the_model(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Engine(lambda request: {"scores": scores(request.item["x"])[:, :4]}))

    with pytest.raises(RuntimeFault, match=r"\[8, 8, 8\] voxels was answered with \[2, 4, 8, 8\]"):
        await stage()


async def test_windows_that_a_fallback_answered_are_said_to_be(tmp_path: Path) -> None:
    class Fallback(Engine):
        async def infer(self, request: Request) -> Result:
            result = await super().infer(request)
            return Result(result.outputs, result.timings, "spare" if request.id == "r1/2" else "")

    answer = await Stage(tmp_path, Fallback())()

    assert answer.fallback == "spare"
    assert [note.code for note in answer.warnings] == ["fallback"]


async def test_progress_is_told_window_by_window(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    stage = Stage(tmp_path, Engine())

    answer = await stage(progress=lambda done, of: told.append((done, of)))

    assert told == [(number, answer.windows) for number in range(1, answer.windows + 1)]
