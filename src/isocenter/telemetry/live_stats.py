"""What every model version did lately, counted as it happens and read when somebody asks."""

from collections.abc import Callable
from typing import Any

from isocenter.core import events
from isocenter.core.clock import Clock
from isocenter.measure.recent import Recent
from isocenter.measure.tally import Tally


class LiveStats:
    """An observer that keeps the last minute of each model version. Called, and asked, on the event loop only.

    Each event costs about a microsecond or two, and each version about 170 KB.
    """

    def __init__(self, clock: Clock) -> None:
        self._now_s = clock.now_s
        self._since_s = clock.now_s()
        self._recent: dict[tuple[str, int], Recent[Tally]] = {}
        self._handlers: dict[type, Callable[[Tally, Any], None]] = {
            events.Shed: _shed,
            events.Expired: _expired,
            events.AbandonedInQueue: _abandoned,
            events.BatchStarted: _batch_started,
            events.BatchFinished: _batch_finished,
            events.BatchFailed: _batch_failed,
            events.Answered: _answered,
        }

    def observe(self, event: events.Event) -> None:
        """Count one event, if it is one that is counted here."""
        handler = self._handlers.get(type(event))
        if handler is None:
            return
        known: Any = event  # what has a handler has a model and a version
        if not known.model:  # a request that meant no model here
            return
        now_s = self._now_s()
        recent = self._recent.get((known.model, known.version)) or self._first(known.model, known.version, now_s)
        handler(recent.slot(now_s), event)

    def count_from_now(self) -> None:
        """Rates count from here: what came before was loading."""
        self._since_s = self._now_s()

    def recent(self, model: str, version: int) -> tuple[Tally, float]:
        """What happened lately, and the seconds that it took; a copy."""
        now_s = self._now_s()
        found = self._recent.get((model, version)) or Recent(Tally, now_s=self._since_s)
        return found.total(now_s), found.span_s(now_s)

    def _first(self, model: str, version: int, now_s: float) -> Recent[Tally]:
        # A version that was heard of for the first time is the moment to forget those that were unloaded long ago.
        self._recent = {key: each for key, each in self._recent.items() if not each.silent(now_s)}
        made = self._recent[model, version] = Recent(Tally, now_s=self._since_s)
        return made


def _shed(tally: Tally, event: events.Shed) -> None:
    tally.shed[event.reason] = tally.shed.get(event.reason, 0) + event.times


def _expired(tally: Tally, _: events.Expired) -> None:
    tally.expired += 1


def _abandoned(tally: Tally, _: events.AbandonedInQueue) -> None:
    tally.abandoned += 1


def _batch_started(tally: Tally, event: events.BatchStarted) -> None:
    tally.queue_s.add(event.oldest_queue_s)


def _batch_finished(tally: Tally, event: events.BatchFinished) -> None:
    tally.service_s.add(event.service_s)
    tally.batches += 1
    tally.items += event.batch_size


def _batch_failed(tally: Tally, event: events.BatchFailed) -> None:
    tally.batch_failures[event.kind] = tally.batch_failures.get(event.kind, 0) + 1


def _answered(tally: Tally, event: events.Answered) -> None:
    if event.code == "ok":
        tally.latency_s.add(event.total_s)
    else:
        tally.failures[event.code] = tally.failures.get(event.code, 0) + event.times
