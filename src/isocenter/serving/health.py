"""Three different truths: the process runs; it may be sent requests; what a person wants to know."""

import asyncio
from dataclasses import dataclass

from isocenter.core.clock import Clock
from isocenter.engine.lifecycle import State
from isocenter.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """One served version."""

    model: str
    version: int
    state: str
    queued: int


@dataclass(frozen=True, slots=True)
class Health:
    """`status` is ok (every model answers), degraded (some do), draining, or unavailable (none does)."""

    status: str
    uptime_s: float
    models: tuple[ModelHealth, ...]


class Door:
    """Whether new requests are taken. It is closed first and never opened again."""

    def __init__(self) -> None:
        self._open = True
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def inside(self) -> int:
        """Requests taken and not answered yet."""
        return self._inside

    @property
    def is_open(self) -> bool:
        """Whether new requests are taken."""
        return self._open

    def close(self) -> None:
        """Take nothing new from now on."""
        self._open = False

    def enter(self) -> None:
        """One more request is inside."""
        self._inside += 1
        self._empty.clear()

    def leave(self) -> None:
        """One request got its answer, or its caller left."""
        self._inside -= 1
        if not self._inside:
            self._empty.set()

    async def emptied(self) -> None:
        """Return once nobody is inside."""
        await self._empty.wait()


class HealthCheck:
    """Reads the state of the door and of the models; changes nothing."""

    def __init__(self, repository: Repository, door: Door, clock: Clock) -> None:
        self._repository = repository
        self._door = door
        self._clock = clock
        self._started_s = clock.now_s()

    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self._door.is_open and self._repository.ready

    def report(self) -> Health:
        """The whole picture."""
        models = tuple(
            ModelHealth(model.name, model.version, model.engine.state.value, model.engine.queued)
            for model in self._repository
        )
        return Health(self._status(models), self._clock.now_s() - self._started_s, models)

    def _status(self, models: tuple[ModelHealth, ...]) -> str:
        if not self._door.is_open:
            return "draining"
        answering = [model.state == State.READY.value for model in models]
        if answering and all(answering):
            return "ok"
        return "degraded" if any(answering) else "unavailable"
