"""`isocenter segment`, here and on a server: the same results, bad files told apart, nothing overwritten."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cell_folders import drawn_cells, png, write_cell_model
from isocenter.cli import main, segment_here
from isocenter.cli.errors import Exit
from model_folders import write_model
from serverproc import ServerProcess, running

RUN = CliRunner()

pytestmark = pytest.mark.may_block


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_cell_model(folder)
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures in folders of their own, and one file that is cut."""
    folder = tmp_path_factory.mktemp("images")
    for name, seed in (("a/plate.png", 1), ("b/plate.png", 2)):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(png(drawn_cells(seed=seed, count=5)[0]))
    (folder / "cut.png").write_bytes(png(drawn_cells()[0])[:300])
    return folder


@pytest.fixture(autouse=True)
def a_process_of_many_tests_is_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_here, "tune_process", lambda: None)


def segment(*arguments: object, ends: int = 0) -> list[dict[str, Any]]:
    done = RUN.invoke(main.app, ["segment", *map(str, arguments), "--json"])
    assert done.exit_code == ends, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_one_bad_file_never_stops_the_rest(models: Path, images: Path, tmp_path: Path) -> None:
    lines = segment(
        images, "--models", models, "--model", "cells", "--format", "labels", "--overlay", "--out", tmp_path / "out",
        ends=Exit.NOT_ALL,
    )  # fmt: skip

    assert [Path(line["file"]).name for line in lines] == ["plate.png", "plate.png", "cut.png"]
    assert lines[2]["error"]["code"] == "truncated_image"
    assert list(files_below(tmp_path / "out")) == [
        f"{folder}/plate.{suffix}.png" for folder in "ab" for suffix in ("labels", "overlay")
    ]
    for line, seed in zip(lines, (1, 2), strict=False):
        wanted = drawn_cells(seed=seed, count=5)[1]
        areas = np.bincount(wanted.ravel())[1:]
        assert (line["objects"], line["median_area_px"]) == (5, float(np.median(areas)))
        found = cv2.imread(line["written"][0], cv2.IMREAD_UNCHANGED)
        assert found is not None
        assert np.array_equal(found > 0, wanted > 0)


@pytest.mark.slow
def test_the_table_says_how_many_and_how_large(models: Path, images: Path, tmp_path: Path) -> None:
    line = ["segment", images / "a", "--models", models, "--model", "cells", "--out", tmp_path / "out"]
    done = RUN.invoke(main.app, [*map(str, line)])

    assert done.exit_code == 0, done.output
    assert "plate.png" in done.stdout
    assert "1 file: 1 answered, 0 refused · 5 objects" in done.stdout
    assert list(files_below(tmp_path / "out")) == ["plate.json"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param(["--model", "nope"], "nope", id="model", marks=pytest.mark.slow),
        pytest.param(["--model", "lungs"], "lungs", id="task", marks=pytest.mark.slow),
        pytest.param(["--threshold", "0.95"], "less than or equal to 0.9", id="threshold"),
        pytest.param(["--version", "1"], "of which model", id="version"),
        pytest.param(["--format", "svg"], "svg", id="format"),
        pytest.param(["--url", "http://127.0.0.1:9"], "--models has no meaning", id="models and url"),
    ],
)
def test_what_cannot_begin_is_said_once(more: list[str], said: str, models: Path, images: Path, tmp_path: Path) -> None:
    line = ["segment", str(images), "--models", str(models), "--out", str(tmp_path / "out"), *more]
    done = RUN.invoke(main.app, line)

    assert done.exit_code == Exit.WRONG
    assert said in done.stderr
    assert done.stdout == ""
    assert files_below(tmp_path) == {}


@pytest.mark.slow
def test_the_only_model_of_images_needs_no_name(models: Path, images: Path, tmp_path: Path) -> None:
    (line,) = segment(images / "a", "--models", models, "--out", tmp_path / "out")
    assert (line["model"], line["objects"]) == ("cells", 5)


@pytest.mark.slow
def test_a_threshold_and_holes_reach_the_model(models: Path, tmp_path: Path) -> None:
    pixels = np.zeros((40, 40), np.uint8)
    pixels[5:20, 5:20] = 250
    pixels[10:15, 10:15] = 0
    pixels[25:35, 25:35] = 136  # x = 0.53: probability 0.74
    (tmp_path / "a.png").write_bytes(png(pixels))

    def ask(*more: str) -> list[float]:
        (line,) = segment(tmp_path / "a.png", "--models", models, "--out", tmp_path / "out", *more)
        objects = json.loads(Path(line["written"][0]).read_bytes())["objects"]
        return [each["area_px"] for each in objects]

    assert ask() == [200, 100]
    assert ask("--threshold", "0.8") == [200]
    assert ask("--threshold", "0.8", "--no-holes") == [225]


