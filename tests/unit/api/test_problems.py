"""Every error has one status, and every body one shape."""

import json
from collections.abc import Iterator

import orjson
import pytest

from isocenter.api.http.problems import HTTP_STATUS, problem
from isocenter.core.errors import (
    Abandoned,
    BadInput,
    IsocenterError,
    OutOfMemory,
    Overloaded,
    RunHung,
    TooManyPixels,
    Unavailable,
)


def every_error(kind: type[IsocenterError] = IsocenterError) -> Iterator[type[IsocenterError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__.startswith("isocenter.core."):
            yield from every_error(below)


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_has_a_status(kind: type[IsocenterError]) -> None:
    assert problem(kind("sentence")).status_code == HTTP_STATUS[kind.code]


@pytest.mark.parametrize("kind", list(every_error(BadInput)), ids=lambda kind: kind.__name__)
def test_what_the_caller_can_mend_is_a_4xx(kind: type[IsocenterError]) -> None:
    assert 400 <= HTTP_STATUS[kind.code] < 500


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unavailable("x"), 503),
        (OutOfMemory("x"), 500),
        (RunHung("x"), 500),
        (Overloaded("x"), 429),
        (Abandoned("x"), 499),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else value.code,
)
def test_who_is_to_act_is_told_by_the_status(error: IsocenterError, status: int) -> None:
    assert problem(error).status_code == status


def test_the_body_names_code_sentence_and_details_and_nothing_else() -> None:
    answer = problem(TooManyPixels("90 pixels, the limit is 80", details={"pixels": 90, "limit": 80}))

    assert orjson.loads(bytes(answer.body)) == {
        "error": {
            "code": "too_many_pixels",
            "message": "90 pixels, the limit is 80",
            "details": {"pixels": 90, "limit": 80},
        }
    }


@pytest.mark.parametrize(("retry_after_s", "header"), [(0.01, "1"), (1.0, "1"), (1.2, "2"), (30.0, "30")])
def test_retry_after_is_never_sooner_than_promised(retry_after_s: float, header: str) -> None:
    answer = problem(Overloaded("full", retry_after_s=retry_after_s))

    assert answer.headers["retry-after"] == header
    assert orjson.loads(bytes(answer.body))["error"]["details"]["retry_after_s"] == retry_after_s


def test_a_number_beyond_64_bits_is_still_an_answer() -> None:
    answer = problem(TooManyPixels("a lying header", details={"pixels": 2**70}))

    assert json.loads(bytes(answer.body))["error"]["details"]["pixels"] == 2**70
