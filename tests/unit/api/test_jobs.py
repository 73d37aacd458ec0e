"""`/v1/jobs`: a scan is taken now and fetched later; what cannot be is told in a status and a code."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from starlette.types import Message

from isocenter.api.http.gate import Gate
from isocenter.api.http.jobs import JobsDoor, job_routes, key_in
from isocenter.api.http.problems import problem
from isocenter.api.http.schemas_jobs import JobListShape, JobShape
from isocenter.core.clock import SystemClock
from isocenter.core.errors import BadImage, BadRequest, IsocenterError, PathNotAllowed, UnknownModel
from isocenter.core.events import NullObserver
from isocenter.serving.budget import ByteBudget
from isocenter.serving.health import Door
from isocenter.serving.jobs.scan_jobs import asked_in, kept
from isocenter.serving.scan_paths import ScanPath
from isocenter.serving.scans import ScanAsked
from job_stage import LOGGER, Stage
from patience import PATIENCE_S

PATH = {"scan_path": "head.nii.gz"}
TWO_PATHS = {"t1": {"scan_path": "a"}, "t2": {"scan_path": "b"}}


class Checks:
    """What is refused before anything is kept."""

    async def check(self, source: Any, asked: ScanAsked) -> None:
        """Refuse one path and one model."""
        if isinstance(source, ScanPath) and source.text.startswith("/etc"):
            raise PathNotAllowed("this path may not be read")
        if asked.model == "nobody":
            raise UnknownModel("no model 'nobody'")


class Server:
    """The routes over jobs whose work a test holds in its hand."""

    def __init__(self, stage: Stage | None) -> None:
        self.stage = stage
        self.door = Door()
        app = FastAPI()
        jobs = stage.jobs if stage else None
        door = JobsDoor(jobs, cast(Any, Checks()), ByteBudget(300_000), 100_000, self.door)
        app.include_router(job_routes(door))
        app.add_exception_handler(IsocenterError, refused)
        self.http = Gate(app, door=self.door, clock=SystemClock(), logger=LOGGER, observer=NullObserver())
        transport = httpx.ASGITransport(self.http)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE_S)

    async def put(self, expected: int = 202, **how: Any) -> dict[str, Any]:
        """Put a job in, however it is sent; the answer."""
        answer = await self.client.post("/v1/jobs", **(how or {"json": PATH}))
        assert answer.status_code == expected, answer.text
        return cast(dict[str, Any], answer.json())

    async def get(self, path: str, expected: int = 200, **how: Any) -> Any:
        """The JSON at a path."""
        answer = await self.client.get(f"/v1/jobs{path}", **how)
        assert answer.status_code == expected, answer.text
        return answer.json()


async def refused(_: Any, error: Exception) -> Any:
    assert isinstance(error, IsocenterError)
    return problem(error)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Stage(tmp_path) as stage:
        yield Server(stage)


@pytest.fixture
def stage(server: Server) -> Stage:
    assert server.stage is not None
    return server.stage


async def test_a_job_is_taken_looked_at_and_fetched(server: Server, stage: Stage) -> None:
    answer = await server.client.post("/v1/jobs", json={**PATH, "model": "blobs", "format": ["json", "nifti"]})

    assert answer.status_code == 202
    taken = JobShape.model_validate(answer.json())
    where = f"/{taken.id}"
    assert answer.headers["location"] == f"/v1/jobs{where}"
    assert (taken.state, taken.model, taken.attempts, taken.started_at, taken.results) == (
        "queued", "blobs", 0, None, []
    )  # fmt: skip
    held = await stage.work.begun.get()
    assert (await server.get(where))["state"] == "running"
    early = await server.get(f"{where}/result", expected=409)
    assert (early["error"]["code"], early["error"]["details"]) == ("job_not_done", {"state": "running", "error": None})
    held.answer()
    await stage.ended(held.job)

    done = JobShape.model_validate(await server.get(where))
    assert (done.state, done.share, done.attempts, done.error) == ("done", 1.0, 1, None)
    assert done.created_at <= (done.started_at or "") <= (done.finished_at or "") < (done.expires_at or "")
    assert [(each.format, each.bytes) for each in done.results] == [("json", 17), ("nifti", 4)]
    assert await server.get(f"{where}/result") == {"present": False}
    for each in done.results:
        found = await server.client.get(each.href)
        assert (found.headers["content-type"], len(found.content)) == (each.media_type, each.bytes)
    assert 'filename="mask.nii.gz"' in found.headers["content-disposition"]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/gzip", "application/gzip"),
        ("application/gzip;q=0.1, application/json", "application/json"),
        ("application/zip;q=0, application/gzip;q=0.2", "application/gzip"),
        ("application/zip, application/json;q=0.9", "application/zip"),
        ("text/html", "application/json"),
    ],
)
async def test_a_result_is_what_the_caller_likes_best(
    server: Server, stage: Stage, accept: str, media_type: str
) -> None:
    taken = await server.put(json={**PATH, "model": "blobs", "format": ["json", "nifti"]})
    held = await stage.work.begun.get()
    held.answer()
    await stage.ended(held.job)

    found = await server.client.get(f"/v1/jobs/{taken['id']}/result", headers={"accept": accept})

    assert (found.status_code, found.headers["content-type"]) == (200, media_type)


@pytest.mark.parametrize(
    ("how", "scan"),
    [
        pytest.param({"json": PATH}, PATH, id="a path"),
        pytest.param({"json": {"scan_path": {"t1": "a", "t2": "b"}}}, TWO_PATHS, id="paths"),
        pytest.param({"content": b"scan"}, {"": b"scan"}, id="a body"),
        pytest.param({"files": {"scan": ("Muster_Max.nii", b"scan")}}, {"": b"scan"}, id="a form"),
        pytest.param({"files": [("scan", ("b", b"22")), ("scan", ("a", b"1"))]}, {"": [b"22", b"1"]}, id="a series"),
        pytest.param({"files": {"t1": ("x", b"1"), "t2": ("y", b"2")}}, {"t1": b"1", "t2": b"2"}, id="channels"),
    ],
)
async def test_a_scan_may_be_named_or_sent_and_is_there_when_its_turn_comes(
    server: Server, stage: Stage, how: dict[str, Any], scan: Any
) -> None:
    await server.put(**how)
    held = await stage.work.begun.get()

    found = await asyncio.to_thread(kept, held.job.asked["scan"], held.folder / "input")
    assert await asyncio.to_thread(said, found) == scan
    assert asked_in(held.job).formats == ("json", "nifti", "montage")
    assert "Muster" not in json.dumps(dict(held.job.asked))


def said(found: Any) -> Any:
    """What a use case would read, for comparison."""
    if isinstance(found, ScanPath):
        return {"scan_path": found.text}
    if isinstance(found, Path):
        return {"": found.read_bytes()}
    if all(isinstance(data, bytes) for data in found.values()):
        return {"": list(found.values())}
    return {name: said(each) if isinstance(each, ScanPath) else said(each)[""] for name, each in found.items()}


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ({"json": {"scan_path": "/etc/passwd"}}, 403, "path_not_allowed"),
        ({"json": {**PATH, "model": "nobody"}}, 404, "unknown_model"),
        ({"json": {**PATH, "fromat": "json"}}, 400, "bad_request"),
        ({"json": {**PATH, "format": "stl"}}, 422, "bad_value"),
        ({"json": {**PATH, "priority": 1000}}, 422, "bad_value"),
        ({"json": {}}, 400, "missing_image"),
        ({"content": b""}, 400, "missing_image"),
        ({"content": b"x" * 200_000}, 413, "too_many_bytes"),
        ({"json": PATH, "params": {"who": "me"}}, 400, "bad_request"),
        ({"json": PATH, "headers": {"Idempotency-Key": "two words"}}, 400, "bad_request"),
    ],
)
async def test_what_cannot_be_taken_is_refused_at_once(
    server: Server, stage: Stage, how: dict[str, Any], status: int, code: str
) -> None:
    assert (await server.put(status, **how))["error"]["code"] == code
    assert await stage.jobs.list(limit=9) == ()


async def test_the_same_key_is_the_same_job_and_never_two_requests(server: Server, stage: Stage) -> None:
    key = {"Idempotency-Key": '"8e03978e"'}

    first = await server.put(content=b"scan", headers=key)
    again = await server.put(content=b"scan", headers=key)
    other = await server.put(422, content=b"scam", headers=key)
    without = await server.put(content=b"scan")

    assert first["id"] == again["id"] != without["id"]
    assert other["error"]["code"] == "key_reused"
    assert other["error"]["details"] == {"id": first["id"]}
    assert len(await stage.jobs.list(limit=9)) == 2


@pytest.mark.parametrize("key", [b"", b'""', b"a b", b"x" * 256, "ä".encode(), b'a"b'])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    with pytest.raises(BadRequest, match="1 to 255"):
        key_in(key)


async def test_a_job_may_be_cancelled_and_stays_so(server: Server, stage: Stage) -> None:
    running, waiting = await server.put(), await server.put()
    held = await stage.work.begun.get()

    for job in (waiting, running):
        for _ in range(2):
            answer = await server.client.delete(f"/v1/jobs/{job['id']}")
            assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    await stage.idle()

    assert held.left
    assert stage.work.begun.empty()
    gone = await server.get(f"/{running['id']}/result", expected=409)
    assert gone["error"]["details"]["state"] == "cancelled"


async def test_a_failed_job_says_why_in_the_words_of_the_error(server: Server, stage: Stage) -> None:
    job = await server.put()
    held = await stage.work.begun.get()
    held.end.set_exception(BadImage("the header is broken", details={"byte": 7}))
    await stage.ended(held.job)

    error = {"code": "bad_image", "message": "the header is broken", "details": {"byte": 7}}
    assert (await server.get(f"/{job['id']}"))["error"] == error
    told = await server.get(f"/{job['id']}/result", expected=409)
    assert told["error"]["details"] == {"state": "failed", "error": error}


async def test_what_is_not_here_or_not_any_more_is_told_apart(server: Server, stage: Stage) -> None:
    job = await server.put()
    await server.client.delete(f"/v1/jobs/{job['id']}")
    await asyncio.to_thread(stage.store.expire, 1e12)

    for path in ("", "/result", "/events"):
        assert (await server.get(f"/{job['id']}{path}", expected=410))["error"]["code"] == "job_expired"
        assert (await server.get(f"/{'0' * 32}{path}", expected=404))["error"]["code"] == "unknown_job"


async def test_jobs_are_listed_newest_first(server: Server, stage: Stage) -> None:
    put = [await server.put() for _ in range(3)]
    await stage.work.begun.get()

    listed = JobListShape.model_validate(await server.get(""))
    assert [job.id for job in listed.jobs] == [job["id"] for job in reversed(put)]
    assert listed.counts == {"queued": 2, "running": 1, "done": 0, "failed": 0, "cancelled": 0}
    assert "head.nii.gz" not in listed.model_dump_json()
    assert [job["id"] for job in (await server.get("?state=queued&limit=1"))["jobs"]] == [put[2]["id"]]
    for query in ("?state=lost", "?limit=0", "?limit=many"):
        assert (await server.get(query, expected=422))["error"]["code"] == "bad_value"
    assert (await server.get("?stat=done", expected=400))["error"]["code"] == "bad_request"


async def test_a_result_comes_in_the_formats_that_were_asked_for(server: Server, stage: Stage) -> None:
    job = await server.put()
    held = await stage.work.begun.get()
    held.answer()
    await stage.ended(held.job)
    where = f"/v1/jobs/{job['id']}/result"

    both = await server.client.get(where, params={"format": "json,nifti"})
    assert both.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(both.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "answer.json": b'{"present":false}', "mask.nii.gz": b"mask"
        }  # fmt: skip
    by_header = await server.client.get(where, headers={"Accept": "application/gzip"})
    assert by_header.content == b"mask"
    assert (await server.client.get(where, headers={"Accept": "application/zip"})).content == both.content
    missing = await server.get(f"/{job['id']}/result?format=montage", expected=422)
    assert missing["error"]["details"] == {"format": "montage", "formats": ["json", "nifti"]}


def events_in(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and data of a stream."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in lines:
            assert int(lines["id"]) > 0
            found.append((lines["event"], json.loads(lines["data"])))
    return found


async def test_events_tell_every_state_and_end_with_the_last(server: Server, stage: Stage) -> None:
    job = await server.put()
    held = await stage.work.begun.get()
    await stage.until(held.job, lambda found: found.state == "running")
    headers = {"Last-Event-ID": "nonsense"}
    streaming = asyncio.create_task(server.client.get(f"/v1/jobs/{job['id']}/events", headers=headers))
    held.tell("windows", 0.5)
    await stage.until(held.job, lambda found: found.share == 0.5)
    held.answer()
    stream = await streaming

    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["cache-control"] == "no-cache"
    told = events_in(stream.text)
    assert told[-1] == ("state", {"id": job["id"], "state": "done", "stage": "", "share": 1.0, "error": None})
    assert [each for name, each in told if name == "progress"][-1:] in (
        [], [{"id": job["id"], "state": "running", "stage": "windows", "share": 0.5, "error": None}]
    )  # fmt: skip
    again = await server.client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "99"})
    assert events_in(again.text) == [("state", told[-1][1])]


class Watcher:
    """A caller who reads events for as long as he likes."""

    def __init__(self, server: Server, job_id: str) -> None:
        self.told = ""
        self.first, self.leaving = asyncio.Event(), asyncio.Event()
        self._scope: dict[str, Any] = {
            "type": "http", "method": "GET", "path": f"/v1/jobs/{job_id}/events", "query_string": b"", "headers": [],
            "root_path": "", "scheme": "http", "server": ("test", 80), "client": None, "http_version": "1.1",
        }  # fmt: skip
        self.served = asyncio.ensure_future(server.http(self._scope, self._receive, self._send))

    async def _receive(self) -> Message:
        await self.leaving.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.told += message.get("body", b"").decode()
        if "data" in self.told:
            self.first.set()


async def test_events_end_when_the_caller_leaves_and_when_the_server_stops(server: Server, stage: Stage) -> None:
    job = await server.put()
    await stage.work.begun.get()

    leaver, stayer = Watcher(server, job["id"]), Watcher(server, job["id"])
    await leaver.first.wait()
    await stayer.first.wait()
    leaver.leaving.set()
    await leaver.served
    assert server.door.inside == 1
    server.door.close()
    await stage.jobs.cancel(job["id"])  # so that nobody waits a second for the next look
    await stayer.served

    assert server.door.inside == 0
    assert [each["state"] for _, each in events_in(stayer.told)] == ["running"]


async def test_no_folder_no_jobs() -> None:
    server = Server(None)
    assert (await server.put(403))["error"]["code"] == "jobs_off"
    for path in ("", "/x", "/x/result", "/x/events"):
        assert (await server.get(path, expected=403))["error"]["code"] == "jobs_off"


async def test_a_broken_file_is_told_by_every_route(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 1000)
    async with Stage(tmp_path) as stage:
        server = Server(stage)
        assert (await server.put(503))["error"]["code"] == "store_unavailable"
        for path in ("", "/x", "/x/result", "/x/events"):
            answer = await server.client.get(f"/v1/jobs{path}")
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "60"
            assert answer.json()["error"]["code"] == "store_unavailable"
        assert (await server.client.delete("/v1/jobs/x")).status_code == 503


async def test_bytes_that_are_sent_count_on_the_disk(tmp_path: Path) -> None:
    async with Stage(tmp_path, limits={"max_disk_bytes": 1_000}) as stage:
        server = Server(stage)
        await server.put(content=b"x" * 900)
        full = await server.put(429, content=b"x" * 200)
        assert (full["error"]["code"], full["error"]["details"]["where"]) == ("overloaded", "jobs_disk")
