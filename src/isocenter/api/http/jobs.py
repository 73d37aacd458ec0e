"""Jobs over HTTP: work that is put in now, and whose answer is fetched later, from whichever connection."""

import asyncio
import io
import re
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, cast

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from isocenter.api.http.answer import Answer
from isocenter.api.http.body import check_length
from isocenter.api.http.connection import CONNECTION, Connection, WhileConnected
from isocenter.api.http.gate import HEADERS
from isocenter.api.http.head import accepted, query_of, whole_number_in
from isocenter.api.http.scan_form import WHAT_IS_ASKED, SentScan, receive_scan
from isocenter.api.http.scans import asked_in, both
from isocenter.api.http.schemas import ProblemShape
from isocenter.api.http.schemas_jobs import JobListShape, JobShape
from isocenter.core.errors import BadRequest, BadValue, DeadlineExceeded, Draining, IsocenterError, JobsOff
from isocenter.serving.budget import Booking, ByteBudget
from isocenter.serving.health import Door
from isocenter.serving.jobs.job import STATES, Job, State
from isocenter.serving.jobs.jobs import Jobs
from isocenter.serving.jobs.scan_jobs import KIND, ScanJobs, Sent, asked_of, keep, sent_bytes
from isocenter.serving.scan_answer import ScanFormat

_FORMATS: Final[tuple[ScanFormat, ...]] = ("json", "nifti", "montage")
"""What is written where nothing is named: fetching may come much later, and the scan is gone by then."""
_RECEIVE_S: Final = 600.0
_MOST_LISTED: Final = 1_000
_LISTED: Final = 100
_KEY: Final = re.compile(rb'"?([!#-~]{1,255})"?')
_STREAM_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)

_MEANINGS: Final = {
    "model": "Needed if several segment scans and none is the default.",
    "version": "The highest, when the job runs, if not given.",
    "series": "Which series, from 1, of files that hold several.",
    "volume": "Which volume, from 0, of a series that holds several.",
    "format": "What may be fetched, separated by commas: json, nifti, dicom-seg, montage, probabilities; json, nifti "
    "and montage if not given.",
    "priority": "Smaller is sooner, -100 to 100; 0 if not given.",
}
_FILE: Final = {"type": "string", "format": "binary"}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "scan_path": {
                            "description": "A path below the server's `scans.roots`, or an object of paths by channels."
                        }
                    },
                }
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"scan": {**_FILE, "description": "A file of the scan; several times for a series."}},
                }
            },
            "application/octet-stream": {"schema": _FILE},
        },
    },
    "parameters": [
        *(
            {"name": name, "in": "query", "schema": {"type": "string"}, "description": f"{text} In the body too."}
            for name, text in _MEANINGS.items()
        ),
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string"},
            "description": "The same key and the same request is the same job, however often it is sent.",
        },
    ],
}


@dataclass(frozen=True, slots=True)
class JobsDoor:
    """What the routes need."""

    jobs: Jobs | None
    """None: jobs are off."""
    work: ScanJobs | None
    bodies: ByteBudget
    max_bytes: int
    """Of one scan, all its files together."""
    door: Door

    @property
    def there(self) -> Jobs:
        """The jobs.

        Raises:
            JobsOff: there is no folder for them.
        """
        if self.jobs is None:
            raise JobsOff("jobs are off: the server has no folder for them; set ISOCENTER_JOBS__FOLDER")
        return self.jobs

    async def put(self, request: Request) -> Job:
        """The job that a request asks for.

        Raises:
            BadInput, Refused, DeadlineExceeded: it cannot be taken.
        """
        jobs, work, headers = self.there, self.work, request.scope[HEADERS]
        assert work is not None
        key = key_in(headers.get(b"idempotency-key"))
        texts = query_of(request.scope["query_string"], WHAT_IS_ASKED)
        asked_in(texts)
        length = check_length(headers.get(b"content-length"), self.max_bytes)
        with WhileConnected(request.scope), self.bodies.book(length or 0) as booking:
            sent = await self._receive(request, booking)
            texts = both(texts, sent)
            asked = asked_in(texts)
            if not texts.get("format"):
                asked = replace(asked, formats=_FORMATS)
            source = cast(Sent | Mapping[str, Sent], sent.source())
            told = await jobs.on_thread(asked_of, source, asked)  # with digests of all bytes
            there = await jobs.same(key, KIND, told, priority=asked.priority)
            if there is not None:
                return there
            await work.check(source, asked)
            return await jobs.add(
                KIND,
                told,
                key=key,
                priority=asked.priority,
                input_bytes=sent_bytes(source),
                keep=partial(keep, source),
            )

    async def _receive(self, request: Request, booking: Booking) -> SentScan:
        content_type = request.scope[HEADERS].get(b"content-type")
        try:
            async with asyncio.timeout(_RECEIVE_S):
                return await receive_scan(request.receive, content_type, max_bytes=self.max_bytes, booking=booking)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the scan was not completely here after {_RECEIVE_S:.0f} s",
                details={"waited_s": _RECEIVE_S, "where": "receive"},
            ) from None


