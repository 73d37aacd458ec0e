"""The HTTP application: routes, error answers, and the gate in front."""

import logging
from collections.abc import Collection
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from isocenter import __version__
from isocenter.api.http.answer import Answer
from isocenter.api.http.cells import CellsDoor
from isocenter.api.http.cells_v1 import BatchSegmentV1Endpoint, SegmentV1Endpoint
from isocenter.api.http.cells_v1_routes import v1_information_routes, v1_segment_routes
from isocenter.api.http.exposition import Exposition
from isocenter.api.http.gate import Endpoint, Gate
from isocenter.api.http.information import model_routes, probe_routes
from isocenter.api.http.jobs import JobsDoor, job_routes
from isocenter.api.http.predict import PredictEndpoint, predict_routes
from isocenter.api.http.problems import as_asked, problem, problem_response
from isocenter.api.http.reload import ReloadFrom, Reloads, reload_routes
from isocenter.api.http.scans import ScansDoor, ScansEndpoint
from isocenter.api.http.segment import SegmentEndpoint, segment_routes
from isocenter.api.http.stats import stats_routes
from isocenter.core.clock import Clock
from isocenter.core.errors import IsocenterError
from isocenter.core.events import Observer
from isocenter.imaging.limits import ImageLimits
from isocenter.repository.repository import Repository
from isocenter.serving.budget import ByteBudget
from isocenter.serving.cells import SegmentImage
from isocenter.serving.health import Door, HealthCheck
from isocenter.serving.jobs.jobs import Jobs
from isocenter.serving.jobs.scan_jobs import ScanJobs
from isocenter.serving.predict import Predict
from isocenter.serving.scans import SegmentScan
from isocenter.serving.stats import StatsSource

_DESCRIPTION = "Serves medical-image models inside a deadline. Every refusal names the measured value and the limit."


def build_http(
    *,
    predict: Predict,
    cells: SegmentImage,
    scans: SegmentScan,
    jobs: Jobs | None,
    repository: Repository,
    health: HealthCheck,
    door: Door,
    metrics: Exposition,
    limits: ImageLimits,
    max_scan_bytes: int,
    clock: Clock,
    observer: Observer,
    logger: logging.Logger,
    stats: StatsSource,
    reloads: Reloads,
    reload_from: ReloadFrom,
    bodies: ByteBudget,
    max_connections: int,
) -> ASGIApp:
    """Put the application together."""
    # The page at /docs comes with its scripts: a browser in a hospital need not, and shall not, ask another host.
    app = FastAPIOffline(
        title="Isocenter", version=__version__, description=_DESCRIPTION, redoc_url=None, redirect_slashes=False
    )
    of_scans = ScansEndpoint(ScansDoor(scans, repository, max_scan_bytes, bodies, clock, observer))
    endpoint = PredictEndpoint(
        predict, of_scans, max_bytes=limits.max_bytes, bodies=bodies, clock=clock, observer=observer
    )
    within = CellsDoor(cells, limits.max_bytes, bodies, clock, observer)
    segment = SegmentEndpoint(within, of_scans)
    segment_v1, batch_v1 = SegmentV1Endpoint(within), BatchSegmentV1Endpoint(within)
    direct: dict[str, Endpoint] = {
        "/predict": endpoint,
        "/segment": segment,
        "/api/v1/segment": segment_v1,
        "/api/v1/batch-segment": batch_v1,
    }
    app.include_router(predict_routes(endpoint))
    app.include_router(segment_routes(segment))
    app.include_router(v1_segment_routes(segment_v1, batch_v1))
    app.include_router(v1_information_routes(cells, repository, health, door))
    app.include_router(probe_routes(health, metrics))
    app.include_router(model_routes(repository, limits))
    app.include_router(stats_routes(stats))
    of_jobs = None if jobs is None else ScanJobs(scans, jobs.on_thread)
    app.include_router(job_routes(JobsDoor(jobs, of_jobs, bodies, max_scan_bytes, door)))
    app.include_router(reload_routes(reloads, reload_from))
    app.add_exception_handler(IsocenterError, _typed)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _validation)
    app.openapi = lambda: _schema(app, direct)  # type: ignore[method-assign]
    return Gate(
        app,
        direct=direct,
        glances={"/predict": endpoint.glance},
        door=door,
        clock=clock,
        logger=logger,
        observer=observer,
        max_connections=max_connections,
    )


def _schema(app: FastAPI, direct: Collection[str]) -> dict[str, Any]:
    """The description without the framework's own 422: here a malformed parameter is a 400 in our shape."""
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                answers = operation["responses"]
                if path not in direct and "HTTPValidationError" in str(answers.get("422")):
                    del answers["422"]
                    answers["400"] = dict(next(each for each in answers.values() if "ProblemShape" in str(each)))
                    answers["400"]["description"] = "Bad Request"
        app.openapi_schema = schema
    return app.openapi_schema


async def _typed(_: Request, error: Exception) -> Response:
    assert isinstance(error, IsocenterError)
    return problem(error)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return as_asked(request.url.path, _of_the_framework(request, error))


def _of_the_framework(request: Request, error: HTTPException) -> Answer:
    if error.status_code == 404:
        return problem_response("not_found", "there is nothing at this path; see /docs")
    if error.status_code == 405:
        headers = dict(error.headers or {})
        return problem_response("method_not_allowed", f"{request.method} is not possible here", headers=headers)
    return problem_response("bad_request", str(error.detail))


async def _validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem_response("bad_request", f"{where}: {first['msg']}")
