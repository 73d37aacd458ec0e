"""A function on one of asyncio's threads, which forgets it in time."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def on_thread(function: Callable[[], T]) -> T:
    """Run a function beside the event loop, as `asyncio.to_thread`.

    That one's thread holds the function, and all that hangs on it, until it has its turn again: on a busy machine after
    the caller has gone on, who counts on a volume's memory being free.
    """
    once = [function]
    del function
    return await asyncio.to_thread(lambda: once.pop()())
