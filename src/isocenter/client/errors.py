"""What a server says when it does not answer, as the errors that the service raises inside a program."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any, Final

from isocenter.core.errors import Detail, IsocenterError

_LONGEST_MESSAGE: Final = 500


class ServerRefused(IsocenterError):
    """No answer, for a reason that has no class of its own here; `code` says which."""

    def __init__(
        self,
        message: str,
        *,
        code: str = IsocenterError.code,
        details: Mapping[str, Detail] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, details=details, retry_after_s=retry_after_s)
        # The code belongs to the instance here, and to the class everywhere else.
        vars(self)["code"] = code

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.code, self.details, self.retry_after_s)


class NoConnection(ServerRefused):
    """The server could not be reached, or the connection broke: whether it did the work is not known."""

    def __init__(self, message: str, *, code: str = "no_connection", **more: Any) -> None:
        super().__init__(message, code=code, **more)


class NotAnAnswer(ServerRefused):
    """What came back is not what an Isocenter server answers: something else listens there, or stands between."""

    def __init__(self, message: str, *, code: str = "not_an_answer", **more: Any) -> None:
        super().__init__(message, code=code, **more)


def _rebuild(
    kind: type[ServerRefused], message: str, code: str, details: Mapping[str, Detail], retry_after_s: float | None
) -> ServerRefused:
    return kind(message, code=code, details=details, retry_after_s=retry_after_s)


def error_from(
    status: int, headers: Mapping[str, str], content: bytes, *, wall_s: Callable[[], float] = time.time
) -> IsocenterError:
    """The error that an answer other than 2xx stands for; its class is the one that has the code.

    `wall_s` is for a date to come back at, as in `named_s`.

    >>> body = b'{"error": {"code": "unknown_model", "message": "no model is called x", "details": {}}}'
    >>> error_from(404, {}, body)
    UnknownModel('no model is called x')
    >>> error_from(502, {}, b"<html>").code
    'http_502'
    """
    problem = _problem(content)
    if problem is None:
        return NotAnAnswer(
            f"status {status}, not an answer of Isocenter",
            code=f"http_{status}",
            details={"status": status},
            retry_after_s=retry_after_s(headers, None, wall_s=wall_s),
        )
    code, message, details = problem
    hint_s = retry_after_s(headers, details.get("retry_after_s"), wall_s=wall_s)
    details.pop("retry_after_s", None)
    kind = CLASSES.get(code)
    if kind is not None:
        return kind(message, details=details, retry_after_s=hint_s)
    return ServerRefused(message, code=code, details=details, retry_after_s=hint_s)


def retry_after_s(
    headers: Mapping[str, str], exact: object, *, wall_s: Callable[[], float] = time.time
) -> float | None:
    """When the server says that it helps to come back; None if it does not say.

    The details of a problem hold the exact figure, which the header rounds up to whole seconds.

    >>> retry_after_s({"retry-after": "1"}, 0.05), retry_after_s({"retry-after": "7"}, None)
    (0.05, 7.0)
    """
    try:
        seconds = float(exact) if isinstance(exact, int | float) and not isinstance(exact, bool) else -1.0
    except OverflowError:  # a whole number that no float holds
        seconds = -1.0
    return seconds if isfinite(seconds) and seconds >= 0 else named_s(headers, wall_s=wall_s)


def named_s(headers: Mapping[str, str], *, wall_s: Callable[[], float] = time.time) -> float | None:
    """`Retry-After` in seconds, given as such or as a date (RFC 9110, 10.2.3); None if it is not there.

    `wall_s` gives the seconds since 1970; it is asked only for a date of a server that does not say its own.

    >>> named_s({"retry-after": "Fri, 21 Nov 2025 07:00:03 GMT", "date": "Fri, 21 Nov 2025 07:00:00 GMT"})
    3.0
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal() and len(value) <= 9:
        return float(value)
    until = _instant(value)
    if until is None:
        return None
    # Counted from the server's own date, as the clocks of two machines need not agree. An answer without one is as
    # good as dated when it came (RFC 9110, 6.6.1).
    now = _instant(headers.get("date", "")) or datetime.fromtimestamp(wall_s(), UTC)
    return max(0.0, (until - now).total_seconds())


def _instant(date: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(date)
    except (ValueError, OverflowError):  # a year, or an hour, that no clock shows
        return None
    return found if found.tzinfo is not None else None


def _problem(content: bytes) -> tuple[str, str, dict[str, Any]] | None:
    try:
        problem = json.loads(content)["error"]
        code, message = problem["code"], problem["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(code, str) or not isinstance(message, str):
        return None
    details = problem.get("details")
    return code, message[:_LONGEST_MESSAGE], dict(details) if isinstance(details, dict) else {}


def _tree(kind: type[IsocenterError]) -> Iterator[type[IsocenterError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__.startswith("isocenter.core."):
            yield from _tree(below)


CLASSES: Final[Mapping[str, type[IsocenterError]]] = {kind.code: kind for kind in _tree(IsocenterError)}
"""The class of each code."""
