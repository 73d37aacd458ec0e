"""Errors on the wire: one table from code to status, one body shape."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from isocenter.api.http.answer import Answer
from isocenter.core.errors import IsocenterError

HTTP_STATUS: Final[dict[str, int]] = {
    # what the caller can mend
    "bad_input": 422,
    "bad_request": 400,
    "bad_value": 422,
    "missing_image": 400,
    "too_many_bytes": 413,
    "unsupported_media": 415,
    "bad_image": 422,
    "truncated_image": 422,
    "too_many_pixels": 413,
    "volume_too_large": 413,
    "multi_frame_image": 422,
    "unsafe_path": 422,
    "path_not_allowed": 403,
    "scan_too_large": 422,
    "bad_volume": 422,
    "several_volumes": 422,
    "missing_geometry": 422,
    "bad_geometry": 422,
    "missing_slices": 422,
    "duplicate_slices": 422,
    "mixed_series": 422,
    "mixed_sizes": 422,
    "mixed_orientation": 422,
    "mixed_frames_of_reference": 422,
    "gantry_tilt": 422,
    "channels_differ": 422,
    "localizer": 422,
    "empty_input": 422,
    "non_finite_pixels": 422,
    "missing_window": 422,
    "input_not_accepted": 422,
    "too_many_objects": 422,
    "not_dicom": 422,
    "wrong_task": 422,
    "unknown_model": 404,
    "unknown_version": 404,
    "unknown_job": 404,
    "job_expired": 410,
    "job_not_done": 409,
    "jobs_off": 403,
    "key_reused": 422,
    "not_found": 404,
    "method_not_allowed": 405,
    "forbidden": 403,
    # not now
    "refused": 503,
    "overloaded": 429,
    "draining": 503,
    "not_ready": 503,
    "unavailable": 503,
    "store_unavailable": 503,
    "disk_full": 507,
    "deadline_exceeded": 504,
    "abandoned": 499,
    # ours
    "error": 500,
    "internal": 500,
    "model_fault": 500,
    "runtime_fault": 500,
    "out_of_memory": 500,
    "runtime_lost": 503,
    "run_hung": 500,
    "numeric_failure": 500,
    "output_mismatch": 500,
    "job_lost": 500,
    "setup_error": 500,
    "bad_manifest": 500,
    "digest_mismatch": 500,
    "golden_mismatch": 500,
    "batch_variance": 500,
    "unmeasured_precision": 500,
    "gate_missed": 500,
    "reload_refused": 409,
    "import_refused": 500,
    "missing_extra": 500,
    "bad_settings": 500,
}
"""Every code that may leave the server; a test holds it against the error tree."""


def problem(error: IsocenterError) -> Answer:
    """The answer to a request that ended in a typed error."""
    if error.retry_after_s is None:
        return _answer(error.code, error.message, error.details, ())
    details = {**error.details, "retry_after_s": round(error.retry_after_s, 3)}
    # The header counts whole seconds (RFC 9110, 10.2.3); the exact figure is in the details.
    header = (b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s)))
    return _answer(error.code, error.message, details, (header,))


def problem_response(
    code: str, message: str, details: Mapping[str, object] | None = None, *, headers: Mapping[str, str] | None = None
) -> Answer:
    """`{"error": {"code", "message", "details"}}` with the status that belongs to the code."""
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    return _answer(code, message, details or {}, raw)


def as_asked(path: str, answer: Answer) -> Answer:
    """The same problem, with what callers of `/api/v1` read beside the error: `success` and `detail`."""
    if not path.startswith("/api/v1/"):
        return answer
    body = orjson.loads(answer.body)
    written = orjson.dumps({"success": False, "detail": body["error"]["message"], **body})
    headers = [each for each in answer.raw_headers if each[0] not in (b"content-length", b"content-type")]
    return Answer(written, answer.status_code, headers)


def _answer(code: str, message: str, details: Mapping[str, object], headers: Sequence[tuple[bytes, bytes]]) -> Answer:
    shape = {"error": {"code": code, "message": message, "details": details}}
    try:
        body = orjson.dumps(shape, default=str)
    except TypeError:  # a number beyond 64 bits, as a lying header may announce it
        body = json.dumps(shape, default=str).encode()
    return Answer(body, HTTP_STATUS[code], headers)
