"""What one instance is busy with, and what those who wait for it are told."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from isocenter.core.errors import DeadlineExceeded, IsocenterError, RunHung
from isocenter.core.request import EngineTimings, Result
from isocenter.core.tensor import Tensors, TensorSpec
from isocenter.engine.admission import Admission, margin_s
from isocenter.engine.batch import shape_key
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.instance import Outcome, Ran
from isocenter.engine.queue import Entry


class Runner(Protocol):
    """What the scheduler knows of an instance."""

    name: str
    fallback: str

    def submit(self, items: Sequence[Tensors], done: "Callable[[Runner, Outcome], None]") -> None:
        """Run items as one batch, then call `done`."""
        ...


@dataclass(slots=True)
class Running:
    """What one instance is busy with: the piece in the session, and the pieces that follow it."""

    backlog: deque[list[Entry]]
    piece: list[Entry] = field(default_factory=list)
    started_at_s: float = 0.0
    ends_at_s: float = 0.0
    """As predicted."""
    hung_at_s: float = math.inf
    """When it is looked at next, for it should have come back by then."""
    looks: int = 0
    """How often it was looked at already."""
    leaving: bool = False
    """Whether the instance takes nothing after this."""
    earliest_deadline_s: float = -math.inf

    def entries(self) -> Iterator[Entry]:
        """Everything that is still owed an answer here."""
        return (entry for entry in chain(self.piece, *self.backlog) if not entry.reply.settled)

    def note_earliest(self) -> None:
        """See who of them expires first."""
        deadlines_s = [entry.request.deadline.at_s for entry in self.piece if not entry.reply.settled]
        for piece in self.backlog:
            deadlines_s += [entry.request.deadline.at_s for entry in piece if not entry.reply.settled]
        self.earliest_deadline_s = min(deadlines_s, default=math.inf)


def pieces(entries: list[Entry], varying: Sequence[TensorSpec], rules: BatchRules) -> Iterator[list[Entry]]:
    """Runs of equal shape and allowed size: one, unless shapes vary, somebody left at the last moment, or some are to
    run alone: they come last, for they may keep the instance for ever."""
    alone = [entry for entry in entries if entry.alone]
    entries = [entry for entry in entries if not entry.alone] if alone else entries
    groups: dict[object, list[Entry]] = {}
    if not varying:
        groups[()] = entries
    else:
        for entry in entries:
            groups.setdefault(shape_key(entry.request.item, varying), []).append(entry)
    for group in groups.values():
        while group:
            size = rules.cut(len(group))
            yield group[:size]
            group = group[size:]
    yield from ([entry] for entry in alone)


def callers(piece: Sequence[Entry]) -> int:
    """How many share a run: every group is one, and so is every item without a group."""
    if len(piece) == 1:
        return 1
    names = [entry.request.group for entry in piece]
    return len({*names} - {""}) + names.count("")


def answer(piece: list[Entry], started_at_s: float, ran: Ran, fallback: str) -> None:
    for entry, answer in zip(piece, ran.answers, strict=True):
        if isinstance(answer, IsocenterError):
            entry.reply.fail(answer)
        else:
            timings = EngineTimings(started_at_s - entry.enqueued_at_s, ran.service_s, len(piece))
            entry.reply.settle(Result(answer, timings, fallback))


def give_up(piece: list[Entry], ran_s: float) -> list[Entry]:
    """Whoever is to be run once more, alone, after a run that hangs: all, if it held several. Who was alone is told."""
    if len(piece) > 1:
        for entry in piece:
            entry.alone = True
        return piece
    details = {"ran_s": round(ran_s, 3), "batch_size": 1}
    piece[0].reply.fail(RunHung(f"the run took more than {ran_s:.1f} s and was given up", details=details))
    return []


def note_times(piece: list[Entry], admission: Admission, ran_at_s: float) -> None:
    """Tell admission who of those that are about to be answered is in time."""
    for entry in piece:
        deadline_s = entry.request.deadline.at_s
        if deadline_s == math.inf or entry.reply.settled:
            continue
        # The way back takes its time too: whoever has hardly any left will be late.
        if deadline_s - ran_at_s < 0.25 * margin_s(deadline_s - entry.enqueued_at_s):
            admission.note_late(ran_at_s)
        else:
            admission.note_in_time()


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
