"""How long a batch runs: seeded at warm-up, learned from every run since.

The curve is `seed(size) * own(size) * speed(instance)`. `speed` follows an instance's runs in small steps, as a queue
of a hundred runs multiplies its noise; but a neighbour who takes half of the machine is believed at once when most of
the last runs show him. One odd run moves hardly anything. `own` follows what one size differs from the others, slowly.
Promises are made with a high quantile of what runs turn out to be.
"""

import math
import statistics
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping

# A size is good enough if its items cost at most so much more than those of the cheapest size.
EFFICIENT = 1.02
# What a run costs the scheduler beside its own time; without it a model of 0.1 ms would be run one by one.
HAND_OVER_S = 0.0003
# A size is learned so quickly, from steps of at most so much (both in logarithms).
OWN_RATE, OWN_STEP = 0.05, 0.3
# The speed is followed so quickly, from steps of at most so much; and if the median of the last runs is farther away
# than that (all in logarithms), it is the speed.
SPEED_RATE, SPEED_STEP, SPEED_JUMP, SPEED_RUNS = 0.06, 0.25, 0.25, 7
# The quantile of promises, and the steps (in logarithms) by which it is followed.
PROMISE_QUANTILE, PROMISE_STEP = 0.97, 0.05
PROMISE_LEAST, PROMISE_MOST = math.log(1.05), math.log(3.0)


