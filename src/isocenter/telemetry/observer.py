"""Several observers as one."""

import logging

from isocenter.core.events import Answered, Event, InstanceChanged, MemoryPressure, Observer, Reloaded, StateChanged


class Observers:
    """Hands every event to each of them, in order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def observe(self, event: Event) -> None:
        """Hand one event on."""
        for observer in self._observers:
            observer.observe(event)


class LogObserver:
    """Writes the events that an operator reads: changes of state and of instances, and at debug level every answer."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._verbose = logger.isEnabledFor(logging.DEBUG)

    def observe(self, event: Event) -> None:
        """Write a line if the event is one of those."""
        if isinstance(event, StateChanged):
            extra = {"model": event.model, "version": event.version, "state": event.state}
            self._logger.info("model_state", extra=extra)
        elif isinstance(event, InstanceChanged):
            extra = {"model": event.model, "version": event.version, "kind": event.what}
            self._logger.warning("instance", extra=extra)
        elif isinstance(event, Reloaded):
            extra = {"model": event.model, "version": event.version, "kind": event.what}
            self._logger.info("reloaded", extra=extra)
        elif isinstance(event, MemoryPressure):
            extra = {"state": event.level, "bytes": event.available_bytes}
            self._logger.warning("memory_pressure", extra=extra)
        elif self._verbose and isinstance(event, Answered):
            extra = {"model": event.model, "version": event.version, "code": event.code, "times": event.times}
            self._logger.debug("answered", extra={**extra, "total_ms": round(event.total_s * 1e3, 3)})


class MutedUntilReady:
    """Passes on only what lasts, as changes of state, until warm-up is over: rehearsals are not requests."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._counting = False

    def count(self) -> None:
        """From now on, everything counts."""
        self._counting = True

    def observe(self, event: Event) -> None:
        """Hand the event on, if it counts."""
        if self._counting or isinstance(event, StateChanged | MemoryPressure):
            self._observer.observe(event)
