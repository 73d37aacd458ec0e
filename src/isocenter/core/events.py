"""What happened, as small facts. The floors emit them; telemetry counts them.

No event carries pixels, file names or anything of a patient.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A request was admitted to an engine's queue."""

    model: str
    version: int


@dataclass(frozen=True, slots=True)
class Shed:
    """Work was refused at the door.

    `reason` is a fixed word: queue_full, decode_full, draining, not_ready or deadline_exceeded.
    """

    model: str
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class Expired:
    """A deadline passed in the queue; the model never saw the item."""

    model: str
    version: int


@dataclass(frozen=True, slots=True)
class AbandonedInQueue:
    """The caller left while the item was queued; the model never saw it."""

    model: str
    version: int


@dataclass(frozen=True, slots=True)
class BatchStarted:
    """A batch went to an instance."""

    model: str
    version: int
    batch_size: int
    oldest_queue_s: float


@dataclass(frozen=True, slots=True)
class BatchFinished:
    """A batch came back; `service_s` is the session run including the gathering of its items."""

    model: str
    version: int
    batch_size: int
    service_s: float


@dataclass(frozen=True, slots=True)
class BatchFailed:
    """A session run raised. `kind` is the exception's class name."""

    model: str
    version: int
    batch_size: int
    kind: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A model version moved on in its life."""

    model: str
    version: int
    state: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A use case ended: `code` is "ok" or the error's stable code; `stages_s` holds seconds by stage name."""

    use_case: str
    model: str
    version: int
    code: str
    total_s: float
    stages_s: dict[str, float]


Event: TypeAlias = (
    Enqueued | Shed | Expired | AbandonedInQueue | BatchStarted | BatchFinished | BatchFailed | StateChanged | Answered
)


class Observer(Protocol):
    """Someone who counts. Called on the hot path: it must neither block nor raise."""

    def observe(self, event: Event) -> None:
        """Take note of one fact."""
        ...


class NullObserver:
    """Counts nothing."""

    def observe(self, event: Event) -> None:
        """Ignore the event."""


class RecordingObserver:
    """Keeps every event, for tests and for `isocenter check`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        """Keep the event."""
        self.events.append(event)
