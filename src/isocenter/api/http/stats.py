"""How a model version is doing, over HTTP."""

from fastapi import APIRouter
from pydantic import Field

from isocenter.api.http.schemas import ProblemShape, Shape
from isocenter.serving.stats import StatsSource


class SummaryShape(Shape):
    """Nearest-rank percentiles in milliseconds, within 2 %, and the exact maximum; null if the count is 0."""

    count: int = Field(description="Samples behind the percentiles.", examples=[412])
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None


class MemoryShape(Shape):
    """Bytes; null where it is not known."""

    process_rss_bytes: int | None = Field(description="Resident memory of the process that runs the model.")
    model_bytes: int | None = Field(description="What the version costs, as measured when it was loaded and warmed.")


class StatsShape(Shape):
    """What one version did in the last minute, and what it holds now."""

    model: str
    version: int
    state: str
    span_s: float = Field(description="Seconds that are counted: at most a minute, less after a start.")
    answered: int = Field(description="Requests that were answered.")
    throughput_per_s: float = Field(description="Requests answered per second.")
    latency_ms: SummaryShape = Field(description="From the arrival of a request to its answer.")
    queue_delay_ms: SummaryShape = Field(description="From enqueue to dispatch, of each batch's oldest item.")
    service_time_ms: SummaryShape = Field(description="One session run.")
    batches: int = Field(description="Session runs that came back.")
    mean_batch_size: float | None = Field(description="Items in a run; null if there was none.")
    queued: int = Field(description="Items that wait for an instance now.")
    instances: int = Field(description="Instances that take batches now.")
    service_ms: dict[str, float] = Field(description="Session run by batch size, as it is believed now.")
    shed: dict[str, int] = Field(description="Requests refused at the door, by reason.")
    expired: int = Field(description="Requests whose deadline passed in the queue.")
    abandoned: int = Field(description="Requests whose caller left while they were queued.")
    failures: dict[str, int] = Field(description="Requests without an answer, by code, the shed and expired included.")
    batch_failures: dict[str, int] = Field(description="Session runs that raised, by kind.")
    memory: MemoryShape


def stats_routes(stats: StatsSource) -> APIRouter:
    """`/v1/models/{name}/stats`."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("/{name}/stats", responses={404: {"model": ProblemShape}})
    async def model_stats(name: str) -> StatsShape:
        """The last minute of the version of a model that answers by default."""
        return await _told(stats, name, None)

    @router.get("/{name}/versions/{version}/stats", responses={404: {"model": ProblemShape}})
    async def version_stats(name: str, version: int) -> StatsShape:
        """The last minute of one version of a model."""
        return await _told(stats, name, version)

    return router


async def _told(stats: StatsSource, name: str, version: int | None) -> StatsShape:
    found = await stats.stats(name, version)
    return StatsShape.model_validate(found.as_json())