class CostModel:
    """Service seconds by batch size. Between two sizes it interpolates; beyond the largest it counts whole batches."""

    def __init__(self, seed_s_by_size: Mapping[int, float], *, spread: float = 1.15) -> None:
        if not seed_s_by_size:
            raise ValueError("a cost model holds at least one batch size")
        if min(seed_s_by_size) < 1 or not all(0 <= s < math.inf for s in seed_s_by_size.values()):
            raise ValueError(f"batch sizes are 1 or more, seconds 0 or more: {dict(seed_s_by_size)}")
        self.sizes = sorted(seed_s_by_size)
        self._seed_log = {size: _log(seed_s_by_size[size]) for size in self.sizes}
        self._own_log = dict.fromkeys(self.sizes, 0.0)
        self._runs: dict[str, deque[float]] = {}
        self._speed_log: dict[str, float] = {}
        self._spread_log = math.log(spread)
        self.spread = spread
        """How much longer than predicted a run may take, as a factor: the quantile that promises are made with."""
        self._median_s: list[float] = []
        self._known_s: dict[int, float] = {}
        self._predicted_s: dict[int, float] = {}
        self._chosen: dict[tuple[tuple[int, ...], float], int] = {}
        self._last_chosen: tuple[tuple[int, ...], float, int] = ((), 0.0, 0)
        self._refresh()

    # What is asked.

    def service_s(self, items: int) -> float:
        """Predicted seconds on one instance for so many items, in whole batches and a rest."""
        known_s = self._predicted_s.get(items)
        if known_s is None:
            full, rest = divmod(items, self.sizes[-1])
            known_s = full * self._median_s[-1] + (self._between(rest) if rest else 0.0)
            self._predicted_s[items] = known_s
        return known_s

    def promise_s(self, items: int) -> float:
        """Seconds that a run of so many items will rarely exceed."""
        return self.service_s(items) * self.spread

    def factor(self, instance: str) -> float:
        """How many times as long runs take on an instance as `service_s` says, which speaks of all of them."""
        return math.exp(self._speed_log.get(instance, self._mean_speed_log) - self._mean_speed_log)

    def efficient_size(self, allowed: tuple[int, ...], *, within_s: float = math.inf) -> int:
        """The smallest allowed size whose items cost hardly more than the cheapest, of those that run in time.

        The smallest allowed one if none does. `allowed` rises.
        """
        last_allowed, last_s, chosen = self._last_chosen
        if within_s == last_s and allowed is last_allowed:
            return chosen
        # Asked for every request with hardly another time each; a sixteenth of an octave less does no harm.
        octave = int(16 * math.log2(within_s)) if 0 < within_s < math.inf else within_s
        known = self._chosen.get((allowed, octave))
        if known is None:
            rounded_s = 2 ** (octave / 16) if isinstance(octave, int) else within_s
            known = self._chosen[allowed, octave] = self._choose(allowed, rounded_s)
        self._last_chosen = (allowed, within_s, known)
        return known

    def _choose(self, allowed: tuple[int, ...], within_s: float) -> int:
        spread, chosen, bound_s = self.spread, allowed[0], math.inf
        for size in reversed(allowed):
            run_s = self.service_s(size)
            if run_s * spread > within_s:
                continue
            per_item_s = (run_s + HAND_OVER_S) / size
            if per_item_s <= bound_s:
                chosen = size
                bound_s = min(bound_s, per_item_s * EFFICIENT)
        return chosen

    def curve(self) -> dict[int, float]:
        """The median seconds by size as they are believed now."""
        return dict(self._known_s)

    # What is learned.

    def observe(self, size: int, service_s: float, *, instance: str = "") -> None:
        """Learn from one run. Sizes that were not seeded teach the speed only."""
        at = bisect_left(self.sizes, size)
        known = at < len(self.sizes) and self.sizes[at] == size
        expected_log = self._seed_log[size] + self._own_log[size] if known else self._expected_log(size)
        found_log = _log(service_s) - expected_log
        runs = self._runs.setdefault(instance, deque(maxlen=SPEED_RUNS))
        runs.append(found_log)
        speed_log = self._speed_log.get(instance, 0.0)
        surprise_log = found_log - speed_log
        median_log = statistics.median(runs)
        if len(runs) > SPEED_RUNS // 2 and abs(median_log - speed_log) > SPEED_JUMP:
            self._speed_log[instance] = median_log
        else:
            self._speed_log[instance] = speed_log + SPEED_RATE * min(SPEED_STEP, max(-SPEED_STEP, surprise_log))
        self._follow_spread(surprise_log)
        # A size alone in the window would take the machine's speed for its own nature.
        if known and len(self.sizes) > 1:
            step = min(OWN_STEP, max(-OWN_STEP, found_log - self._speed_log[instance]))
            self._own_log[size] += OWN_RATE * step
        self._refresh()

    def begin(self, instance: str, lone_s: float) -> None:
        """An instance joins, of which nothing is known but what one item took it; a fallback may be far slower."""
        if instance in self._speed_log:
            return
        self._speed_log[instance] = _log(lone_s) - self._expected_log(1)
        self._refresh()

    def forget(self, instance: str) -> None:
        """An instance is gone; its speed no longer counts."""
        self._runs.pop(instance, None)
        self._speed_log.pop(instance, None)
        self._refresh()

    def _expected_log(self, size: int) -> float:
        """What a run of any size takes at the speed of the warm-up."""
        return _log(self.service_s(size)) - self._mean_speed_log

    def _follow_spread(self, surprise_log: float) -> None:
        up = surprise_log > self._spread_log
        self._spread_log += PROMISE_STEP * (PROMISE_QUANTILE if up else PROMISE_QUANTILE - 1.0)
        self._spread_log = min(PROMISE_MOST, max(PROMISE_LEAST, self._spread_log))

    def _refresh(self) -> None:
        self._mean_speed_log = speed_log = statistics.fmean(self._speed_log.values()) if self._speed_log else 0.0
        self._median_s = [math.exp(self._seed_log[size] + self._own_log[size] + speed_log) for size in self.sizes]
        self._known_s = dict(zip(self.sizes, self._median_s, strict=True))
        self._predicted_s = dict(self._known_s)
        self.spread = math.exp(self._spread_log)
        self._chosen.clear()
        self._last_chosen = ((), 0.0, 0)

    def _between(self, items: int) -> float:
        at = bisect_left(self.sizes, items)
        if at == 0:
            return self._median_s[0]
        if at == len(self.sizes):
            return self._median_s[-1]
        above, above_s = self.sizes[at], self._median_s[at]
        if items == above:
            return above_s
        below, below_s = self.sizes[at - 1], self._median_s[at - 1]
        return below_s + (above_s - below_s) * (items - below) / (above - below)


def _log(seconds: float) -> float:
    return math.log(max(seconds, 1e-7))  # a clock that stands still in a test, or a run below its resolution
