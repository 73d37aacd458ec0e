"""The waiting line of one model version: bounded, ordered, fair between groups, and quick to let go of leavers."""

import heapq
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from isocenter.core.request import Request, Result
from isocenter.engine.backlog import Backlog
from isocenter.engine.batch_policy import Waiting

# Heaps keep the keys of entries that have gone until so many of them are stale; they hold no tensors.
STALE_KEYS = 64

Key = tuple[int, float, int]
"""Priority, deadline, arrival: the smallest is next."""


class Answerable(Protocol):
    """What the line and the scheduler know of a reply."""

    @property
    def settled(self) -> bool:
        """Whether it was answered, or the caller has left."""
        ...

    def settle(self, answer: Result) -> bool:
        """Give the answer; False if nobody waits for it."""
        ...

    def fail(self, error: Exception) -> bool:
        """Give an error; False if nobody waits for it."""
        ...


@dataclass(slots=True, eq=False)
class Entry:
    """One item in the line, and the reply that it is owed."""

    request: Request
    reply: Answerable
    enqueued_at_s: float
    arrival: int
    cell: int
    """Where the backlog counts it."""
    retried: bool = False
    """Whether a run of it has failed for want of memory."""
    losses: int = 0
    """How often what it ran in was lost."""

    @property
    def key(self) -> Key:
        """Its place in the line."""
        return (self.request.priority, self.request.deadline.at_s, self.arrival)


@dataclass(slots=True)
class _Lane:
    """The entries of one group, or all that belong to none."""

    served: float
    """Turns taken, on an axis that all lanes share."""
    keys: list[Key] = field(default_factory=list)
    waiting: int = 0


class RequestQueue:
    """Entries by (priority, deadline, arrival); groups take turns with one another and with everybody else.

    Within a priority each group counts as one caller, as does each item without a group: a group of five hundred
    delays a single item by one turn. Every operation is O(log n), spread over calls. What has gone is removed from the
    table at once, which frees its tensors; its keys are skipped when they surface, and swept when they outnumber the
    living.
    """

    def __init__(self, limit: int, *, backlog: Backlog | None = None) -> None:
        if limit < 1:
            raise ValueError(f"a queue holds at least 1 item, not {limit}")
        self.limit = limit
        self.backlog = backlog or Backlog(horizon_s=60.0)
        self._waiting: OrderedDict[int, Entry] = OrderedDict()  # by arrival, so the first is the oldest
        self._singles = _Lane(0.0)
        self._groups: dict[str, _Lane] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._arrivals = 0
        self._keys = 0
        self._turn = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return len(self._waiting) >= self.limit

    def put(self, request: Request, reply: Answerable, *, now_s: float, cell: int | None = None) -> Entry:
        """Append one item. The caller has seen that the queue is not full; `cell` if the backlog counts it already."""
        self._arrivals += 1
        if cell is None:
            cell = self.backlog.add(request.deadline.at_s, request.priority, now_s=now_s)
        entry = Entry(request, reply, now_s, self._arrivals, cell)
        self._insert(entry)
        return entry

    def put_back(self, entry: Entry, *, now_s: float) -> None:
        """Return an entry that was taken and not run to its place."""
        entry.cell = self.backlog.add(entry.request.deadline.at_s, entry.request.priority, now_s=now_s)
        self._insert(entry)
        self._waiting.move_to_end(entry.arrival, last=False)

    def take(self, size: int) -> tuple[list[Entry], list[Entry]]:
        """Remove the next `size` entries, in order; apart from them, those met on the way whose callers have left."""
        taken: list[Entry] = []
        abandoned: list[Entry] = []
        while len(taken) < size and self._waiting:
            lane = self._singles if not self._groups else self._next_lane()
            entry = self._waiting.get(heapq.heappop(lane.keys)[2])
            self._keys -= 1
            if entry is None:
                continue
            if self._groups:
                self._turn = max(self._turn, lane.served)
                lane.served += 1.0 / lane.waiting if lane is self._singles else 1.0
            self._forget(entry)
            (abandoned if entry.reply.settled else taken).append(entry)
        return taken, abandoned

    def discard(self, entry: Entry) -> bool:
        """Remove an entry whose caller left; False if it was not waiting any more."""
        if entry.arrival not in self._waiting:
            return False
        self._forget(entry)
        return True

    def expire(self, now_s: float) -> list[Entry]:
        """Remove the entries whose deadline has passed."""
        expired: list[Entry] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            entry = self._waiting.get(heapq.heappop(self._deadlines)[1])
            if entry is not None:
                self._forget(entry)
                expired.append(entry)
        return expired

    def clear(self) -> list[Entry]:
        """Remove every entry, oldest first."""
        entries = list(self._waiting.values())
        for entry in entries:
            self._forget(entry)
        self._singles = _Lane(0.0)
        self._deadlines.clear()
        self._keys = 0
        return entries

    def waiting(self) -> Waiting:
        """What the policy needs to know."""
        oldest_s = next(iter(self._waiting.values())).enqueued_at_s if self._waiting else math.inf
        return Waiting(len(self._waiting), oldest_s, self.earliest_deadline_s)

    @property
    def earliest_deadline_s(self) -> float:
        """The first instant at which an entry expires; infinity if none does."""
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def _insert(self, entry: Entry) -> None:
        self._waiting[entry.arrival] = entry
        lane = self._lane(entry.request.group)
        if not lane.waiting:
            lane.served = max(lane.served, self._turn)
        lane.waiting += 1
        deadline_s = entry.request.deadline.at_s
        heapq.heappush(lane.keys, entry.key)
        self._keys += 1
        if deadline_s < math.inf:
            heapq.heappush(self._deadlines, (deadline_s, entry.arrival))
        if max(self._keys, len(self._deadlines)) > 2 * len(self._waiting) + STALE_KEYS:
            self._sweep()

    def _forget(self, entry: Entry) -> None:
        del self._waiting[entry.arrival]
        self.backlog.remove(entry.cell)
        group = entry.request.group
        if not group:
            self._singles.waiting -= 1
            return
        lane = self._groups[group]
        lane.waiting -= 1
        if not lane.waiting:
            self._keys -= len(lane.keys)
            del self._groups[group]

    def _lane(self, group: str) -> _Lane:
        if not group:
            return self._singles
        lane = self._groups.get(group)
        if lane is None:
            lane = self._groups[group] = _Lane(self._turn)
        return lane

    def _next_lane(self) -> _Lane:
        """The lane whose turn it is: soonest priority, fewest turns, then the earliest of the first in line."""
        best: tuple[int, float, float, int] | None = None
        chosen = self._singles
        for lane in (self._singles, *self._groups.values()):
            keys = lane.keys
            while keys and keys[0][2] not in self._waiting:
                heapq.heappop(keys)
                self._keys -= 1
            if keys:
                priority, deadline_s, arrival = keys[0]
                rank = (priority, lane.served, deadline_s, arrival)
                if best is None or rank < best:
                    best, chosen = rank, lane
        return chosen

    def _sweep(self) -> None:
        self._keys = 0
        for lane in (self._singles, *self._groups.values()):
            lane.keys = [key for key in lane.keys if key[2] in self._waiting]
            heapq.heapify(lane.keys)
            self._keys += len(lane.keys)
        self._deadlines = [key for key in self._deadlines if key[1] in self._waiting]
        heapq.heapify(self._deadlines)
