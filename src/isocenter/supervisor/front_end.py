"""A front end: HTTP, decoding and preprocessing; the engines are asked over a link.

`python -m isocenter.supervisor.front_end FD` is started by the supervisor only.
"""

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import Any, cast

from isocenter.api.http.rehearsal import rehearse
from isocenter.app import Front, drain, http_server, open_front
from isocenter.core.clock import SystemClock
from isocenter.engine.link.arena import Arena
from isocenter.engine.link.board import Board
from isocenter.engine.link.client import EngineLink
from isocenter.engine.link.figures import FrontEndFigures
from isocenter.engine.link.remote import RemoteEngine
from isocenter.engine.memory import Footprint
from isocenter.process import settle_process, tune_process
from isocenter.repository.golden import pipeline_of
from isocenter.repository.layout import ModelFolder
from isocenter.repository.load import ServedModel
from isocenter.repository.manifest import Manifest
from isocenter.repository.repository import Repository
from isocenter.serving.health import Door
from isocenter.serving.stats import ModelStats
from isocenter.supervisor.control import Control
from isocenter.supervisor.entry import Chores, Start, enter, orphaned
from isocenter.telemetry.logging import set_up_logging
from isocenter.telemetry.observer import LogObserver, MutedUntilReady, Observers

_FIGURES_EVERY_S = 0.1
_NOT_READY = (
    b"# HELP isocenter_ready 1 if requests should be sent here.\n# TYPE isocenter_ready gauge\nisocenter_ready 0.0\n"
)


class FrontEndProcess:
    """Takes connections from the supervisor and answers them, until it is told to end."""

    def __init__(self, start: Start) -> None:
        self._settings = start.settings
        self._logger: logging.Logger = set_up_logging(start.settings.log_level)
        number, front_ends = start.message["number"], start.message["front_ends"]
        self._first: bool = start.message["first"]
        board_fd, arena_fd = start.fds
        self._figures = FrontEndFigures(board_fd, front_ends).of(number)
        board = Board(board_fd, front_ends)
        board.clear_row(1 + number)
        self._clock = SystemClock()
        self._repository = Repository(default_model=start.settings.default_model)
        self._served: dict[RemoteEngine, ServedModel] = {}
        self._door = Door()
        self._known = asyncio.Event()
        self._stop = asyncio.Event()
        self._chores = Chores(self._logger)
        self.link = EngineLink(
            number,
            arena=Arena(arena_fd, os.fstat(arena_fd).st_size),
            board=board,
            clock=self._clock,
            on_models=self._announced,
            on_lost=lambda: self._control.say("unlinked"),
        )
        self._observer = MutedUntilReady(Observers(self.link, LogObserver(self._logger)))
        self.link.observer = self._observer
        self._control = Control(start.line, self._came, orphaned)

    async def run(self) -> None:
        """From the first announcement of the models to the end.

        Raises:
            SetupError: it does not answer as it should.
        """
        await self._known.wait()
        async with open_front(
            self._settings,
            repository=self._repository,
            metrics=RemoteMetrics(self.link),
            stats=RemoteStats(self.link),
            reloads=RemoteReload(self.link),
            observer=self._observer,
            door=self._door,
            clock=self._clock,
            logger=self._logger,
        ) as front:
            with front.pool.warming_up():
                await rehearse(front.http, list(self._repository), strict=self._first)
            self._server = http_server(front.http, self._settings)
            running = asyncio.create_task(self._server.serve(sockets=[]), name="http")
            telling = asyncio.create_task(self._tell_figures(front), name="figures")
            await self._server.listening.wait()
            settle_process()
            self._control.say("ready")
            await self._stop.wait()
            self._server.should_exit = True
            await running
            telling.cancel()
        self.link.close()
        await asyncio.sleep(0)
        self._control.close()

    def _came(self, message: dict[str, Any], fds: list[int]) -> None:
        match message["say"]:
            case "connection" if not fds:
                self._control.say("full")  # there is no file left for it here
            case "connection":
                connection = socket.socket(fileno=fds[0])
                self._control.say("took")
                self._chores.take(self._server.take(connection, self._figures.count_closed))
            case "link" if not fds:
                self._control.say("unlinked")
            case "link":
                link = socket.socket(fileno=fds[0])
                self._chores.take(self.link.connect(link, restart_s=message["restart_s"]))
            case "open":
                self._observer.count()
            case "alive?":
                self._control.say("alive")
            case "drain":
                self._chores.take(self._drain())
            case "stop":
                self._stop.set()
            case what:
                raise ValueError(f"the supervisor said {what}")

    async def _drain(self) -> None:
        left, _ = await drain(self._door, self._settings)
        self._control.say("drained", left=left)

    async def _tell_figures(self, front: Front) -> None:
        while True:
            self._figures.tell(
                inside=self._door.inside,
                decoding=front.pool.waiting,
                body_bytes=front.bodies.in_use_bytes,
                jobs_queued=front.jobs.queued if front.jobs else 0,
                jobs_running=front.jobs.running if front.jobs else 0,
            )
            await asyncio.sleep(_FIGURES_EVERY_S)

    def _announced(self, engines: list[RemoteEngine]) -> None:
        if not engines:
            return  # the engine process is away; what was served is what will be
        self._served = {engine: self._served.get(engine) or _served(engine) for engine in engines}
        self._repository.replace(self._served.values())
        self._known.set()


class RemoteMetrics:
    """The metrics of the whole server, which the engine process holds."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, link: EngineLink) -> None:
        self._link = link

    async def read(self) -> bytes:
        """The exposition format that Prometheus reads; while the engine process is away, only that nothing is ready."""
        if not self._link.is_up:
            return _NOT_READY
        _, text = await self._link.ask("metrics")
        return text


class RemoteStats:
    """The statistics of models that run in the engine process."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link

    async def stats(self, name: str, version: int | None = None) -> ModelStats:
        """One version; see `StatsSource`."""
        found, _ = await self._link.ask("stats", [name, version])
        return ModelStats.from_json(found)


class RemoteReload:
    """Reloads what runs in the engine process."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link

    async def reload(self, name: str) -> dict[str, Any]:
        """Take over what has changed in one model's folder; the report as JSON."""
        found, _ = await self._link.ask("reload", name)
        return cast(dict[str, Any], found)


def _served(engine: RemoteEngine) -> ServedModel:
    about = engine.card.about
    manifest = Manifest.model_validate_json(about["manifest"])
    footprint = about["footprint"]
    return ServedModel(
        folder=ModelFolder(Path(about["path"]), manifest),
        digest=about["digest"],
        pipeline=pipeline_of(manifest),
        engine=engine,
        service_s=dict(about["service_s"]),
        footprint=Footprint(footprint[0], dict(footprint[1])) if footprint else None,
    )


async def main(start: Start) -> None:
    """The whole life of the process."""
    tune_process(start.settings.http.max_connections)
    await FrontEndProcess(start).run()


if __name__ == "__main__":
    enter(main)
