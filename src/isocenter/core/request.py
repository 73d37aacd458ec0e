"""What a caller hands to an engine, and what comes back. Tuples: a frozen dataclass takes thrice as long to make."""

from typing import NamedTuple

from isocenter.core.deadline import Deadline
from isocenter.core.tensor import Tensors


class Request(NamedTuple):
    """One item to be run: tensors without a batch axis, and the instant after which nobody waits.

    Smaller priority is sooner; ties go by deadline, then by arrival.
    """

    id: str
    item: Tensors
    deadline: Deadline
    priority: int = 0
    group: str = ""
    """Items of one caller's larger piece of work, as the windows of a volume. Groups take turns; empty: by itself."""


class EngineTimings(NamedTuple):
    """Where the engine spent a request's time."""

    queue_s: float
    """From enqueue to dispatch."""
    service_s: float
    """The session run that the item was part of, gathering of the batch included."""
    batch_size: int
    """Items in that run."""


class Result(NamedTuple):
    """The outputs for one item, without a batch axis."""

    outputs: Tensors
    timings: EngineTimings
    fallback: str = ""
    """What answered in place of the model's own runtime, as the manifest names it; empty: the model's own did."""
