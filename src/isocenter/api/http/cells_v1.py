"""`/api/v1/segment` and `/api/v1/batch-segment`, as callers of an earlier cell service send and read them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import orjson
from fastapi import Request
from starlette.responses import Response

from isocenter.api.http.answer import Answer
from isocenter.api.http.body import check_length
from isocenter.api.http.cells import WHAT_IS_ASKED, CellsDoor, asked_in, both
from isocenter.api.http.connection import WhileConnected
from isocenter.api.http.form import FormFile
from isocenter.api.http.gate import HEADERS, REQUEST_ID, STARTED_S
from isocenter.api.http.head import query_of
from isocenter.api.http.problems import as_asked
from isocenter.core.errors import BadRequest, DeadlineExceeded, IsocenterError, Refused
from isocenter.serving.budget import FORM_OVERHEAD_BYTES
from isocenter.serving.cell_answer import CellAnswer
from isocenter.serving.cells import CellsAsked

USUAL_MODEL: Final = "hrnet"
"""What is meant where no model is named, if it is served."""
USUAL_THRESHOLD: Final = 0.5
FILE: Final = ("file", "image")
FILES: Final = ("files", "files[]", "file")

_NOTHING = "no objects were found: the image may hold none, or the threshold may be too high"


class SegmentV1Endpoint:
    """One image in a form to its polygons."""

    def __init__(self, door: CellsDoor) -> None:
        self._door = door

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Every typed error is a response; nothing is raised for what a caller sent."""
        door, scope = self._door, request.scope
        started_s: float = scope[STARTED_S]
        asked = CellsAsked()
        try:
            length = check_length(scope[HEADERS].get(b"content-length"), door.max_bytes)
            query = query_of(scope["query_string"], WHAT_IS_ASKED, leave_others=True)
            asked = _asked(door, query)
            deadline = door.begin(request, asked)
            with WhileConnected(scope), door.bodies.book(length or 0) as booking:
                form = await door.receive(request, deadline, booking, max_bytes=door.max_bytes, file_fields=FILE)
                received_s = door.clock.now_s()
                if len(form.files) > 1:
                    raise BadRequest(f"the form holds {len(form.files)} images; /api/v1/batch-segment takes several")
                asked = _asked(door, both(query, form))
                found = await door.cells(
                    form.files[0].data,
                    asked,
                    request_id=scope[REQUEST_ID],
                    deadline=door.deadline(request, asked),
                    form="json",
                )
        except IsocenterError as error:
            return as_asked(scope["path"], door.refused(error, asked, started_s))
        found = replace(found, stages_s={"receive": received_s - started_s, **found.stages_s})
        door.count("ok", asked, started_s, found.stages_s)
        total_s = door.clock.now_s() - started_s
        return Answer(orjson.dumps({"success": True, **_written(found, total_s), "request_id": scope[REQUEST_ID]}))


