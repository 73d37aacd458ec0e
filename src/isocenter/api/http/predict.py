"""`POST /predict`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Scope

from isocenter.api.http.answer import Answer
from isocenter.api.http.body import FIELDS, check_length, image_in, receive_body
from isocenter.api.http.connection import WhileConnected
from isocenter.api.http.form import is_form
from isocenter.api.http.gate import HEADERS, REQUEST_ID, STARTED_S
from isocenter.api.http.head import HEADER_PARAMETERS, deadline_in, query_of, version_in
from isocenter.api.http.problems import problem
from isocenter.api.http.scan_form import begins_as_scan
from isocenter.api.http.scans import BODY, ScansEndpoint
from isocenter.api.http.schemas import PredictionShape, ProblemShape
from isocenter.api.http.schemas_scans import (
    NAMED_SCAN,
    SCAN_FILES,
    SCAN_HEADERS,
    SCAN_MEDIA,
    SCAN_PARAMETERS,
    ScanShape,
)
from isocenter.api.http.time_given import ReceivedWithin
from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import (
    BadInput,
    BadRequest,
    IsocenterError,
    MissingImage,
    TooManyBytes,
    UnsupportedMedia,
    without_frames,
)
from isocenter.core.events import Answered, Observer, Shed
from isocenter.serving.budget import Booking, ByteBudget
from isocenter.serving.predict import Predict

_IMAGE = {"type": "string", "format": "binary", "description": "The image, or a scan."}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": dict.fromkeys(FIELDS, _IMAGE) | SCAN_FILES}
            },
            "application/octet-stream": {"schema": _IMAGE},
            "application/json": {"schema": {"type": "object", "properties": NAMED_SCAN, "required": ["scan_path"]}},
        },
    },
    "parameters": [
        {"name": "model", "in": "query", "schema": {"type": "string"}, "description": "Needed if several are served."},
        {"name": "version", "in": "query", "schema": {"type": "integer"}, "description": "The highest if not given."},
        *SCAN_PARAMETERS,
        *HEADER_PARAMETERS,
    ],
}

_MOST_KEPT: Final = 64
"""Refusals that are kept for a moment, of different questions."""

_LET_IN: Final = "isocenter.let_in"
"""Where it stands that a request has passed the door: which model, which version, which deadline."""


@dataclass(slots=True)
class _Same:
    """A refusal that holds for a moment, for whoever asks for the same model in the same time."""

    until_s: float
    answer: Answer
    times: int = 0
    """How often it was given again."""


class _PerhapsAScan(Exception):
    """No picture was found in a body: a scan may be."""

    def __init__(self, body: bytes | bytearray, error: IsocenterError) -> None:
        super().__init__()
        self.body = body
        self.error = error


class PredictEndpoint:
    """One image in a request to one answer, or one problem; what is meant for a model of volumes is handed over."""

    def __init__(
        self,
        predict: Predict,
        scans: ScansEndpoint,
        *,
        max_bytes: int,
        bodies: ByteBudget,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._predict = predict
        self._scans = scans
        self._bodies = bodies
        self._max_bytes = max_bytes
        self._clock = clock
        self._observer = observer
        self._same: dict[tuple[bytes, bytes | None], _Same] = {}

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Every typed error is a response; nothing is raised for what a caller sent."""
        scope = request.scope
        started_s: float = scope[STARTED_S]
        model: str | None = None
        version: int | None = None
        headers = scope[HEADERS]
        if self._scans.by_type(headers.get(b"content-type")):
            return await self._scans(request)
        received = False
        try:
            length = check_length(headers.get(b"content-length"), self._max_bytes)
            if (let_in := scope.get(_LET_IN)) is not None:
                model, version, deadline = let_in
            else:
                model, version = _which(scope["query_string"])
                deadline = self._deadline(headers, model, version, started_s)
                self._predict.check(model, version, deadline)
            received = True
            with WhileConnected(scope), self._bodies.book(length or 0) as booking:
                image = await self._receive(request, deadline, booking)
                received_s = self._clock.now_s()
                found = await self._predict(
                    image,
                    request_id=scope[REQUEST_ID],
                    model=model,
                    version=version,
                    deadline=deadline,
                )
        except _PerhapsAScan as perhaps:
            scope[BODY] = perhaps.body
            return await self._scans.perhaps(request) or self._refused(perhaps.error, model, version, started_s)
        except IsocenterError as error:
            if not received and (answer := await self._handed_over(request, error)) is not None:
                return answer
            return self._refused(error, model, version, started_s)
        total_s = self._clock.now_s() - started_s
        found = replace(found, stages_s={"receive": received_s - started_s, **found.stages_s})
        self._observer.observe(Answered("predict", found.model, found.version, "ok", total_s, found.stages_s))
        body = orjson.dumps(found.as_json(request_id=scope[REQUEST_ID], total_s=total_s))
        return Answer(body)

    def glance(self, scope: Scope) -> Answer | None:
        """Refuse a request at once, if it has to be refused now; what is wrong with its head is told later.

        None lets it in, and it is not asked again.
        """
        headers, started_s = scope[HEADERS], scope[STARTED_S]
        if self._scans.by_type(headers.get(b"content-type")):
            return None
        asked = scope["query_string"], headers.get(b"x-timeout-ms")
        same = self._same.get(asked)
        if same is not None and started_s < same.until_s:
            same.times += 1
            self._predict.note_refused()
            return same.answer
        try:
            check_length(headers.get(b"content-length"), self._max_bytes)
            model, version = _which(scope["query_string"])
            deadline = self._deadline(headers, model, version, started_s)
        except IsocenterError:
            return None
        try:
            self._predict.check(model, version, deadline)
        except IsocenterError as error:
            if isinstance(error, BadInput) and self._scans.meant(scope, beside="classification"):
                return None
            answer = self._refused(error, model, version, started_s)
            if error.holds_s:
                self._keep(asked, answer, error, model, version)
            return answer
        scope[_LET_IN] = model, version, deadline
        return None

    def _keep(
        self,
        asked: tuple[bytes, bytes | None],
        answer: Answer,
        error: IsocenterError,
        model: str | None,
        version: int | None,
    ) -> None:
        if len(self._same) >= _MOST_KEPT:
            self._same.clear()
        meant = self._predict.meant_by(model, version)
        same = self._same[asked] = _Same(self._clock.now_s() + error.holds_s, answer)

        def tell() -> None:
            # All of them at once: told one by one, they would cost a quarter of what refusing costs.
            if self._same.get(asked) is same:
                del self._same[asked]
            if same.times:
                self._observer.observe(Shed(*meant, "would_be_late", same.times))
                self._observer.observe(Answered("predict", *meant, error.code, 0.0, {}, same.times))

        self._clock.call_at(same.until_s, tell)

    def _deadline(
        self, headers: Mapping[bytes, bytes], model: str | None, version: int | None, started_s: float
    ) -> Deadline:
        deadline = deadline_in(headers.get(b"x-timeout-ms"), started_s)
        return deadline or self._predict.default_deadline(model, version, arrived_s=started_s)

    def _refused(self, error: IsocenterError, model: str | None, version: int | None, started_s: float) -> Answer:
        # The error's frames hold the error, and the image: without the garbage collector none of it would ever go.
        without_frames(error)
        meant = self._predict.meant_by(model, version)
        self._observer.observe(Answered("predict", *meant, error.code, self._clock.now_s() - started_s, {}))
        return problem(error)

    async def _receive(self, request: Request, deadline: Deadline, booking: Booking) -> bytes:
        """The image, or the deadline's end."""
        content_type = request.scope[HEADERS].get(b"content-type")
        async with ReceivedWithin(deadline, self._clock, "the image was"):
            body = await receive_body(request.receive, max_bytes=self._max_bytes, booking=booking)
        try:
            image = image_in(body, content_type, max_bytes=self._max_bytes)
        except (MissingImage, BadRequest) as error:
            if self._scans.may_be_meant(request.scope):
                raise _PerhapsAScan(body, without_frames(error)) from None
            raise
        if begins_as_scan(image) and self._scans.may_be_meant(request.scope):
            raise _PerhapsAScan(body, UnsupportedMedia("this is a scan, and a model of pictures is asked"))
        return image

    async def _handed_over(self, request: Request, error: IsocenterError) -> Response | None:
        """The answer to what cannot be answered with a class by its head, if it is meant for a model of volumes."""
        if isinstance(error, BadInput) and self._scans.meant(request.scope, beside="classification"):
            return await self._scans(request)
        form = is_form(request.scope[HEADERS].get(b"content-type"))
        if form and isinstance(error, TooManyBytes) and self._scans.may_be_meant(request.scope):
            return await self._scans.perhaps(request)
        return None


def predict_routes(endpoint: PredictEndpoint) -> APIRouter:
    """The route as the manual shows it."""
    router = APIRouter(tags=["predict"])
    answers: dict[int | str, dict[str, Any]] = {200: {"content": SCAN_MEDIA, "headers": SCAN_HEADERS}}
    answers |= {status: {"model": ProblemShape} for status in (400, 403, 404, 413, 415, 422, 429, 500, 503, 504)}

    @router.post("/predict", response_model=PredictionShape | ScanShape, responses=answers, openapi_extra=_BODY)
    async def predict_image(request: Request) -> Response:
        """Classify one image: a form with the field `image` or `file`, or the image itself as the body.

        With a model of volumes: find what it looks for in one scan, sent in the same ways, as several files of a form,
        as a file for each channel by its name, or named by `scan_path`.
        """
        return await endpoint(request)

    return router


def _which(query: bytes) -> tuple[str | None, int | None]:
    if not query:
        return None, None
    params = query_of(query, ("model", "version"))
    return params.get("model"), version_in(params.get("version"))
