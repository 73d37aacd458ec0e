"""Where metrics are read, wherever they are counted."""

from typing import Protocol

from isocenter.telemetry.metrics import Metrics


class Exposition(Protocol):
    """Something that Prometheus can scrape."""

    content_type: str

    async def read(self) -> bytes:
        """The exposition format."""
        ...


class LocalMetrics:
    """Metrics that are counted in this process."""

    def __init__(self, metrics: Metrics) -> None:
        self.content_type = metrics.content_type
        self._metrics = metrics

    async def read(self) -> bytes:
        """The exposition format."""
        return self._metrics.text()