class BatchSegmentV1Endpoint:
    """Several images in a form to a result each; one that cannot be answered costs the others nothing."""

    def __init__(self, door: CellsDoor) -> None:
        self._door = door

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Every typed error is a response; nothing is raised for what a caller sent."""
        door, scope = self._door, request.scope
        started_s: float = scope[STARTED_S]
        asked = CellsAsked()
        try:
            max_bytes = self._most_bytes()
            length = check_length(scope[HEADERS].get(b"content-length"), max_bytes)
            query = query_of(scope["query_string"], WHAT_IS_ASKED, leave_others=True)
            asked = _asked(door, query)
            deadline = door.begin(request, asked)
            with WhileConnected(scope), door.bodies.book(length or 0) as booking:
                form = await door.receive(request, deadline, booking, max_bytes=max_bytes, file_fields=FILES)
                received_s = door.clock.now_s()
                asked = _asked(door, both(query, form))
                self._refuse_too_many(asked, len(form.files))
                found = await door.cells.many(
                    [each.data for each in form.files],
                    asked,
                    request_id=scope[REQUEST_ID],
                    deadline=door.deadline(request, asked),
                    form="json",
                )
            _refuse_if_none_was_taken(found)
        except IsocenterError as error:
            return as_asked(scope["path"], door.refused(error, asked, started_s))
        receive_s = received_s - started_s
        for each in found:
            if isinstance(each, CellAnswer):
                door.count("ok", asked, started_s, {"receive": receive_s, **each.stages_s})
            else:
                door.count(each.code, asked, started_s, {})
        return Answer(self._body(asked, form.files, found, scope[REQUEST_ID], door.clock.now_s() - started_s))

    def _most_bytes(self) -> int:
        """What a body may have: as many images as any model takes at a time, within what all bodies may have."""
        door = self._door
        most = max((each.manifest.batching.max_batch_size for each in door.cells.models.all()), default=1)
        return max(door.max_bytes, min(most * door.max_bytes, door.bodies.limit_bytes - FORM_OVERHEAD_BYTES))

    def _refuse_too_many(self, asked: CellsAsked, files: int) -> None:
        served = self._door.cells.models.served(asked.model, asked.version)
        limit = served.manifest.batching.max_batch_size
        if files > limit:
            raise BadRequest(
                f"{files} images in one request; {served.name} takes {limit} at a time",
                details={"files": files, "limit": limit, "model": served.name},
            )

    def _body(
        self,
        asked: CellsAsked,
        files: list[FormFile],
        found: list[CellAnswer | IsocenterError],
        request_id: str,
        total_s: float,
    ) -> bytes:
        results: list[dict[str, Any]] = []
        polygons = 0
        name, _ = self._door.cells.models.meant_by(asked.model, asked.version)
        for index, (file, each) in enumerate(zip(files, found, strict=True)):
            about: dict[str, Any] = {"filename": file.name, "batch_index": index}
            if isinstance(each, CellAnswer):
                polygons += sum(1 + len(polygon.holes) for polygon in each.polygons)
                results.append({**about, "success": True, **_written(each, total_s)})
                continue
            said = {"error": each.message, "code": each.code, "details": each.details, "polygons": []}
            results.append({**about, "success": False, **said, "model_used": name, "threshold_used": asked.threshold})
        done = sum(result["success"] for result in results)
        written = {
            "success": True,
            "batch_size": len(files),
            "successful_count": done,
            "failed_count": len(files) - done,
            "total_polygons": polygons,
            "model_used": name,
            "threshold_used": asked.threshold,
            "processing_time": total_s,
            "results": results,
            "request_id": request_id,
        }
        return orjson.dumps(written, default=str)


def _asked(door: CellsDoor, texts: Mapping[str, str]) -> CellsAsked:
    """What is asked, with the defaults of those callers."""
    usual = {"model": USUAL_MODEL} if any(each.name == USUAL_MODEL for each in door.cells.models.all()) else {}
    return asked_in(texts if texts.get("model") else {**texts, **usual}, threshold=USUAL_THRESHOLD)


def _written(found: CellAnswer, total_s: float) -> dict[str, Any]:
    """One image's answer, without `success`."""
    width, height = found.image_size_px
    written: dict[str, Any] = {
        "polygons": orjson.Fragment(found.polygons_json()),
        "model_used": found.model,
        "threshold_used": found.threshold,
        "processing_time": total_s,
        "inference_time": found.stages_s["windows"],
        "image_size": {"width": width, "height": height},
        "batch_size_used": found.batch_size,
        "version": found.version,
        "timings_ms": {stage: round(seconds * 1e3, 3) for stage, seconds in found.stages_s.items()},
        "warnings": [{"code": note.code, "message": note.message} for note in found.warnings],
    }
    if not found.count:
        written["warning"] = _NOTHING
    return written


def _refuse_if_none_was_taken(found: list[CellAnswer | IsocenterError]) -> None:
    """Who comes back later is better told so by the status than by every single result."""
    errors = [each for each in found if isinstance(each, Refused | DeadlineExceeded)]
    if errors and len(errors) == len(found):
        raise errors[0]
