"""What has been admitted and not been run, counted by priority and deadline: what admission reads.

Counts, not entries: adding and removing cost a fraction of a microsecond however long the queue is, and the counts may
lie in memory that several processes share (each writes its own, all of them read all).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

CLASSES = 3
"""Priorities below, at and above 0."""
BUCKETS = 64
"""Deadlines nearer than the horizon, by arrival of their bucket; one cell more for those beyond it."""
CELLS = CLASSES * (BUCKETS + 1) + 1
"""The last one holds the latest deadline that was added since the backlog was empty, in microseconds."""
_LATEST = CELLS - 1
_LOWEST_START = (CLASSES - 1) * (BUCKETS + 1)
_LOWEST = slice(_LOWEST_START, _LATEST)
_NEVER_US = 2**62


def priority_class(priority: int) -> int:
    """0 for sooner than usual, 1 for usual, 2 for later."""
    return 0 if priority < 0 else 1 if priority == 0 else 2


class Ahead(NamedTuple):
    """How many admitted items a new one would follow, and who would follow it."""

    items: int
    behind: list[tuple[float, int]]
    """For every bucket that would come after: its earliest deadline and how many items go up to and with it."""
    width_s: float = 0.0
    """How much later than that the last deadline of a bucket may be."""


_NOBODY = Ahead(0, [])


class Backlog:
    """Items by deadline bucket. Cells are reused as time goes on, so what has expired has to be removed in time."""

    def __init__(self, horizon_s: float, counts: Counts | None = None) -> None:
        if not 0 < horizon_s < math.inf:
            raise ValueError(f"a horizon is a positive number of seconds, not {horizon_s}")
        self.counts: Counts = np.zeros(CELLS, np.int64) if counts is None else counts
        if self.counts.shape != (CELLS,) or self.counts.dtype != np.int64:
            raise ValueError(f"a backlog has {CELLS} counts of int64, not {self.counts.shape} of {self.counts.dtype}")
        # A memoryview is twice as fast as an array for single cells.
        self._cells = memoryview(self.counts.data)
        self._width_s = horizon_s / (BUCKETS - 1)
        self.total = int(self.counts[:_LATEST].sum())
        self._low = int(self.counts[_LOWEST].sum())

    def add(self, deadline_s: float, priority: int, *, now_s: float) -> int:
        """Count one item; the cell that is to be given back to `remove`."""
        width_s = self._width_s
        far = deadline_s >= now_s + width_s * (BUCKETS - 1)
        cell = priority_class(priority) * (BUCKETS + 1) + (BUCKETS if far else int(deadline_s // width_s) % BUCKETS)
        # Before anything is counted: what raises here must leave no item behind that nobody removes.
        latest_us = int(min(_NEVER_US, deadline_s * 1e6))
        cells = self._cells
        cells[cell] += 1
        if self.total == 0 or latest_us > cells[_LATEST]:
            cells[_LATEST] = latest_us
        self.total += 1
        self._low += cell >= _LOWEST_START
        return cell

    def remove(self, cell: int) -> None:
        """Count one item less."""
        self._cells[cell] -= 1
        self.total -= 1
        self._low -= cell >= _LOWEST_START

    def ahead(
        self, deadline_s: float, priority: int, *, now_s: float, of_all: npt.NDArray[np.int64] | None = None
    ) -> Ahead:
        """Where an item would stand; items of its own bucket are taken to be before it.

        `of_all`: the counts of every backlog of the model, a row each, where there are several.
        """
        if of_all is None and self.total == 0:
            return _NOBODY
        counts, total, low, latest_us = self.counts, self.total, self._low, self._cells[_LATEST]
        if of_all is not None:
            counts = of_all.sum(axis=0)
            total, low, latest_us = (
                int(counts[:_LATEST].sum()),
                int(counts[_LOWEST].sum()),
                int(of_all[:, _LATEST].max()),
            )
        if total == 0:
            return _NOBODY
        own = priority_class(priority)
        if own == CLASSES - 2 and deadline_s * 1e6 >= latest_us and not low:
            return Ahead(total, [])  # the usual case: everybody gives the same time, so the last to come is last
        first = int(now_s // self._width_s)
        order = [(first + offset) % BUCKETS for offset in range(BUCKETS)] + [BUCKETS]
        by_class = counts[:_LATEST].reshape(CLASSES, BUCKETS + 1)[:, order]
        beyond = deadline_s >= now_s + self._width_s * (BUCKETS - 1)
        place = BUCKETS if beyond else max(0, int(deadline_s // self._width_s) - first)
        items = int(by_class[:own].sum() + by_class[own, : place + 1].sum())
        behind: list[tuple[float, int]] = []
        reached = items
        for level in range(own, CLASSES):
            row = by_class[level]
            for offset in np.flatnonzero(row):
                if level > own or offset > place:
                    reached += int(row[offset])
                    behind.append(((first + int(offset)) * self._width_s, reached))
        return Ahead(items, behind, self._width_s)


class Place:
    """A reservation where the queue is: one item more in the backlog."""

    __slots__ = ("_backlog", "_cell", "_on_release")

    def __init__(
        self, backlog: Backlog, deadline_s: float, priority: int, *, now_s: float, on_release: Callable[[], None]
    ) -> None:
        self._backlog = backlog
        self._on_release = on_release
        self._cell: int | None = backlog.add(deadline_s, priority, now_s=now_s)

    @property
    def room(self) -> None:
        """Items may lie anywhere here."""
        return None

    def take(self) -> int:
        """Hand the place over to a queue."""
        cell, self._cell = self._cell, None
        if cell is None:
            raise RuntimeError("a reservation can be used once")
        return cell

    def release(self) -> None:
        """Give it back, unless it was handed over."""
        if self._cell is not None:
            self._backlog.remove(self._cell)
            self._cell = None
            if not self._backlog.total:
                self._on_release()
