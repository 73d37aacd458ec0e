"""One answer, once, to somebody who may have left."""

import asyncio

import pytest

from isocenter.core.errors import Draining
from isocenter.core.reply import Reply


def reply() -> Reply[str]:
    return Reply(asyncio.get_running_loop())


async def test_the_first_answer_counts() -> None:
    waiting = reply()
    before = waiting.settled
    assert waiting.settle("yes")
    assert not waiting.settle("no")
    assert not waiting.fail(Draining("too late"))
    assert (before, waiting.settled) == (False, True)
    assert await waiting.wait() == "yes"
    assert not waiting.abandoned


async def test_an_error_is_an_answer() -> None:
    waiting = reply()
    assert waiting.fail(Draining("stopping"))
    assert not waiting.settle("yes")
    with pytest.raises(Draining, match="stopping"):
        await waiting.wait()


async def test_answering_one_who_left_is_normal() -> None:
    waiting = reply()
    caller = asyncio.create_task(waiting.wait())
    await asyncio.sleep(0)
    caller.cancel()
    assert waiting.abandoned, "known before the caller's task has run"
    assert waiting.settled
    assert not waiting.settle("yes")
    assert not waiting.fail(Draining("too late"))
    with pytest.raises(asyncio.CancelledError):
        await caller
