"""A loop that is behind says so, before it lets in more than it can come to."""

import asyncio

import pytest

from isocenter.core.clock import ManualClock
from isocenter.serving.arriving import Arriving


async def test_who_was_let_in_counts_until_the_loop_comes_to_him() -> None:
    arriving = Arriving(ManualClock())

    arriving.expect()
    arriving.expect()
    assert arriving.count == 2

    await asyncio.sleep(0)
    assert arriving.count == 0


async def test_the_lag_is_what_the_first_head_of_a_turn_waited_for_all_others() -> None:
    clock = ManualClock()
    arriving = Arriving(clock)

    arriving.see()
    clock.advance(0.1)
    arriving.see()
    clock.advance(0.1)
    await asyncio.sleep(0)

    assert arriving.lag_s == pytest.approx(0.2)


async def test_what_is_done_for_those_before_him_adds_to_the_lag() -> None:
    clock = ManualClock()
    arriving = Arriving(clock)

    arriving.see()
    arriving.expect()
    asyncio.get_running_loop().call_soon(clock.advance, 0.3)
    arriving.expect()
    await asyncio.sleep(0)

    assert arriving.lag_s == pytest.approx(0.3)


async def test_it_is_forgotten_turn_by_turn_though_nobody_is_let_in() -> None:
    clock = ManualClock()
    arriving = Arriving(clock)
    arriving.see()
    clock.advance(0.4)
    await asyncio.sleep(0)

    lags = []
    for _ in range(4):
        arriving.see()
        await asyncio.sleep(0)
        lags.append(arriving.lag_s)

    assert lags == pytest.approx([0.2, 0.1, 0.05, 0.025])
