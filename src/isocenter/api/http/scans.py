"""Scans over HTTP: `POST /predict` and `POST /segment`, where what is sent or named is a scan.

Those routes are asked first, and hand over what is meant for a model of volumes; see `meant`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, cast

from fastapi import Request
from multipart import parse_options_header
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import Message, Receive, Scope

from isocenter.api.http.answer import Answer
from isocenter.api.http.body import check_length
from isocenter.api.http.connection import WhileConnected
from isocenter.api.http.gate import HEADERS, REQUEST_ID, STARTED_S
from isocenter.api.http.head import accepted, query_of, together, version_in
from isocenter.api.http.problems import problem
from isocenter.api.http.scan_form import WHAT_IS_ASKED, SentScan, is_json, receive_scan
from isocenter.api.http.time_given import ReceivedWithin, deadline_of, longest_deadline
from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import (
    BadInput,
    BadValue,
    IsocenterError,
    WrongTask,
    without_frames,
)
from isocenter.core.events import Answered, Observer
from isocenter.imaging.codecs.volume_files import Pick
from isocenter.repository.repository import Repository
from isocenter.serving.budget import Booking, ByteBudget
from isocenter.serving.scan_answer import SCAN_FORMATS, ScanAnswer, ScanFormat
from isocenter.serving.scans import ScanAsked, SegmentScan

BODY: Final = "isocenter.body"
"""Where the body of a request stands that was received before it was handed over."""

_BY_MEDIA_TYPE: Final[dict[str, tuple[ScanFormat, ...]]] = {
    "application/json": ("json",),
    "application/gzip": ("nifti",),
    "application/x-gzip": ("nifti",),
    "application/x-nifti": ("nifti",),
    "application/dicom": ("dicom-seg",),
    "image/png": ("montage",),
    "application/zip": ("json", "nifti", "montage"),
}
_SCAN_TYPES: Final = frozenset(
    {"application/dicom", "application/gzip", "application/x-gzip", "application/x-nifti", "application/zip"}
)
_OF_PICTURES: Final = (b"multipart/form-data", b"application/octet-stream", b"image/")
_MOST_PRIORITY: Final = 100


@dataclass(frozen=True, slots=True)
class ScansDoor:
    """What every route for scans needs."""

    scans: SegmentScan
    repository: Repository
    max_bytes: int
    """Of one scan, all its files together."""
    bodies: ByteBudget
    clock: Clock
    observer: Observer

    def begin(self, request: Request, asked: ScanAsked) -> Deadline:
        """Refuse by the head alone what can be refused, and say until when the body may come.

        Raises:
            BadInput: no such model, or a header is malformed.
            Refused, DeadlineExceeded: it could not be answered in time.
        """
        models = self.scans.models.all()
        if asked.model is None and len(models) > 1:  # the body may name one
            return longest_deadline(request, models)
        served = self.scans.models.served(asked.model, asked.version)
        deadline = deadline_of(request, served)
        self.scans.check(served, deadline, priority=asked.priority)
        return deadline

    def deadline(self, request: Request, asked: ScanAsked) -> Deadline:
        """When the answer is of no use any more: as the caller says, else as the model does."""
        return deadline_of(request, self.scans.models.served(asked.model, asked.version))

    async def receive(self, request: Request, deadline: Deadline, booking: Booking) -> SentScan:
        """What the body holds, or the deadline's end.

        Raises:
            DeadlineExceeded: it was not completely here in time.
            BadInput: it is malformed or too large.
        """
        content_type = request.scope[HEADERS].get(b"content-type")
        receive = _once_more(request.scope) or request.receive
        async with ReceivedWithin(deadline, self.clock, "the scan was"):
            return await receive_scan(receive, content_type, max_bytes=self.max_bytes, booking=booking)

    def refuse_picture(self, sent: SentScan, asked: ScanAsked) -> None:
        """See that what was sent is no picture.

        Raises:
            WrongTask: it is one.
        """
        if form := sent.picture():
            served = self.scans.models.served(asked.model, asked.version)
            kind = served.manifest.input.kind
            raise WrongTask(
                f"{served.name} {served.version} segments volumes ({kind}); this is a picture ({form})",
                details={"task": "segmentation", "kind": kind, "found": form},
            )

    def count(self, code: str, asked: ScanAsked, started_s: float, stages_s: dict[str, float]) -> None:
        """Tell that a request came to its end."""
        meant = self.scans.models.meant_by(asked.model, asked.version)
        self.observer.observe(Answered("scan", *meant, code, self.clock.now_s() - started_s, stages_s))


class ScansEndpoint:
    """One scan in a request to one answer, or one problem."""

    def __init__(self, door: ScansDoor) -> None:
        self._door = door

    @property
    def there(self) -> bool:
        """Whether there is a model of volumes."""
        return bool(self._door.scans.models.all())

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Every typed error is a response; nothing is raised for what a caller sent."""
        answer = await self._answered(request, sure=True)
        assert answer is not None
        return answer

    async def perhaps(self, request: Request) -> Response | None:
        """Answer a request if it holds a scan; None: it does not, and is for others to refuse."""
        return await self._answered(request, sure=False)

    async def _answered(self, request: Request, *, sure: bool) -> Response | None:
        door, scope = self._door, request.scope
        started_s: float = scope[STARTED_S]
        headers = scope[HEADERS]
        asked = ScanAsked()
        try:
            texts = query_of(scope["query_string"], WHAT_IS_ASKED)
            asked = asked_in(texts, headers.get(b"accept"))
            length = check_length(headers.get(b"content-length"), door.max_bytes)
            # Of a body that is here already and may hold a picture, nothing is counted before it is known to be a scan.
            begun = sure or BODY not in scope
            deadline = door.begin(request, asked) if begun else Deadline.never()
            with WhileConnected(scope), door.bodies.book(length or 0) as booking:
                try:
                    sent = await door.receive(request, deadline, booking)
                except BadInput:
                    if sure:
                        raise
                    return None
                if not sure and not sent.is_a_scan(door.scans.models.all()):
                    return None
                if not begun:
                    door.begin(request, asked)
                received_s = door.clock.now_s()
                asked = asked_in(both(texts, sent), headers.get(b"accept"))
                door.refuse_picture(sent, asked)
                deadline = door.deadline(request, asked)
                found = await door.scans(sent.source(), asked, request_id=scope[REQUEST_ID], deadline=deadline)
                return await self._finished(found, sent, received_s - started_s, started_s)
        except IsocenterError as error:
            # The error's frames hold the error, and the scan: without the garbage collector it would never go.
            without_frames(error)
            door.count(error.code, asked, started_s, {})
            return problem(error)

    async def _finished(self, found: ScanAnswer, sent: SentScan, receive_s: float, started_s: float) -> Answer:
        stages_s = {"receive": receive_s, **found.stages_s}
        total_s = self._door.clock.now_s() - started_s
        channels = {**found.channels, **sent.named()}
        answer = replace(found, stages_s=stages_s, total_s=total_s, channels=channels)
        # JSON is little; an archive may hold maps of many labels.
        body, media_type, filename = (
            answer.rendered() if answer.formats == ("json",) else await asyncio.to_thread(answer.rendered)
        )
        self._door.observer.observe(Answered("scan", found.model, found.version, "ok", total_s, stages_s))
        shown = () if media_type == "application/json" else (_attached(filename), *_warned(answer))
        return Answer(body, 200, shown, media_type=media_type)

    def by_type(self, content_type: bytes | None) -> bool:
        """Whether the declared type of a body can only be meant for a model of volumes: JSON, or a format of scans."""
        if content_type is None or content_type.startswith(_OF_PICTURES):
            return False
        kind, _ = parse_options_header(content_type.decode("latin-1"))
        return is_json(kind) or (kind in _SCAN_TYPES and self.there)

    def meant(self, scope: Scope, *, beside: str) -> bool:
        """Whether the head of a request means a model of volumes, beside models of pictures of a task."""
        models = self._door.scans.models.all()
        if not models:
            return False
        params = QueryParams(scope["query_string"])
        if (named := params.get("model")) is not None:
            return any(each.name == named for each in models)
        if self._door.repository.default_model in {each.name for each in models}:
            return True
        found = {(each.manifest.task, each.manifest.input.kind) for each in self._door.repository}
        only = ("series", "volume") if beside == "segmentation" else ("series", "volume", "format", "priority")
        return (beside, "image2d") not in found or any(name in params for name in only)

    def may_be_meant(self, scope: Scope) -> bool:
        """Whether a body may hold a scan, as far as its head says: there is a model of volumes, and none is named."""
        return self.there and b"model=" not in scope["query_string"]


