"""A log line is one JSON object that carries named fields and nothing else."""

import json
import logging

import pytest

from isocenter.telemetry.logging import JsonFormatter


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
