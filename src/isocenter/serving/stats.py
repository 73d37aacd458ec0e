"""How each model version is doing: what it did in the last minute, and what it holds now. Plain data."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, Self

from isocenter.measure.histogram import Histogram
from isocenter.measure.memory import ProcessMemory
from isocenter.measure.tally import Tally
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class SummaryMs:
    """Nearest-rank percentiles in milliseconds, within 2 %, and the exact maximum; all None if `count` is 0."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None

    @classmethod
    def of(cls, samples_s: Histogram) -> Self:
        """The summary of samples in seconds."""
        found = samples_s.percentiles()
        if found is None:
            return cls(0, None, None, None, None)
        return cls(found.count, *(_ms(value) for value in (found.p50, found.p95, found.p99, found.maximum)))


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Bytes; None where it is not known."""

    process_rss_bytes: int | None
    """Resident memory of the process that runs the model, everything else in it included."""
    model_bytes: int | None = None
    """What the version's sessions cost, as measured when they were loaded and warmed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStats:
    """One model version: counts and percentiles over the last `span_s` seconds, and what is so now.

    `latency_ms` counts answered requests, `queue_delay_ms` the oldest item of each batch, `service_time_ms` session
    runs that came back.
    """

    model: str
    version: int
    state: str
    span_s: float
    """At most a minute; less after a start."""
    answered: int
    throughput_per_s: float
    """Requests answered per second of the span."""
    latency_ms: SummaryMs
    queue_delay_ms: SummaryMs
    service_time_ms: SummaryMs
    batches: int
    mean_batch_size: float | None
    """Items; None if no batch came back."""
    queued: int
    """Items that wait for an instance now."""
    instances: int
    """Instances that take batches now."""
    service_ms: dict[int, float]
    """Session run by batch size, as it is believed now: measured at warm-up, and by every run since."""
    shed: dict[str, int]
    """Requests refused at the door, by reason."""
    expired: int
    """Requests whose deadline passed in the queue."""
    abandoned: int
    """Requests whose caller left while they were queued."""
    failures: dict[str, int]
    """Requests that ended without an answer, by error code; the shed and the expired are among them."""
    batch_failures: dict[str, int]
    """Session runs that raised, by kind."""
    memory: MemoryStats

    def as_json(self) -> dict[str, Any]:
        """Strings, numbers, lists and mappings only; keys are strings."""
        return asdict(self) | {"service_ms": {str(size): ms for size, ms in self.service_ms.items()}}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """What `as_json` gave, after any journey.

        Raises:
            ValueError: it is not that.
        """
        try:
            parts = {field.name: given[field.name] for field in fields(cls)}
            for name in ("latency_ms", "queue_delay_ms", "service_time_ms"):
                parts[name] = SummaryMs(**parts[name])
            parts["service_ms"] = {int(size): ms for size, ms in parts["service_ms"].items()}
            parts["memory"] = MemoryStats(**parts["memory"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the statistics of a model: {type(error).__name__} {error}") from error
        return cls(**parts)


class StatsSource(Protocol):
    """Where statistics are asked for, wherever they are counted."""

    async def stats(self, name: str, version: int | None = None) -> ModelStats:
        """One version; without a number, the one that answers.

        Raises:
            UnknownModel, UnknownVersion: it is not here.
        """
        ...


class Recently(Protocol):
    """Someone who counted the events of the last minute."""

    def recent(self, model: str, version: int) -> tuple[Tally, float]:
        """What happened lately, and the seconds that it took."""
        ...


class LocalStats:
    """The statistics of models that run in this process."""

    def __init__(self, repository: Repository, counted: Recently) -> None:
        self._repository = repository
        self._counted = counted
        self._process = ProcessMemory()

    async def stats(self, name: str, version: int | None = None) -> ModelStats:
        """One version; see `StatsSource`."""
        served = self._repository.resolve(name, version)
        memory = MemoryStats(await asyncio.to_thread(self._process.held_bytes))
        tally, span_s = self._counted.recent(served.name, served.version)
        return model_stats(served, tally, span_s=span_s, memory=memory)


def model_stats(served: ServedModel, tally: Tally, *, span_s: float, memory: MemoryStats) -> ModelStats:
    """Put together what was counted and what is so now."""
    return ModelStats(
        model=served.name,
        version=served.version,
        state=served.engine.state.value,
        span_s=round(span_s, 3),
        answered=tally.answered,
        throughput_per_s=round(tally.answered / span_s, 3) if span_s else 0.0,
        latency_ms=SummaryMs.of(tally.latency_s),
        queue_delay_ms=SummaryMs.of(tally.queue_s),
        service_time_ms=SummaryMs.of(tally.service_s),
        batches=tally.batches,
        mean_batch_size=round(tally.items / tally.batches, 3) if tally.batches else None,
        queued=served.engine.queued,
        instances=served.engine.instances,
        service_ms={size: _ms(seconds) for size, seconds in served.engine.service_s.items()},
        shed=tally.shed,
        expired=tally.expired,
        abandoned=tally.abandoned,
        failures=tally.failures,
        batch_failures=tally.batch_failures,
        memory=memory,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
