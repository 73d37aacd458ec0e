"""`POST /segment`: one image of cells to its objects."""

from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from isocenter.api.http.answer import Answer
from isocenter.api.http.body import FIELDS, check_length
from isocenter.api.http.cells import WHAT_IS_ASKED, CellsDoor, asked_in, both
from isocenter.api.http.connection import WhileConnected
from isocenter.api.http.gate import HEADERS, REQUEST_ID, STARTED_S
from isocenter.api.http.head import HEADER_PARAMETERS, accepted, query_of
from isocenter.api.http.scans import ScansEndpoint
from isocenter.api.http.schemas import ProblemShape
from isocenter.api.http.schemas_cells import SegmentationShape
from isocenter.core.errors import BadInput, BadRequest, BadValue, IsocenterError
from isocenter.serving.cell_answer import FORMATS, CellFormat
from isocenter.serving.cells import CellsAsked

_TEXTS: Final = (*WHAT_IS_ASKED, "format")
_IMAGE: Final = {"type": "string", "format": "binary"}
_MEANINGS: Final = {
    "model": "Needed if several segment images and none is the default.",
    "version": "The highest if not given.",
    "threshold": "Probability from which a pixel belongs to an object, 0.1 to 0.9; the model's own if not given.",
    "detect_holes": "`false`: a gap within one object is part of it. `true` if not given.",
    "channel": "One channel of the image, by its name or its number from 0.",
    "page": "One page of the image, from 0.",
    "format": "json, geojson, coco, coco-rle, labels or overlay; by `Accept` if not given, else json.",
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": dict.fromkeys(FIELDS, _IMAGE)}},
            "application/octet-stream": {"schema": _IMAGE},
        },
    },
    "parameters": [
        *(
            {
                "name": name,
                "in": "query",
                "schema": {"type": "string"},
                "description": f"{text} A field of a form too.",
            }
            for name, text in _MEANINGS.items()
        ),
        *HEADER_PARAMETERS,
    ],
}
_BY_MEDIA_TYPE: Final[dict[str, tuple[CellFormat, bool]]] = {
    "application/json": ("json", False),
    "application/geo+json": ("geojson", False),
    "application/vnd.geo+json": ("geojson", False),
    "image/png": ("labels", False),
    "image/tiff": ("labels", True),
}
"""The format, and whether labels are a TIFF whatever their number."""


class SegmentEndpoint:
    """One image in a request to one answer, or one problem; what is meant for a model of volumes is handed over."""

    def __init__(self, door: CellsDoor, scans: ScansEndpoint) -> None:
        self._door = door
        self._scans = scans

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Every typed error is a response; nothing is raised for what a caller sent."""
        door, scope = self._door, request.scope
        started_s: float = scope[STARTED_S]
        headers = scope[HEADERS]
        if self._scans.by_type(headers.get(b"content-type")):
            return await self._scans(request)
        asked = CellsAsked()
        received = False
        try:
            length = check_length(headers.get(b"content-length"), door.max_bytes)
            texts = query_of(scope["query_string"], _TEXTS)
            asked = asked_in(texts)
            deadline = door.begin(request, asked)
            received = True
            with WhileConnected(scope), door.bodies.book(length or 0) as booking:
                form = await door.receive(
                    request, deadline, booking, max_bytes=door.max_bytes, file_fields=FIELDS, text_fields=_TEXTS
                )
                received_s = door.clock.now_s()
                if len(form.files) > 1:
                    raise BadRequest(f"the form holds {len(form.files)} images; send one")
                if form.others:
                    raise BadRequest(
                        f"unknown field {form.others[0]!r}; beside the image there are {', '.join(_TEXTS)}"
                    )
                texts = both(texts, form)
                asked = asked_in(texts)
                written, tiff = format_in(texts.get("format"), headers.get(b"accept"))
                deadline = door.deadline(request, asked)
                found = await door.cells(
                    form.files[0].data, asked, request_id=scope[REQUEST_ID], deadline=deadline, form=written
                )
                found = replace(found, stages_s={"receive": received_s - started_s, **found.stages_s})
                if written == "json":
                    total_s = door.clock.now_s() - started_s
                    rendered = found.render("json", request_id=scope[REQUEST_ID], total_s=total_s)
                else:
                    rendered = await door.cells.rendered(found, written, deadline, tiff=tiff)
        except IsocenterError as error:
            if not received and isinstance(error, BadInput) and self._scans.meant(scope, beside="segmentation"):
                return await self._scans(request)
            return door.refused(error, asked, started_s)
        door.count("ok", asked, started_s, found.stages_s)
        return Answer(rendered.body, media_type=rendered.media_type)


def segment_routes(endpoint: SegmentEndpoint) -> APIRouter:
    """The route as the manual shows it."""
    router = APIRouter(tags=["segment"])
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": ProblemShape} for status in (400, 404, 413, 415, 422, 429, 503, 504)
    }

    @router.post("/segment", response_model=SegmentationShape, responses=problems, openapi_extra=_BODY)
    async def segment_image(request: Request) -> Response:
        """Find the objects in one image: a form with the field `image` or `file`, or the image itself as the body."""
        return await endpoint(request)

    return router


def format_in(named: str | None, accept: bytes | None) -> tuple[CellFormat, bool]:
    """The format that is asked for by name, else by the header, else JSON; and whether labels are to be a TIFF.

    A header that names nothing that is written here is as good as none (RFC 9110, 12.5.1).

    >>> format_in(None, b"text/html, image/tiff;q=0.5"), format_in("overlay", b"application/json")
    (('labels', True), ('overlay', False))

    Raises:
        BadValue: there is no format of that name.
    """
    wanted = accepted(accept, _BY_MEDIA_TYPE)
    if not named:
        return wanted
    for known in FORMATS:
        if known == named.lower():
            return known, known == "labels" and wanted == ("labels", True)
    raise BadValue(
        f"format {named[:64]!r} is not written; there are {', '.join(FORMATS)}",
        details={"format": named[:64], "formats": list(FORMATS)},
    )
