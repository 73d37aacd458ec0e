"""Who is let in: the order of the checks, and what the refused are told."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded, Draining, NotReady, Overloaded, Refused
from isocenter.core.events import Observer, Shed
from isocenter.core.tensor import TensorSpec
from isocenter.engine.admission import Admission, Busy
from isocenter.engine.cost import CostModel
from isocenter.engine.lifecycle import State

# Those who were refused do not come back together: up to so much is added to what they are told.
JITTER = 0.25
LEAST_RETRY_AFTER_S = 0.05
# Predictions are trusted for so long after a run. Later, the next item is tried whatever they say: without runs there
# would be nothing to learn from that the machine is quick again.
FRESH_S = 1.0
# For so long a refusal holds at most for whoever gives no more time than the one who was refused, and for so much of
# that time, or of what would be late: a line stands then that this does not empty.
SAME_ANSWER_S = 0.004
SAME_OF_BUDGET, SAME_OF_LATE = 0.02, 0.25


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait: items, and bytes counted in items."""

    items: int
    item_bytes: int
    """0 if items differ in size."""
    items_by_bytes: int | None

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], *, items: int, most_bytes: int | None) -> Self:
        """The limits for items of these inputs."""
        fixed = all(-1 not in spec.shape for spec in inputs)
        item_bytes = sum(spec.dtype.itemsize * math.prod(spec.shape) for spec in inputs) if fixed else 0
        return cls(items, item_bytes, max(1, most_bytes // item_bytes) if most_bytes and item_bytes else None)


class View(NamedTuple):
    """What is seen of an engine at one instant."""

    state: State
    held: int
    """Items queued, and places held for those to come."""
    memory_is_short: bool
    busy: Busy
    cost: CostModel | None
    knows: bool
    """Whether predictions can be held against anybody."""
    sizes: tuple[int, ...]
    """The batch sizes that may be formed."""


class Doorkeeper:
    """Refuses with the measured value, the limit, and when to come back."""

    def __init__(
        self, model: str, version: int, *, observer: Observer, admission: Admission, limits: QueueLimits
    ) -> None:
        self.admission = admission
        self._model, self._version = model, version
        self._observer = observer
        self._limits = limits
        self._chance = random.Random()
        self._refusing_until_s = -math.inf
        self._refused_left_s = self._refused_late_s = self._refused_retry_s = 0.0
        self._refused_priority = 0

    def check(self, deadline: Deadline, priority: int, *, ready_in_s: float, now_s: float, view: View) -> None:
        """Let pass, or raise what `Engine.check` says."""
        if view.state is not State.READY:
            raise self._closed(view.state)
        self._check_expired(deadline, now_s)
        held, limits = view.held, self._limits
        if held >= limits.items:
            raise self._full(held, _clear_s(view))
        if limits.items_by_bytes is not None and held >= limits.items_by_bytes:
            message = (
                f"{held} items of {limits.item_bytes} bytes are queued, there is memory for {limits.items_by_bytes}"
            )
            details = {"queued": held, "limit": limits.items_by_bytes}
            raise self._overloaded("queue_bytes", message, _clear_s(view), details)
        if view.memory_is_short:
            raise self._overloaded("memory", "this machine is short of memory", 1.0, {})
        if view.busy.instances == 0:
            self._shed("not_ready")
            raise NotReady(
                f"every instance of {self._model} {self._version} is being examined",
                details={"state": view.state.value},
                retry_after_s=1.0,
            )
        if view.cost is None or not view.knows:
            return
        left_s = deadline.at_s - now_s
        if now_s < self._refusing_until_s and left_s <= self._refused_left_s and priority >= self._refused_priority:
            self.admission.note_budget(left_s)
            raise self._late(self._refused_late_s, left_s + self._refused_late_s, self._refused_retry_s)
        verdict = self.admission.judge(
            deadline.at_s,
            priority,
            now_s=now_s,
            ready_in_s=ready_in_s,
            busy=view.busy,
            cost=view.cost,
            allowed=view.sizes,
        )
        if not verdict.admitted:
            # Who comes in a moment and gives no more time would hear the same: refusing has to cost next to nothing.
            holds_s = min(SAME_ANSWER_S, max(SAME_OF_LATE * verdict.late_s, SAME_OF_BUDGET * left_s))
            self._refusing_until_s = now_s + holds_s
            self._refused_left_s, self._refused_priority = left_s, priority
            self._refused_late_s = verdict.late_s
            # Who gives less time than an empty queue takes is let in only when the predictions are old.
            self._refused_retry_s = verdict.late_s if verdict.late_s <= verdict.wait_s else FRESH_S
            refusal = self._late(verdict.late_s, verdict.wait_s, self._refused_retry_s)
            refusal.holds_s = holds_s
            raise refusal

    def _late(self, late_s: float, wait_s: float, retry_after_s: float) -> Overloaded:
        message = f"it would wait {wait_s:.3f} s and miss a deadline by {late_s:.3f} s"
        details = {"wait_s": round(wait_s, 3), "late_s": round(late_s, 3)}
        return self._overloaded("would_be_late", message, retry_after_s, details)

    def check_again(self, deadline: Deadline, *, now_s: float, state: State, queued: int) -> None:
        """What may have changed for somebody who was admitted."""
        if state not in (State.READY, State.RECOVERING, State.DRAINING):  # a drain waits for those who were let in
            raise self._closed(state)
        self._check_expired(deadline, now_s)
        if queued >= self._limits.items:
            raise self._full(queued, None)

    def _full(self, queued: int, retry_after_s: float | None) -> Overloaded:
        limit = self._limits.items
        message = f"{queued} items are queued, the limit is {limit}"
        return self._overloaded("queue_full", message, retry_after_s, {"queued": queued, "limit": limit})

    def _check_expired(self, deadline: Deadline, now_s: float) -> None:
        if deadline.expired(now_s):
            self._shed(DeadlineExceeded.code)
            raise DeadlineExceeded(
                f"the deadline had passed by {now_s - deadline.at_s:.3f} s when the item came to the engine",
                details={"late_s": round(now_s - deadline.at_s, 3), "where": "door"},
            )

    def _closed(self, state: State) -> Refused:
        name, details = f"{self._model} {self._version} is {state}", {"state": state.value}
        if state in (State.DRAINING, State.STOPPED):
            self._shed("draining")
            return Draining(name, details=details, retry_after_s=1.0)
        self._shed("not_ready")
        return NotReady(name, details=details, retry_after_s=1.0)

    def _overloaded(
        self, reason: str, message: str, retry_after_s: float | None, details: Mapping[str, int | float]
    ) -> Overloaded:
        self._shed(reason)
        if retry_after_s is not None and math.isfinite(retry_after_s):
            retry_after_s = max(LEAST_RETRY_AFTER_S, retry_after_s) * (1.0 + JITTER * self._chance.random())
        else:
            retry_after_s = None
        return Overloaded(message, details=details, retry_after_s=retry_after_s)

    def _shed(self, reason: str) -> None:
        self._observer.observe(Shed(self._model, self._version, reason))


def _clear_s(view: View) -> float | None:
    """Predicted seconds until all that is in is done; None before a warm-up has measured anything."""
    if view.cost is None:
        return None
    return (view.busy.left_s + view.cost.service_s(view.held)) / max(1, view.busy.instances)
