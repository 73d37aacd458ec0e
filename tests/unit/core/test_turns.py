"""Short turns on the processor: asked for, for the thread that asks and those it begins, and nothing else changed."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from isocenter.core.turns import ask_for_short_turns, nice_and_turn_ms


def in_a_thread(function: Callable[[], Any]) -> Any:
    """What it gives in a thread of its own: the tests' own thread stays as it is."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_what_was_asked_for_is_there_and_is_handed_on_and_the_niceness_stays() -> None:
    before = nice_and_turn_ms()
    if before is None:
        pytest.skip("the system does not tell how long turns are")

    def ask() -> tuple[bool, Any, Any]:
        known = ask_for_short_turns(0.7)
        return known, nice_and_turn_ms(), in_a_thread(nice_and_turn_ms)

    known, own, handed_on = in_a_thread(ask)

    if not known or own == before:
        pytest.skip("the system has turns of one length only")
    assert own == handed_on == (before[0], 0.7)
    assert nice_and_turn_ms() == before
