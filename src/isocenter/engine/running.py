"""What one instance is busy with, and what those who wait for it are told."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from isocenter.core.errors import DeadlineExceeded, IsocenterError
from isocenter.core.request import EngineTimings, Result
from isocenter.engine.instance import Ran
from isocenter.engine.queue import Entry


@dataclass(slots=True)
class Running:
    """What one instance is busy with: the piece in the session, and the pieces that follow it."""

    backlog: deque[list[Entry]]
    piece: list[Entry] = field(default_factory=list)
    started_at_s: float = 0.0
    ends_at_s: float = 0.0
    """As predicted."""
    hung_at_s: float = math.inf
    suspected: bool = False
    earliest_deadline_s: float = -math.inf

    def entries(self) -> Iterator[Entry]:
        """Everything that is still owed an answer here."""
        return (entry for entry in chain(self.piece, *self.backlog) if not entry.reply.settled)

    def note_earliest(self) -> None:
        """See who of them expires first."""
        self.earliest_deadline_s = min((entry.request.deadline.at_s for entry in self.entries()), default=math.inf)


def answer(piece: list[Entry], started_at_s: float, ran: Ran, fallback: str) -> None:
    for entry, answer in zip(piece, ran.answers, strict=True):
        if isinstance(answer, IsocenterError):
            entry.reply.fail(answer)
        else:
            timings = EngineTimings(started_at_s - entry.enqueued_at_s, ran.service_s, len(piece))
            entry.reply.settle(Result(answer, timings, fallback))


def too_late(entry: Entry, now_s: float, *, where: str) -> DeadlineExceeded:
    waited_s = now_s - entry.enqueued_at_s
    if not entry.request.deadline.expired(now_s):
        left_s = entry.request.deadline.left_s(now_s)
        return DeadlineExceeded(
            f"after {waited_s:.3f} s in the queue {left_s:.3f} s are left, which is less than the model needs",
            details={"waited_s": waited_s, "left_s": left_s, "where": where},
        )
    return DeadlineExceeded(
        f"the deadline passed after {waited_s:.3f} s, in the {where}", details={"waited_s": waited_s, "where": where}
    )
