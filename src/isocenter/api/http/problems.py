"""Errors on the wire: one table from code to status, one body shape."""

import json
import math
from collections.abc import Mapping
from typing import Final

import orjson
from starlette.responses import Response

from isocenter.core.errors import IsocenterError

HTTP_STATUS: Final[dict[str, int]] = {
    # what the caller can mend
    "bad_input": 422,
    "bad_request": 400,
    "missing_image": 400,
    "too_many_bytes": 413,
    "unsupported_media": 415,
    "bad_image": 422,
    "truncated_image": 422,
    "too_many_pixels": 413,
    "multi_frame_image": 422,
    "empty_input": 422,
    "non_finite_pixels": 422,
    "missing_window": 422,
    "input_not_accepted": 422,
    "unknown_model": 404,
    "unknown_version": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    # not now
    "refused": 503,
    "overloaded": 429,
    "draining": 503,
    "not_ready": 503,
    "deadline_exceeded": 504,
    "abandoned": 499,
    # ours
    "error": 500,
    "internal": 500,
    "model_fault": 500,
    "runtime_fault": 500,
    "numeric_failure": 500,
    "setup_error": 500,
    "bad_manifest": 500,
    "digest_mismatch": 500,
    "golden_mismatch": 500,
    "batch_variance": 500,
    "missing_extra": 500,
    "bad_settings": 500,
}
"""Every code that may leave the server; a test holds it against the error tree."""


def problem(error: IsocenterError) -> Response:
    """The answer to a request that ended in a typed error."""
    headers = {}
    details = dict(error.details)
    if error.retry_after_s is not None:
        # The header counts whole seconds (RFC 9110, 10.2.3); the exact figure is in the details.
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        details["retry_after_s"] = round(error.retry_after_s, 3)
    return problem_response(error.code, error.message, details, headers=headers)


def problem_response(
    code: str, message: str, details: Mapping[str, object] | None = None, *, headers: dict[str, str] | None = None
) -> Response:
    """`{"error": {"code", "message", "details"}}` with the status that belongs to the code."""
    problem = {"error": {"code": code, "message": message, "details": details or {}}}
    try:
        body = orjson.dumps(problem, default=str)
    except TypeError:  # a number beyond 64 bits, as a lying header may announce it
        body = json.dumps(problem, default=str).encode()
    return Response(body, HTTP_STATUS[code], headers=headers, media_type="application/json")
