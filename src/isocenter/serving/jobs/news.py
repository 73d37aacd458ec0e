"""That something changed, told to whoever waits for it."""

import asyncio

from isocenter.core.clock import Clock


class News:
    """One event loop's: everybody who waits is woken by every change, and looks for himself."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: set[asyncio.Future[None]] = set()
        self.revision = 0
        """Grows with every change."""

    def tell(self) -> None:
        """Something changed."""
        self.revision += 1
        for each in self._waiting:
            _settle(each)

    async def after(self, revision: int, *, within_s: float) -> None:
        """Return once there is something newer than a revision, or the time has passed."""
        if self.revision != revision:
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        alarm = self._clock.call_at(self._clock.now_s() + within_s, lambda: _settle(waiting))
        try:
            await waiting
        finally:
            alarm.cancel()
            self._waiting.discard(waiting)


def _settle(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
