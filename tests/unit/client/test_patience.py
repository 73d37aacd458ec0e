"""When a refused call is made again: not before the hint, not beyond the deadline, never for ever."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.client.patience import Patience, again_at_s
from isocenter.core.deadline import Deadline

PATIENCE = Patience(attempts=5, first_pause_s=0.2, longest_pause_s=2.0)


@pytest.mark.parametrize(
    ("hint_s", "attempt", "chance", "again_s"),
    [
        pytest.param(0.0, 1, 0.0, 100.1, id="half the first pause at least"),
        pytest.param(0.0, 1, 1.0, 100.2, id="the first pause at most"),
        pytest.param(0.0, 3, 1.0, 100.8, id="twice as long each time"),
        pytest.param(0.05, 1, 0.0, 100.1, id="a shorter hint changes nothing"),
        pytest.param(3.0, 1, 0.0, 103.0, id="a longer hint is kept"),
        pytest.param(3.0, 1, 0.5, 103.05, id="and spread"),
    ],
)
def test_the_pause(hint_s: float, attempt: int, chance: float, again_s: float) -> None:
    found = again_at_s(
        hint_s, attempt=attempt, now_s=100.0, deadline=Deadline.never(), patience=PATIENCE, chance=chance
    )
    assert found == pytest.approx(again_s)


def test_a_hint_beyond_the_deadline_is_not_waited_for() -> None:
    asked = {"attempt": 1, "now_s": 100.0, "patience": PATIENCE, "chance": 0.5}
    assert again_at_s(3.0, deadline=Deadline(103.0), **asked) is None  # type: ignore[arg-type]
    assert again_at_s(3.0, deadline=Deadline(103.1), **asked) == pytest.approx(103.05)  # type: ignore[arg-type]


def test_the_last_attempt_is_the_last() -> None:
    asked = {"now_s": 0.0, "deadline": Deadline.never(), "patience": PATIENCE, "chance": 0.0}
    assert again_at_s(0.0, attempt=4, **asked) is not None  # type: ignore[arg-type]
    assert again_at_s(0.0, attempt=5, **asked) is None  # type: ignore[arg-type]


@given(
    hint_s=st.just(0.0) | st.floats(0, 1e6),
    attempt=st.integers(1, 10_000),
    left_s=st.floats(1e-6, 1e6) | st.just(math.inf),
    chance=st.floats(0, 1),
)
def test_whatever_comes_the_hint_is_kept_and_time_for_an_answer_is_left(
    hint_s: float, attempt: int, left_s: float, chance: float
) -> None:
    patience = Patience(attempts=10_001)
    again_s = again_at_s(
        hint_s, attempt=attempt, now_s=0.0, deadline=Deadline(left_s), patience=patience, chance=chance
    )
    if again_s is None:
        assert hint_s >= left_s
    else:
        assert hint_s <= again_s <= hint_s + 1.5 * patience.longest_pause_s
        assert again_s <= hint_s + (left_s - hint_s) / 2


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first_pause_s": 0}, {"first_pause_s": 9, "longest_pause_s": 8}])
def test_patience_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least one attempt"):
        Patience(**wrong)  # type: ignore[arg-type]
