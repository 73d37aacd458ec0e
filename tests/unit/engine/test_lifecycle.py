"""One table of steps."""

from itertools import pairwise, product

import pytest

from isocenter.core.events import RecordingObserver, StateChanged
from isocenter.engine.lifecycle import NEXT, Lifecycle, State

WAYS = {
    State.LOADING: [],
    State.WARMING: [State.WARMING],
    State.READY: [State.WARMING, State.READY],
    State.RECOVERING: [State.WARMING, State.READY, State.RECOVERING],
    State.DRAINING: [State.WARMING, State.READY, State.DRAINING],
    State.STOPPED: [State.STOPPED],
    State.FAILED: [State.FAILED],
}


def life_in(state: State) -> Lifecycle:
    life = Lifecycle("demo", 1, RecordingObserver())
    for step in WAYS[state]:
        life.to(step)
    return life


def test_every_step_is_told() -> None:
    observer = RecordingObserver()
    life = Lifecycle("demo", 3, observer)
    steps = [State.WARMING, State.READY, State.DRAINING, State.STOPPED]
    for step in steps:
        life.to(step)
    assert observer.events == [StateChanged("demo", 3, step.value) for step in steps]


@pytest.mark.parametrize(("start", "end"), [p for p in product(State, State) if p[1] not in NEXT[p[0]]])
def test_a_step_that_is_not_in_the_table_is_refused(start: State, end: State) -> None:
    life = life_in(start)
    with pytest.raises(RuntimeError, match=f"{start} cannot become {end}"):
        life.to(end)
    assert life.state is start


@pytest.mark.parametrize(("start", "end"), [p for p in product(State, State) if p[1] in NEXT[p[0]]])
def test_a_step_in_the_table_is_taken(start: State, end: State) -> None:
    life = life_in(start)
    life.to(end)
    assert life.state is end


def test_the_table_is_complete_and_the_stopped_stay_stopped() -> None:
    assert set(NEXT) == set(State)
    assert NEXT[State.STOPPED] == frozenset()
    usual = [State.LOADING, State.WARMING, State.READY, State.DRAINING, State.STOPPED]
    assert all(later in NEXT[earlier] for earlier, later in pairwise(usual))
