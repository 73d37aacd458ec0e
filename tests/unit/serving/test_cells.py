"""Images of cells on their way: what of them is a group, whose turn it is on the threads, what is an object."""

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from cell_models import SIDE_PX, picture, png, write_cells
from isocenter.core.clock import SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import (
    BadRequest,
    BadValue,
    EmptyInput,
    InputNotAccepted,
    IsocenterError,
    Overloaded,
    TooManyPixels,
    UnknownModel,
    WrongTask,
)
from isocenter.core.events import RecordingObserver, Shed
from isocenter.core.request import EngineTimings, Request, Result
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.microscopy import PixelsAsked
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.volume import Volume
from isocenter.repository.golden import pipeline_of
from isocenter.repository.layout import ModelFolder
from isocenter.repository.load import ServedModel
from isocenter.repository.manifest import OutputPart
from isocenter.repository.repository import Repository
from isocenter.serving import cells
from isocenter.serving.cell_answer import CellAnswer
from isocenter.serving.cells import CellsAsked, SegmentImage, rule_of
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.segment import Segment
from model_folders import write_model
from patience import PATIENCE_S
from segmenters import scores, write_segmenter

pytestmark = pytest.mark.may_block  # writes model folders


class Engine:
    """Answers at once."""

    model, version, instances = "cells", 1, 1

    def __init__(self) -> None:
        self.service_s: dict[int, float] = {}
        self.requests: list[Request] = []

    def check(self, deadline: Any, *, priority: int = 0, ready_in_s: float = 0.0) -> None: ...

    def note_late(self) -> None: ...

    async def infer(self, request: Request) -> Result:
        self.requests.append(request)
        return Result({"scores": scores(request.item["x"])}, EngineTimings(0.0, 0.0, 3))


class Stage:
    """The use case between fake engines and real threads."""

    def __init__(
        self, *folders: ModelFolder, threads: int = 2, max_waiting: int = 64, default: str | None = None
    ) -> None:
        clock = SystemClock()
        self.engine, self.recorder = Engine(), RecordingObserver()
        self.pool = CpuPool(threads=threads, max_waiting=max_waiting, clock=clock)
        repository = Repository(default_model=default)
        for folder in folders:
            manifest = folder.manifest
            repository.add(ServedModel(folder, "", pipeline_of(manifest), cast(Any, self.engine), {}))
        segment = Segment(repository, self.pool, clock=clock, observer=self.recorder)
        limits = ImageLimits(max_bytes=10_000)
        self.cells = SegmentImage(repository, self.pool, segment, limits=limits, clock=clock, observer=self.recorder)

    async def one(self, image: Any = None, **asked: Any) -> CellAnswer:
        async with self.pool:
            return await self.cells(png() if image is None else image, CellsAsked(**asked), request_id="r1")

    async def many(self, *images: bytes, **asked: Any) -> list[CellAnswer | IsocenterError]:
        async with self.pool:
            return await self.cells.many(images, CellsAsked(**asked), request_id="r1")


async def test_images_that_were_sent_together_are_one_group(tmp_path: Path) -> None:
    stage = Stage(write_cells(tmp_path))
    await stage.many(*[png(picture()[:SIDE_PX, :SIDE_PX])] * 3)

    assert {request.group for request in stage.engine.requests} == {"r1"}
    assert sorted(request.id for request in stage.engine.requests) == ["r1.0/0", "r1.1/0", "r1.2/0"]


async def test_a_lone_image_of_one_window_is_by_itself(tmp_path: Path) -> None:
    stage = Stage(write_cells(tmp_path))
    await stage.one(png(picture()[:SIDE_PX, :SIDE_PX]))

    assert [request.group for request in stage.engine.requests] == [""]


