"""One process of ours: started as a fresh interpreter, watched, and ended with its parent."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from isocenter.core.errors import BadSettings
from isocenter.supervisor.control import Control, OnMessage, make_pair

_PR_SET_PDEATHSIG: Final = 1


def refuse_elsewhere() -> None:
    """Raise where the system has not what several processes are built on."""
    if sys.platform != "linux":
        raise BadSettings(f"front-end processes need Linux, this is {sys.platform}; use --frontends 0")


class Child:
    """A running process. `on_end` is called once, with its exit code (negative: a signal)."""

    def __init__(
        self, module: str, name: str, *, on_message: OnMessage, on_end: Callable[["Child", int], None]
    ) -> None:
        self.name = name
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        ours, theirs = make_pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                preexec_fn=_bind_to_parent(),
            )
        self.started_s = self._loop.time()
        self.pid = self._process.pid
        self.ended = asyncio.Event()
        self._pidfd = os.pidfd_open(self.pid)
        self._control = Control(ours, on_message, lambda: None)
        self._loop.add_reader(self._pidfd, self._over)

    @property
    def listens(self) -> bool:
        """Whether it reads what it is sent."""
        return self._control.flows

    def say(self, what: str, fds: list[int] | None = None, **more: Any) -> None:
        """Send it a message."""
        self._control.say(what, fds or (), **more)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    async def end_within(self, bound_s: float) -> None:
        """Wait for its end; when the bound is over, end it."""
        try:
            async with asyncio.timeout(bound_s):
                await self.ended.wait()
        except TimeoutError:
            self.kill()
            await self.ended.wait()

    def _over(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._process.wait()
        self._control.drain()
        self._control.close()
        self.ended.set()
        self._on_end(self, code)


def _bind_to_parent() -> Callable[[], None]:
    """What the new process does before it becomes ours: it dies with its parent, and leaves signals to it.

    A Ctrl-C reaches the whole group of processes, and service managers signal each one; the supervisor says what
    is to be done.
    """
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def bind() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return bind
