"""Results lie where their images lay, never on one another, never among the images; what is said of them is right."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from isocenter.cli.errors import Hopeless
from isocenter.cli.outcome import Outcome, refused
from isocenter.cli.segment import OF_IMAGES
from isocenter.cli.segment_files import SUFFIXES, outside, places, told, write
from isocenter.cli.segment_report import as_table, summary
from isocenter.cli.segment_server import rebuilt
from isocenter.client.answers import FORMATS as CLIENT_FORMATS
from isocenter.core.errors import TruncatedImage
from isocenter.core.tensor import Array
from isocenter.imaging.image import Note
from isocenter.imaging.postprocess.contours import polygons_of
from isocenter.imaging.postprocess.objects import LabelImage
from isocenter.imaging.postprocess.quantities import quantities_of
from isocenter.imaging.volume import Volume
from isocenter.serving.cell_answer import FORMATS, CellAnswer


def labels() -> Array:
    """A ring with an object inside of it, one that touches it and has two pieces, and a pixel in a corner."""
    found = np.zeros((9, 12), np.uint32)
    found[0:7, 0:7] = 1
    found[2:5, 2:5] = 0
    found[3, 3] = 2
    found[6, 7:10] = 3
    found[8, 3] = 3
    found[8, 11] = 4
    return found


def answer(found: Array | None = None, *, pixel_size_um: tuple[float, float] | None = (0.5, 0.25)) -> CellAnswer:
    found = labels() if found is None else found
    voxels = np.arange(2 * found.size, dtype=np.uint32).astype(np.uint8).reshape(2, *found.shape)
    volume = Volume.of(voxels, channels=("DAPI", "GFP"))
    count = int(found.max())
    return CellAnswer(
        labels=LabelImage(found, np.linspace(0.5, 0.9, count, dtype=np.float32)),
        polygons=polygons_of(found),
        quantities=quantities_of(found, np.asarray(volume.voxels), pixel_size_um=pixel_size_um),
        model="nuclei",
        version=2,
        threshold=0.5,
        detect_holes=True,
        batch_size=1,
        warnings=(Note("windowed", "from 1 to 9"),),
        stages_s={"decode": 0.001, "objects": 0.002},
        pixel_size_um=pixel_size_um,
        volume=volume,
        name="nucleus",
        shown=1,
        request_id="r",
        total_s=0.25,
    )


def touch(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def test_the_formats_are_those_of_the_service() -> None:
    assert OF_IMAGES == CLIENT_FORMATS == FORMATS == tuple(SUFFIXES)


def test_what_lay_in_a_folder_keeps_its_place(tmp_path: Path) -> None:
    files = touch(tmp_path, "in/a.png", "in/b/a.png", "alone.png")
    found = places(files, [str(tmp_path / "in"), str(tmp_path / "in" / "b")], Path("out"))
    assert found == [Path("out/a"), Path("out/b/a"), Path("out/alone")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1/a.png", "2/a.png", "3/b.png"], ["a.png", "a.png-2", "b"]),
        (["a.png", "a.tif"], ["a.png", "a.tif"]),
        (["a.png", "A.PNG"], ["a.png", "A.PNG-2"]),
        (["a.png", "a.tif", "a.png.png"], ["a.png", "a.tif", "a.png-2"]),
        (["x.ome.tif", "x.tif"], ["x.ome", "x"]),
    ],
)
def test_no_two_files_have_one_place(names: list[str], expected: list[str]) -> None:
    assert places([Path(name) for name in names], [], Path()) == [Path(name) for name in expected]


def test_results_of_an_earlier_run_are_no_images(tmp_path: Path) -> None:
    image, result = touch(tmp_path, "a.png", "segmented/a.overlay.png")
    out = tmp_path / "segmented"
    assert outside([image, result], [str(tmp_path)], out) == [image]
    assert outside([image], [str(image)], tmp_path) == [image]
    with pytest.raises(Hopeless, match="where the results go"):
        outside([image], [str(tmp_path)], tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_result_replaces_the_one_before_as_a_whole(form: Any, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "a.b"
    (first,) = write(answer(), [form], place)
    content = Path(first).read_bytes()
    Path(first).write_bytes(b"old and longer" * 10_000)
    assert write(answer(), [form], place) == [first]
    assert Path(first).read_bytes() == content == answer().render(form).body
    assert sorted(tmp_path.rglob("*.*")) == [Path(first)]
    assert Path(first).name == "a.b" + SUFFIXES[form]


def test_labels_that_a_png_cannot_hold_are_a_tiff(tmp_path: Path) -> None:
    many = np.arange(300 * 300, dtype=np.uint32).reshape(300, 300)
    found = replace(answer(), labels=LabelImage(many, np.ones(300 * 300 - 1, np.float32)))
    (file,) = write(found, ["labels"], tmp_path / "a")
    assert file.endswith("/a.labels.tif")
    with Image.open(file) as picture:
        assert np.array_equal(np.array(picture), many)


def test_what_is_not_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write(answer(), ["json"], tmp_path / "a")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_is_said_of_an_answer() -> None:
    said = told(answer(), ["out/a.json"], latency_ms=250.00049)
    assert said == {
        "objects": 4,
        "median_area_px": 2.5,
        "median_area_um2": 0.3125,
        "image_size": {"width": 12, "height": 9},
        "threshold": 0.5,
        "model": "nuclei",
        "version": 2,
        "latency_ms": 250.0,
        "warnings": [{"code": "windowed", "message": "from 1 to 9"}],
        "written": ["out/a.json"],
    }
    nothing = told(answer(np.zeros((3, 4), np.uint32)), [], latency_ms=1.0)
    assert (nothing["objects"], nothing["median_area_px"], nothing["median_area_um2"]) == (0, None, None)


@pytest.mark.parametrize("pixel_size_um", [None, (0.5, 0.25)], ids=["size unknown", "size known"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_the_same_from_a_servers_json(form: Any, pixel_size_um: tuple[float, float] | None) -> None:
    here = answer(pixel_size_um=pixel_size_um)
    assert rebuilt(here.as_json(), here.volume).render(form) == here.render(form)


def test_an_image_without_objects_is_rebuilt() -> None:
    here = answer(np.zeros((3, 4), np.uint32))
    assert rebuilt(here.as_json(), None).render("json") == here.render("json")


@pytest.mark.parametrize(
    "spoilt",
    [
        {"polygons": [{"type": "external"}]},
        {"image_size": None},
        {"objects": [{"label": 1}]},
        {"polygons": {}},
        {"pixel_size_um": 3},
    ],
    ids=lambda spoilt: next(iter(spoilt)),
)
def test_another_body_is_noticed(spoilt: dict[str, Any]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        rebuilt(answer().as_json() | spoilt, None)


def test_the_table_and_the_summary() -> None:
    small = told(answer(pixel_size_um=None), [], latency_ms=12.0)
    outcomes = [
        Outcome(Path("in/a.tif"), answer=told(answer(), [], latency_ms=250.0)),
        Outcome(Path("in/b.tif"), answer=small),
        refused(Path("in/c.tif"), TruncatedImage("the file ends early")),
    ]
    console = Console(file=io.StringIO(), width=160)
    console.print(as_table(outcomes))
    assert isinstance(console.file, io.StringIO)
    said = " ".join(console.file.getvalue().split())
    assert "a.tif 4 0.3 µm² 12 x 9 250 ms windowed" in said
    assert "b.tif 4 2.5 px 12 x 9 12 ms windowed" in said
    assert "c.tif refused: truncated_image the file ends early" in said
    assert summary(outcomes, wall_s=1.5, at_once=4, loaded=True, out=Path("segmented")) == (
        "3 files: 2 answered, 1 refused · 8 objects, median 4 an image · "
        "latency p50 12 ms, p95 250 ms (n=2, 3 at once) · 1.5 s in all, loading the model included · "
        "results in segmented"
    )
