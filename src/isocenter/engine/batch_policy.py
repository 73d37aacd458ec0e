"""When to run, and how many items at once. Pure: reads no clock, changes nothing."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRules:
    """What a model's owner says about its batches. Sizes count items."""

    max_batch_size: int = 8
    preferred_batch_sizes: tuple[int, ...] = ()
    """Where a queue is cut; a batch is never padded up to one. Empty: every allowed size is as good."""
    max_queue_delay_s: float = 0.002
    """How long the oldest item may wait for company while an instance is idle. 0: not at all."""
    deadline_margin_s: float = 0.002
    """What is kept free before the earliest deadline when waiting: timers and hand-over are not exact."""
    allowed_batch_sizes: tuple[int, ...] = ()
    """The sizes that were warmed; 1 always is. Empty: all up to the largest."""
    _cut: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size is at least 1, not {self.max_batch_size}")
        for size in (*self.preferred_batch_sizes, *self.allowed_batch_sizes):
            if not 1 <= size <= self.max_batch_size:
                raise ValueError(f"batch size {size} is outside of 1..{self.max_batch_size}")
        for name in ("max_queue_delay_s", "deadline_margin_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a number of seconds, 0 or more, not {getattr(self, name)}")
        object.__setattr__(self, "_cut", self._cut_table())

    def _cut_table(self) -> tuple[int, ...]:
        every = range(1, self.max_batch_size + 1)
        allowed = {1, *self.allowed_batch_sizes} if self.allowed_batch_sizes else set(every)
        preferred = allowed.intersection(self.preferred_batch_sizes)
        return (0, *(max((s for s in preferred if s <= n), default=max(s for s in allowed if s <= n)) for n in every))

    def cut(self, items: int) -> int:
        """The size to run when so many items wait: the largest preferred size that fits, else the largest allowed."""
        return self._cut[min(items, self.max_batch_size)]

    @property
    def largest(self) -> int:
        """The largest useful batch: with this many items waiting, more company changes nothing."""
        return self._cut[-1]


class Waiting(NamedTuple):
    """What the policy sees of a queue."""

    items: int
    oldest_enqueued_at_s: float
    earliest_deadline_s: float


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run the first `size` items now."""

    size: int


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Wait for company, at most until the instant."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to decide before an item arrives or an instance comes back."""


Decision: TypeAlias = Dispatch | WaitUntil | Idle
_IDLE = Idle()


def decide(
    waiting: Waiting,
    *,
    idle_instances: int,
    now_s: float,
    rules: BatchRules,
    service_s: float | None = None,
    batching_pays: bool = True,
) -> Decision:
    """Decide what the scheduler does next.

    Args:
        waiting: the queue without what has expired.
        idle_instances: how many could start a batch now.
        now_s: on the axis of the queue's instants.
        rules: the model's.
        service_s: predicted run time of the largest useful batch, None if unknown.
        batching_pays: False where run time is proportional to batch size; then nothing is gained by waiting, and
            what is there is spread over the idle instances.
    """
    if waiting.items == 0 or idle_instances == 0:
        return _IDLE
    if not batching_pays:
        return Dispatch(rules.cut(-(-waiting.items // idle_instances)))
    if waiting.items >= rules.largest:
        return Dispatch(rules.cut(waiting.items))
    start_by_s = waiting.earliest_deadline_s - (service_s or 0.0) - rules.deadline_margin_s
    wait_until_s = min(waiting.oldest_enqueued_at_s + rules.max_queue_delay_s, start_by_s)
    return Dispatch(rules.cut(waiting.items)) if now_s >= wait_until_s else WaitUntil(wait_until_s)
