"""One call from inside a program: let in, waited for when the service ends, and counted however it ends."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from isocenter.core.clock import Clock
from isocenter.core.errors import Abandoned, Draining, IsocenterError
from isocenter.core.events import Answered, Observer
from isocenter.serving.health import Door


@dataclass(frozen=True, slots=True)
class Call:
    """One call on its way."""

    use_case: str
    request_id: str
    started_s: float
    clock: Clock
    observer: Observer

    def answered(self, model: str, version: int, stages_s: dict[str, float]) -> float:
        """Tell that there is an answer; seconds from the call to it."""
        return self.ended("ok", model, version, stages_s)

    def ended(self, code: str, model: str, version: int, stages_s: dict[str, float]) -> float:
        """Tell how it came to its end."""
        total_s = self.clock.now_s() - self.started_s
        self.observer.observe(Answered(self.use_case, model, version, code, total_s, stages_s))
        return total_s


@asynccontextmanager
async def one_call(
    use_case: str, *, door: Door, clock: Clock, observer: Observer, meant: Callable[[], tuple[str, int]]
) -> AsyncIterator[Call]:
    """A block inside the door. What ends it with an error is counted for the version that was `meant`.

    Raises:
        Draining: the door is closed.
    """
    call = Call(use_case, uuid.uuid4().hex, clock.now_s(), clock, observer)
    if not door.is_open:
        raise Draining("the service is closed")
    door.enter()
    try:
        yield call
    except (IsocenterError, asyncio.CancelledError) as error:
        code = error.code if isinstance(error, IsocenterError) else Abandoned.code
        call.ended(code, *meant(), {})
        raise
    finally:
        door.leave()
