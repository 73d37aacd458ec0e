"""A cohort goes on where it ended: every scan is answered once, or listed with its code."""

import asyncio
import csv
import errno
import gzip
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isocenter.cli.cohort import Progress, answer_all
from isocenter.cli.cohort_find import FoundScan
from isocenter.cli.cohort_ledger import LOST, CohortAnswer, Ledger
from isocenter.cli.cohort_report import as_table, said
from isocenter.cli.cohort_rows import COLUMNS, Row, as_json, results_csv
from isocenter.cli.cohort_sheet import sheet_html
from isocenter.cli.errors import Hopeless
from isocenter.core.errors import GantryTilt, IsocenterError, MissingImage, MixedSeries, RuntimeFault

LESION = {
    "label": "tumor", "number": 1, "voxels": 9, "volume_ml": 1.5, "centroid_voxel": [1.0, 2.0, 3.0],
    "centroid_lps_mm": [1.0, -2.0, 3.5], "diameter_mm": 4.0, "probability": 0.75,
}  # fmt: skip


def scan(path: str, fingerprint: str = "1") -> FoundScan:
    return FoundScan(path, Path(path), fingerprint)


COHORT = [scan("a/head.nii.gz"), scan("b"), scan("c.zip")]


def found(text: str = "") -> CohortAnswer:
    return CohortAnswer(
        present=True,
        probability=0.9,
        volume_ml=1.5,
        lesions=(LESION,),
        spacing_mm=(0.88, 0.88, 1.2),
        seconds=0.25,
        warnings=("files_left_aside",),
        parts={"nifti": b"mask" + text.encode(), "montage": b"picture"},
    )


class Answers:
    """Remembers what was asked, and refuses what it is told to."""

    def __init__(self, refused: dict[str, IsocenterError] | None = None) -> None:
        self.asked: list[tuple[str, int | None]] = []
        self._refused = refused or {}

    async def __call__(
        self, source: Path | tuple[Path, ...], *, series: int | None, progress: Progress
    ) -> CohortAnswer:
        assert isinstance(source, Path)
        self.asked.append((str(source), series))
        progress("windows", 0.5)
        if series is None and str(source) in self._refused:
            raise self._refused[str(source)]
        return found(str(source))


class Nobody:
    """Looks on."""

    def begun(self, name: str) -> Callable[[str, float], object]:
        return lambda stage, share: None

    def ended(self, row: Row | None, *, scans: int) -> None:
        pass


