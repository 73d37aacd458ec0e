"""What was lately: a ring of short slots, of which the old ones fall out. Time is handed in."""

from collections.abc import Callable
from typing import Generic, Protocol, Self, TypeVar


class Mergeable(Protocol):
    """Something that takes in another of its kind."""

    def merge(self, other: Self) -> None:
        """Take in what the other one holds; the other one stays as it is."""
        ...


M = TypeVar("M", bound=Mergeable)

SLOTS = 12
SLOT_S = 5.0
_NEVER = -(2**62)


class Recent(Generic[M]):
    """The last `slots` times `slot_s` seconds of something that is counted, by slots. One thread.

    The newest slot is filling, so what is told covers that span less up to one slot.

    >>> from isocenter.measure.histogram import Histogram
    >>> latency_s = Recent(Histogram, now_s=0.0)
    >>> latency_s.slot(1.0).add(0.020)
    >>> latency_s.slot(58.0).add(0.080)
    >>> latency_s.total(59.0).count, latency_s.total(61.0).count, latency_s.span_s(61.0)
    (2, 1, 56.0)
    """

    def __init__(self, make: Callable[[], M], *, now_s: float, slots: int = SLOTS, slot_s: float = SLOT_S) -> None:
        self._make = make
        self._slot_s = slot_s
        self._since_s = now_s
        self._numbers = [_NEVER] * slots
        self._slots: list[M] = [make() for _ in range(slots)]
        self._turn(now_s)

    def slot(self, now_s: float) -> M:
        """Where something that happens now is counted. A clock that runs backwards counts into the newest slot."""
        if now_s >= self._until_s:
            self._turn(now_s)
        return self._newest

    def total(self, now_s: float) -> M:
        """Everything that is recent, in one; a copy."""
        oldest = self._oldest(now_s)
        total = self._make()
        for number, slot in zip(self._numbers, self._slots, strict=True):
            if number >= oldest:
                total.merge(slot)
        return total

    def span_s(self, now_s: float) -> float:
        """The seconds that `total` covers: for rates. Shorter at first, as nothing was counted before the start."""
        return max(0.0, now_s - max(self._since_s, self._oldest(now_s) * self._slot_s))

    def silent(self, now_s: float) -> bool:
        """Whether nothing was counted lately, so that nothing is lost with this ring."""
        return max(self._numbers) < self._oldest(now_s)

    def _oldest(self, now_s: float) -> int:
        return int(now_s // self._slot_s) - len(self._slots) + 1

    def _turn(self, now_s: float) -> None:
        number = int(now_s // self._slot_s)
        at = number % len(self._slots)
        self._numbers[at] = number
        self._newest = self._slots[at] = self._make()
        self._until_s = (number + 1) * self._slot_s
