"""Requests that the event loop has seen and not come to yet.

A loop that is behind sees many heads at once, before it works for any of them. Judged by the lines alone, which are
empty, all of them would be let in; it would come to each of them too late, and see the next ones later still.
"""

import asyncio
import math

from isocenter.core.clock import Clock


class Arriving:
    """How many were let in by their heads in this turn of the loop, and how long a turn lasts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.count = 0
        """Let in, and the loop has not come to them yet."""
        self.lag_s = 0.0
        """Seconds from a head's arrival until the loop comes to the request, going by the last turns."""
        self._seen_s = math.inf

    def see(self) -> None:
        """A head is there. To be called on the loop, before it is judged."""
        if self._seen_s == math.inf:
            self._seen_s = self._clock.now_s()
            asyncio.get_running_loop().call_soon(self._end_turn)

    def expect(self) -> None:
        """It was let in: from now on it stands before those who are judged next."""
        self.count += 1
        asyncio.get_running_loop().call_soon(self._come, self._clock.now_s())

    def _come(self, seen_s: float) -> None:
        self.count -= 1
        self.lag_s = max(self.lag_s, self._clock.now_s() - seen_s)

    def _end_turn(self) -> None:
        """All heads of a turn have been seen; the first one has waited for the others."""
        waited_s = self._clock.now_s() - self._seen_s
        self._seen_s = math.inf
        # Longer turns count at once, shorter ones little by little.
        self.lag_s = max(waited_s, 0.5 * (self.lag_s + waited_s))