def _once_more(scope: Scope) -> Receive | None:
    """A body that was received already, as it would arrive."""
    body = scope.pop(BODY, None)
    if body is None:
        return None
    messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


def _attached(filename: str) -> tuple[bytes, bytes]:
    return b"content-disposition", b'attachment; filename="%b"' % filename.encode("ascii")


def _warned(answer: ScanAnswer) -> tuple[tuple[bytes, bytes], ...]:
    """The codes of the warnings beside a file, which has no place for them."""
    codes = dict.fromkeys(note.code for note in answer.warnings)
    return ((b"x-warnings", ", ".join(codes).encode("ascii")),) if codes else ()


def asked_in(texts: Mapping[str, str], accept: bytes | None = None) -> ScanAsked:
    """What is asked, as texts say it; the format by the header where no text names one.

    >>> asked_in({"model": "tumors", "format": "json,nifti"}).formats
    ('json', 'nifti')

    Raises:
        BadValue: a text is not what its name needs.
        BadRequest: the version is no number.
    """
    priority = _whole("priority", texts["priority"], -_MOST_PRIORITY, _MOST_PRIORITY) if "priority" in texts else 0
    return ScanAsked(
        model=texts.get("model") or None,
        version=version_in(texts.get("version")),
        pick=Pick(
            series=_whole("series", texts["series"], 1) if "series" in texts else None,
            volume=_whole("volume", texts["volume"], 0) if "volume" in texts else None,
        ),
        formats=_formats(texts["format"]) if texts.get("format") else accepted(accept, _BY_MEDIA_TYPE),
        priority=priority,
    )


def both(query: Mapping[str, str], sent: SentScan) -> dict[str, str]:
    """What stands in the query and what stands in the body, together.

    Raises:
        BadRequest: they disagree.
    """
    return together(query, sent.texts, where="body")


def _formats(given: str) -> tuple[ScanFormat, ...]:
    names = list(dict.fromkeys(name.strip().lower() for name in given.split(",")))
    for name in names:
        if name not in SCAN_FORMATS:
            raise BadValue(
                f"format {name[:64]!r} is not written; there are {', '.join(SCAN_FORMATS)}",
                details={"format": name[:64], "formats": list(SCAN_FORMATS)},
            )
    return tuple(cast(ScanFormat, name) for name in names)


def _whole(name: str, given: str, least: int, most: int = 10**9) -> int:
    digits = given.removeprefix("-")
    number = int(given) if digits.isascii() and digits.isdecimal() and len(digits) <= 9 else None
    if number is None or not least <= number <= most:
        said = f"a whole number from {least}" if most == 10**9 else f"a whole number from {least} to {most}"
        raise BadValue(f"{name} is {given[:64]!r}; it must be {said}", details={name: given[:64]})
    return number
