"""What happened to one model version in one span of time; mergeable, and plain data for a journey between processes."""

from collections.abc import Mapping
from typing import Final, Self

from isocenter.measure.histogram import Histogram

HISTOGRAMS: Final = ("latency_s", "queue_s", "service_s")
TOTALS: Final = ("batches", "items", "expired", "abandoned")
BY_KIND: Final = ("shed", "failures", "batch_failures")


class Tally:
    """Histograms in seconds, totals, and counts by a fixed word. The parts are added to in place."""

    __slots__ = (*HISTOGRAMS, *TOTALS, *BY_KIND)

    def __init__(self) -> None:
        self.latency_s = Histogram()
        """From arrival to the answer, of requests that were answered."""
        self.queue_s = Histogram()
        """From enqueue to dispatch, of each batch's oldest item."""
        self.service_s = Histogram()
        """Session runs that came back."""
        self.batches = 0
        """Session runs that came back."""
        self.items = 0
        """Items in them."""
        self.expired = 0
        """Requests whose deadline passed in the queue."""
        self.abandoned = 0
        """Requests whose caller left while they were queued."""
        self.shed: dict[str, int] = {}
        """Requests refused at the door, by reason."""
        self.failures: dict[str, int] = {}
        """Requests that ended without an answer, by code; the shed and the expired are among them."""
        self.batch_failures: dict[str, int] = {}
        """Session runs that raised, by kind."""

    @property
    def answered(self) -> int:
        """Requests that were answered."""
        return self.latency_s.count

    def merge(self, other: Self) -> None:
        """Add another one to this one."""
        for name in HISTOGRAMS:
            getattr(self, name).merge(getattr(other, name))
        for name in TOTALS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in BY_KIND:
            counts: dict[str, int] = getattr(self, name)
            for kind, count in getattr(other, name).items():
                counts[kind] = counts.get(kind, 0) + count

    def as_plain(self) -> dict[str, object]:
        """Numbers, strings, lists and mappings only."""
        return (
            {name: getattr(self, name).as_plain() for name in HISTOGRAMS}
            | {name: getattr(self, name) for name in TOTALS}
            | {name: dict(getattr(self, name)) for name in BY_KIND}
        )

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> Self:
        """What `as_plain` gave, after any journey.

        Raises:
            ValueError: it is not that.
        """
        made = cls()
        for name in HISTOGRAMS:
            setattr(made, name, Histogram.from_plain(_mapping(plain, name)))
        for name in TOTALS:
            setattr(made, name, _whole(plain.get(name)))
        for name in BY_KIND:
            setattr(made, name, {str(kind): _whole(count) for kind, count in _mapping(plain, name).items()})
        return made


def _mapping(plain: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = plain.get(name)
    if not isinstance(found, Mapping):
        raise ValueError(f"not a tally: {name} is {type(found).__name__}")
    return found


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError(f"not a tally: {type(value).__name__} is no count")
    return value
