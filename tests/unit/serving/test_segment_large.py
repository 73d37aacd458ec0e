"""Large images: tile by tile what the whole image would give, in a file, and never in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from isocenter.core.clock import ManualClock, SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import (
    BadImage,
    DeadlineExceeded,
    EmptyInput,
    InputNotAccepted,
    MultiFrameImage,
    NonFinitePixels,
    TruncatedImage,
    UnsupportedMedia,
)
from isocenter.core.request import Request, Result
from isocenter.imaging.codecs.microscopy import PixelsAsked, as_channels, read_image
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.postprocess.objects import LabelImage, objects_of
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository
from isocenter.serving import segment_large
from isocenter.serving.cells import CellsAsked, rule_of
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.segment import Segment
from isocenter.serving.segment_large import LargeAnswer
from large_images import LABELS, Instant, Pixels, large, nuclei, served_cells

HEIGHT, WIDTH, ROI = 310, 290, 96

pytestmark = pytest.mark.may_block  # writes model folders and images


async def whole(served: ServedModel, data: bytes, asked: CellsAsked) -> LabelImage:
    """The same image as one, in memory."""
    repository = Repository()
    repository.add(served)
    clock = SystemClock()
    volume = read_image(data, limits=ImageLimits(), asked=asked.pixels)
    async with CpuPool(threads=1, max_waiting=4, clock=clock) as pool:
        segment = Segment(repository, pool, clock=clock, observer=Nobody())
        found = await segment(
            as_channels(volume, served.manifest.input.channels),
            request_id="whole", deadline=Deadline.never(), probabilities=True,
        )  # fmt: skip
    assert found.probabilities is not None
    return objects_of(found.probabilities, rule_of(served.manifest.output, asked), LABELS)


def bytes_of(file: Path) -> bytes:
    """What is in a file."""
    return file.read_bytes()


class Nobody:
    def observe(self, event: object) -> None: ...


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of objects that a small image has many of."""
    monkeypatch.setattr(segment_large, "TILE_PX", (90, 110))
    monkeypatch.setattr(segment_large, "MARGIN_PX", 48)


async def answered(served: ServedModel, file: Path, asked: CellsAsked | None = None, **how: Any) -> LargeAnswer:
    """Labels beside the image."""
    asked = asked or CellsAsked()
    return await large(served)(file, asked, out=file.with_name("labels.tif"), request_id="r1", **how)


