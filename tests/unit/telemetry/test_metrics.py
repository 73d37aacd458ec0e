"""Events become counts under conventional names."""

import re

import pytest

from isocenter.core import events
from isocenter.telemetry.metrics import METRICS, LiveGauge, Metrics, MetricsObserver
from isocenter.telemetry.observer import MutedUntilReady

ANSWERED = events.Answered("predict", "lungs", 1, "ok", 0.012, {"decode": 0.002, "infer": 0.008})


@pytest.mark.parametrize("name", METRICS)
def test_names_are_conventional_and_carry_their_unit(name: str) -> None:
    assert re.fullmatch(r"isocenter_[a-z_]+_(total|seconds|items|bytes|info)", name)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            ANSWERED,
            'isocenter_requests_total{code="ok",model="lungs",use_case="predict",version="1"} 1.0',
        ),
        (
            events.Answered("predict", "", 0, "bad_image", 0.001, {}),
            'isocenter_requests_total{code="bad_image",model="",use_case="predict",version=""} 1.0',
        ),
        (events.Enqueued("lungs", 1), 'isocenter_enqueued_total{model="lungs",version="1"} 1.0'),
        (
            events.Shed("lungs", 1, "queue_full"),
            'isocenter_shed_total{model="lungs",reason="queue_full",version="1"} 1.0',
        ),
        (
            events.Shed("lungs", 1, "would_be_late", 3),
            'isocenter_shed_total{model="lungs",reason="would_be_late",version="1"} 3.0',
        ),
        (
            events.Answered("predict", "lungs", 1, "overloaded", 0.0, {}, 3),
            'isocenter_requests_total{code="overloaded",model="lungs",use_case="predict",version="1"} 3.0',
        ),
        (events.Expired("lungs", 1), 'isocenter_expired_total{model="lungs",version="1"} 1.0'),
        (events.AbandonedInQueue("lungs", 1), 'isocenter_abandoned_total{model="lungs",version="1"} 1.0'),
        (
            events.BatchStarted("lungs", 1, 4, 0.001),
            'isocenter_queue_delay_seconds_count{model="lungs",version="1"} 1.0',
        ),
        (
            events.BatchStarted("lungs", 1, 4, 0.001, 2),
            'isocenter_batches_shared_total{model="lungs",version="1"} 1.0',
        ),
        (events.BatchFinished("lungs", 1, 4, 0.01), 'isocenter_batch_size_items_sum{model="lungs",version="1"} 4.0'),
        (
            events.BatchFailed("lungs", 1, 4, "RuntimeFault"),
            'isocenter_batch_failures_total{kind="RuntimeFault",model="lungs",version="1"} 1.0',
        ),
    ],
)
def test_an_event_is_counted_as_often_as_it_says(event: events.Event, line: str) -> None:
    metrics = Metrics()

    MetricsObserver(metrics).observe(event)

    assert line in metrics.text().decode().splitlines()


def test_only_good_answers_enter_the_latency_histogram() -> None:
    metrics = Metrics()
    observer = MetricsObserver(metrics)

    observer.observe(ANSWERED)
    observer.observe(events.Answered("predict", "lungs", 1, "overloaded", 9.0, {}))

    text = metrics.text().decode()
    assert 'isocenter_request_duration_seconds_count{model="lungs",use_case="predict",version="1"} 1.0' in text
    assert 'isocenter_stage_duration_seconds_count{model="lungs",stage="infer",version="1"} 1.0' in text


def test_a_model_is_in_one_state_at_a_time() -> None:
    metrics = Metrics()
    observer = MetricsObserver(metrics)

    for state in ("warming", "ready"):
        observer.observe(events.StateChanged("lungs", 1, state))

    text = metrics.text().decode()
    assert 'isocenter_model_state_info{model="lungs",state="ready",version="1"} 1.0' in text
    assert 'isocenter_model_state_info{model="lungs",state="warming",version="1"} 0.0' in text


def test_live_values_are_read_when_somebody_scrapes() -> None:
    metrics, queued = Metrics(), [3.0]
    metrics.add_live(LiveGauge("isocenter_queue_items", "Waiting.", lambda: [({"model": "lungs"}, queued[0])]))
    queued[0] = 5.0

    assert 'isocenter_queue_items{model="lungs"} 5.0' in metrics.text().decode()


def test_two_servers_in_one_process_do_not_clash() -> None:
    MetricsObserver(Metrics()).observe(ANSWERED)
    MetricsObserver(Metrics()).observe(ANSWERED)


def test_rehearsals_before_ready_are_no_requests() -> None:
    metrics = Metrics()
    muted = MutedUntilReady(MetricsObserver(metrics))

    muted.observe(ANSWERED)
    muted.observe(events.StateChanged("lungs", 1, "ready"))
    before = metrics.text().decode()
    muted.count()
    muted.observe(ANSWERED)

    assert "isocenter_requests_total{" not in before
    assert 'state="ready"' in before
    assert 'isocenter_requests_total{code="ok"' in metrics.text().decode()
