"""The waiting line of one model version: bounded, ordered, and quick to let go of those who left."""

import heapq
import math
from collections import OrderedDict
from dataclasses import dataclass

from isocenter.core.reply import Reply
from isocenter.core.request import Request, Result
from isocenter.engine.batch_policy import Waiting

# Heaps keep the keys of entries that have gone until so many of them are stale; they hold no tensors.
STALE_KEYS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One item in the line, and the reply that it is owed."""

    request: Request
    reply: Reply[Result]
    enqueued_at_s: float
    arrival: int


class RequestQueue:
    """Entries by (priority, deadline, arrival).

    Every operation is O(log n), spread over calls. What has gone is removed from the table at once, which frees its
    tensors; its keys in the two heaps are skipped when they surface, and swept when they outnumber the living.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a queue holds at least 1 item, not {limit}")
        self.limit = limit
        self._waiting: OrderedDict[int, Entry] = OrderedDict()  # by arrival, so the first is the oldest
        self._order: list[tuple[int, float, int]] = []
        self._deadlines: list[tuple[float, int]] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return len(self._waiting) >= self.limit

    def put(self, request: Request, reply: Reply[Result], *, now_s: float) -> Entry:
        """Append one item. The caller has seen that the queue is not full."""
        self._arrivals += 1
        entry = Entry(request, reply, now_s, self._arrivals)
        self._waiting[entry.arrival] = entry
        self._push(entry)
        if max(len(self._order), len(self._deadlines)) > 2 * len(self._waiting) + STALE_KEYS:
            self._sweep()
        return entry

    def take(self, size: int) -> tuple[list[Entry], list[Entry]]:
        """Remove the next `size` entries, in order; apart from them, those met on the way whose callers have left."""
        taken: list[Entry] = []
        abandoned: list[Entry] = []
        while len(taken) < size and self._order:
            entry = self._waiting.pop(heapq.heappop(self._order)[2], None)
            if entry is not None:
                (abandoned if entry.reply.settled else taken).append(entry)
        return taken, abandoned

    def discard(self, entry: Entry) -> bool:
        """Remove an entry whose caller left; False if it was not waiting any more."""
        return self._waiting.pop(entry.arrival, None) is not None

    def expire(self, now_s: float) -> list[Entry]:
        """Remove the entries whose deadline has passed."""
        expired: list[Entry] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            entry = self._waiting.pop(heapq.heappop(self._deadlines)[1], None)
            if entry is not None:
                expired.append(entry)
        return expired

    def clear(self) -> list[Entry]:
        """Remove every entry, oldest first."""
        entries = list(self._waiting.values())
        self._waiting.clear()
        self._order.clear()
        self._deadlines.clear()
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

    def _push(self, entry: Entry) -> None:
        deadline_s = entry.request.deadline.at_s
        heapq.heappush(self._order, (entry.request.priority, deadline_s, entry.arrival))
        if deadline_s < math.inf:
            heapq.heappush(self._deadlines, (deadline_s, entry.arrival))

    def _sweep(self) -> None:
        self._order = [key for key in self._order if key[2] in self._waiting]
        self._deadlines = [key for key in self._deadlines if key[1] in self._waiting]
        heapq.heapify(self._order)
        heapq.heapify(self._deadlines)
