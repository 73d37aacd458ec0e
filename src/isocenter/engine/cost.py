"""How long a batch runs, as measured at warm-up."""

from collections.abc import Mapping

# A largest batch that costs nine tenths of its items run alone buys too little to wait for.
FLAT_FRACTION = 0.9


class CostTable:
    """Service seconds by batch size. Between two sizes it interpolates; beyond the largest it counts whole batches."""

    def __init__(self, service_s_by_size: Mapping[int, float]) -> None:
        if not service_s_by_size:
            raise ValueError("a cost table holds at least one batch size")
        self._points = sorted(service_s_by_size.items())

    @property
    def largest(self) -> int:
        """The largest batch size in the table."""
        return self._points[-1][0]

    @property
    def batching_pays(self) -> bool:
        """Whether a large batch is cheaper than its items one by one. One size alone tells nothing: taken as yes."""
        (small, small_s), (large, large_s) = self._points[0], self._points[-1]
        return small == large or large_s < FLAT_FRACTION * (large / small) * small_s

    def service_s(self, items: int) -> float:
        """Predicted seconds on one instance for so many items."""
        full_batches, rest = divmod(items, self.largest)
        return full_batches * self._points[-1][1] + (self._between(rest) if rest else 0.0)

    def clear_s(self, items: int, *, instances: int) -> float:
        """Predicted seconds until so many items are done."""
        return self.service_s(items) / instances

    def _between(self, items: int) -> float:
        below, below_s = self._points[0]
        if items <= below:
            return below_s
        for above, above_s in self._points[1:]:
            if items <= above:
                return below_s + (above_s - below_s) * (items - below) / (above - below)
            below, below_s = above, above_s
        return below_s
