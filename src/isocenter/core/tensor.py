"""What a model takes and gives: names, element types, shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, Array]
"""Arrays by tensor name: one item (no batch axis) or one batch (items along axis 0), as the place says."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model, without its batch axis; -1 marks an axis of variable length."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def describes(self, item: Array) -> bool:
        """Whether one item (no batch axis) has this element type and shape."""
        return (
            item.dtype == self.dtype
            and item.ndim == len(self.shape)
            and all(want in (-1, have) for want, have in zip(self.shape, item.shape, strict=True))
        )
