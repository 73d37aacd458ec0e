"""What the doors of all front ends read, in shared memory: how much is queued, reserved and running of each model.

A door decides without asking: the engine process writes its row of each model whenever something changes, each front
end the row of what it has reserved. A reader may see one count of now beside one of a moment ago; no more.
"""

import mmap
import os
from typing import Final, NamedTuple

import numpy as np

from isocenter.engine.admission import Busy
from isocenter.engine.backlog import CELLS, Counts
from isocenter.engine.link.figures import FrontEndFigures

SLOTS: Final = 64
"""Model versions that have a place on the board at a time; further ones are judged when they reach the engine."""
_WORDS: Final = 8


class Glance(NamedTuple):
    """What the engine process last wrote of one model."""

    instances: int
    left_s: float
    """Predicted seconds until each instance is idle, added up, at the time of writing."""
    written_at_s: float
    knows: bool
    memory_is_short: bool
    queued: int

    def busy(self, now_s: float) -> Busy:
        """What the instances are at by now."""
        return Busy(self.instances, max(0.0, self.left_s - self.instances * max(0.0, now_s - self.written_at_s)))


class Board:
    """One process' mapping of the board."""

    def __init__(self, fd: int, front_ends: int) -> None:
        self._rows = 1 + front_ends
        self._start = FrontEndFigures.size_bytes(front_ends)
        slot_words = _WORDS + self._rows * CELLS
        size = self._start + SLOTS * slot_words * 8
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        words = np.frombuffer(mmap.mmap(fd, size), np.int64, SLOTS * slot_words, self._start)
        self._slots: Counts = words.reshape(SLOTS, slot_words)

    def counts(self, slot: int) -> Counts:
        """One model's backlogs: the engine process' row, then each front end's."""
        return self._slots[slot, _WORDS:].reshape(self._rows, CELLS)

    def write(self, slot: int, glance: Glance) -> None:
        """Say how one model is doing."""
        self._slots[slot, :6] = (
            glance.instances,
            int(glance.left_s * 1e6),
            int(glance.written_at_s * 1e6),
            glance.knows,
            glance.memory_is_short,
            glance.queued,
        )

    def read(self, slot: int) -> Glance:
        """How one model is doing."""
        instances, left_us, written_us, knows, short, queued = self._slots[slot, :6].tolist()
        return Glance(instances, left_us / 1e6, written_us / 1e6, bool(knows), bool(short), queued)

    def clear_row(self, row: int) -> None:
        """Nothing is counted here any more: 0 for the engine process, 1 for the first front end."""
        for slot in range(SLOTS):
            self.counts(slot)[row] = 0
            if row == 0:
                self._slots[slot, :_WORDS] = 0
