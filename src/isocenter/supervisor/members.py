"""The processes as the supervisor sees them: what each is told at its start, and what it says."""

import asyncio
import os
import socket
from collections import deque
from typing import Any, Final, Protocol

from isocenter.engine.link.figures import OwnFigures, make_shared
from isocenter.supervisor.child import Child

FIRST_DELAY_S: Final = 0.05
MOST_DELAY_S: Final = 10.0
STEADY_AFTER_S: Final = 30.0
"""A process that has lived so long is started again at once; one that dies again and again waits longer and longer."""
DOUBTED_AFTER_LOOKS: Final = 2
"""A front end that gives no sign of life for so many looks is given no more connections meanwhile."""


class Owner(Protocol):
    """Who is told what happens to a process."""

    def became_ready(self, member: "Member") -> None: ...

    def lost(self, member: "Member", code: int) -> bool: ...

    def could_not_start(self, member: "Member", error: list[Any]) -> None: ...

    def link(self, front_end: "FrontEndMember") -> None: ...

    def relink(self, front_end: "FrontEndMember") -> None: ...

    def hand_out(self, connection: socket.socket) -> None: ...


def next_delay_s(previous_s: float, lived_s: float) -> float:
    """How long to wait before a process is started again that lived so long.

    >>> next_delay_s(10.0, lived_s=3600.0), next_delay_s(0.05, lived_s=1.0), next_delay_s(8.0, lived_s=1.0)
    (0.05, 0.1, 10.0)
    """
    return FIRST_DELAY_S if lived_s > STEADY_AFTER_S else min(2 * previous_s, MOST_DELAY_S)


class Member:
    """A part of the server that is to run all the time, in one process after another if need be."""

    name = ""

    def __init__(self, owner: Owner, module: str) -> None:
        self._owner = owner
        self._module = module
        self._child: Child | None = None
        self._loop = asyncio.get_running_loop()
        self._delay_s = FIRST_DELAY_S
        self._starting: asyncio.TimerHandle | None = None
        self._kept = True
        self._stopping = False
        self._asked = 0
        """How often a sign of life was looked for since the last one came."""
        self.ready = False
        self.pid = 0
        self.lost_at_s: float | None = None
        self.start_took_s = 1.0

    @property
    def running(self) -> bool:
        """Whether there is a process, ready or not."""
        return self._child is not None

    def start(self) -> None:
        """Start a process."""
        self._starting = None
        self._stopping = False
        self._child = Child(self._module, self.name, on_message=self._came, on_end=self._ended)
        self.pid = self._child.pid

    def say(self, what: str, fds: list[int] | None = None, **more: Any) -> None:
        """Send a message; where no process is, it vanishes."""
        if self._child is not None:
            self._child.say(what, fds, **more)

    def stop_restarting(self) -> None:
        """Start no further process."""
        self._kept = False
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None

    def kill(self) -> None:
        """End the process at once."""
        if self._child is not None:
            self._stopping = True
            self._child.kill()

    def look_after(self, *, most_silent: int) -> bool:
        """Ask for a sign of life; False if none has come for so many looks, and the process is ended for that.

        Looks are counted, not seconds: where everything stood still, as on a machine that slept, nobody hangs. One that
        is not ready yet is left alone: models take what they take.
        """
        if self._child is None or not self.ready or self._stopping:
            return True
        if self._asked > most_silent:
            self._child.kill()
            return False
        if self._asked == 0:
            self.say("alive?")
        self._asked += 1
        return True

    async def end_within(self, bound_s: float) -> None:
        """Wait for the end of the process; end it when the bound is over."""
        if self._child is not None:
            await self._child.end_within(bound_s)

    def _came(self, message: dict[str, Any], fds: list[int]) -> None:
        match message["say"]:
            case "alive":
                self._asked = 0
            case "ready":
                assert self._child is not None
                self.ready = True
                self._asked = 0
                self.start_took_s = self._loop.time() - self._child.started_s
                self._note_ready(message)
                self._owner.became_ready(self)
            case "setup_error":
                self._owner.could_not_start(self, message["error"])
            case _:
                self._hear(message)

    def _ended(self, child: Child, code: int) -> None:
        lived_s = self._loop.time() - child.started_s
        self._child = None
        self.ready = False
        self._note_end()
        if self._stopping:
            return
        self.lost_at_s = self.lost_at_s or self._loop.time()
        if not (self._owner.lost(self, code) and self._kept):
            return
        self._delay_s = next_delay_s(self._delay_s, lived_s)
        self._starting = self._loop.call_later(self._delay_s, self._start_again)

    def _start_again(self) -> None:
        try:
            self.start()
        except OSError:  # no room for another process right now
            self._starting = self._loop.call_later(MOST_DELAY_S, self._start_again)

    def _note_ready(self, message: dict[str, Any]) -> None:
        """It is ready; what it says of itself."""

    def _note_end(self) -> None:
        """It is gone."""

    def _hear(self, message: dict[str, Any]) -> None:
        raise ValueError(f"{self.name} said {message['say']}")


