"""A deadline is an instant. A timeout restarts at each hop; an instant cannot."""

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """The instant (on the clock's axis, seconds) after which nobody waits for the answer."""

    at_s: float

    @classmethod
    def after(cls, timeout_s: float, *, now_s: float) -> Self:
        """The instant `timeout_s` from now; never, if the clock cannot hold it.

        Raises:
            ValueError: the timeout is not a positive number.
        """
        if not timeout_s > 0:
            raise ValueError(f"a timeout is a positive number of seconds, not {timeout_s}")
        try:
            return cls(now_s + float(timeout_s))  # numpy's narrow floats would keep their width
        except OverflowError:  # an integer beyond every float
            return cls.never()

    @classmethod
    def never(cls) -> Self:
        """For work that nobody waits for, such as warm-up."""
        return cls(math.inf)

    def expired(self, now_s: float) -> bool:
        """Whether the instant has passed."""
        return now_s >= self.at_s

    def left_s(self, now_s: float) -> float:
        """Seconds until the instant, never below zero."""
        return max(0.0, self.at_s - now_s)