@pytest.mark.parametrize(
    "how",
    [
        {"tile": (64, 64), "compression": "zlib"},
        {"rowsperstrip": 35, "bigtiff": True},
        {},
    ],
    ids=["tiles", "strips", "one strip"],
)
async def test_labels_are_those_of_the_whole_image(how: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "field.tif"
    tifffile.imwrite(file, nuclei(HEIGHT, WIDTH), photometric="minisblack", **how)
    served, _ = served_cells(tmp_path / "models", roi=ROI)
    answer = await answered(served, file)
    expected = await whole(served, bytes_of(file), CellsAsked())

    np.testing.assert_array_equal(tifffile.imread(answer.labels), expected.labels)
    assert answer.count == expected.count > 40
    np.testing.assert_array_equal(answer.areas_px, np.bincount(expected.labels.ravel())[1:])
    np.testing.assert_allclose(answer.objects["confidence"], expected.confidences, rtol=1e-5)
    assert answer.image_size_px == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": [{"kind": "clip", "low": {"percentile": 0.5}}, {"kind": "standardize"}, {"kind": "scale"}]},
        {"steps": [{"kind": "scale", "low": 200, "high": 3000}, {"kind": "pad_to_multiple", "multiple_of": 64}]},
        {"steps": [{"kind": "scale"}, {"kind": "pad_to", "size": [350, None], "mode": "reflect"}]},
        {"sliding": {"roi": [400, 96], "overlap": 0.5}},
    ],
    ids=["measured thrice", "padded", "mirrored", "window larger than the image"],
)
async def test_steps_see_the_numbers_of_the_whole_image(changes: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "field.tif"
    tifffile.imwrite(file, nuclei(HEIGHT, WIDTH, seed=3), photometric="minisblack", tile=(128, 128))
    served, _ = served_cells(tmp_path / "models", roi=ROI, **changes)
    answer = await answered(served, file)

    np.testing.assert_array_equal(
        tifffile.imread(answer.labels), (await whole(served, bytes_of(file), CellsAsked())).labels
    )


async def test_one_object_across_many_tiles_is_one(tmp_path: Path) -> None:
    """A ring far larger than the margin of a tile, and dots in it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    away = np.hypot(y - 150, x - 140)
    pixels = np.full((HEIGHT, WIDTH), 100, np.uint16)
    pixels[(away > 100) & (away < 120)] = 4000
    pixels[100:200:40, 100:180:40] = 4000
    file = tmp_path / "ring.tif"
    tifffile.imwrite(file, pixels, photometric="minisblack")
    output = {"tensor": "scores", "activation": "none", "labels": LABELS, "objects": {"inside": ["inside"]}}
    served, _ = served_cells(tmp_path / "models", roi=ROI, output=output)
    answer = await answered(served, file)

    labels = tifffile.imread(answer.labels)
    assert len(np.unique(labels[(away > 101) & (away < 119)])) == 1
    assert answer.areas_px[1:].tolist() == [1] * 6
    ring = answer.objects[0]
    assert (ring["left_px"], ring["right_px"], ring["top_px"], ring["bottom_px"]) == (21, 260, 31, 270)
    assert (round(ring["x_px"]), round(ring["y_px"])) == (140, 150)


async def test_the_intensity_window_and_the_pixel_size_are_recorded(tmp_path: Path) -> None:
    file = tmp_path / "field.tif"
    pixels = nuclei(150, 160)
    tifffile.imwrite(file, pixels, photometric="minisblack", resolution=(40_000, 20_000), resolutionunit="CENTIMETER")
    served, _ = served_cells(tmp_path / "models", roi=ROI)
    answer = await answered(served, file)

    low, high = np.percentile(pixels.astype(np.float32), [1, 99.8])
    assert f"nuclei: {low:.6g} to {high:.6g} became 0 to 1" in [note.message for note in answer.warnings]
    assert answer.pixel_size_um == (0.5, 0.25)
    with tifffile.TiffFile(answer.labels) as written:
        across, down = (written.pages.first.tags[name].value for name in ("XResolution", "YResolution"))
    assert (across[0] / across[1], down[0] / down[1]) == (40_000, 20_000)


async def test_progress_is_told_window_by_window(tmp_path: Path) -> None:
    file = tmp_path / "field.tif"
    tifffile.imwrite(file, nuclei(150, 160), photometric="minisblack")
    served, engine = served_cells(tmp_path / "models", roi=ROI)
    told: list[tuple[int, int]] = []
    answer = await answered(served, file, progress=lambda done, total: told.append((done, total)))

    assert told == [(number, answer.windows) for number in range(1, answer.windows + 1)]
    assert engine.windows == answer.windows == 4


async def test_a_channel_is_chosen_by_name_or_number(tmp_path: Path) -> None:
    file = tmp_path / "two.ome.tif"
    stack = np.stack([nuclei(150, 160, seed=8), nuclei(150, 160, seed=9)])
    tifffile.imwrite(
        file, stack, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": ["GFP", "DAPI"]}}
    )
    served, _ = served_cells(tmp_path / "models", roi=ROI)
    with pytest.raises(InputNotAccepted, match="GFP, DAPI"):
        await answered(served, file)
    by_name = tifffile.imread((await answered(served, file, CellsAsked(pixels=PixelsAsked(channel="dapi")))).labels)
    by_number = tifffile.imread((await answered(served, file, CellsAsked(pixels=PixelsAsked(channel=1)))).labels)

    np.testing.assert_array_equal(by_name, by_number)
    assert by_name.max() > 10


def written(tmp_path: Path, pixels: Pixels, **how: Any) -> Path:
    """An image file."""
    file = tmp_path / "field.tif"
    tifffile.imwrite(file, pixels, **({"photometric": "minisblack"} | how))
    return file


def cut(tmp_path: Path) -> Path:
    """A plain file that ends early."""
    file = written(tmp_path, nuclei(150, 160), rowsperstrip=20)
    file.write_bytes(file.read_bytes()[:-4000])
    return file


def with_nan(tmp_path: Path) -> Path:
    """One sample far down is not a number."""
    pixels = nuclei(300, 160).astype(np.float32)
    pixels[290, 3] = np.nan
    return written(tmp_path, pixels)


def not_tiff(tmp_path: Path) -> Path:
    """Bytes of another format."""
    file = tmp_path / "field.tif"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    return file


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: written(path, np.full((300, 300), 7, np.uint16)), EmptyInput),
        (with_nan, NonFinitePixels),
        (cut, (TruncatedImage, BadImage)),
        (not_tiff, UnsupportedMedia),
        (lambda path: written(path, np.stack([nuclei(90, 90)] * 3), metadata=None), MultiFrameImage),
    ],
    ids=["constant", "NaN", "cut", "not a TIFF", "pages"],
)
async def test_refusals_come_before_any_model_time(make: Any, kind: Any, tmp_path: Path) -> None:
    file = make(tmp_path)
    served, engine = served_cells(tmp_path / "models", roi=ROI)
    with pytest.raises(kind):
        await answered(served, file)
    assert engine.windows == 0
    assert not file.with_name("labels.tif").exists()


async def test_a_model_that_resizes_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, nuclei(150, 160))
    served, _ = served_cells(tmp_path / "models", roi=ROI, steps=[{"kind": "resize", "size": [64, 64]}])
    with pytest.raises(InputNotAccepted, match="resize changes the grid"):
        await answered(served, file)


async def test_a_model_without_windows_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, nuclei(150, 160))
    served, _ = served_cells(tmp_path / "models", roi=ROI, sliding=None)
    with pytest.raises(InputNotAccepted, match="does not work by windows"):
        await answered(served, file)


async def test_nothing_is_left_behind_when_the_model_fails(tmp_path: Path) -> None:
    class Failing(Instant):
        async def infer(self, request: Request) -> Result:
            if self.windows == 6:
                raise DeadlineExceeded("too late")
            return await super().infer(request)

    file = written(tmp_path, nuclei(300, 320))
    served, _ = served_cells(tmp_path / "models", roi=ROI)
    object.__setattr__(served, "engine", Failing())
    with pytest.raises(DeadlineExceeded):
        await answered(served, file)
    assert names_in(tmp_path) == ["field.tif", "models"]


def names_in(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


async def test_a_deadline_that_passes_while_the_image_is_measured_counts(tmp_path: Path) -> None:
    file = written(tmp_path, nuclei(100, 120))
    served, engine = served_cells(tmp_path / "models", roi=ROI)
    repository = Repository()
    repository.add(served)
    late = segment_large.SegmentLarge(repository, clock=ManualClock())
    with pytest.raises(DeadlineExceeded, match="measured"):
        await late(file, CellsAsked(), out=tmp_path / "l.tif", request_id="r1", deadline=Deadline(0.0))
    assert engine.windows == 0
