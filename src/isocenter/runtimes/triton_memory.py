"""Shared memory with a server on the same machine: tensors are written once, and only their place is sent."""

import contextlib
import mmap
import os
import secrets
import time
from pathlib import Path
from typing import Final

import numpy as np

from isocenter.core.tensor import Array, TensorSpec
from isocenter.runtimes.triton_parts import Connection, Refusal, Room

FOLDER: Final = Path("/dev/shm")
"""Where POSIX shared memory lies on Linux: a region of key `/name` is the file `name` in it."""
LEAST_BYTES: Final = 4096
"""A batch of a tensor below this goes over the connection: a place takes about as many bytes to tell."""
_PAGE: Final = mmap.PAGESIZE
_IN_USE_S: Final = (0.002, 0.01, 0.05, 0.2)


class Region:
    """One tensor's memory, mapped here and by the server."""

    def __init__(self, connection: Connection, size_bytes: int) -> None:
        """Make it, and have the server map it.

        Raises:
            OSError: it cannot be made.
            Refusal, RuntimeLost: the server does not take it.
        """
        self._connection = connection
        name = f"isocenter-{os.getpid()}-{secrets.token_hex(8)}"
        self.room = Room(name, -(-size_bytes // _PAGE) * _PAGE)
        file = FOLDER / name
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            # Taken now rather than at the first write, which would end the process (SIGBUS) where there is no room.
            os.posix_fallocate(descriptor, 0, self.room.size_bytes)
            self._memory = mmap.mmap(descriptor, self.room.size_bytes)
            connection.register(self.room, f"/{name}")
        finally:
            os.close(descriptor)
            file.unlink()  # the server has mapped it: from here on nothing is left behind, however we end

    def array(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
        """The start of it, as an array."""
        count = int(np.prod(shape))
        found: Array = np.frombuffer(self._memory, dtype, count).reshape(shape)
        return found

    def room_of(self, size_bytes: int) -> Room:
        """So much of it, from its start."""
        return Room(self.room.region, size_bytes)

    def close(self) -> None:
        """Let the server forget it. The memory goes with its last array.

        Raises:
            Refusal, RuntimeLost: the server does not listen any more.
        """
        # A server may still hold it for a moment after it has answered (Triton: "currently in use").
        for wait_s in _IN_USE_S:
            with contextlib.suppress(Refusal):
                self._connection.unregister(self.room.region)
                return
            time.sleep(wait_s)
        self._connection.unregister(self.room.region)


class SharedTensors:
    """The regions of one session, by tensor. Each grows with the largest batch, as long as there is room."""

    def __init__(self, connection: Connection) -> None:
        """See that the server takes shared memory.

        Raises:
            OSError, Refusal, RuntimeLost: as `Region`.
        """
        self._connection = connection
        self._regions: dict[str, Region] = {}
        self._can_grow = True
        Region(connection, _PAGE).close()

    def of(self, spec: TensorSpec, shape: tuple[int, ...]) -> Region | None:
        """Memory for a batch of a tensor; None if it is not worth it, if its size is not known, or if there is no room.

        Raises:
            RuntimeLost: the server does not answer.
        """
        if -1 in shape:
            return None
        size_bytes = spec.dtype.itemsize * int(np.prod(shape))
        if size_bytes < LEAST_BYTES:
            return None
        region = self._regions.get(spec.name)
        if region is not None and size_bytes <= region.room.size_bytes:
            return region
        return self._larger(spec.name, size_bytes) if self._can_grow else None

    def _larger(self, name: str, size_bytes: int) -> Region | None:
        try:
            if name in self._regions:
                self._regions.pop(name).close()
            self._regions[name] = Region(self._connection, size_bytes)
        except (OSError, Refusal):  # a run shall not fail for want of a short cut
            self._can_grow = False
        return self._regions.get(name)

    def close(self) -> None:
        """Let go of all of them."""
        while self._regions:
            self._regions.popitem()[1].close()
