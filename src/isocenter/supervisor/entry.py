"""How a process of ours begins: it is told what to do over the line that it was started with, and ends with it."""

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from isocenter.core.errors import SetupError
from isocenter.engine.link.errors import error_to_json
from isocenter.settings import Settings, load_settings
from isocenter.supervisor.control import receive


@dataclass(frozen=True, slots=True)
class Start:
    """What a process was told at its start."""

    line: socket.socket
    settings: Settings
    message: dict[str, Any]
    fds: list[int]


def enter(main: Callable[[Start], Coroutine[Any, Any, None]]) -> None:
    """Run one process of ours until it is done; what keeps it from starting is reported."""
    line = socket.socket(fileno=int(sys.argv[1]))
    came = receive(line)
    if came is None:
        return
    message, fds = came
    try:
        start = Start(line, load_settings(**json.loads(message["settings"])), message, fds)
        _run(main(start))
    except SetupError as error:
        line.setblocking(True)
        line.send(json.dumps({"say": "setup_error", "error": error_to_json(error)}, default=str).encode())
        sys.exit(2)


class Chores:
    """What is done on the side. A defect in it is written down."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it soon."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._logger.error("unexpected", exc_info=task.exception())


def orphaned() -> None:
    """The supervisor is gone, and everything with it."""
    os._exit(1)


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
