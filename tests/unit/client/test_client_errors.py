"""What a server says is raised as the error that the service raises inside a program."""

import json
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from isocenter.api.http.problems import HTTP_STATUS, problem
from isocenter.client.errors import (
    CLASSES,
    NoConnection,
    NotAnAnswer,
    ServerRefused,
    error_from,
    named_s,
    retry_after_s,
)
from isocenter.core.errors import IsocenterError, Overloaded

ONLY_AT_THE_EDGE = {"not_found", "method_not_allowed", "forbidden", "internal"}


def body(code: object, message: object = "why", **more: Any) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "details": {}, **more}}).encode()


@pytest.mark.parametrize("code", HTTP_STATUS)
def test_every_code_that_leaves_a_server_is_the_error_that_went_in(code: str) -> None:
    if code in ONLY_AT_THE_EDGE:
        error: IsocenterError = error_from(HTTP_STATUS[code], {}, body(code))
        assert type(error) is ServerRefused
    else:
        given = CLASSES[code]("why", details={"limit": 3}, retry_after_s=1.25)
        sent = problem(given)
        headers = {name.decode(): value.decode() for name, value in sent.raw_headers}
        error = error_from(sent.status_code, headers, bytes(sent.body))
        assert type(error) is type(given)
        assert (error.details, error.retry_after_s) == ({"limit": 3}, 1.25)
    assert (error.code, error.message) == (code, "why")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b'{"error": "old"}',
        body(7),
        body("x", None),
        b'{"error": {"code": "x"}}',
        b"[" * 100_000,
    ],
)
def test_an_answer_of_somebody_else_says_only_its_status(content: bytes) -> None:
    error = error_from(502, {"retry-after": "3"}, content)
    assert isinstance(error, NotAnAnswer)
    assert (error.code, error.details, error.retry_after_s) == ("http_502", {"status": 502}, 3.0)


def test_details_that_are_none_are_none() -> None:
    assert error_from(422, {}, body("bad_image", details=[1])).details == {}


@pytest.mark.parametrize(
    ("header", "exact", "wait_s"),
    [
        (None, None, None),
        ("2", None, 2.0),
        ("2", 1.5, 1.5),
        ("1", 0.004, 0.004),
        (None, 0.5, 0.5),
        ("30", 0.5, 0.5),
        ("1", 4.5, 4.5),
        ("soon", None, None),
        ("-1", None, None),
        ("1", "0.5", 1.0),
        ("1", True, 1.0),
        ("1", float("inf"), 1.0),
        ("1", -3, 1.0),
        ("1", 10**400, 1.0),
        ("Fri, 21 Nov 2025 07:00:09 GMT", None, 9.0),
        ("Fri, 21 Nov 2025 06:59:00 GMT", None, 0.0),
        ("Fri, 21 Nov 99999999999999999999 06:59:00 GMT", None, None),
        ("Fri, 21 Nov 2025 06:59:00 +99999999999999999999", None, None),
    ],
)
def test_the_time_to_come_back(header: str | None, exact: object, wait_s: float | None) -> None:
    headers = {"date": "Fri, 21 Nov 2025 07:00:00 GMT"} | ({} if header is None else {"retry-after": header})
    assert retry_after_s(headers, exact) == wait_s


@pytest.mark.parametrize("dated", [{}, {"date": "today"}], ids=["no date", "no such date"])
def test_a_date_to_come_back_counts_from_our_clock_where_the_server_does_not_say_its_own(dated: dict[str, str]) -> None:
    headers = {"retry-after": "Sat, 22 Nov 2025 07:00:09 GMT", **dated}
    seven = datetime(2025, 11, 22, 7, tzinfo=UTC).timestamp()
    assert named_s(headers, wall_s=lambda: seven) == 9.0
    assert named_s(headers, wall_s=lambda: seven + 10.0) == 0.0


@pytest.mark.parametrize(
    "error",
    [
        ServerRefused("a", code="forbidden", details={"x": 1}, retry_after_s=2.0),
        NoConnection("b"),
        NotAnAnswer("c", code="http_502"),
        Overloaded("d", retry_after_s=1.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: IsocenterError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert (found.code, found.message, found.details, found.retry_after_s) == (
        error.code,
        error.message,
        error.details,
        error.retry_after_s,
    )
