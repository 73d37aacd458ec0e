"""What each front end lets the others know of itself: a few counts in shared memory."""

import mmap
import os
from contextlib import suppress
from typing import Final

WORDS: Final = 8
"""Room for each front end: int64 counts, of which the first few are used."""


class FrontEndFigures:
    """The counts of all front ends. Each front end writes its own, everybody reads all; one writer a word."""

    def __init__(self, fd: int, front_ends: int) -> None:
        self._memory = mmap.mmap(fd, self.size_bytes(front_ends))
        self._words = memoryview(self._memory).cast("q")
        self.front_ends = front_ends

    @staticmethod
    def size_bytes(front_ends: int) -> int:
        """What they take."""
        return front_ends * WORDS * 8

    def of(self, number: int) -> "OwnFigures":
        """One front end's counts, numbered from 0."""
        return OwnFigures(self._words[number * WORDS : (number + 1) * WORDS])

    def all(self) -> "list[OwnFigures]":
        """Every front end's."""
        return [self.of(number) for number in range(self.front_ends)]


class OwnFigures:
    """One front end's counts."""

    __slots__ = ("_words",)

    def __init__(self, words: memoryview) -> None:
        self._words = words

    @property
    def closed(self) -> int:
        """Connections that were handed to it and have ended."""
        return int(self._words[0])

    @property
    def inside(self) -> int:
        """Requests inside."""
        return int(self._words[1])

    @property
    def decoding(self) -> int:
        """Pictures in its decode pool."""
        return int(self._words[2])

    def count_closed(self) -> None:
        """One connection has ended."""
        self._words[0] += 1

    @property
    def body_bytes(self) -> int:
        """Bytes of request bodies that are held or expected."""
        return int(self._words[3])

    @property
    def jobs_queued(self) -> int:
        """Jobs that wait; of the one front end that runs them."""
        return int(self._words[4])

    @property
    def jobs_running(self) -> int:
        """Jobs that run."""
        return int(self._words[5])

    def tell(self, *, inside: int, decoding: int, body_bytes: int, jobs_queued: int = 0, jobs_running: int = 0) -> None:
        """Say how things stand."""
        self._words[1], self._words[2], self._words[3] = inside, decoding, body_bytes
        self._words[4], self._words[5] = jobs_queued, jobs_running

    def clear(self) -> None:
        """Begin at zero."""
        for index in range(WORDS):
            self._words[index] = 0


def make_shared(name: str, size_bytes: int) -> int:
    """A file descriptor of anonymous shared memory, all zeros. Pages are taken from the system when first touched."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
    except OSError:
        with suppress(OSError):
            os.close(fd)
        raise
    return fd
