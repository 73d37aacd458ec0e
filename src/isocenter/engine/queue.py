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
    turn: float = 0.0
    """When it is the turn of its caller, if that is all it asks for; see `RequestQueue`."""
    retried: bool = False
    """Whether a run of it has failed for want of memory."""
    alone: bool = False
    """Whether it shares no run any more: one that it shared hung."""
    losses: int = 0
    """How often what it ran in was lost."""


@dataclass(slots=True)
class _Lane:
    """The entries of one group, or all that belong to none."""

    turn: float = 0.0
    """Of a group: when it is next, on the axis of the queue's turns; one turn more for each entry taken."""
    begun: bool = False
    """Whether it had a turn."""
    keys: list[Key] = field(default_factory=list)
    waiting: int = 0


class RequestQueue:
    """Entries by (priority, deadline, arrival); groups take turns with one another and with everybody else.

    Within a priority each group counts as one caller, as does each item without a group (weighted fair queueing with
    equal weights: Demers, Keshav and Shenker 1989). Turns are an axis: every item that is taken brings now forward by
    one turn, shared among all callers. A newcomer is next now; a group is next again a turn after it was. Now is never
    more than one turn beyond the next of any group, so each group, of five hundred as of two, delays whoever comes by
    one item at most; and who comes while an item of a group runs does not wait for another of it. Newcomers without
    end get their share and no more.

    Every operation is O(log n), spread over calls; taking is O(groups). What has gone is removed from the table at
    once, which frees its tensors; its keys are skipped when they surface, and swept when they outnumber the living.
    """

    def __init__(self, limit: int, *, backlog: Backlog | None = None) -> None:
        if limit < 1:
            raise ValueError(f"a queue holds at least 1 item, not {limit}")
        self.limit = limit
        self.backlog = backlog or Backlog(horizon_s=60.0)
        self._waiting: OrderedDict[int, Entry] = OrderedDict()  # by arrival, so the first is the oldest
        self._singles = _Lane()
        self._groups: dict[str, _Lane] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._arrivals = 0
        self._keys = 0
        self._now = 0.0

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
        entry = Entry(request, reply, now_s, self._arrivals, cell, self._now)
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
            lane = self._take_turn() if self._groups else self._singles
            entry = self._waiting.get(heapq.heappop(lane.keys)[2])
            self._keys -= 1
            if entry is None:
                continue
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
        self._singles = _Lane()
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
        request = entry.request
        lane = self._lane(request.group) if request.group else self._singles
        lane.waiting += 1
        deadline_s = request.deadline.at_s
        heapq.heappush(lane.keys, (request.priority, deadline_s, entry.arrival))
        self._keys += 1
        if deadline_s < math.inf:
            heapq.heappush(self._deadlines, (deadline_s, entry.arrival))
        most_keys = 2 * len(self._waiting) + STALE_KEYS
        if self._keys > most_keys or len(self._deadlines) > most_keys:
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
        lane = self._groups.get(group)
        if lane is None:
            lane = self._groups[group] = _Lane(self._now)
        return lane

    def _take_turn(self) -> _Lane:
        """The lane whose turn it is: soonest priority, earliest turn, newcomers first, then the first in line."""
        heads = [(lane, key) for lane in (self._singles, *self._groups.values()) if (key := self._head(lane))]
        lane, key = min(heads, key=self._rank)
        turns = [each.turn for each, (priority, *_) in heads if each is not self._singles and priority == key[0]]
        now = self._now + 1.0 / (len(self._groups) + self._singles.waiting)
        if lane is not self._singles and lane.waiting > 1:
            # A group that had to leave everything to a sooner priority has not saved up turns.
            turns[turns.index(lane.turn)] = lane.turn = max(lane.turn, self._now - 1.0) + 1.0
            lane.begun = True
            now = min(now, lane.turn)
        self._now = max(self._now, min([now, *(turn + 1.0 for turn in turns)]))
        return lane

    def _head(self, lane: _Lane) -> Key | None:
        """The first key of a lane that still stands for somebody."""
        keys = lane.keys
        while keys and keys[0][2] not in self._waiting:
            heapq.heappop(keys)
            self._keys -= 1
        return keys[0] if keys else None

    def _rank(self, head: tuple[_Lane, Key]) -> tuple[int, float, bool, float, int]:
        lane, (priority, deadline_s, arrival) = head
        turn = self._waiting[arrival].turn if lane is self._singles else lane.turn
        return (priority, turn, lane.begun, deadline_s, arrival)

    def _sweep(self) -> None:
        self._keys = 0
        for lane in (self._singles, *self._groups.values()):
            lane.keys = [key for key in lane.keys if key[2] in self._waiting]
            heapq.heapify(lane.keys)
            self._keys += len(lane.keys)
        self._deadlines = [key for key in self._deadlines if key[1] in self._waiting]
        heapq.heapify(self._deadlines)
