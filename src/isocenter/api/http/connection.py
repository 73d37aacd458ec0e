"""The other end of a request: whether the caller is still there, and how long a silent one is kept.

ASGI tells a caller's leaving only to who waits for it in `receive()`, which would cost each request a task of its own.
uvicorn's protocol knows at once; here it says so. Under any other server nothing is known, and nothing happens.
"""

import asyncio
from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any, Final, Literal, cast

from isocenter.core.errors import Abandoned

CLOSE: Final = (b"connection", b"close")
"""The header of the last answer on a connection."""

CONNECTION: Final = "isocenter.connection"
"""Where the connection stands in a request's scope."""

ARRIVED_S: Final = "isocenter.arrived_s"
"""When a request's head was here, in seconds of `time.monotonic`, which is the system clock's axis."""


class Connection:
    """One connection, as its requests see it; they come one after the other."""

    __slots__ = ("lost", "number", "on_lost")

    def __init__(self, number: int) -> None:
        self.number = number
        """How many connections were open when this one was made, itself included."""
        self.lost = False
        """Whether the caller has left."""
        self.on_lost: Callable[[], None] | None = None
        """Called if he leaves; set and unset by the request that is being answered."""

    def lose(self) -> None:
        """The caller has left; told again, it is no news."""
        if self.lost:
            return
        self.lost = True
        if self.on_lost is not None:
            self.on_lost()


class WhileConnected:
    """A block that is given up with `Abandoned` as soon as the caller leaves.

        with WhileConnected(scope):
            ...

    It ends like a timeout: the task is cancelled where it waits, and the cancellation goes no further than the block.

    Raises:
        Abandoned: he left before or within the block.
    """

    __slots__ = ("_before", "_connection", "_fired", "_task")

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        self._connection: Connection | None = scope.get(CONNECTION)

    def __enter__(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if connection.lost:
            raise Abandoned("the caller left before the request was looked at")
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self._fired = False
        connection.on_lost = self._leave

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._connection is None:
            return
        self._connection.on_lost = None
        # Whoever else wants the task to end, as a server that stops, still gets his cancellation.
        if self._fired and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            # Frames hold images; see core.errors.without_frames.
            cast(BaseException, error).__traceback__ = None
            raise Abandoned("the caller left before the answer was there")

    def _leave(self) -> None:
        self._fired = True
        self._task.cancel()


def http_protocol() -> type[asyncio.Protocol] | Literal["auto"]:
    """What to hand to `uvicorn.Config(http=...)`."""
    try:
        from isocenter.api.http.protocol import HttpProtocol
    except ImportError:  # no httptools here: uvicorn's choice, and leavers are not noticed
        return "auto"
    return HttpProtocol
