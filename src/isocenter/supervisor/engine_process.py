"""The engine process: models, queues and devices of the whole server, and everything that is counted.

`python -m isocenter.supervisor.engine_process FD` is started by the supervisor only.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields
from typing import Any

from isocenter.app import open_engine_room, queued_items
from isocenter.core.clock import SystemClock
from isocenter.core.errors import SetupError
from isocenter.core.events import Event
from isocenter.engine.engine import InlineEngine
from isocenter.engine.link.board import Board
from isocenter.engine.link.errors import error_to_json
from isocenter.engine.link.figures import FrontEndFigures
from isocenter.engine.link.server import EngineHost
from isocenter.process import settle_process, tune_process
from isocenter.repository.load import ServedModel
from isocenter.serving.reloading import LocalReload, Reloading
from isocenter.supervisor.control import Control
from isocenter.supervisor.entry import Chores, Start, enter, orphaned
from isocenter.telemetry.gauges import engine_gauges, front_gauges
from isocenter.telemetry.logging import set_up_logging


class EngineProcess:
    """Loads the models, hosts them for the front ends, and ends when it is told."""

    def __init__(self, start: Start) -> None:
        self._settings = start.settings
        self._logger: logging.Logger = set_up_logging(start.settings.log_level)
        front_ends = start.message["front_ends"]
        (board_fd,) = start.fds
        self._figures = FrontEndFigures(board_fd, front_ends)
        self._board = Board(board_fd, front_ends)
        self._board.clear_row(0)
        self._clock = SystemClock()
        self._stop = asyncio.Event()
        self._closing = False
        self._bound_s = start.settings.drain.bound_s
        self._chores = Chores(self._logger)
        self._host: EngineHost | None = None
        self._control = Control(start.line, self._came, orphaned)

    async def run(self) -> None:
        """From loading to the end.

        Raises:
            SetupError: a model is not what it claims to be.
        """
        async with open_engine_room(
            self._settings,
            clock=self._clock,
            logger=self._logger,
            bound_s=lambda: self._bound_s,
            also=self,
            dress=self._dress,
            on_change=self._publish,
        ) as room:
            self._room = room
            self._reloading = Reloading(room.reloader, self._logger)
            figures = self._figures
            room.metrics.add_live(
                *engine_gauges(lambda: queued_items(room.repository)),
                *front_gauges(
                    decoding=lambda: sum(each.decoding for each in figures.all()),
                    inside=lambda: sum(each.inside for each in figures.all()),
                    body_bytes=lambda: sum(each.body_bytes for each in figures.all()),
                    jobs_queued=lambda: sum(each.jobs_queued for each in figures.all()),
                    jobs_running=lambda: sum(each.jobs_running for each in figures.all()),
                    ready=lambda: room.repository.ready and not self._closing,
                ),
            )
            host = self._host = EngineHost(
                board=self._board,
                clock=self._clock,
                observer=room.counting,
                answer=self._answer,
                logger=self._logger,
            )
            self._publish()
            versions = list(room.repository)
            settle_process()
            self._control.say("ready", models=len({model.name for model in versions}), versions=len(versions))
            await self._stop.wait()
        # The engines have finished and stopped, so everybody has been answered.
        host.close()
        await asyncio.sleep(0)
        self._control.close()

    def observe(self, event: Event) -> None:
        """Something happened in an engine: the board shall say so."""
        if self._host is not None:
            self._host.observe(event)

    def _publish(self) -> None:
        assert self._host is not None
        self._host.publish([(_own(model), _about(model)) for model in self._room.repository])

    def _dress(self, model: ServedModel) -> ServedModel:
        return _HostedModel(**{each.name: getattr(model, each.name) for each in fields(model)}, retiring=self._retiring)

    @contextlib.asynccontextmanager
    async def _retiring(self, engine: InlineEngine, bound_s: float) -> AsyncIterator[None]:
        """An engine is stopped within this, when no front end can send anything more to it."""
        if self._host is None:
            yield
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(bound_s):
                await self._host.unused(engine)
        yield
        self._host.forget(engine)

    def _came(self, message: dict[str, Any], fds: list[int]) -> None:
        match message["say"]:
            case "link" if not fds:
                pass  # there is no file left for it; the front end hears the line being cut, and asks for another
            case "link":
                link_fd, arena_fd = fds
                self._chores.take(self._connect(message["number"], socket.socket(fileno=link_fd), arena_fd))
            case "open":
                self._room.count()
            case "alive?":
                self._control.say("alive")
            case "reload":
                self._reloading.begin()
            case "closing":
                self._closing = True
            case "stop":
                self._bound_s = message["bound_s"]
                self._stop.set()
            case what:
                raise ValueError(f"the supervisor said {what}")

    async def _connect(self, number: int, link: socket.socket, arena_fd: int) -> None:
        assert self._host is not None
        try:
            await self._host.connect(number, link, arena_fd, os.fstat(arena_fd).st_size)
        except SetupError as error:
            link.close()  # the front end asks for another one, and again
            self._control.say("setup_error", error=error_to_json(error))

    async def _answer(self, what: str, argument: Any) -> tuple[Any, bytes]:
        """What front ends ask for."""
        match what:
            case "metrics":
                return None, self._room.metrics.text()
            case "stats":
                name, version = argument
                return (await self._room.stats.stats(name, version)).as_json(), b""
            case "reload":
                return await LocalReload(self._room.reloader, self._logger).reload(argument), b""
            case _:
                raise ValueError(f"a front end asked for {what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _HostedModel(ServedModel):
    """A model that is taken from its place only when every front end has let go of it."""

    retiring: Callable[[InlineEngine, float], AbstractAsyncContextManager[None]]

    async def retire(self, bound_s: float) -> None:
        """Finish what is in within the bound, and stop."""
        async with self.retiring(_own(self), bound_s):
            await ServedModel.retire(self, bound_s)


def _own(model: ServedModel) -> InlineEngine:
    assert model.own is not None
    return model.own


def _about(model: ServedModel) -> Mapping[str, Any]:
    footprint = model.footprint
    return {
        "path": str(model.folder.path),
        "manifest": model.manifest.model_dump_json(by_alias=True),
        "digest": model.digest,
        "service_s": list(model.service_s.items()),
        "footprint": [footprint.session_bytes, list(footprint.peak_bytes_by_size.items())] if footprint else None,
    }


async def main(start: Start) -> None:
    """The whole life of the process."""
    tune_process()
    await EngineProcess(start).run()


if __name__ == "__main__":
    enter(main)