async def test_an_image_of_somebody_else_waits_for_no_more_than_one_job_a_thread(tmp_path: Path) -> None:
    stage = Stage(write_cells(tmp_path), threads=1)
    async with stage.pool:
        first_is_on, go_on = threading.Event(), threading.Event()

        def hold() -> bool:
            first_is_on.set()
            return go_on.wait(PATIENCE_S)

        blocker = asyncio.ensure_future(stage.pool.run(hold, Deadline(float("inf"))))
        await asyncio.to_thread(first_is_on.wait)
        together = asyncio.ensure_future(stage.cells.many([png()] * 20, CellsAsked(), request_id="r1"))
        for _ in range(20):
            await asyncio.sleep(0)
        waiting = stage.pool.waiting
        go_on.set()
        await asyncio.gather(blocker, together)

    assert waiting == 2  # the one that is run, and one of the twenty


async def test_one_that_cannot_be_answered_costs_the_others_nothing(tmp_path: Path) -> None:
    found = await Stage(write_cells(tmp_path)).many(png(), png(np.zeros((9, 9), np.uint8)), b"", png())

    assert [type(each) for each in found[1:3]] != [CellAnswer, CellAnswer]
    assert isinstance(found[1], EmptyInput)
    assert [each.count for each in (found[0], found[3]) if isinstance(each, CellAnswer)] == [3, 3]


async def test_a_full_pool_refuses_who_comes_and_not_who_has_been_segmented(tmp_path: Path) -> None:
    async with CpuPool(threads=1, max_waiting=1, clock=SystemClock()) as pool:
        never, go_on = Deadline(float("inf")), threading.Event()
        first = asyncio.ensure_future(pool.run(lambda: go_on.wait(PATIENCE_S), never))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await pool.run(lambda: "comes", never)
        admitted = asyncio.ensure_future(pool.run(lambda: "segmented", never, admitted=True))
        await asyncio.sleep(0)
        go_on.set()
        assert (await first, await admitted) == (True, "segmented")

    other = Stage(write_cells(tmp_path / "2"), max_waiting=0)
    with pytest.raises(Overloaded):
        await other.one()
    assert other.recorder.events == [Shed("cells", 1, "decode_full")]


async def test_pixels_and_volumes_are_taken_as_files_are(tmp_path: Path) -> None:
    for image in (picture(), Volume.of(picture()[None], channels=["dapi"])):
        answer = await Stage(write_cells(tmp_path / str(type(image)))).one(image)

        assert (answer.count, answer.image_size_px, answer.batch_size) == (3, (40, 24), 3)
        assert np.array_equal(answer.image, picture())
        assert np.array_equal(answer.labels.labels > 0, picture() > 128)


def coloured() -> Array:
    """Three objects in red, two in green, none in blue, which is as dark everywhere; one is bright in all of them."""
    red, green, blue = picture(), picture(), np.full_like(picture(), 7)
    green[:, :12] = 0
    return np.stack([red, green, blue], -1)


@pytest.mark.parametrize("channel", [None, "red", "GREEN", "blue", 0, 1, 2, 99, -1, "DAPI"])
@pytest.mark.parametrize("page", [None, 0, 5])
async def test_pixels_answer_for_their_channels_and_pages_as_a_file_does(
    tmp_path: Path, channel: str | int | None, page: int | None
) -> None:
    pixels, names = coloured(), ["red", "green", "blue"]
    given = [png(pixels), pixels, Volume.of(np.moveaxis(pixels, -1, 0), channels=names)]
    told = []
    for number, image in enumerate(given):
        stage = Stage(write_cells(tmp_path / str(number)))
        try:
            answer = await stage.one(image, pixels=PixelsAsked(channel=channel, page=page))
        except IsocenterError as error:
            told.append((error.code, error.message if type(error) is InputNotAccepted else ""))
        else:
            told.append((str(answer.count), ""))

    assert told[1:] == told[:1] * 2
    assert told[0][0] == ("input_not_accepted" if page == 5 else FOUND[channel])


FOUND = {None: "1", "red": "3", 0: "3", "GREEN": "2", 1: "2", "blue": "empty_input", 2: "empty_input"} | dict.fromkeys(
    (99, -1, "DAPI"), "input_not_accepted"
)


