"""When to run, and how many items at once. Pure: reads no clock, changes nothing."""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from isocenter.engine.cost import CostModel

# A batch may take so much of a caller's time: who comes just after one started waits for it and for his own.
BATCH_SHARE = 0.45
# Where one item more costs nearly a run of its own, an instance does not idle for it.
FLAT_SHARE = 0.1


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
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Every size that a queue may be cut at, the smallest first."""
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
        object.__setattr__(self, "sizes", tuple(sorted(set(self._cut) - {0})))

    def _cut_table(self) -> tuple[int, ...]:
        every = range(1, self.max_batch_size + 1)
        allowed = {1, *self.allowed_batch_sizes} if self.allowed_batch_sizes else set(every)
        preferred = allowed.intersection(self.preferred_batch_sizes)
        return (0, *(max((s for s in preferred if s <= n), default=max(s for s in allowed if s <= n)) for n in every))

    def cut(self, items: int) -> int:
        """The size to run when so many items wait: the largest preferred size that fits, else the largest allowed."""
        return self._cut[items if items < self.max_batch_size else -1]

    @property
    def largest(self) -> int:
        """The largest useful batch: with this many items waiting, more company changes nothing."""
        return self._cut[-1]

    def capped(self, size: int) -> "BatchRules":
        """The same rules with no batch above a size (1 at least)."""
        cap = max(1, min(size, self.max_batch_size))
        return replace(
            self,
            max_batch_size=cap,
            preferred_batch_sizes=tuple(s for s in self.preferred_batch_sizes if s <= cap),
            allowed_batch_sizes=tuple(s for s in self.allowed_batch_sizes if s <= cap) or (1,),
        )


class Waiting(NamedTuple):
    """What the policy sees of a queue."""

    items: int
    oldest_enqueued_at_s: float
    earliest_deadline_s: float


class Expected(NamedTuple):
    """What is known of the model's speed and of its callers."""

    cost: CostModel
    budget_s: float = math.inf
    """The time that callers usually give; a batch shall not use it all up."""
    arrivals_per_s: float | None = None
    """None: not known, so company is waited for as long as the rules allow."""


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
    waiting: Waiting, *, idle_instances: int, now_s: float, rules: BatchRules, expected: Expected | None = None
) -> Decision:
    """Decide what the scheduler does next.

    Args:
        waiting: the queue without what has expired.
        idle_instances: how many could start a batch now.
        now_s: on the axis of the queue's instants.
        rules: the model's.
        expected: what runs cost and who comes; None before a warm-up, then the largest batch is taken to be the best.
    """
    if waiting.items == 0 or idle_instances == 0:
        return _IDLE
    if expected is None:
        if waiting.items >= rules.largest:
            return Dispatch(rules.largest)
        start_by_s = waiting.earliest_deadline_s - rules.deadline_margin_s
        wait_until_s = min(waiting.oldest_enqueued_at_s + rules.max_queue_delay_s, start_by_s)
        return Dispatch(rules.cut(waiting.items)) if now_s >= wait_until_s else WaitUntil(wait_until_s)
    wanted = batch_for(expected.budget_s, rules.sizes, expected.cost)
    share = -(-waiting.items // idle_instances)
    if waiting.items >= wanted:
        size = rules.cut(wanted if wanted < share else share)
        return Dispatch(_in_time(size, waiting.earliest_deadline_s - now_s, rules, expected))
    wait_until_s = waiting.oldest_enqueued_at_s + rules.max_queue_delay_s
    start_by_s = waiting.earliest_deadline_s - expected.cost.promise_s(waiting.items + 1) - rules.deadline_margin_s
    if start_by_s < wait_until_s:
        wait_until_s = start_by_s
    if now_s < wait_until_s and _company_pays(waiting.items, expected):
        return WaitUntil(wait_until_s)
    return Dispatch(_in_time(rules.cut(share), waiting.earliest_deadline_s - now_s, rules, expected))


def batch_for(budget_s: float, sizes: tuple[int, ...], cost: CostModel) -> int:
    """The batch size to work with if callers give so much time."""
    return cost.efficient_size(sizes, within_s=BATCH_SHARE * budget_s)


def _in_time(size: int, left_s: float, rules: BatchRules, expected: Expected) -> int:
    """The largest size up to `size` that ends before the earliest deadline; `size` itself if none does."""
    if expected.cost.promise_s(size) + rules.deadline_margin_s <= left_s:
        return size
    fitting = [s for s in rules.sizes if s < size and expected.cost.promise_s(s) + rules.deadline_margin_s <= left_s]
    # Where even one alone would be late, being late together costs the others less.
    return fitting[-1] if fitting else size


def _company_pays(items: int, expected: Expected) -> bool:
    """Whether an instance saves more by running one item more in this batch than it loses by waiting for that item."""
    saved_s = expected.cost.service_s(1) + expected.cost.service_s(items) - expected.cost.service_s(items + 1)
    if saved_s <= FLAT_SHARE * expected.cost.service_s(1):
        return False
    return expected.arrivals_per_s is None or saved_s * expected.arrivals_per_s > 1.0
