"""Outputs of overlapping windows become one array, row after row; only what later windows still touch is held."""

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import numpy as np

from isocenter.core.errors import NumericFailure
from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.sliding.plan import WindowPlan

Sink: TypeAlias = Callable[[int, FloatArray], None]
"""Takes finished rows: the number of the first one along the first spatial axis, and [K, rows, ...]."""


MERGED_BYTES: Final = 32 * 2**20
"""What is handed to a sink at a time, about."""
_SLAB_BYTES: Final = 2**18
"""Of a window, what is weighted and added at a time: it shall not leave the processor's cache in between."""


class Merge:
    """Weighted sums in float32, divided by the sum of the weights; windows come in the order of the plan.

    >>> from isocenter.imaging.sliding.plan import plan
    >>> windows = plan((6, 4), (4, 4), overlap=0.5)
    >>> whole = Whole(windows.shape)
    >>> merge = Merge(windows, np.ones(windows.roi, np.float32), whole)
    >>> for _ in windows:
    ...     merge.add(np.full((2, 4, 4), 3.0, np.float32))
    >>> merge.finish()
    >>> whole.array.shape, float(whole.array.min()), float(whole.array.max())
    ((2, 6, 4), 3.0, 3.0)
    """

    def __init__(
        self,
        plan: WindowPlan,
        weights: FloatArray,
        sink: Sink,
        *,
        half: bool = False,
        merged_bytes: int = MERGED_BYTES,
    ) -> None:
        """`half`: rounded to half precision after every step, as nnU-Net keeps its sums; `merged_bytes`: what the sink
        is given at a time, about."""
        self._half = half
        self._merged_bytes = merged_bytes
        self._plan = plan
        self._weights = weights
        self._sink = sink
        self._positions: Iterator[tuple[int, ...]] = iter(plan)
        self._row = 0
        """The first row that is held, in the padded array."""
        self._sums: FloatArray | None = None
        self._counts: FloatArray = np.zeros((plan.roi[0], *plan.padded[1:]), np.float32)

    def add(self, output: Array) -> None:
        """Take in the next window's output, [K, *roi].

        Raises:
            ValueError: the output has another shape; or there are more outputs than windows.
            NumericFailure: finite outputs have a sum that is not: what is there would be told as a finding.
        """
        if output.shape[1:] != self._plan.roi:
            raise ValueError(f"a window of {list(self._plan.roi)} voxels was answered with {list(output.shape)}")
        at = next(self._positions, None)
        if at is None:
            raise ValueError(f"there are {len(self._plan)} windows and more outputs")
        if self._sums is None:
            self._sums = np.zeros((len(output), *self._counts.shape), np.float32)
        self._move_to(at[0])
        where = tuple(slice(start, start + side) for start, side in zip(at[1:], self._plan.roi[1:], strict=True))
        for channel, sums in zip(output, self._sums[:, :, *where], strict=True):
            self._add(channel, sums)
        self._add(None, self._counts[:, *where])

    def finish(self) -> None:
        """Hand over the last rows.

        Raises:
            ValueError: a window is missing.
            NumericFailure: as above.
        """
        if next(self._positions, None) is not None:
            raise ValueError("not every window has an output")
        self._move_to(self._plan.padded[0])

    def _add(self, values: Array | None, sums: FloatArray) -> None:
        """Weighted values of a window onto their sums; None: the weights themselves."""
        at_once = max(1, _SLAB_BYTES // self._weights[0].nbytes)
        for start in range(0, len(sums), at_once):
            rows = slice(start, start + at_once)
            weights = self._weights[rows]
            with np.errstate(over="ignore", invalid="ignore"):  # told at the end
                sums[rows] += weights if values is None else values[rows] * weights
            if self._half:
                sums[rows] = in_half(sums[rows])

    def _move_to(self, row: int) -> None:
        """No window that is still to come touches a row before this one."""
        done = row - self._row
        if not done or self._sums is None:
            return
        held = min(done, self._plan.roi[0])
        first = max(self._row, self._plan.before[0])
        last = min(self._row + held, self._plan.before[0] + self._plan.shape[0])
        if last > first:
            inside = tuple(
                slice(before, before + size)
                for before, size in zip(self._plan.before[1:], self._plan.shape[1:], strict=True)
            )
            at_once = max(1, self._merged_bytes // self._sums[:, 0].nbytes)
            for start in range(first, last, at_once):
                rows = slice(start - self._row, min(start + at_once, last) - self._row)
                merged = self._sums[:, rows, *inside] / self._counts[rows, *inside]
                if self._half:
                    merged = in_half(merged)
                _refuse_infinite(merged)
                self._sink(start - self._plan.before[0], merged)
        for held_rows in (*self._sums, self._counts):
            _shift(held_rows, held)
        self._row = row


def _refuse_infinite(merged: FloatArray) -> None:
    finite = np.isfinite(merged)
    if not finite.all():
        bad = merged.size - int(np.count_nonzero(finite))
        raise NumericFailure(
            f"{bad} of {merged.size} scores are too large to be added up over windows",
            details={"non_finite": bad, "values": merged.size},
        )


def _shift(rows: FloatArray, by: int) -> None:
    """Move rows to the front in steps that do not overlap, so that none is copied twice; zeros come in at the end."""
    kept = len(rows) - by
    for start in range(0, kept, by):
        stop = min(start + by, kept)
        rows[start:stop] = rows[start + by : stop + by]
    rows[kept:] = 0


def in_half(values: FloatArray) -> FloatArray:
    """Rounded to half precision; beyond its range, infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


class Whole:
    """A sink that keeps everything: `array` is float32 [K, *shape], complete once the merge has finished."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._array: FloatArray | None = None

    @property
    def array(self) -> FloatArray:
        """What has come so far."""
        if self._array is None:
            raise ValueError("no window has an output")
        return self._array

    def __call__(self, row: int, rows: FloatArray) -> None:
        """Take finished rows."""
        if self._array is None:
            self._array = np.empty((len(rows), *self._shape), np.float32)
        self._array[:, row : row + rows.shape[1]] = rows
