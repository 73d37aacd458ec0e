"""Tallies of several processes add up to one, after any journey."""

import json

import pytest

from isocenter.measure.tally import Tally


def some() -> Tally:
    made = Tally()
    made.latency_s.add(0.010)
    made.service_s.add(0.004)
    made.batches, made.items, made.expired = 2, 5, 1
    made.shed = {"queue_full": 3}
    return made


def test_merged_tallies_count_what_each_counted() -> None:
    total, other = some(), some()
    other.shed["draining"] = 1

    total.merge(other)

    assert (total.answered, total.batches, total.items, total.expired) == (2, 4, 10, 2)
    assert total.shed == {"queue_full": 6, "draining": 1}
    assert other.shed == {"queue_full": 3, "draining": 1}


def test_plain_data_is_the_same_tally_after_a_journey() -> None:
    sent = some().as_plain()

    assert Tally.from_plain(json.loads(json.dumps(sent))).as_plain() == sent


@pytest.mark.parametrize("broken", [{"latency_s": 3}, {"batches": "two"}, {"shed": {"full": 1.5}}, {"failures": []}])
def test_what_is_no_tally_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a"):
        Tally.from_plain(some().as_plain() | broken)
