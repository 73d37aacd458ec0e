"""A log line is one JSON object that carries named fields and nothing else."""

import json
import logging

import pytest

from isocenter.telemetry.logging import FOREIGN, JsonFormatter, set_up_logging


def line_of(**extra: object) -> dict[str, object]:
    record = logging.getLogger("t").makeRecord("t", logging.INFO, "f", 1, "ready", (), None, extra=extra)
    parsed: dict[str, object] = json.loads(JsonFormatter().format(record))
    return parsed


def test_a_named_field_is_written() -> None:
    line = line_of(port=8000)

    assert (line["event"], line["level"], line["port"]) == ("ready", "info", 8000)


@pytest.mark.parametrize("field", ["filename_of_upload", "pixels", "body", "patient"])
def test_any_other_field_is_left_out(field: str) -> None:
    assert field not in line_of(**{field: "Doe^John"})


def test_an_exception_is_named_without_its_message() -> None:
    try:
        raise ValueError("Doe^John")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.getLogger("t").makeRecord("t", logging.ERROR, "f", 1, "unexpected", (), info)

    text = JsonFormatter().format(record)

    assert json.loads(text)["exception"] == "ValueError"
    assert "Doe" not in text


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_library_has_to_say_is_a_line_too_and_quotes_nobody(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = logging.getLogger(name)
    before = (foreign.handlers[:], foreign.level, foreign.propagate)
    try:
        set_up_logging("info")
        foreign.warning("Invalid request by %s", "Doe^John")
        foreign.info("not worth a line")
    finally:
        (foreign.handlers[:], foreign.propagate) = before[0], before[2]
        foreign.setLevel(before[1])
    (line,) = capsys.readouterr().err.splitlines()

    assert (json.loads(line)["event"], json.loads(line)["level"]) == (FOREIGN[name], "warning")
    assert "Doe" not in line
