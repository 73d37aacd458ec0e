"""What is read when somebody scrapes, rather than counted when it happens."""

from collections.abc import Callable, Iterable

from isocenter.telemetry.metrics import LiveGauge


def engine_gauges(queued: Callable[[], Iterable[tuple[str, int, int]]]) -> tuple[LiveGauge, ...]:
    """Of the engines: name, version and items that wait of each model."""

    def read() -> list[tuple[dict[str, str], float]]:
        return [({"model": name, "version": str(version)}, float(items)) for name, version, items in queued()]

    return (LiveGauge("isocenter_queue_items", "Requests waiting in an engine's queue.", read),)


def front_gauges(
    *,
    decoding: Callable[[], int],
    inside: Callable[[], int],
    body_bytes: Callable[[], int],
    jobs_queued: Callable[[], int],
    jobs_running: Callable[[], int],
    ready: Callable[[], bool],
) -> tuple[LiveGauge, ...]:
    """Of what takes requests; of all front ends together, where there are several."""

    return (
        LiveGauge("isocenter_decode_waiting_items", "Images in the decode pool.", _one(decoding)),
        LiveGauge("isocenter_requests_in_progress", "Requests inside.", _one(inside)),
        LiveGauge("isocenter_body_bytes", "Bytes of request bodies that are held or expected.", _one(body_bytes)),
        LiveGauge("isocenter_jobs_queued", "Jobs that wait for their turn.", _one(jobs_queued)),
        LiveGauge("isocenter_jobs_running", "Jobs that run.", _one(jobs_running)),
        LiveGauge("isocenter_ready", "1 if requests should be sent here.", _one(ready)),
    )


def _one(read: Callable[[], float]) -> Callable[[], list[tuple[dict[str, str], float]]]:
    return lambda: [({}, float(read()))]
