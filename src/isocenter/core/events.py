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

    `reason` is a fixed word: would_be_late, queue_full, queue_bytes, memory, decode_full, draining, not_ready or
    deadline_exceeded. `times` is above 1 where refusals that are alike are told together.
    """

    model: str
    version: int
    reason: str
    times: int = 1


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
    """A batch went to an instance. `callers` is how many it is shared by: windows of one volume are one caller's."""

    model: str
    version: int
    batch_size: int
    oldest_queue_s: float
    callers: int = 1


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
class InstanceChanged:
    """An instance left its group or came into it.

    `what` is a fixed word: suspected (it failed and is examined), recovered (it passed), hung, broken, lost (what it
    runs in is gone), rebuilt, not_rebuilt, fallback (another runtime answers now) or retired (that one is no longer
    needed).
    """

    model: str
    version: int
    what: str


PRESSURE_LEVELS = ("normal", "half", "quarter", "one", "shed", "free")
"""How short memory is, mildest first. half, quarter, one: the largest batch; shed, free: new work is refused."""


@dataclass(frozen=True, slots=True)
class MemoryPressure:
    """Memory became shorter or longer. `level` is one of `PRESSURE_LEVELS`; the bytes are of the closest bound."""

    level: str
    available_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A model version moved on in its life."""

    model: str
    version: int
    state: str


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What is served changed. `what` is added, replaced or removed."""

    model: str
    version: int
    what: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A use case ended: `code` is "ok" or the error's stable code; `stages_s` holds seconds by stage name.

    `times` is above 1 where refusals that are alike are told together.
    """

    use_case: str
    model: str
    version: int
    code: str
    total_s: float
    stages_s: dict[str, float]
    times: int = 1


Event: TypeAlias = (
    Enqueued
    | Shed
    | Expired
    | AbandonedInQueue
    | BatchStarted
    | BatchFinished
    | BatchFailed
    | InstanceChanged
    | MemoryPressure
    | StateChanged
    | Reloaded
    | Answered
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
