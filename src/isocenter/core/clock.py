"""Time, handed in. Seconds on a monotonic axis; the wall clock is for log lines only."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Never make the call. Harmless when it was made already."""
        ...


class Clock(Protocol):
    """What the engine knows of time."""

    def now_s(self) -> float:
        """Seconds on a monotonic axis with an arbitrary origin. Any thread may ask."""
        ...

    async def sleep_until(self, instant_s: float) -> None:
        """Return at or just after the instant; at once if it has passed."""
        ...

    def call_at(self, instant_s: float, callback: Callable[[], object]) -> Timer:
        """Call back on the running loop at a finite instant; soon if it has passed, never before this returns.

        Event loops round to milliseconds: the call may come up to one early.
        """
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()

    async def sleep_until(self, instant_s: float) -> None:
        await asyncio.sleep(max(0.0, instant_s - time.monotonic()))

    def call_at(self, instant_s: float, callback: Callable[[], object]) -> Timer:
        # Not `loop.call_at`: a loop's own clock need not share our origin.
        return asyncio.get_running_loop().call_later(max(0.0, instant_s - time.monotonic()), callback)


class ManualClock:
    """A clock that stands still until a test turns it."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s
        self._timers: list[tuple[float, int, _ManualTimer]] = []
        self._order = itertools.count()

    def now_s(self) -> float:
        return self._now_s

    async def sleep_until(self, instant_s: float) -> None:
        if instant_s <= self._now_s:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self.call_at(instant_s, wake)
        try:
            await woken
        finally:
            timer.cancel()

    def call_at(self, instant_s: float, callback: Callable[[], object]) -> Timer:
        if instant_s <= self._now_s:
            return asyncio.get_running_loop().call_soon(callback)
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (instant_s, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Turn the clock forward and wake everyone whose instant has come, earliest first."""
        if seconds < 0:
            raise ValueError(f"a clock does not run backwards: {seconds} s")
        self._now_s += seconds
        while self._timers and self._timers[0][0] <= self._now_s:
            heapq.heappop(self._timers)[2].fire()


class _ManualTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        if self._callback is not None:
            self._callback()
