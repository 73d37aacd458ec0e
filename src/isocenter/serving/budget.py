"""How many bytes of request bodies may be held at one time."""

from types import TracebackType
from typing import Final

from isocenter.core.errors import Overloaded

FORM_OVERHEAD_BYTES: Final = 64 * 1024
"""What a form may hold around its image: boundaries, part headers, small fields."""

_RETRY_AFTER_S: Final = 1.0
"""Bodies live as long as their requests, and these have deadlines: room comes back soon."""


class ByteBudget:
    """A bound over all requests together. What one of them may hold is bounded elsewhere."""

    __slots__ = ("_in_use", "_limit")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._in_use = 0

    @property
    def limit_bytes(self) -> int:
        """The bound."""
        return self._limit

    @property
    def in_use_bytes(self) -> int:
        """Bytes that are booked now."""
        return self._in_use

    def book(self, size_bytes: int = 0) -> "Booking":
        """Set room aside for a body, before it is read; 0 for one whose length is not known.

        Raises:
            Overloaded: there is none.
        """
        booking = Booking(self)
        booking.cover(size_bytes)
        return booking

    def _take(self, more_bytes: int) -> None:
        wanted = self._in_use + more_bytes
        if wanted > self._limit:
            raise Overloaded(
                f"bodies of {self._in_use} bytes are held, {more_bytes} more would exceed the limit of {self._limit}",
                details={"bytes": wanted, "limit": self._limit, "where": "door"},
                retry_after_s=_RETRY_AFTER_S,
            )
        self._in_use = wanted

    def _give_back(self, size_bytes: int) -> None:
        self._in_use -= size_bytes


class Booking:
    """The room of one request; given back on leaving the `with` block, whatever the way out."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._size = 0

    def cover(self, size_bytes: int) -> None:
        """Have room for so many bytes in all; nothing is done where it is there already.

        Raises:
            Overloaded: there is none; what was booked stays booked.
        """
        if size_bytes > self._size:
            self._budget._take(size_bytes - self._size)
            self._size = size_bytes

    def release(self) -> None:
        """Give everything back. A second time does nothing."""
        self._budget._give_back(self._size)
        self._size = 0

    def __enter__(self) -> "Booking":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
