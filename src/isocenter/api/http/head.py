"""What the head of a request says: query parameters and the time that is given."""

import math
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

from starlette.datastructures import QueryParams

from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadRequest

T = TypeVar("T")

_MIN_TIMEOUT_MS: Final = 0.001
_MAX_TIMEOUT_MS: Final = 3_600_000.0

HEADER_PARAMETERS: Final[tuple[dict[str, Any], ...]] = (
    {
        "name": "X-Timeout-Ms",
        "in": "header",
        "schema": {"type": "number"},
        "description": "How long the answer is of use; the model's own timeout if not given.",
    },
    {"name": "X-Request-ID", "in": "header", "schema": {"type": "string"}, "description": "Echoed in the answer."},
)
"""The headers of every route that answers with a model, as OpenAPI has them."""


def query_of(query: bytes, known: Collection[str], *, leave_others: bool = False) -> dict[str, str]:
    """The query parameters, each once. `leave_others`: those that are not known are left alone.

    >>> query_of(b"model=cells", ("model", "version"))
    {'model': 'cells'}

    Raises:
        BadRequest: one that is not known, or one that is given twice.
    """
    if not query:
        return {}
    params = QueryParams(query)
    unknown = sorted(set(params) - set(known))
    if unknown and not leave_others:
        names = ", ".join(sorted(known))
        raise BadRequest(f"unknown query parameter {unknown[0][:64]!r}; there are {names}")
    given = [(name, text) for name, text in params.multi_items() if name in known]
    if len(given) != len(dict(given)):
        raise BadRequest("a query parameter is given twice; which one is meant is not guessed")
    return dict(given)


def together(query: Mapping[str, str], sent: Mapping[str, str], *, where: str) -> dict[str, str]:
    """What stands in the query and what was sent in a form or another body.

    Raises:
        BadRequest: they disagree.
    """
    for name, text in sent.items():
        if query.get(name, text) != text:
            raise BadRequest(f"{name} is {query[name][:64]!r} in the query and {text[:64]!r} in the {where}")
    return {**query, **sent}


def version_in(given: str | None) -> int | None:
    """The number of a version.

    Raises:
        BadRequest: it is none.
    """
    if given is None:
        return None
    version = whole_number_in(given)
    if version is None:
        raise BadRequest(f"version {given[:64]!r} is not a whole number")
    return version


def deadline_in(timeout_ms: bytes | None, started_s: float) -> Deadline | None:
    """The deadline that `X-Timeout-Ms` asks for, counted from the arrival of the head.

    Raises:
        BadRequest: it is no number of milliseconds, or out of range.
    """
    if timeout_ms is None:
        return None
    given = timeout_ms.decode("latin-1")
    value = number_in(given)
    if not _MIN_TIMEOUT_MS <= value <= _MAX_TIMEOUT_MS:
        raise BadRequest(f"X-Timeout-Ms is {given[:64]!r}; it must be a number of milliseconds from 0.001 to 3600000")
    return Deadline.after(value / 1e3, now_s=started_s)


def number_in(text: str) -> float:
    """The number that a text is, written as JSON and HTTP would: NaN where Python alone would read one.

    >>> number_in("5e2"), number_in("1_000")
    (500.0, nan)
    """
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def whole_number_in(text: str) -> int | None:
    """The whole number of up to nine digits that a text is; None of any other text.

    >>> whole_number_in("12"), whole_number_in("-1")
    (12, None)
    """
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else None


def accepted(header: bytes | None, known: Mapping[str, T]) -> T:
    """What an `Accept` header asks for, of the media types that are written here; JSON if it names none of them.

    A header that names nothing that is written here is as good as none (RFC 9110, 12.5.1). A range such as `image/*`
    means the first of its types.

    >>> accepted(b"text/html, image/*;q=0.5", {"application/json": 1, "image/png": 2, "image/tiff": 3})
    2
    """
    best, best_weight = known["application/json"], 0.0
    for each in (header or b"").decode("latin-1").lower().split(","):
        kind, *parameters = (part.strip() for part in each.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if kind in ("*/*", "application/*"):
            kind = "application/json"
        elif kind.endswith("/*"):
            kind = next((each for each in known if each.startswith(kind[:-1])), kind)
        found = known.get(kind)
        if found is not None and weight > best_weight:
            best, best_weight = found, weight
    return best
