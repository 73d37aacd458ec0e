"""Shared memory for the pixels of one front end: it hands out blocks, the engine process reads and answers in them.

A block is free again when nobody can touch it any more: every array of it in this process is gone, and the other
process has let go of it. Arrays count rather than calls, as a decode thread may still be writing into the block of a
caller who left.
"""

import mmap
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Final

import numpy as np

from isocenter.core.errors import Overloaded, SetupError
from isocenter.core.tensor import Array

PAGE: Final = 4096


class Block:
    """A piece of the arena. `share` before the other process is told of it, `let_go` when that has done with it."""

    __slots__ = ("_arena", "_held", "_root", "offset", "size")

    def __init__(self, arena: "Arena", offset: int, size: int) -> None:
        self.offset = offset
        self.size = size
        self._arena = arena
        self._held = 0
        self._root: weakref.ref[Array] | None = None

    def array(self) -> Array:
        """The block's bytes (uint8). The block stays taken as long as this array or any view of it exists."""
        root = None if self._root is None else self._root()
        if root is None:
            root = np.frombuffer(self._arena.memory, np.uint8, self.size, self.offset)
            arena = self._arena
            self._held += 1
            # Whichever thread drops the last view comes through here, so it only leaves a note.
            self._root = weakref.ref(root, lambda _: arena.note_release(self))
        return root

    def share(self) -> None:
        """The other process may use it."""
        self._held += 1

    def let_go(self) -> None:
        """The other process no longer uses it."""
        self._arena.note_release(self)

    def release(self) -> bool:
        """One holder less; True if it was the last."""
        self._held -= 1
        return self._held == 0


class Arena:
    """Blocks of shared memory, used again in the reverse order of their return, so that their pages stay hot.

    `take` is called on one thread; blocks may be dropped on any.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.memory = _mapped(fd, size_bytes)
        self.size_bytes = size_bytes
        self.taken_bytes = 0
        self._taken: dict[int, Block] = {}
        self._kept: dict[int, list[int]] = {}
        self._extents: list[tuple[int, int]] = [(0, size_bytes)]
        self._released: deque[Block] = deque()

    @property
    def blocks(self) -> int:
        """How many blocks are taken."""
        self._collect()
        return len(self._taken)

    def take(self, size_bytes: int) -> Block:
        """A block of at least so many bytes. It belongs to its arrays: ask for one at once.

        Raises:
            Overloaded: there is no room.
        """
        self._collect()
        size = max(PAGE, -(-size_bytes // PAGE) * PAGE)
        kept = self._kept.get(size)
        offset = kept.pop() if kept else self._carve(size)
        if offset is None:
            self._merge()
            offset = self._carve(size)
        if offset is None:
            raise Overloaded(
                f"{self.taken_bytes} bytes of pixels are on their way to the engine, the limit is {self.size_bytes}",
                details={"bytes": self.taken_bytes, "limit": self.size_bytes},
            )
        block = self._taken[offset] = Block(self, offset, size)
        self.taken_bytes += size
        return block

    def note_release(self, block: Block) -> None:
        """One of a block's holders is gone. Any thread may say so."""
        self._released.append(block)

    def _collect(self) -> None:
        while self._released:
            block = self._released.popleft()
            if block.release():
                del self._taken[block.offset]
                self.taken_bytes -= block.size
                self._kept.setdefault(block.size, []).append(block.offset)

    def _carve(self, size: int) -> int | None:
        for index, (at, length) in enumerate(self._extents):
            if length == size:
                del self._extents[index]
                return at
            if length > size:
                self._extents[index] = (at + size, length - size)
                return at
        return None

    def _merge(self) -> None:
        """Blocks of other sizes become plain room again."""
        free = sorted([*self._extents, *((at, size) for size, kept in self._kept.items() for at in kept)])
        self._kept.clear()
        self._extents = list(_joined(free))


class ArenaView:
    """The same memory in the engine process: items are read-only arrays of it."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._memory = _mapped(fd, size_bytes, mmap.PROT_READ)
        # Outputs go through a mapping of their own, so that no item can be written to by accident.
        self._outputs = _mapped(fd, size_bytes)

    def item_bytes(self, offset: int, size: int) -> Array:
        """A block as it is read. Every view of it holds this very array, so its end is the end of all reading."""
        return np.frombuffer(self._memory, np.uint8, size, offset)

    def output_bytes(self, offset: int, size: int) -> Array:
        """A block as outputs are written to it."""
        return np.frombuffer(self._outputs, np.uint8, size, offset)


def _mapped(fd: int, size_bytes: int, access: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    """The memory behind a descriptor.

    Raises:
        SetupError: this process may not have so much of it.
    """
    try:
        return mmap.mmap(fd, size_bytes, prot=access)
    except OSError as error:
        raise SetupError(
            f"{size_bytes} bytes of memory that processes share cannot be had: {error.strerror}; "
            "ISOCENTER_LINK__ARENA_MIB says how many, `ulimit -v` what a process may have"
        ) from None


def _joined(free: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start, length = 0, 0
    for at, size in free:
        if at == start + length:
            length += size
            continue
        if length:
            yield start, length
        start, length = at, size
    if length:
        yield start, length
