"""Where the windows lie. Pure: sizes in, positions out.

Two rules, each as the framework that the model was made with: `monai` steps by int(roi * (1 - overlap)) and moves the
last window back inside (`sliding_window_inference`); `nnunet` takes as many steps of at most roi * (1 - overlap) as are
needed and spreads them evenly (`compute_steps_for_sliding_window`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from isocenter.core.tensor import FloatArray
from isocenter.imaging.transforms.arrays.steps import Sides

Rule: TypeAlias = Literal["monai", "nnunet"]


class Sliding(BaseModel):
    """Spatial windows: their size, how far they overlap, and how they are blended where they do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    roi: Sides
    """Voxels of a window along each spatial axis. A smaller array is padded with zeros on both sides."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of a window that it has in common with the next one."""
    mode: Literal["constant", "gaussian"] = "constant"
    """`gaussian`: the middle of a window counts for more than its border."""
    sigma_scale: Annotated[float, Field(gt=0, le=10)] = 0.125
    """Standard deviation of the gaussian, as a share of the window."""
    rule: Rule = "monai"
    """Whose positions and gaussian: `monai` or `nnunet`."""
    sums: Literal["fp32", "fp16"] = "fp32"
    """In what windows are added up. `fp16` rounds where nnU-Net's predictor does: its own answer, to the last label."""


@dataclass(frozen=True)
class WindowPlan:
    """The windows over one array, first axis slowest; positions count from the edge of the padded array."""

    shape: tuple[int, ...]
    """Of the array, without channels."""
    before: tuple[int, ...]
    """Voxels of padding before it, along each axis."""
    padded: tuple[int, ...]
    """Its shape with the padding on both sides."""
    roi: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    """Where windows begin, axis by axis; every combination is a window."""

    def __len__(self) -> int:
        return math.prod(map(len, self.starts))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return product(*self.starts)

    @cached_property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """The first voxel of every window, in order."""
        return tuple(self)

    def cut(self, array: FloatArray, at: tuple[int, ...]) -> FloatArray:
        """The window [C, *roi] at a position of an array [C, *shape]: a copy, zeros where the padding is.

        >>> plan((3,), (4,), overlap=0.5).cut(np.ones((1, 3), np.float32), (0,))
        array([[1., 1., 1., 0.]], dtype=float32)
        """
        inside = tuple(
            slice(max(0, start - before), min(size, start - before + roi))
            for start, before, size, roi in zip(at, self.before, self.shape, self.roi, strict=True)
        )
        if all(part.stop - part.start == roi for part, roi in zip(inside, self.roi, strict=True)):
            return np.ascontiguousarray(array[:, *inside])
        out = np.zeros((len(array), *self.roi), array.dtype)
        where = tuple(
            slice(part.start - start + before, part.stop - start + before)
            for part, start, before in zip(inside, at, self.before, strict=True)
        )
        out[:, *where] = array[:, *inside]
        return out


def plan(shape: Sequence[int], roi: Sequence[int], *, overlap: float, rule: Rule = "monai") -> WindowPlan:
    """The windows that cover an array of a shape (without channels).

    >>> plan((10, 4), (4, 4), overlap=0.25).starts
    ((0, 3, 6), (0,))
    >>> plan((10, 4), (4, 4), overlap=0.25, rule="nnunet").starts
    ((0, 3, 6), (0,))

    Raises:
        ValueError: the ranks differ, a size is not positive, or the overlap is not in [0, 1).
    """
    if len(shape) != len(roi):
        raise ValueError(f"the array has {len(shape)} spatial axes, the window {len(roi)}")
    if min(*shape, *roi) < 1 or not 0 <= overlap < 1:
        raise ValueError(f"no windows of {tuple(roi)} with overlap {overlap} over {tuple(shape)}")
    padded = tuple(max(size, side) for size, side in zip(shape, roi, strict=True))
    before = tuple((full - size) // 2 for full, size in zip(padded, shape, strict=True))
    along = _monai_starts if rule == "monai" else _nnunet_starts
    starts = tuple(along(size, side, overlap) for size, side in zip(padded, roi, strict=True))
    return WindowPlan(tuple(shape), before, padded, tuple(roi), starts)


def _monai_starts(size: int, roi: int, overlap: float) -> tuple[int, ...]:
    step = roi if size == roi else max(1, int(roi * (1 - overlap)))
    count = -(-(size - roi) // step) + 1
    return tuple(min(index * step, size - roi) for index in range(count))


def _nnunet_starts(size: int, roi: int, overlap: float) -> tuple[int, ...]:
    # A window of one voxel, of a network of slices, steps by one; nnU-Net then goes through the slices.
    count = math.ceil((size - roi) / max(1.0, roi * (1 - overlap))) + 1
    step = (size - roi) / (count - 1) if count > 1 else 0.0
    return tuple(round(step * index) for index in range(count))
