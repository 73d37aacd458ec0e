"""Outcomes as people and programs read them."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from isocenter.api.http.schemas import PredictionShape
from isocenter.cli.outcome import InOrder, Outcome, answered, refused
from isocenter.cli.predict_report import as_table, summary, write_csv
from isocenter.core.errors import TruncatedImage
from isocenter.imaging.image import Note
from isocenter.serving.predict import Prediction

FOUND = Prediction(
    label="Glioma",
    confidence=0.75,
    probabilities={"Glioma": 0.75, "No Tumor": 0.25},
    model="brain",
    version=2,
    warnings=(Note("intensity_window", "samples from 12 to 3071 were mapped to 0..255"),),
    stages_s={"decode": 0.0012},
)
ANSWER = answered(Path("in/a.png"), FOUND, request_id="r1", total_s=0.0125)
REFUSAL = refused(Path("in/b.jpg"), TruncatedImage("the file ends early", details={"bytes": 7}))


def rendered(outcomes: list[Outcome]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(as_table(outcomes))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_answer_from_here_has_the_keys_of_an_answer_over_http() -> None:
    assert ANSWER.answer is not None
    assert list(ANSWER.answer) == list(PredictionShape.model_fields)
    PredictionShape.model_validate(ANSWER.answer)


def test_json_is_the_answer_with_the_file_or_the_problem_with_the_file() -> None:
    assert ANSWER.as_json() == {"file": "in/a.png", **(ANSWER.answer or {})}
    problem: dict[str, Any] = {
        "code": "truncated_image",
        "message": "the file ends early",
        "details": {"bytes": 7},
    }
    assert REFUSAL.as_json() == {"file": "in/b.jpg", "error": problem}


def test_two_files_of_one_name_are_told_apart() -> None:
    """Every patient has a slice 1."""
    table = rendered([replace(ANSWER, file=Path("scans") / patient / "1.png") for patient in ("a", "b")])
    assert "a/1.png" in table
    assert "b/1.png" in table


def test_csv_has_one_line_a_file_and_one_column_a_label() -> None:
    stream = io.StringIO()
    write_csv([REFUSAL, ANSWER], stream)
    assert list(csv.DictReader(io.StringIO(stream.getvalue()))) == [
        {
            "file": "in/b.jpg",
            "prediction": "",
            "confidence": "",
            "latency_ms": "",
            "Glioma": "",
            "No Tumor": "",
            "warnings": "",
            "error": "truncated_image: the file ends early",
        },
        {
            "file": "in/a.png",
            "prediction": "Glioma",
            "confidence": "0.75",
            "latency_ms": "12.5",
            "Glioma": "0.75",
            "No Tumor": "0.25",
            "warnings": "intensity_window",
            "error": "",
        },
    ]


def test_a_refusal_is_a_row_with_its_code_and_its_reason() -> None:
    row = next(line for line in rendered([ANSWER, REFUSAL]).splitlines() if "b.jpg" in line)
    assert "refused: truncated_image" in row
    assert "the file ends early" in row


def test_a_file_name_cannot_colour_the_table() -> None:
    assert "[red]x.png" in rendered([Outcome(Path("[red]x.png"), answer=ANSWER.answer)])


def test_a_file_name_of_any_bytes_can_be_shown() -> None:
    odd = Outcome(Path("in/\udcff.png"), answer=ANSWER.answer)
    stream = io.StringIO()
    write_csv([odd], stream)
    for text in (rendered([odd]), stream.getvalue(), str(odd.as_json()["file"])):
        assert "?.png" in text.encode("utf-8").decode()


def test_a_percentile_comes_with_its_sample_count() -> None:
    text = summary([ANSWER, ANSWER, REFUSAL], wall_s=1.5, at_once=8, loaded=False)
    assert "3 files: 2 answered, 1 refused" in text
    assert "p50 12.5 ms, p95 12.5 ms (n=2, 3 at once)" in text


def test_without_answers_there_is_no_latency() -> None:
    assert "latency" not in summary([REFUSAL], wall_s=1.5, at_once=8, loaded=True)


@pytest.mark.parametrize("finished", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_outcomes_are_passed_on_in_the_order_of_the_files(finished: list[int]) -> None:
    seen: list[Outcome] = []
    in_order = InOrder(seen.append)
    for index in finished:
        in_order(index, Outcome(Path(str(index))))
    assert [outcome.file.name for outcome in seen] == ["0", "1", "2"]
