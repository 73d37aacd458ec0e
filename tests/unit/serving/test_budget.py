"""Bodies are booked before they are held, and given back on every way out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.core.errors import Overloaded
from isocenter.serving.budget import Booking, ByteBudget

LIMIT = 100


def test_a_body_over_the_budget_is_refused_with_both_figures_and_a_time_to_come_back() -> None:
    budget = ByteBudget(LIMIT)
    budget.book(60)

    with pytest.raises(Overloaded) as refusal:
        budget.book(41)

    assert refusal.value.details == {"bytes": 101, "limit": LIMIT, "where": "door"}
    assert refusal.value.retry_after_s is not None
    assert budget.in_use_bytes == 60


def test_a_body_up_to_the_budget_is_taken() -> None:
    budget = ByteBudget(LIMIT)

    with budget.book(60), budget.book(40):
        assert budget.in_use_bytes == LIMIT

    assert budget.in_use_bytes == 0


def test_a_body_of_unknown_length_is_booked_as_it_comes() -> None:
    budget = ByteBudget(LIMIT)

    with budget.book() as booking:
        booking.cover(30)
        booking.cover(20)
        assert budget.in_use_bytes == 30
        with pytest.raises(Overloaded):
            booking.cover(101)
        assert budget.in_use_bytes == 30

    assert budget.in_use_bytes == 0


def test_a_body_is_given_back_once() -> None:
    budget = ByteBudget(LIMIT)
    other = budget.book(10)
    booking = budget.book(20)

    booking.release()
    booking.release()

    assert budget.in_use_bytes == 10
    other.release()


@given(st.lists(st.tuples(st.sampled_from(["book", "cover", "release", "raise"]), st.integers(0, 60)), max_size=60))
def test_whatever_happens_the_budget_is_never_exceeded_and_returns_to_zero(steps: list[tuple[str, int]]) -> None:
    budget = ByteBudget(LIMIT)
    held: list[Booking] = []

    for what, size in steps:
        try:
            if what == "book":
                held.append(budget.book(size))
            elif held and what == "cover":
                held[size % len(held)].cover(size * 2)
            elif held and what == "release":
                held.pop(size % len(held)).release()
            elif held:
                with held.pop(size % len(held)):
                    raise ValueError
        except (Overloaded, ValueError):
            pass
        assert 0 <= budget.in_use_bytes <= LIMIT

    for booking in held:
        booking.release()
    assert budget.in_use_bytes == 0
