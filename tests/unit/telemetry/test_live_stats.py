"""The last minute of each model version, from events and a clock that is turned."""

import pytest

from isocenter.core import events
from isocenter.core.clock import ManualClock
from isocenter.measure.tally import Tally
from isocenter.telemetry.live_stats import LiveStats


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now_s=1000.0)


@pytest.fixture
def live(clock: ManualClock) -> LiveStats:
    return LiveStats(clock)


def answered(model: str = "lungs", version: int = 1, *, code: str = "ok", total_s: float = 0.020) -> events.Answered:
    return events.Answered("predict", model, version, code, total_s, {})


def tally(live: LiveStats, model: str = "lungs", version: int = 1) -> Tally:
    return live.recent(model, version)[0]


def test_every_event_is_counted_where_it_belongs(live: LiveStats) -> None:
    for event in (
        answered(),
        answered(code="bad_image"),
        events.Enqueued("lungs", 1),
        events.BatchStarted("lungs", 1, 4, 0.003),
        events.BatchFinished("lungs", 1, 4, 0.010),
        events.BatchFinished("lungs", 1, 2, 0.006),
        events.BatchFailed("lungs", 1, 4, "RuntimeError"),
        events.Shed("lungs", 1, "queue_full"),
        events.Shed("lungs", 1, "would_be_late", 3),
        events.Answered("predict", "lungs", 1, "overloaded", 0.0, {}, 3),
        events.Expired("lungs", 1),
        events.AbandonedInQueue("lungs", 1),
        events.StateChanged("lungs", 1, "draining"),
    ):
        live.observe(event)

    found = tally(live)
    assert (found.answered, found.queue_s.count, found.service_s.count) == (1, 1, 2)
    assert (found.batches, found.items, found.expired, found.abandoned) == (2, 6, 1, 1)
    assert found.failures == {"bad_image": 1, "overloaded": 3}
    assert found.shed == {"queue_full": 1, "would_be_late": 3}
    assert found.batch_failures == {"RuntimeError": 1}
    assert found.latency_s.maximum == 0.020


def test_versions_are_counted_apart(live: LiveStats) -> None:
    live.observe(answered("lungs", 1))
    live.observe(answered("lungs", 2))
    live.observe(answered("hearts", 2))

    assert [tally(live, *key).answered for key in (("lungs", 1), ("lungs", 2), ("hearts", 2))] == [1, 1, 1]


def test_a_request_that_meant_no_model_here_is_counted_nowhere(live: LiveStats) -> None:
    live.observe(answered("", 0, code="unknown_model"))

    assert tally(live, "", 0).failures == {}


def test_what_is_older_than_a_minute_is_gone(live: LiveStats, clock: ManualClock) -> None:
    live.observe(answered())
    clock.advance(30.0)
    live.observe(answered())
    clock.advance(35.0)

    assert tally(live).answered == 1


def test_rates_count_from_the_moment_of_readiness(live: LiveStats, clock: ManualClock) -> None:
    clock.advance(7.0)
    live.count_from_now()
    clock.advance(2.0)
    live.observe(answered())

    assert live.recent("lungs", 1)[1] == pytest.approx(2.0)


def test_a_version_nobody_asked_has_an_empty_tally(live: LiveStats, clock: ManualClock) -> None:
    clock.advance(3.0)

    found, span_s = live.recent("lungs", 9)

    assert found.answered == 0
    assert span_s == pytest.approx(3.0)


def test_versions_that_were_unloaded_long_ago_take_no_memory(live: LiveStats, clock: ManualClock) -> None:
    for version in range(1, 51):
        live.observe(answered(version=version))
        clock.advance(30.0)

    assert len(live._recent) <= 3
    assert tally(live, version=50).answered == 1