class EngineMember(Member):
    """The engine process."""

    name = "engine"

    def __init__(self, owner: Owner, module: str, settings: str, board_fd: int, front_ends: int) -> None:
        super().__init__(owner, module)
        self._settings = settings
        self._board_fd = board_fd
        self._count = front_ends
        self.models = self.versions = 0

    def start(self) -> None:
        """Start it, and tell it what to serve."""
        super().start()
        self.say("start", [self._board_fd], settings=self._settings, front_ends=self._count)

    def stop(self, *, bound_s: float) -> None:
        """Have it finish what is in, and end; one that is only starting has nothing in."""
        self.stop_restarting()
        self._stopping = True
        if self.ready:
            self.say("stop", bound_s=bound_s)
        else:
            self.kill()

    def _note_ready(self, message: dict[str, Any]) -> None:
        self.models, self.versions = message["models"], message["versions"]


class FrontEndMember(Member):
    """One front end."""

    def __init__(
        self,
        owner: Owner,
        module: str,
        settings: str,
        board_fd: int,
        number: int,
        front_ends: int,
        *,
        arena_bytes: int,
        figures: OwnFigures,
    ) -> None:
        super().__init__(owner, module)
        self.name = f"frontend {number}"
        self.number = number
        self.arena_fd = -1
        self._arena_bytes = arena_bytes
        self.drained = asyncio.Event()
        self.left = 0
        self._settings = settings
        self._board_fd = board_fd
        self._count = front_ends
        self._figures = figures
        self._given = 0
        self._offered: deque[socket.socket] = deque()
        self._first = True

    def start(self) -> None:
        """Start it, tell it what to serve, and connect it with the engine process."""
        self.drained.clear()  # the one before it has ended, and had nobody inside
        self.left = 0
        self._figures.clear()
        self._given = 0
        # A run may still read what the last process left in its arena.
        self.drop_arena()
        self.arena_fd = make_shared(f"isocenter-arena-{self.number}", self._arena_bytes)
        super().start()
        self.say(
            "start",
            [self._board_fd, self.arena_fd],
            settings=self._settings,
            number=self.number,
            front_ends=self._count,
            first=self._first,
        )
        self._first = False
        self._owner.link(self)

    def drop_arena(self) -> None:
        """Let go of the last process' arena."""
        if self.arena_fd >= 0:
            os.close(self.arena_fd)
            self.arena_fd = -1

    @property
    def takes(self) -> bool:
        """Whether it can be given a connection."""
        lives = self.ready and self._asked <= DOUBTED_AFTER_LOOKS
        return lives and self._child is not None and self._child.listens

    @property
    def load(self) -> tuple[int, int]:
        """Open connections, and all that it was given."""
        return self._given - self._figures.closed, self._given

    def give(self, connection: socket.socket) -> None:
        """Hand it a connection. Until it says whether it took it, it may still die and leave it to another."""
        self._given += 1
        self._offered.append(connection)
        self.say("connection", [connection.fileno()])

    def drain(self) -> None:
        """Have it take nothing new; one that is not ready has nothing to finish."""
        self.stop_restarting()
        if self.ready:
            self.say("drain")
        elif self._child is not None:
            self.kill()

    def stop(self) -> None:
        """Have it end."""
        self.stop_restarting()
        self._stopping = True
        self.say("stop")

    def _note_end(self) -> None:
        self.drained.set()
        offered, self._offered = self._offered, deque()
        for connection in offered:
            self._owner.hand_out(connection)

    def _hear(self, message: dict[str, Any]) -> None:
        match message["say"]:
            case "took":
                self._offered.popleft().close()
            case "full":  # a caller who is let go asks again; one who is kept for it would wait for ever
                self._offered.popleft().close()
                self._given -= 1
            case "unlinked":
                self._owner.relink(self)
            case "drained":
                self.left = message["left"]
                self.drained.set()
            case _:
                super()._hear(message)
