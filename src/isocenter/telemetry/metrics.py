"""Every metric, in one table. Base units in the names; labels never hold anything of a request but its outcome."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from isocenter.core import events

# Roughly 10 % to 40 % apart where service levels are written, so that a P95 read off the buckets is of use,
# and the same on every replica, so that histograms may be added up.
SECONDS_BUCKETS = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 30.0, 60.0,
)  # fmt: skip
BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)

_VERSION = ("model", "version")
METRICS: dict[str, tuple[type[Counter] | type[Gauge] | type[Histogram], str, tuple[str, ...]]] = {
    "isocenter_requests_total": (Counter, "Requests answered, by outcome.", ("use_case", *_VERSION, "code")),
    "isocenter_request_duration_seconds": (
        Histogram, "From arrival to the answer built, of requests answered with code ok.", ("use_case", *_VERSION)
    ),
    "isocenter_stage_duration_seconds": (Histogram, "Time in one stage of a request.", (*_VERSION, "stage")),
    "isocenter_queue_delay_seconds": (Histogram, "From enqueue to dispatch, of each batch's oldest item.", _VERSION),
    "isocenter_service_duration_seconds": (Histogram, "One session run.", _VERSION),
    "isocenter_batch_size_items": (Histogram, "Items in one session run.", _VERSION),
    "isocenter_batches_shared_total": (
        Counter, "Session runs of items of several callers; all windows of a volume are one caller's.", _VERSION
    ),
    "isocenter_enqueued_total": (Counter, "Requests admitted to an engine's queue.", _VERSION),
    "isocenter_shed_total": (Counter, "Requests, and windows of images, refused at the door.", (*_VERSION, "reason")),
    "isocenter_expired_total": (Counter, "Requests whose deadline passed in the queue.", _VERSION),
    "isocenter_abandoned_total": (Counter, "Queued requests whose caller left.", _VERSION),
    "isocenter_batch_failures_total": (Counter, "Session runs that raised.", (*_VERSION, "kind")),
    "isocenter_instance_changes_total": (Counter, "Instances that left their group or came.", (*_VERSION, "what")),
    "isocenter_reloads_total": (Counter, "Changes of what is served: added, replaced, removed.", (*_VERSION, "what")),
    "isocenter_memory_pressure_info": (Gauge, "1 for how short memory is.", ("level",)),
    "isocenter_model_state_info": (Gauge, "1 for the state that a model version is in.", (*_VERSION, "state")),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LiveGauge:
    """A value that is read when somebody scrapes."""

    name: str
    help: str
    read: Callable[[], list[tuple[dict[str, str], float]]]


class Metrics:
    """One registry; two servers in one process do not clash."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._metrics: dict[str, Any] = {
            name: kind(name, text, labels, registry=self.registry, **_buckets(name, kind))
            for name, (kind, text, labels) in METRICS.items()
        }
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}

    def add_live(self, *gauges: LiveGauge) -> None:
        """Show values that are read at scrape time."""
        self.registry.register(_LiveCollector(gauges))

    def text(self) -> bytes:
        """The exposition format that Prometheus reads."""
        return generate_latest(self.registry)

    def child(self, name: str, *labels: str) -> Any:
        """One labelled series; looked up once, as the hot path asks for the same few again and again."""
        key = (name, labels)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = self._metrics[name].labels(*labels)
        return found


class MetricsObserver:
    """Turns events into counts."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._states: dict[tuple[str, str], str] = {}
        self._show_pressure(events.PRESSURE_LEVELS[0])
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.Enqueued: self._enqueued,
            events.Shed: self._shed,
            events.Expired: self._expired,
            events.AbandonedInQueue: self._abandoned,
            events.BatchStarted: self._batch_started,
            events.BatchFinished: self._batch_finished,
            events.BatchFailed: self._batch_failed,
            events.InstanceChanged: self._instance_changed,
            events.Reloaded: self._reloaded,
            events.MemoryPressure: self._memory_pressure,
            events.StateChanged: self._state_changed,
            events.Answered: self._answered,
        }

    def observe(self, event: events.Event) -> None:
        """Count one event."""
        self._handlers[type(event)](event)

    def _enqueued(self, event: events.Enqueued) -> None:
        self._metrics.child("isocenter_enqueued_total", event.model, str(event.version)).inc()

    def _shed(self, event: events.Shed) -> None:
        self._metrics.child("isocenter_shed_total", event.model, str(event.version), event.reason).inc(event.times)

    def _expired(self, event: events.Expired) -> None:
        self._metrics.child("isocenter_expired_total", event.model, str(event.version)).inc()

    def _abandoned(self, event: events.AbandonedInQueue) -> None:
        self._metrics.child("isocenter_abandoned_total", event.model, str(event.version)).inc()

    def _batch_started(self, event: events.BatchStarted) -> None:
        where = (event.model, str(event.version))
        self._metrics.child("isocenter_queue_delay_seconds", *where).observe(event.oldest_queue_s)
        if event.callers > 1:
            self._metrics.child("isocenter_batches_shared_total", *where).inc()

    def _batch_finished(self, event: events.BatchFinished) -> None:
        where = (event.model, str(event.version))
        self._metrics.child("isocenter_service_duration_seconds", *where).observe(event.service_s)
        self._metrics.child("isocenter_batch_size_items", *where).observe(event.batch_size)

    def _batch_failed(self, event: events.BatchFailed) -> None:
        self._metrics.child("isocenter_batch_failures_total", event.model, str(event.version), event.kind).inc()

    def _instance_changed(self, event: events.InstanceChanged) -> None:
        self._metrics.child("isocenter_instance_changes_total", event.model, str(event.version), event.what).inc()

    def _reloaded(self, event: events.Reloaded) -> None:
        self._metrics.child("isocenter_reloads_total", event.model, str(event.version), event.what).inc()

    def _memory_pressure(self, event: events.MemoryPressure) -> None:
        self._show_pressure(event.level)

    def _show_pressure(self, found: str) -> None:
        for level in events.PRESSURE_LEVELS:
            self._metrics.child("isocenter_memory_pressure_info", level).set(level == found)

    def _state_changed(self, event: events.StateChanged) -> None:
        where = (event.model, str(event.version))
        left = self._states.get(where)
        if left is not None:
            self._metrics.child("isocenter_model_state_info", *where, left).set(0)
        self._states[where] = event.state
        self._metrics.child("isocenter_model_state_info", *where, event.state).set(1)

    def _answered(self, event: events.Answered) -> None:
        model, version = event.model, str(event.version or "")
        self._metrics.child("isocenter_requests_total", event.use_case, model, version, event.code).inc(event.times)
        if event.code != "ok":
            return
        self._metrics.child("isocenter_request_duration_seconds", event.use_case, model, version).observe(event.total_s)
        for stage, seconds in event.stages_s.items():
            self._metrics.child("isocenter_stage_duration_seconds", model, version, stage).observe(seconds)


class _LiveCollector(Collector):
    def __init__(self, gauges: tuple[LiveGauge, ...]) -> None:
        self._gauges = gauges

    def collect(self) -> list[Metric]:
        """Read every value now."""
        families: list[Metric] = []
        for gauge in self._gauges:
            samples = gauge.read()
            names = list(samples[0][0]) if samples else []
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=names)
            for labels, value in samples:
                family.add_metric([labels[name] for name in names], value)
            families.append(family)
        return families


def _buckets(name: str, kind: type) -> dict[str, Any]:
    if kind is not Histogram:
        return {}
    return {"buckets": BATCH_BUCKETS if name.endswith("_items") else SECONDS_BUCKETS}