def job_routes(door: JobsDoor) -> APIRouter:
    """`/v1/jobs`."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: {"model": ProblemShape} for status in (403, *statuses, 503)}

    @router.post(
        "",
        status_code=202,
        response_model=JobShape,
        responses=problems(400, 404, 413, 422, 429, 504, 507),
        openapi_extra=_BODY,
    )
    async def add_job(request: Request) -> Response:
        """Put a scan into the queue: JSON with `scan_path`, a form with its files, or the file itself as the body.

        The answer is the job; `Location` is where it is looked at.
        """
        job = await door.put(request)
        where = f"/v1/jobs/{job.id}".encode()
        return Answer(orjson.dumps(shown(job, door.there.retention_s)), 202, [(b"location", where)])

    @router.get("", response_model=JobListShape, responses=problems(400, 422))
    async def list_jobs(request: Request, state: str | None = None, limit: str | None = None) -> Response:
        """The newest jobs, of one `state` or of several separated by commas; 100 if no other `limit` is given."""
        query_of(request.scope["query_string"], ("state", "limit"))
        states = _states(state)
        found = await door.there.list(states, limit=_limit(limit))
        counts = await door.there.on_thread(door.there.store.counts)
        listed = [shown(job, door.there.retention_s) for job in found]
        return Answer(orjson.dumps({"jobs": listed, "counts": {each: counts.get(each, 0) for each in STATES}}))

    @router.get("/{job_id}", response_model=JobShape, responses=problems(404, 410))
    async def get_job(job_id: str) -> Response:
        """One job: its state, how far it is, why it failed, where the time went."""
        return Answer(orjson.dumps(shown(await door.there.get(job_id), door.there.retention_s)))

    @router.delete("/{job_id}", response_model=JobShape, responses=problems(404, 410))
    async def cancel_job(job_id: str) -> Response:
        """Cancel a job that waits or runs: what it has not begun never runs. One that has ended stays as it is."""
        return Answer(orjson.dumps(shown(await door.there.cancel(job_id), door.there.retention_s)))

    @router.get("/{job_id}/result", responses=problems(404, 409, 410, 422))
    async def get_result(job_id: str, request: Request, format: str | None = None) -> Response:
        """The result: one `format`, or several separated by commas as one zip; JSON if none is named.

        409 while there is none, with the state in the details; 410 once it was deleted.
        """
        query_of(request.scope["query_string"], ("format",))
        job = await door.there.get(job_id)
        return await _result(door.there, job, _wanted(job, format, request.scope[HEADERS].get(b"accept")))

    @router.get("/{job_id}/events", response_class=StreamingResponse, responses=problems(404, 410))
    async def job_events(job_id: str, request: Request) -> Response:
        """Server-sent events, `state` and `progress`, until the job has ended: each holds state, stage and share.

        It begins with how the job stands, so that nothing is missed: `Last-Event-ID` may be sent, and changes nothing.
        """
        watched = door.there.watch(job_id, leave=_left(request, door.door))
        first = await anext(watched, None)
        if first is None:
            raise Draining("the server is stopping; ask another one", retry_after_s=2.0)
        return StreamingResponse(_events(first, watched), headers=_STREAM_HEADERS, media_type="text/event-stream")

    return router


def shown(job: Job, retention_s: float) -> dict[str, Any]:
    """A job as JSON; see `JobShape`."""
    summary = job.summary or {}
    results = summary.get("results", {})
    began, ended = job.started_at, job.finished_at
    return {
        "id": job.id,
        "state": job.state,
        "stage": job.stage,
        "share": round(job.share, 4),
        "priority": job.priority,
        "attempts": job.attempts,
        "created_at": _instant(job.created_at),
        "started_at": _instant(began),
        "finished_at": _instant(ended),
        "expires_at": _instant(None if ended is None else ended + retention_s),
        "queued_s": None if began is None else round(max(0.0, began - job.created_at), 3),
        "running_s": None if began is None or ended is None else round(max(0.0, ended - began), 3),
        "timings_ms": summary.get("timings_ms", {}),
        "model": summary.get("model", job.asked.get("model")),
        "version": summary.get("version", job.asked.get("version")),
        "error": job.error,
        "results": [
            {"format": form, **results[form], "bytes": size, "href": f"/v1/jobs/{job.id}/result?format={form}"}
            for form, size in job.files.items()
            if form in results
        ],
    }


def key_in(header: bytes | None) -> str | None:
    """The key of an `Idempotency-Key`, with quotes around it or without.

    >>> key_in(b'"8e03978e"'), key_in(b"8e03978e"), key_in(None)
    ('8e03978e', '8e03978e', None)

    Raises:
        BadRequest: it is empty, longer than 255 characters, or not of visible ASCII.
    """
    if header is None:
        return None
    found = _KEY.fullmatch(header.strip())
    if found is None:
        raise BadRequest("Idempotency-Key is no key: 1 to 255 visible ASCII characters, none of them a quote")
    return found[1].decode("ascii")


async def _result(jobs: Jobs, job: Job, wanted: Sequence[str]) -> Response:
    found = {form: await jobs.result(job, form) for form in wanted}
    results: dict[str, dict[str, str]] = (job.summary or {}).get("results", {})
    if len(found) == 1:
        form, body = next(iter(found.items()))
        media_type, file = results[form]["media_type"], results[form]["file"]
    else:
        body = await jobs.on_thread(_zipped, {results[form]["file"]: data for form, data in found.items()})
        media_type, file = "application/zip", "answer.zip"
    attached = (b"content-disposition", b'attachment; filename="%b"' % file.encode("ascii"))
    return Answer(body, 200, () if media_type == "application/json" else (attached,), media_type=media_type)


def _wanted(job: Job, given: str | None, accept: bytes | None) -> list[str]:
    """Which results: as named, else as the header says where it names one of them, else JSON, else the first."""
    if given:
        names = list(dict.fromkeys(each.strip().lower() for each in given.split(",")))
        if job.state == "done" and (missing := [each for each in names if each not in job.files]):
            there = ", ".join(job.files)
            raise BadValue(
                f"format {missing[0][:64]!r} was not asked for when the job was sent; there are {there}",
                details={"format": missing[0][:64], "formats": list(job.files)},
            )
        return names
    results = (job.summary or {}).get("results", {})
    known = {results[form]["media_type"]: [form] for form in reversed([*job.files]) if form in results}
    if len(job.files) > 1:
        known["application/zip"] = list(job.files)
    usual = ["json" if "json" in job.files else next(iter(job.files), "json")]
    return accepted(accept, {"application/json": usual, **known})


def _zipped(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return packed.getvalue()


async def _events(first: Job, watched: AsyncIterator[Job]) -> AsyncIterator[bytes]:
    """Every change as it comes; `retry` is what a browser waits before it asks again."""
    before: Job | None = None
    yield b"retry: 2000\n\n"
    try:
        yield _event(first, before)
        before = first
        async for job in watched:
            yield _event(job, before)
            before = job
    except IsocenterError as error:  # the file of jobs became unreadable: a browser asks again
        yield b": %b\n\n" % error.code.encode("ascii")


def _event(job: Job, before: Job | None) -> bytes:
    told = {"id": job.id, "state": job.state, "stage": job.stage, "share": round(job.share, 4), "error": job.error}
    name = b"progress" if before is not None and before.state == job.state else b"state"
    return b"event: %b\nid: %d\ndata: %b\n\n" % (name, job.revision, orjson.dumps(told))


def _left(request: Request, door: Door) -> Callable[[], bool]:
    connection: Connection | None = request.scope.get(CONNECTION)
    return lambda: not door.is_open or (connection is not None and connection.lost)


def _states(given: str | None) -> list[State]:
    names = [each.strip() for each in given.split(",")] if given else []
    for each in names:
        if each not in STATES:
            raise BadValue(f"state {each[:64]!r} is none; there are {', '.join(STATES)}", details={"state": each[:64]})
    return cast(list[State], names)


def _limit(given: str | None) -> int:
    if given is None:
        return _LISTED
    limit = whole_number_in(given)
    if limit is None or not 1 <= limit <= _MOST_LISTED:
        raise BadValue(
            f"limit is {given[:64]!r}; it must be a whole number from 1 to {_MOST_LISTED}",
            details={"limit": given[:64]},
        )
    return limit


def _instant(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