async def test_an_image_that_cannot_be_held_is_refused_with_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "_MAX_HELD_BYTES", 20 * 24 * 40)
    stage = Stage(write_cells(tmp_path))
    assert (await stage.one()).count == 3

    with pytest.raises(TooManyPixels, match="has 1000 pixels, at most 960 are segmented at once by cells"):
        await Stage(write_cells(tmp_path / "2")).one(png(np.pad(picture(), ((0, 1), (0, 0)))))


async def test_which_model_is_meant(tmp_path: Path) -> None:
    one, other = write_cells(tmp_path), write_cells(tmp_path, "other")
    brains, lungs = write_segmenter(tmp_path, "brains"), write_model(tmp_path)

    def meant(*folders: ModelFolder, model: str | None = None, default: str | None = None) -> str:
        return Stage(*folders, default=default).cells.models.served(model).name

    assert meant(one) == meant(one, brains, lungs) == meant(one, other, default="cells") == "cells"
    assert meant(one, lungs, default="lungs") == "cells"
    assert meant(one, other, model="other") == "other"
    with pytest.raises(BadRequest, match=r"several models segment images: name one, of \['cells', 'other'\]"):
        meant(one, other)
    with pytest.raises(WrongTask, match="segments volumes"):
        meant(brains)
    with pytest.raises(WrongTask, match="classification"):
        meant(one, lungs, model="lungs")
    with pytest.raises(UnknownModel):
        meant(one, model="hearts")


@pytest.mark.parametrize("threshold", [0.0999, 0.9001, float("nan"), -1.0])
async def test_a_threshold_out_of_range_is_refused_before_anything_is_decoded(tmp_path: Path, threshold: float) -> None:
    with pytest.raises(BadValue, match=r"it must be from 0\.1 to 0\.9"):
        await Stage(write_cells(tmp_path)).one(b"no image", threshold=threshold)


@pytest.mark.parametrize("holes", ["false", None, 0.0])
async def test_whether_there_are_holes_is_said_as_true_or_false(tmp_path: Path, holes: object) -> None:
    with pytest.raises(BadRequest, match="detect_holes"):
        await Stage(write_cells(tmp_path)).one(b"no image", detect_holes=holes)


async def test_a_volume_of_several_planes_is_no_image(tmp_path: Path) -> None:
    planes = Volume.of(np.stack([picture()] * 3)[np.newaxis])
    with pytest.raises(InputNotAccepted, match="a volume of 3 x"):
        await Stage(write_cells(tmp_path)).one(planes)


OUTPUT = {"tensor": "scores", "activation": "softmax", "labels": ["ground", "inside", "edge"]}


@pytest.mark.parametrize(
    ("output", "asked", "rule"),
    [
        pytest.param({}, {}, {"inside": [], "threshold": 0.5}, id="softmax: every label but the first"),
        pytest.param(
            {"activation": "sigmoid", "labels": ["a", "b"]},
            {},
            {"inside": ["a", "b"], "threshold": 0.5},
            id="labels that may overlap: every one",
        ),
        pytest.param(
            {"activation": "sigmoid", "labels": ["a"], "threshold": 0.3}, {}, {"threshold": 0.3}, id="their threshold"
        ),
        pytest.param({}, {"threshold": 0.7}, {"threshold": 0.7}, id="the caller's threshold"),
        pytest.param(
            {"objects": {"inside": ["inside"], "threshold": 0.6, "min_area_px": 9}},
            {"threshold": 0.7},
            {"inside": ["inside"], "threshold": 0.7, "min_area_px": 9},
            id="declared, and the caller's threshold",
        ),
        pytest.param(
            {"objects": {"fill_holes": True, "max_hole_px": 5}},
            {"detect_holes": False},
            {"fill_holes": True, "max_hole_px": None},
            id="every hole is filled where none is wanted",
        ),
        pytest.param({"objects": {"fill_holes": True}}, {}, {"fill_holes": True}, id="declared: holes are filled"),
    ],
)
def test_how_pixels_become_objects(output: dict[str, Any], asked: dict[str, Any], rule: dict[str, Any]) -> None:
    found = rule_of(OutputPart.model_validate(OUTPUT | output), CellsAsked(**asked)).model_dump()

    assert {key: found[key] for key in rule} == rule
