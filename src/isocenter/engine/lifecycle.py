"""The life of a model version, as one table."""

from collections.abc import Mapping
from enum import StrEnum

from isocenter.core.events import Observer, StateChanged


class State(StrEnum):
    """Where an engine is in its life."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    RECOVERING = "recovering"
    """No instance works; new ones are being opened."""
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


NEXT: Mapping[State, frozenset[State]] = {
    State.LOADING: frozenset({State.WARMING, State.FAILED, State.STOPPED}),
    State.WARMING: frozenset({State.READY, State.FAILED, State.STOPPED}),
    State.READY: frozenset({State.RECOVERING, State.DRAINING, State.FAILED}),
    State.RECOVERING: frozenset({State.READY, State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.STOPPED, State.FAILED}),
    State.FAILED: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}


class Lifecycle:
    """The state of one model version; every step is told to the observer."""

    def __init__(self, model: str, version: int, observer: Observer) -> None:
        self._model = model
        self._version = version
        self._observer = observer
        self._state = State.LOADING

    @property
    def state(self) -> State:
        """Where it is now."""
        return self._state

    def to(self, state: State) -> None:
        """Move on.

        Raises:
            RuntimeError: the table has no such step.
        """
        if state not in NEXT[self._state]:
            raise RuntimeError(f"{self._state} cannot become {state}")
        self._state = state
        self._observer.observe(StateChanged(self._model, self._version, state.value))
