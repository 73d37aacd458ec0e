"""Process-wide choices that libraries leave to the program that is all ours."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2

from isocenter.core.turns import ask_for_short_turns

_OTHER_FILES = 256
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tune_process(max_connections: int = 0) -> None:
    """To be called once, before anything is loaded.

    OpenCV's and BLAS' own threads would compete with the decode pool for the same cores. On glibc, memory that was
    freed is kept up to a bound: handing 600 KB arrays back to the system and taking them again costs more (page
    faults) than decoding does. There shall be files for all connections, as far as the system allows.
    """
    cv2.setNumThreads(1)
    ask_for_short_turns()
    sys.setswitchinterval(0.001)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _OTHER_FILES
    if resource.RLIM_INFINITY not in (soft, hard) and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 8 * 2**20)


def connections_possible() -> int:
    """How many connections this process has files for, beside what else it opens."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, files // 2, files - _OTHER_FILES)


def settle_process() -> None:
    """To be called once everything is loaded: the garbage collector need not look at it again.

    A full collection goes through all that modules and models consist of, a tenth of a second or more in which nothing
    else runs, and it comes when there is most to do.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def signals(stop: asyncio.Event, reload: Callable[[], None], logger: logging.Logger) -> Iterator[None]:
    """The first SIGTERM or SIGINT drains, the second ends the process at once. SIGHUP reloads."""
    loop = asyncio.get_running_loop()

    def caught(number: signal.Signals) -> None:
        if stop.is_set():
            logger.warning("forced", extra={"signal": number.name})
            os._exit(1)
        logger.info("stopping", extra={"signal": number.name})
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, caught, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
