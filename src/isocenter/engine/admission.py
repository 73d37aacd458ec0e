"""The decision at the door, in predicted milliseconds. Pure: reads no clock, changes nothing."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from isocenter.engine.backlog import Ahead, Backlog
from isocenter.engine.batch_policy import batch_for
from isocenter.engine.cost import CostModel

# What is kept free of a request's time for everything but the model: the way back, a timer, a busy neighbour.
MARGIN_S, MARGIN_SHARE = 0.004, 0.20
# Of a wait that is predicted, so much is kept free beside it: what slows one of those ahead down, a neighbour on the
# cores or a host that gives less, slows all of them. While a line stands, a shorter one answers no fewer.
WAIT_DOUBT = 0.3
# How many times the usual surprise of a run is kept free for all runs together.
RISK = 1.5
# Who was let in and comes too late shows that something is not in the predictions. Then so much of the time that
# callers give is kept free beside them, more with each incident and at most so much, and given back while all goes
# well: only once so many have been in time for each who was late.
CAUTION_STEP, CAUTION_MOST, ONE_LATE_IN = 0.05, 0.3, 400
# One incident makes many late at once; it is counted once in so much of the callers' time.
INCIDENT_SHARE = 0.1
# By so much the time that callers usually give is followed.
_STEP_DOWN, _STEP_UP = math.exp(-0.18), math.exp(0.02)
# Caution is forgotten in about so many times of that time even where few come to show that all is well again.
FORGOTTEN_IN = 120.0


class Busy(NamedTuple):
    """What the instances are at."""

    instances: int
    """Those that work at all, idle ones included."""
    left_s: float = 0.0
    """Predicted seconds until each is idle, added up."""


class Verdict(NamedTuple):
    """Admitted if `late_s` is not above zero."""

    wait_s: float
    """Predicted seconds until the item is dispatched."""
    late_s: float
    """How much shorter the wait would have to be for the item to be in time; or by how much one that it would push back
    would miss its deadline, if that is more."""

    @property
    def admitted(self) -> bool:
        """Whether everybody's deadline can be kept."""
        return self.late_s <= 0


def judge(
    ahead: Ahead, *, left_s: float, now_s: float, ready_in_s: float, busy: Busy, cost: CostModel, batch: int
) -> Verdict:
    """Predict when a request would be answered, and whom it would delay.

    Args:
        ahead: where it would stand.
        left_s: the time until its deadline.
        now_s: on the axis of the deadlines.
        ready_in_s: when it comes to the engine; until then its picture is received and decoded.
        busy: what the instances are at.
        cost: what batches cost.
        batch: the size that is worked with.
    """
    if busy.instances == 0:
        return Verdict(math.inf, math.inf)
    instances, busy_s = busy
    batch_s = cost.service_s(batch)
    runs = ahead.items // batch
    started_s = (busy_s + runs * batch_s) / instances
    wait_s = ready_in_s if ready_in_s > started_s else started_s
    # Runs that are longer than predicted and runs that are shorter make up for one another, but not wholly.
    risk_s = RISK * (cost.spread - 1.0) * batch_s * math.sqrt(1 + runs / instances)
    promise_s = batch_s + risk_s
    most_s = (left_s - promise_s - margin_s(left_s)) / (1.0 + WAIT_DOUBT) if left_s < math.inf else math.inf
    late_s = wait_s - most_s
    if not ahead.behind:
        return Verdict(wait_s, late_s)

    def after_s(items: int) -> float:
        """When so many items have been started."""
        return (busy_s + items // batch * batch_s) / instances

    for deadline_s, up_to in ahead.behind:
        theirs_s = deadline_s - now_s
        pushed_s = after_s(up_to) + promise_s
        # Who could not be in time before is not made late by this one. A bucket's deadlines lie up to its width later.
        was_s = after_s(max(0, up_to - 1)) + promise_s
        if pushed_s > theirs_s >= was_s - ahead.width_s:
            late_s = max(late_s, pushed_s - theirs_s)
    return Verdict(wait_s, late_s)


class Admission:
    """The judge of one model's requests: knows the backlog, and how much time callers usually give."""

    def __init__(self, backlog: Backlog, *, timeout_s: float, of_all: npt.NDArray[np.int64] | None = None) -> None:
        self._backlog = backlog
        self._of_all = of_all
        self.budget_s = timeout_s
        """The time that nine callers of ten give at least."""
        self.caution_s = 0.0
        """What is kept free of every request's time, as learned from those that were late."""
        self.caution_elsewhere_s = 0.0
        """The same, as learned in another process."""
        self._owed = 0
        """So many more have to be in time before caution is given back."""
        self._late_at_s = -math.inf
        self._looked_at_s = 0.0

    def note_budget(self, left_s: float) -> None:
        """Somebody came and gave so much time."""
        if not 0 < left_s < math.inf:
            return
        # A tenth below, nine tenths above: the step down is nine times the step up.
        if left_s < self.budget_s:
            followed_s = self.budget_s * _STEP_DOWN
            self.budget_s = left_s if left_s > followed_s else followed_s
        elif left_s > self.budget_s:
            followed_s = self.budget_s * _STEP_UP
            self.budget_s = left_s if left_s < followed_s else followed_s

    def note_late(self, now_s: float) -> None:
        """Somebody who was let in was not answered in time, or hardly."""
        self._owed += ONE_LATE_IN
        if now_s - self._late_at_s >= INCIDENT_SHARE * self.budget_s:
            self._late_at_s = self._looked_at_s = now_s
            self.caution_s = min(CAUTION_MOST, self.caution_s / self.budget_s + CAUTION_STEP) * self.budget_s

    def note_in_time(self) -> None:
        """Somebody was answered with time to spare."""
        if self._owed:
            self._owed -= 1
        elif self.caution_s:
            self.caution_s = max(0.0, self.caution_s - CAUTION_STEP / ONE_LATE_IN * self.budget_s)

    def _forget(self, now_s: float) -> None:
        step_s = FORGOTTEN_IN * self.budget_s / 16
        if self.caution_s and now_s - self._looked_at_s > step_s:
            kept = 0.8 ** min(99.0, (now_s - self._looked_at_s) / step_s)
            self.caution_s *= kept
            self._owed = int(self._owed * kept)
            self._looked_at_s = now_s

    def judge(
        self,
        deadline_s: float,
        priority: int,
        *,
        now_s: float,
        ready_in_s: float,
        busy: Busy,
        cost: CostModel,
        allowed: tuple[int, ...],
    ) -> Verdict:
        """Predict when a request that comes now would be answered, and whom it would delay."""
        left_s = deadline_s - now_s
        self.note_budget(left_s)
        self._forget(now_s)
        return judge(
            self._backlog.ahead(deadline_s, priority, now_s=now_s, of_all=self._of_all),
            left_s=left_s - self.caution_s - self.caution_elsewhere_s,
            now_s=now_s,
            ready_in_s=ready_in_s,
            busy=busy,
            cost=cost,
            batch=batch_for(self.budget_s, allowed, cost),
        )


def margin_s(left_s: float) -> float:
    """What is kept free before a deadline."""
    return MARGIN_S + MARGIN_SHARE * left_s if left_s > 0 else MARGIN_S
