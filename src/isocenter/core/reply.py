"""A one-shot answer to somebody who may have left."""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Reply(Generic[T]):
    """Settled once, by whichever of result, failure or departure comes first; every later call does nothing."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[T] = loop.create_future()

    @property
    def settled(self) -> bool:
        """Whether an answer was given or the caller has left."""
        return self._future.done()

    @property
    def abandoned(self) -> bool:
        """Whether the caller has left."""
        return self._future.cancelled()

    def settle(self, answer: T) -> bool:
        """Give the answer; False if nobody waits for it any more."""
        if self._future.done():
            return False
        self._future.set_result(answer)
        return True

    def fail(self, error: Exception) -> bool:
        """Give an error instead of an answer; False if nobody waits for it any more."""
        if self._future.done():
            return False
        self._future.set_exception(error)
        return True

    async def wait(self) -> T:
        """The answer. If the waiting task is cancelled, the reply counts as abandoned."""
        return await self._future
