"""A deadline is an instant."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from isocenter.core.deadline import Deadline


@pytest.mark.parametrize(
    ("now_s", "expired", "left_s"), [(10.0, False, 2.0), (11.5, False, 0.5), (12.0, True, 0.0), (99.0, True, 0.0)]
)
def test_it_passes_once(now_s: float, expired: bool, left_s: float) -> None:
    deadline = Deadline.after(2.0, now_s=10.0)
    assert deadline.expired(now_s) is expired
    assert deadline.left_s(now_s) == left_s


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, math.nan])
def test_a_timeout_is_positive(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        Deadline.after(timeout_s, now_s=0.0)


@pytest.mark.parametrize("timeout_s", [math.inf, 10**400])
def test_more_time_than_the_clock_can_hold_never_ends(timeout_s: float) -> None:
    assert Deadline.after(timeout_s, now_s=10.0) == Deadline.never()


def test_never_is_later_than_any_other() -> None:
    assert not Deadline.never().expired(1e300)
    assert Deadline.after(1e9, now_s=0.0) < Deadline.never()


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_time_of_a_narrow_type_is_the_same_time(kind: Callable[[float], float]) -> None:
    assert Deadline.after(kind(0.5), now_s=1e7 + 0.25).left_s(1e7 + 0.25) == 0.5
