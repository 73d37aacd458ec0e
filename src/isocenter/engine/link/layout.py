"""Where the tensors of one request lie in its block: the same rule on both sides, so that only an offset crosses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from isocenter.core.tensor import Array, Tensors, TensorSpec

ALIGNMENT: Final = 64
INLINE_BELOW_BYTES: Final = 4096
"""Smaller outputs travel in the answer's frame."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor's part of a block."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int
    size: int

    def of(self, block: Array) -> Array:
        """The tensor's array in a block (uint8)."""
        return block[self.offset : self.offset + self.size].view(self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """A block: the item, then room for the outputs that are too large for a frame."""

    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    size: int

    def item(self, block: Array) -> dict[str, Array]:
        """The item's arrays in a block (uint8)."""
        return {place.name: place.of(block) for place in self.inputs}


def shapes_of(item: Tensors, specs: tuple[TensorSpec, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes that a model's specs leave open."""
    return {spec.name: item[spec.name].shape for spec in specs if -1 in spec.shape}


def lay_out(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], open_shapes: Shapes) -> Layout:
    """The layout for items of a model. Outputs whose shape is open have no place: they travel in the frame."""
    at = 0
    taken: list[Place] = []
    given: list[Place] = []
    for spec in inputs:
        place = _place(spec, open_shapes.get(spec.name, spec.shape), at)
        taken.append(place)
        at = _aligned(at + place.size)
    for spec in outputs:
        if -1 in spec.shape:
            continue
        place = _place(spec, spec.shape, at)
        if place.size >= INLINE_BELOW_BYTES:
            given.append(place)
            at = _aligned(at + place.size)
    return Layout(tuple(taken), tuple(given), max(at, ALIGNMENT))


def _place(spec: TensorSpec, shape: tuple[int, ...], at: int) -> Place:
    return Place(spec.name, spec.dtype, tuple(shape), at, math.prod(shape) * spec.dtype.itemsize)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
