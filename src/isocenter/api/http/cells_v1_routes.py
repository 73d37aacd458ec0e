"""The routes below `/api/v1`, as the manual shows them."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from isocenter import __version__
from isocenter.api.http.cells_v1 import BatchSegmentV1Endpoint, SegmentV1Endpoint
from isocenter.api.http.schemas_cells import (
    V1BatchShape,
    V1DeviceShape,
    V1HealthShape,
    V1ModelShape,
    V1ModelsShape,
    V1ProblemShape,
    V1SegmentShape,
    V1StatusShape,
)
from isocenter.engine.lifecycle import State
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository
from isocenter.serving.cells import SegmentImage
from isocenter.serving.health import Door, HealthCheck
from isocenter.serving.parameters import Parameters

_IMAGE: Final = {"type": "string", "format": "binary"}
_FIELDS: Final = {
    "model": ("string", "`hrnet` if it is served and none is named; else the default model, or the only one."),
    "threshold": ("number", "0.1 to 0.9; 0.5 if not given."),
    "detect_holes": ("boolean", "`false`: a gap within one object is part of it. `true` if not given."),
    "channel": ("string", "One channel of the images, by its name or its number from 0."),
    "page": ("integer", "One page of the images, from 0."),
}
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": V1ProblemShape} for status in (400, 404, 413, 415, 422, 429, 503, 504)
}


def v1_segment_routes(segment: SegmentV1Endpoint, batch: BatchSegmentV1Endpoint) -> APIRouter:
    """`/api/v1/segment` and `/api/v1/batch-segment`."""
    router = APIRouter(tags=["cells"])
    one = _form("file", {**_IMAGE, "description": "The image."})
    many = _form("files", {"type": "array", "items": _IMAGE, "description": "The images; `files[]` is taken too."})

    @router.post("/api/v1/segment", response_model=V1SegmentShape, responses=_PROBLEMS, openapi_extra=one)
    async def segment_image(request: Request) -> Response:
        """Find the objects in one image, sent as the field `file` of a form."""
        return await segment(request)

    @router.post("/api/v1/batch-segment", response_model=V1BatchShape, responses=_PROBLEMS, openapi_extra=many)
    async def segment_images(request: Request) -> Response:
        """Find the objects in several images, sent as the fields `files` or `files[]` of a form.

        More of them than the model's batch limit are refused (400). One that cannot be answered fails alone.
        """
        return await batch(request)

    return router


def v1_information_routes(cells: SegmentImage, repository: Repository, health: HealthCheck, door: Door) -> APIRouter:
    """`/api/v1/models`, `/api/v1/health`, `/api/v1/status`."""
    router = APIRouter(tags=["cells"])
    parameters = Parameters()

    @router.get("/api/v1/models")
    async def list_models() -> V1ModelsShape:
        """Every model that segments images."""
        return V1ModelsShape(models=await asyncio.to_thread(_described, cells.models.all(), parameters.of))

    @router.get("/api/v1/health", responses={503: {"model": V1HealthShape}})
    async def report(response: Response) -> V1HealthShape:
        """How the server is; 503 if nothing can be answered."""
        found = health.report().status
        response.status_code = 200 if found in ("ok", "degraded") else 503
        devices = sorted({each.manifest.instances.device for each in repository})
        gpu = any(device.startswith("cuda") for device in devices)
        return V1HealthShape(
            status="healthy" if found == "ok" else found,
            timestamp=_now(),
            service="isocenter",
            version=__version__,
            models_loaded=len(list(repository)),
            models_failed=[each.name for each in repository if each.engine.state is not State.READY],
            gpu_available=gpu,
            device=V1DeviceShape(gpu_available=gpu, devices=devices),
        )

    @router.get("/api/v1/status")
    async def status() -> V1StatusShape:
        """Whether something is being done."""
        queued = {each.name: each.engine.queued for each in repository}
        busy = door.inside > 0 or any(queued.values())
        return V1StatusShape(
            status="processing" if busy else "idle",
            is_processing=busy,
            current_model=max(queued, key=queued.__getitem__) if any(queued.values()) else None,
            queue_length=sum(queued.values()),
            available=health.ready(),
            timestamp=_now(),
        )

    return router


def _form(name: str, files: dict[str, Any]) -> dict[str, Any]:
    fields = {each: {"type": kind, "description": text} for each, (kind, text) in _FIELDS.items()}
    schema = {"type": "object", "properties": {name: files, **fields}, "required": [name]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _described(models: list[ServedModel], parameters: Callable[[ServedModel], int | None]) -> list[V1ModelShape]:
    return [
        V1ModelShape(
            name=each.name,
            description=each.manifest.description or each.manifest.title,
            parameters=parameters(each),
            input_size=_input_size(each),
            available=each.engine.state is State.READY,
            batch_limit=each.manifest.batching.max_batch_size,
            version=each.version,
        )
        for each in models
    ]


def _input_size(served: ServedModel) -> list[int]:
    if served.manifest.sliding is not None:
        return list(served.manifest.sliding.roi)
    specs = {spec.name: spec for spec in served.engine.inputs}
    taken = specs.get(served.manifest.input.tensor, served.engine.inputs[0])
    size = list(taken.shape[-2:])
    return [] if -1 in size else size


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
