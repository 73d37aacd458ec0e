"""How many share a run."""

from typing import Any, cast

import pytest

from isocenter.core.deadline import Deadline
from isocenter.core.request import Request
from isocenter.engine.queue import Entry
from isocenter.engine.running import callers


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        (["a"], 1),
        (["a", "a", "a"], 1),
        (["a", "b", "a"], 2),
        (["a", "", ""], 3),
        (["", ""], 2),
    ],
)
def test_windows_of_a_volume_are_one_callers(groups: list[str], found: int) -> None:
    never, nobody = Deadline.never(), cast(Any, None)
    piece = [Entry(Request(str(n), {}, never, group=group), nobody, 0.0, n, 0) for n, group in enumerate(groups)]

    assert callers(piece) == found
