"""Time, handed in."""

import asyncio
from functools import partial

import pytest

from isocenter.core.clock import ManualClock, SystemClock


def test_a_manual_clock_stands_still_until_it_is_turned() -> None:
    clock = ManualClock(now_s=10.0)
    assert clock.now_s() == 10.0
    clock.advance(2.5)
    assert clock.now_s() == 12.5


def test_a_clock_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        ManualClock().advance(-1.0)


async def test_calls_come_at_their_instant_earliest_first() -> None:
    clock, calls = ManualClock(), list[str]()
    for name, at_s in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("b, second", 2.0)):
        clock.call_at(at_s, partial(calls.append, name))
    clock.advance(0.5)
    assert calls == []
    clock.advance(1.5)
    assert calls == ["a", "b", "b, second"]
    clock.advance(9.0)
    assert calls == ["a", "b", "b, second", "c"]


async def test_a_cancelled_call_never_comes() -> None:
    clock, calls = ManualClock(), list[str]()
    clock.call_at(1.0, partial(calls.append, "a")).cancel()
    passed = clock.call_at(0.0, partial(calls.append, "b"))
    passed.cancel()
    clock.advance(2.0)
    await asyncio.sleep(0)
    assert calls == []


@pytest.mark.parametrize("clock", [ManualClock(5.0), SystemClock()], ids=["manual", "system"])
async def test_an_instant_that_has_passed_is_called_soon_but_not_within(clock: ManualClock | SystemClock) -> None:
    called = asyncio.Event()
    clock.call_at(clock.now_s() - 1.0, called.set)
    assert not called.is_set()
    await called.wait()


@pytest.mark.parametrize("clock", [ManualClock(5.0), SystemClock()], ids=["manual", "system"])
async def test_sleeping_until_the_past_returns(clock: ManualClock | SystemClock) -> None:
    await clock.sleep_until(clock.now_s() - 1.0)


async def test_a_sleeper_wakes_at_its_instant() -> None:
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep_until(2.0))
    await asyncio.sleep(0)
    clock.advance(1.0)
    await asyncio.sleep(0)
    assert not sleeper.done()
    clock.advance(1.0)
    await sleeper


async def test_a_sleeper_who_left_is_not_woken() -> None:
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep_until(2.0))
    await asyncio.sleep(0)
    sleeper.cancel()
    clock.advance(5.0)
    with pytest.raises(asyncio.CancelledError):
        await sleeper


def test_the_systems_clock_never_runs_backwards() -> None:
    clock = SystemClock()
    instants = [clock.now_s() for _ in range(100)]
    assert instants == sorted(instants)
