"""Whether a call is made again, and when. Reads no clock, sleeps never."""

from dataclasses import dataclass
from typing import Final

from isocenter.core.deadline import Deadline

NOT_NOW: Final = frozenset({429, 503})
"""Answers that say "refused before any work, come back later". Nothing else is asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often a call is made, and how long the pauses between are.

    Raises:
        ValueError: no attempt at all, or a pause of no length.
    """

    attempts: int = 8
    """All of them, the first included; 1 never asks again."""
    first_pause_s: float = 0.2
    """The first pause is half of this to this long; each further one is twice as long."""
    longest_pause_s: float = 10.0
    """No pause of our own grows beyond this. A longer one that the server asks for is kept."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 < self.first_pause_s <= self.longest_pause_s:
            raise ValueError(f"at least one attempt, and 0 < first_pause_s <= longest_pause_s, not {self}")


def again_at_s(
    hint_s: float, *, attempt: int, now_s: float, deadline: Deadline, patience: Patience, chance: float
) -> float | None:
    """The instant of the next attempt after `attempt` of them; None if there is none.

    It is never before the server's hint has passed, and at most half of the time that is then left is spent on waiting
    for longer: callers who were refused together come back one after another, and still have time for an answer.

    Args:
        hint_s: What the server asked for; 0 if it did not.
        attempt: How many were made, at least 1.
        chance: 0 to 1, drawn anew for each decision.
    """
    earliest_s = now_s + hint_s
    if attempt >= patience.attempts or earliest_s >= deadline.at_s:
        return None
    # The exponent is bounded: far more attempts than anybody needs must not overflow a float.
    pause_s = min(patience.longest_pause_s, patience.first_pause_s * 2.0 ** min(attempt - 1, 60))
    wanted_s = max(earliest_s, now_s + pause_s / 2) + chance * pause_s / 2
    return min(wanted_s, earliest_s + (deadline.at_s - earliest_s) / 2)
