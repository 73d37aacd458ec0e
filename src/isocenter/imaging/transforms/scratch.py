"""Working memory that a thread keeps between images: fresh pages cost more than the arithmetic done in them."""

import math
import threading

import numpy as np

from isocenter.core.tensor import FloatArray

_KEPT_FLOATS = 2**19  # 2 MB per buffer and thread; larger ones are given back after use


class Scratch(threading.local):
    """Named float32 buffers of this thread. A buffer is good until the same name is asked for again."""

    def __init__(self) -> None:
        self._buffers: dict[str, FloatArray] = {}

    def take(self, name: str, *shape: int) -> FloatArray:
        """An uninitialised array of this shape.

        >>> Scratch().take("rows", 2, 3).shape
        (2, 3)
        """
        size = math.prod(shape)
        if size > _KEPT_FLOATS:
            return np.empty(shape, np.float32)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, np.float32)
        return buffer[:size].reshape(shape)
