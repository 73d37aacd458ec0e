"""Results are written as a whole or not at all, alike from here and from a server; what is said of them is right."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from isocenter.cli.ask_server import UNREADABLE
from isocenter.cli.outcome import Outcome, refused
from isocenter.cli.segment import OF_IMAGES
from isocenter.cli.segment_files import SUFFIXES, told, write
from isocenter.cli.segment_places import Place
from isocenter.cli.segment_report import as_table, summary
from isocenter.cli.segment_server import rebuilt
from isocenter.client.answers import FORMATS as CLIENT_FORMATS
from isocenter.core.errors import BadValue, TruncatedImage
from isocenter.core.tensor import Array
from isocenter.imaging.image import Note
from isocenter.imaging.postprocess.contours import polygons_of
from isocenter.imaging.postprocess.objects import LabelImage
from isocenter.imaging.postprocess.quantities import quantities_of
from isocenter.imaging.volume import Volume
from isocenter.serving.cell_answer import FORMATS, CellAnswer


def test_two_commands_that_write_to_one_folder_do_not_write_into_one_anothers_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is about to put its file in place, the other writes the same one."""
    place, first, second = Place(tmp_path / "field", "field.png"), answer(), answer(np.zeros((9, 12), np.uint32))
    into_place = Path.replace

    def meanwhile(part: Path, file: Path) -> Path:
        monkeypatch.setattr(Path, "replace", into_place)
        write(second, ["json"], place)
        assert json.loads(file.read_bytes())["count"] == 0
        return into_place(part, file)

    monkeypatch.setattr(Path, "replace", meanwhile)
    write(first, ["json"], place)
    assert json.loads((tmp_path / "field.json").read_bytes())["count"] == 4
    assert [file.name for file in tmp_path.iterdir()] == ["field.json"]


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


def test_the_formats_are_those_of_the_service() -> None:
    assert OF_IMAGES == CLIENT_FORMATS == FORMATS == tuple(SUFFIXES)


def place(results: Path) -> Place:
    return Place(results, "deep/a.b.png")


@pytest.mark.parametrize("form", FORMATS)
def test_a_result_replaces_the_one_before_as_a_whole(form: Any, tmp_path: Path) -> None:
    where = place(tmp_path / "deep" / "a.b")
    (first,) = write(answer(), [form], where)
    content = Path(first).read_bytes()
    Path(first).write_bytes(b"old and longer" * 10_000)
    assert write(answer(), [form], where) == [first]
    assert Path(first).read_bytes() == content == answer().render(form, file_name=where.image).body
    assert sorted(tmp_path.rglob("*.*")) == [Path(first)]
    assert Path(first).name == "a.b" + SUFFIXES[form]


def test_labels_that_a_png_cannot_hold_are_a_tiff(tmp_path: Path) -> None:
    many = np.arange(300 * 300, dtype=np.uint32).reshape(300, 300)
    found = replace(answer(), labels=LabelImage(many, np.ones(300 * 300 - 1, np.float32)))
    (file,) = write(found, ["labels"], place(tmp_path / "a"))
    assert file.endswith("/a.labels.tif")
    with Image.open(file) as picture:
        assert np.array_equal(np.array(picture), many)


def test_what_is_not_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write(answer(), ["json"], place(tmp_path / "a"))
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("form", ["coco", "coco-rle"])
def test_coco_names_its_image(form: Any, tmp_path: Path) -> None:
    (file,) = write(answer(), [form], Place(tmp_path / "a", "plate/a.png"))
    assert [each["file_name"] for each in json.loads(Path(file).read_bytes())["images"]] == ["plate/a.png"]


def test_a_format_that_is_not_written_is_refused_with_those_that_are() -> None:
    with pytest.raises(BadValue, match=r"format 'nope' is not written; there are json, geojson, coco") as caught:
        answer().render("nope")  # type: ignore[arg-type]
    assert caught.value.details == {"format": "nope", "formats": [*FORMATS]}


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
        {"polygons": []},
        {"image_size": {"width": 10**9, "height": 10**9}},
        {"image_size": {"width": 12, "height": 10}},
        {"version": 1e999},
        {"shown": 2},
        {"objects": [{"label": 1, "area_px": 40, "mean_intensity": "x"}]},
    ],
    ids=str,
)
def test_another_body_is_noticed(spoilt: dict[str, Any]) -> None:
    """Also one whose outlines and measurements are of different objects."""
    whole = answer()
    with pytest.raises(UNREADABLE):
        rebuilt(whole.as_json() | spoilt, whole.volume)


def rendered(outcomes: list[Outcome]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(as_table(outcomes))
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_files_of_one_name_are_told_apart_in_the_table() -> None:
    said = told(answer(), [], latency_ms=250.0)
    table = rendered([Outcome(Path(name), answer=said) for name in ("in/a/f.png", "in/b/f.png", "in/b/g.png")])
    assert [word for word in table.split() if word.endswith(".png")] == ["a/f.png", "b/f.png", "g.png"]


def test_a_file_name_cannot_command_the_terminal_nor_break_the_table() -> None:
    table = rendered([Outcome(Path("in/\x1b[31m\n.png"), answer=told(answer(), [], latency_ms=250.0))])
    assert r"\x1b[31m\n.png 4 0.3 µm²" in table
    assert "\x1b" not in table


def test_the_table_and_the_summary() -> None:
    small = told(answer(pixel_size_um=None), [], latency_ms=12.0)
    outcomes = [
        Outcome(Path("in/a.tif"), answer=told(answer(), [], latency_ms=250.0)),
        Outcome(Path("in/b.tif"), answer=small),
        refused(Path("in/c.tif"), TruncatedImage("the file ends early")),
    ]
    said = rendered(outcomes)
    assert "a.tif 4 0.3 µm² 12 x 9 250 ms windowed" in said
    assert "b.tif 4 2.5 px 12 x 9 12 ms windowed" in said
    assert "c.tif refused: truncated_image the file ends early" in said
    assert summary(outcomes, wall_s=1.5, at_once=4, loaded=True, out=Path("segmented")) == (
        "3 files: 2 answered, 1 refused · 8 objects, median 4 an image · "
        "latency p50 12 ms, p95 250 ms (n=2, 3 at once) · 1.5 s in all, loading the model included · "
        "results in segmented"
    )