class Runs:
    """The same command, over and over."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __call__(
        self, answers: Answers, scans: list[FoundScan] = COHORT, *, model: str = "m/1", at_once: int = 1
    ) -> list[Row]:
        ledger = Ledger(self.out, model=model)
        try:
            ledger.plan(scans, identity=model)
            asyncio.run(answer_all(ledger, answers, Nobody(), at_once=at_once))
            return ledger.rows
        finally:
            ledger.close()

    def csv(self) -> list[dict[str, Any]]:
        return [*csv.DictReader(io.StringIO((self.out / "results.csv").read_text()))]


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    (tmp_path / "out").mkdir()
    return Runs(tmp_path / "out")


TILT = GantryTilt("tilted by 18.5 degrees")


def test_one_that_is_refused_never_stops_the_rest(run: Runs) -> None:
    rows = run(Answers({"b": TILT}))

    assert [(row.path, row.state, row.code) for row in rows] == [
        ("a/head.nii.gz", "answered", ""), ("b", "refused", "gantry_tilt"), ("c.zip", "answered", ""),
    ]  # fmt: skip
    assert (run.out / "a" / "head.mask.nii.gz").read_bytes() == b"maska/head.nii.gz"
    assert (run.out / "c.montage.png").read_bytes() == b"picture"
    first, second, _ = run.csv()
    assert (first["present"], first["probability"], first["volume_ml"], first["lesions"]) == ("true", "0.9", "1.5", "1")
    assert (first["spacing_mm"], first["warnings"], first["mask"]) == (
        "0.88 0.88 1.2", "files_left_aside", "a/head.mask.nii.gz",
    )  # fmt: skip
    assert (second["state"], second["code"], second["message"]) == ("refused", "gantry_tilt", TILT.message)
    lesions = (run.out / "lesions.csv").read_text().splitlines()
    assert lesions[1] == "a/head.nii.gz,,1,tumor,1.5,4,0.75,1,-2,3.5"
    assert len(lesions) == 3


def test_the_same_command_asks_nothing_again(run: Runs) -> None:
    first = run(Answers({"b": TILT}))
    answers = Answers()
    assert run(answers) == first
    assert answers.asked == []


def test_a_killed_run_repeats_only_what_was_under_way(run: Runs) -> None:
    ledger = Ledger(run.out, model="m/1")
    ledger.plan(COHORT, identity="m/1")
    one = ledger.next()
    assert one is not None
    ledger.answered(one, found())
    two = ledger.next()
    assert two is not None
    ledger.close()  # as the system does for a process that is gone: nothing is told

    answers = Answers()
    rows = run(answers)
    assert answers.asked == [("b", None), ("c.zip", None)]
    assert [row.state for row in rows] == ["answered"] * 3
    assert [line["path"] for line in run.csv()] == [each.path for each in COHORT]


def test_a_scan_that_may_be_what_ends_the_process_comes_last(run: Runs) -> None:
    for _ in range(LOST):
        ledger = Ledger(run.out, model="m/1")
        ledger.plan(COHORT, identity="m/1")
        task = ledger.next()
        assert task is not None
        assert task.scan.path == "a/head.nii.gz"
        ledger.close()

    answers = Answers()
    run(answers)
    assert [path for path, _ in answers.asked] == ["b", "c.zip", "a/head.nii.gz"]


def test_each_of_several_series_is_a_scan(run: Runs) -> None:
    several = MixedSeries("2 series (8 slices, 3 slices)", details={"series": 2, "slices": [8, 3]})
    answers = Answers({"b": several})
    rows = run(answers)

    assert [(row.path, row.series) for row in rows] == [("a/head.nii.gz", None), ("b", 1), ("b", 2), ("c.zip", None)]
    assert ("b", 2) in answers.asked
    assert (run.out / "b.series-2.mask.nii.gz").is_file()
    again = Answers()
    assert run(again) == rows
    assert again.asked == []


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        pytest.param({"scans": [scan("a/head.nii.gz", "2"), *COHORT[1:]]}, ["a/head.nii.gz"], id="a file"),
        pytest.param({"model": "m/2"}, ["a/head.nii.gz", "b", "c.zip"], id="the model"),
        pytest.param({"scans": [*COHORT, scan("d.mha")]}, ["d.mha"], id="one more"),
        pytest.param({"scans": COHORT[1:]}, [], id="one less"),
    ],
)
def test_what_has_changed_is_asked_again(run: Runs, change: dict[str, Any], asked: list[str]) -> None:
    run(Answers())
    answers = Answers()
    rows = run(answers, **change)
    assert [path for path, _ in answers.asked] == asked
    assert [row.path for row in rows] == [each.path for each in change.get("scans", COHORT)]


def test_results_that_are_gone_are_made_again(run: Runs) -> None:
    run(Answers())
    (run.out / "c.mask.nii.gz").unlink()
    answers = Answers()
    run(answers)
    assert answers.asked == [("c.zip", None)]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["mixed", "mixed.series-2.nii"], id="a series and a file that is called like it"),
        pytest.param(["mixed", "MIXED.Series-2.nii"], id="in other letters"),
        pytest.param(["mixed", "mixed.series-2", "mixed.series-2.zip"], id="a series and a folder"),
        pytest.param(["p.nii", "p.nii.gz", "p.nii.zip"], id="a suffix that is kept and one that is dropped"),
        pytest.param(["p.nii", "P.nii", "p.nii.2.zip"], id="only letter case and a number apart"),
        pytest.param([".", "scan", "scan.nii", "scan.zip"], id="the folder itself"),
    ],
)
def test_no_scan_is_given_the_results_of_another(run: Runs, names: list[str]) -> None:
    several = MixedSeries("3 series", details={"series": 3})
    cohort = [scan(name) for name in names]
    rows = run(Answers({"mixed": several}), cohort)

    targets = [name.casefold() for row in rows for name in row.written.values()]
    assert len(targets) == len({*targets}) == 2 * len(rows)
    for row in rows:
        assert (run.out / row.written["nifti"]).read_bytes() == b"mask" + row.path.encode()
    again = Answers()
    assert run(again, cohort[::-1]) == rows
    assert again.asked == []


def test_what_another_scan_of_the_folder_holds_is_not_overwritten(run: Runs) -> None:
    run(Answers(), [scan("mixed.series-2.nii")])
    rows = run(Answers({"mixed": MixedSeries("2 series", details={"series": 2})}), [scan("mixed")])

    assert [(row.series, row.state, row.code) for row in rows] == [(1, "answered", ""), (2, "failed", "name_taken")]
    assert "mixed.series-2.mask.nii.gz holds the results of mixed.series-2.nii" in rows[1].message
    assert (run.out / "mixed.series-2.mask.nii.gz").read_bytes() == b"maskmixed.series-2.nii"


def test_results_that_another_model_has_overwritten_are_made_again(run: Runs) -> None:
    run(Answers(), COHORT[:1])
    run(Answers(), COHORT[:1], model="m/2")
    back = Answers()
    run(back, COHORT[:1], model="m/1")
    assert len(back.asked) == 1


def test_results_that_a_killed_run_of_another_model_may_have_overwritten_are_made_again(run: Runs) -> None:
    run(Answers(), COHORT[:1])
    ledger = Ledger(run.out, model="m/2")
    ledger.plan(COHORT[:1], identity="m/2")
    task = ledger.next()
    assert task is not None
    (run.out / "a" / "head.mask.nii.gz").write_bytes(b"of m/2")
    ledger.close()  # killed before the answer was recorded

    back = Answers()
    run(back, COHORT[:1])
    assert len(back.asked) == 1
    assert (run.out / "a" / "head.mask.nii.gz").read_bytes() == b"maska/head.nii.gz"
    again = Answers()
    run(again, COHORT[:1])
    assert again.asked == []


def test_what_was_not_the_fault_of_the_scan_is_asked_again(run: Runs) -> None:
    rows = run(Answers({"a/head.nii.gz": TILT, "b": RuntimeFault("out of luck")}))
    assert [row.state for row in rows] == ["refused", "failed", "answered"]
    answers = Answers()
    rows = run(answers)
    assert answers.asked == [("b", None)]
    assert [row.state for row in rows] == ["refused", "answered", "answered"]


def unread(cause: OSError) -> MissingImage:
    error = MissingImage("a file is not there, or may not be read")
    error.__cause__ = cause
    return error


def test_a_scan_whose_files_could_not_be_read_is_asked_again(run: Runs) -> None:
    gone, broken = unread(OSError(errno.ESTALE, "stale")), unread(gzip.BadGzipFile("no gzip"))
    rows = run(Answers({"a/head.nii.gz": gone, "b": broken}))
    assert [(row.state, row.code) for row in rows[:2]] == [("failed", "missing_image"), ("refused", "missing_image")]
    answers = Answers()
    rows = run(answers)
    assert answers.asked == [("a/head.nii.gz", None)]
    assert [row.state for row in rows] == ["answered", "refused", "answered"]


def test_an_old_model_leaves_nothing_in_the_queue(run: Runs) -> None:
    ledger = Ledger(run.out, model="m/1")
    ledger.plan(COHORT, identity="m/1")
    ledger.close()
    answers = Answers()
    run(answers, model="m/2")
    assert len(answers.asked) == 3
    back = Answers()
    run(back, model="m/1")
    assert len(back.asked) == 3


def test_two_at_once_answer_each_scan_once(run: Runs) -> None:
    answers = Answers()
    rows = run(answers, [scan(f"{number:02d}.nii") for number in range(9)], at_once=2)
    assert sorted(answers.asked) == [(f"{number:02d}.nii", None) for number in range(9)]
    assert [row.state for row in rows] == ["answered"] * 9


def test_a_second_process_is_refused(run: Runs) -> None:
    first = Ledger(run.out, model="m/1")
    with pytest.raises(Hopeless, match="another process"):
        Ledger(run.out, model="m/1")
    first.close()
    Ledger(run.out, model="m/1").close()


def test_the_sheet_is_one_page_that_needs_no_other_host() -> None:
    nasty = 'a/"<b>&c d#.nii'
    rows = [
        Row(
            path=nasty, state="answered", present=False, volume_ml=0.0, lesions=(), written={"montage": f"{nasty}.png"}
        ),
        Row(
            path="b",
            state="answered",
            present=True,
            volume_ml=2.0,
            lesions=(LESION,),
            written={"nifti": "b.mask.nii.gz"},
        ),
        Row(path="c", series=2, state="refused", code="gantry_tilt", message="18.5 > 0.1 degrees"),
    ]
    page = sheet_html(rows, title="Cohort of 3 scans", model="m 1")

    assert "<b>" not in page
    assert 'src="./a/%22%3Cb%3E%26c%20d%23.nii.png"' in page
    assert 'href="./b.mask.nii.gz"' in page
    assert "gantry_tilt" in page
    assert "18.5 &gt; 0.1 degrees" in page
    assert "3 scans: 2 answered (1 present, 1 absent), 1 refused (1 gantry_tilt)" in page
    assert not re.search(r"https?:|//\w|<script|@import|url\(", page)
    assert re.findall(r"--volume:(\d)", page) == ["1", "0", "2"]
    assert re.findall(r"--path:(\d)", page) == ["0", "1", "2"]


def test_a_row_is_the_same_in_every_table() -> None:
    row = Row(path="b\udcff", series=2, state="refused", code="localizer", message="3 pictures, no volume")
    (line,) = csv.DictReader(io.StringIO(results_csv([row])))
    assert list(line) == [*COLUMNS]
    assert (line["path"], line["series"], line["present"], line["lesions"]) == ("b?", "2", "", "")
    assert as_json(row)["error"] == {"code": "localizer", "message": "3 pictures, no volume"}
    assert said(row) == "refused: localizer"
    assert as_table([row, Row(path="a", state="answered", present=True)]).row_count == 2
