"""Probes, metrics, and what is served: everything that is asked about the server rather than of a model."""

from fastapi import APIRouter
from starlette.responses import Response

from isocenter import __version__
from isocenter.api.http.exposition import Exposition
from isocenter.api.http.schemas import (
    HealthShape,
    InputShape,
    LimitsShape,
    ModelHealthShape,
    ModelListShape,
    ModelShape,
    ModelSummaryShape,
    ProbeShape,
    ProblemShape,
)
from isocenter.imaging.codecs.sniff import FORMATS
from isocenter.imaging.limits import ImageLimits
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository
from isocenter.serving.health import HealthCheck


def probe_routes(health: HealthCheck, metrics: Exposition) -> APIRouter:
    """`/livez`, `/readyz`, `/health`, `/metrics`."""
    router = APIRouter(tags=["health"])

    @router.get("/livez")
    async def livez() -> ProbeShape:
        """200 as long as the process answers at all; if not, restart it."""
        return ProbeShape(status="alive")

    @router.get("/readyz", responses={503: {"model": ProbeShape}})
    async def readyz(response: Response) -> ProbeShape:
        """200 if requests should be sent here; 503 while loading, draining, or with a model that cannot answer."""
        ready = health.ready()
        response.status_code = 200 if ready else 503
        return ProbeShape(status="ready" if ready else "not ready")

    @router.get("/health", responses={503: {"model": HealthShape}})
    async def report(response: Response) -> HealthShape:
        """The state of the server and of each model, for people; 503 if nothing can be answered."""
        found = health.report()
        response.status_code = 200 if found.status in ("ok", "degraded") else 503
        models = [
            ModelHealthShape(model=each.model, version=each.version, state=each.state, queued=each.queued)
            for each in found.models
        ]
        return HealthShape(status=found.status, uptime_s=round(found.uptime_s, 3), server=__version__, models=models)

    @router.get("/metrics", response_class=Response)
    async def scrape() -> Response:
        """Prometheus metrics."""
        return Response(await metrics.read(), media_type=metrics.content_type)

    return router


def model_routes(repository: Repository, limits: ImageLimits) -> APIRouter:
    """`/v1/models` and below."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("")
    async def list_models() -> ModelListShape:
        """Every served version."""
        return ModelListShape(models=[_summary(model) for model in repository])

    @router.get("/{name}", responses={404: {"model": ProblemShape}})
    async def describe_model(name: str) -> ModelShape:
        """The version of a model that answers by default."""
        return _describe(repository, repository.versions(name)[-1], limits)

    @router.get("/{name}/versions/{version}", responses={404: {"model": ProblemShape}})
    async def describe_version(name: str, version: int) -> ModelShape:
        """One version of a model."""
        return _describe(repository, repository.resolve(name, version), limits)

    return router


def _summary(model: ServedModel) -> ModelSummaryShape:
    return ModelSummaryShape(
        name=model.name,
        version=model.version,
        task=model.manifest.task,
        title=model.manifest.title,
        state=model.engine.state.value,
    )


def _describe(repository: Repository, model: ServedModel, limits: ImageLimits) -> ModelShape:
    manifest = model.manifest
    specs = {spec.name: spec for spec in model.engine.inputs}
    taken = specs.get(manifest.input.tensor, model.engine.inputs[0])
    return ModelShape(
        name=model.name,
        version=model.version,
        versions=[each.version for each in repository.versions(model.name)],
        task=manifest.task,
        title=manifest.title,
        description=manifest.description,
        license=manifest.license,
        state=model.engine.state.value,
        digest=model.digest,
        runtime=manifest.runtime_kind,
        runtime_stated=manifest.runtime.kind,
        precision=manifest.runtime.precision,
        labels=list(manifest.output.labels),
        input=InputShape(
            kind=manifest.input.kind,
            formats=list(FORMATS) if manifest.input.kind == "image2d" else [],
            tensor_shape=list(taken.shape),
            accepts=manifest.input.accepts.model_dump(exclude_none=True),
        ),
        limits=LimitsShape(
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            timeout_ms=manifest.slo.timeout_ms,
            max_batch_size=manifest.batching.max_batch_size,
            max_queue_size=manifest.batching.max_queue_size,
        ),
        service_ms={str(size): round(seconds * 1e3, 3) for size, seconds in model.service_s.items()},
    )