@pytest.mark.slow
def test_a_tiff_over_the_limit_is_answered_by_its_windows(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, labels = drawn_cells(160, count=7)
    cv2.imwrite(str(tmp_path / "slide.tif"), pixels)
    (tmp_path / "slide.png").write_bytes(png(pixels))
    monkeypatch.setenv("ISOCENTER_LIMITS__MAX_PIXELS", "20000")
    asked = (tmp_path, "--models", models, "--format", "geojson", "--out", tmp_path / "out")

    done = RUN.invoke(main.app, ["segment", *map(str, asked), "--json"])

    assert done.exit_code == Exit.NOT_ALL, done.output
    refused, line = (json.loads(each) for each in done.stdout.splitlines())
    assert refused["error"]["code"] == "too_many_pixels"  # a PNG cannot be read in parts
    assert (line["objects"], line["median_area_px"]) == (7, float(np.median(np.bincount(labels.ravel())[1:])))
    assert line["warnings"][-1]["code"] == "only_labels"
    found = cv2.imread(line["written"][0], cv2.IMREAD_UNCHANGED)
    assert found is not None
    assert np.array_equal(found > 0, labels > 0)
    assert list(files_below(tmp_path / "out")) == ["slide.tif.labels.tif"]
    assert "slide.tif: 100 %" in done.stderr


def test_a_named_file_that_is_absent_never_stops_the_rest(models: Path, images: Path, tmp_path: Path) -> None:
    asked = ("--models", models, "--model", "cells", "--out", tmp_path / "out")
    lost, line = segment(tmp_path / "nope.png", images / "a" / "plate.png", *asked, ends=Exit.NOT_ALL)

    assert (lost["file"], lost["error"]["code"]) == (str(tmp_path / "nope.png"), "unreadable_file")
    assert line["objects"] == 5


def test_a_pattern_does_not_find_the_results_of_the_run_before(
    models: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.png").write_bytes((images / "a" / "plate.png").read_bytes())
    asked = ("**/*.png", "--overlay", "--models", models, "--model", "cells")
    runs = [[line["file"] for line in segment(*asked)] for _ in range(3)]

    assert runs == [["f.png"]] * 3
    assert list(files_below(tmp_path / "segmented")) == ["f.json", "f.overlay.png"]


def test_a_format_is_named_in_any_case(models: Path, images: Path, tmp_path: Path) -> None:
    (line,) = segment(
        images / "a", "--models", models, "--model", "cells", "--format", "GeoJSON", "--out", tmp_path / "out"
    )
    assert line["written"] == [str(tmp_path / "out" / "plate.geojson")]


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[ServerProcess]:
    with running(models) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "geojson"])
def test_a_server_gives_the_same_results(
    form: str, server: ServerProcess, models: Path, images: Path, tmp_path: Path
) -> None:
    asked = (images, "--model", "cells", "--format", form, "--overlay")
    here = segment(*asked, "--models", models, "--out", tmp_path / "here", ends=Exit.NOT_ALL)
    there = segment(*asked, "--url", f"http://127.0.0.1:{server.port}", "--out", tmp_path / "there", ends=Exit.NOT_ALL)

    for one, other in zip(here, there, strict=True):
        assert one.get("error") == other.get("error")
        assert {**one, "written": 0, "latency_ms": 0} == {**other, "written": 0, "latency_ms": 0}
    results = [files_below(tmp_path / name) for name in ("here", "there")]
    assert len(results[0]) == 4
    if form == "json":
        for result in results:
            for name in ("a/plate.json", "b/plate.json"):
                about = json.loads(result[name])
                # Which images met in a batch is left to chance.
                del about["request_id"], about["latency_ms"], about["timings_ms"], about["batch_size"]
                result[name] = json.dumps(about).encode()
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "server"])
def test_a_file_name_of_any_bytes_is_answered(
    where: str, models: Path, images: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"a.png", b"sp_\xff.png"):
        (folder / os.fsdecode(name)).write_bytes((images / "a" / "plate.png").read_bytes())
    asked: list[object] = ["--models", models]
    if where == "server":
        asked = ["--url", f"http://127.0.0.1:{request.getfixturevalue('server').port}"]
    lines = segment(folder, "--model", "cells", "--format", "coco", "--out", tmp_path / "out", *asked)

    assert [Path(line["file"]).name for line in lines] == ["a.png", "sp_?.png"]
    assert [Path(line["written"][0]).name for line in lines] == ["a.coco.json", "sp_?.coco.json"]
    names = [json.loads(document)["images"][0]["file_name"] for document in files_below(tmp_path / "out").values()]
    assert names == ["a.png", "sp_?.png"]
