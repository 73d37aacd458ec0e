"""What the page of many users says of what was seen."""

import pytest

from users import Fair, Seen, fair_sentence, rows, verdict
from users_process import Way


def seen(way: Way, users: int, per_second: float) -> Seen:
    return Seen("hrnet", users, way, [users / per_second] * 20, 20 / per_second, runs=10.0, peak_bytes=300_000_000)


def four(queue: float, streams: float, lock: float = 10.0) -> list[Seen]:
    return [seen("queue", 4, queue), seen("streams", 4, streams), seen("lock", 4, lock)]


@pytest.mark.parametrize(
    ("queue", "streams", "said"),
    [(15.0, 9.0, "helped"), (9.0, 15.0, "helped"), (10.5, 9.5, "made no difference"), (8.0, 5.0, "cost throughput")],
)
def test_whether_sharing_helped_is_said_from_the_better_way(queue: float, streams: float, said: str) -> None:
    assert f"sharing {said}." in verdict("hrnet", four(queue, streams))


def test_an_expectation_stands_beside_what_was_found() -> None:
    assert "Of the 4-fold that was expected for 4 users, 1.50-fold was found." in verdict("hrnet", four(15.0, 9.0))
    eight = [seen(one.way, 8, one.per_second) for one in four(15.0, 9.0)]
    assert "expected" not in verdict("hrnet", eight)
    assert "8 users got 1.50 times" in verdict("hrnet", [*four(10.0, 10.0), *eight])


def test_every_way_is_held_against_the_lock_with_as_many_users() -> None:
    made = rows("hrnet", [*four(15.0, 9.0), *(seen(one.way, 8, one.per_second) for one in four(30.0, 5.0, 20.0))])
    assert [row[3] for row in made] == ["1.50x", "0.90x", "1.00x", "1.50x", "0.25x", "1.00x"]
    assert [row[0] for row in made] == [4, 4, 4, 8, 8, 8]
    assert made[0][6:] == [20, 2.0, 300.0]


def test_a_wait_beyond_one_batch_is_said_aloud() -> None:
    kept = [Fair(0.2, 0.4, 30), Fair(0.4, 0.4, 20)]
    assert "waited 0.4 s at most, 1.00 of the call's longest run, as promised; 20 or more" in fair_sentence(kept, 40)
    assert "**more than the promised one**" in fair_sentence([*kept, Fair(0.5, 0.4, 9)], 40)
