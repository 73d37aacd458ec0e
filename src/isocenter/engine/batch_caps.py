"""How large batches may be for now: the model's rules, less what is held against large ones and passes."""

from collections.abc import Callable

from isocenter.core.clock import Clock, Timer
from isocenter.engine.batch_policy import BatchRules

# How long batches stay smaller after a run had no memory.
SMALLER_FOR_S = 30.0


class BatchCaps:
    """Caps by reason; the smallest counts. `apply` is told the rules whenever they change."""

    def __init__(self, rules: BatchRules, *, clock: Clock, apply: Callable[[BatchRules], None]) -> None:
        self._rules = rules
        self._clock = clock
        self._apply = apply
        self._caps: dict[str, int] = {}
        self._larger_again: Timer | None = None

    @property
    def rules(self) -> BatchRules:
        """The model's, without any cap."""
        return self._rules

    @rules.setter
    def rules(self, rules: BatchRules) -> None:
        self._rules = rules
        self._tell()

    def limit(self, why: str, size: int | None) -> None:
        """No batch above a size for this reason; None takes it away."""
        self._caps.pop(why, None)
        if size is not None:
            self._caps[why] = size
        self._tell()

    def halve_for_a_while(self, size: int) -> None:
        """A run of so many items had no memory."""
        self.limit("out_of_memory", max(1, size // 2))
        self.close()
        until_s = self._clock.now_s() + SMALLER_FOR_S
        self._larger_again = self._clock.call_at(until_s, lambda: self.limit("out_of_memory", None))

    def close(self) -> None:
        """Change nothing by itself any more."""
        if self._larger_again is not None:
            self._larger_again.cancel()

    def _tell(self) -> None:
        self._apply(self._rules.capped(min(self._caps.values())) if self._caps else self._rules)
