"""Taking over what has changed in the models' folders: asked for one model, or by a signal for all."""

import asyncio
import logging
from typing import Any

from isocenter.core.errors import Draining, ReloadRefused
from isocenter.repository.reload import Reloader


class LocalReload:
    """Reloads what runs in this process."""

    def __init__(self, reloader: Reloader, logger: logging.Logger) -> None:
        self._reloader = reloader
        self._logger = logger

    async def reload(self, name: str) -> dict[str, Any]:
        """Take over what has changed in one model's folder; the report as JSON. What is refused is written down, too.

        Raises:
            UnknownModel, ReloadRefused, Draining: see `Reloader.reload`.
        """
        try:
            return (await self._reloader.reload(name)).as_json()
        except ReloadRefused as error:
            _write_down(error.details["report"], self._logger)
            raise


class Reloading:
    """What SIGHUP begins."""

    def __init__(self, reloader: Reloader, logger: logging.Logger) -> None:
        self._reloader = reloader
        self._logger = logger
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Take over what has changed in any model's folder; what is refused is written down."""
        self._logger.info("reloading", extra={"signal": "SIGHUP"})
        task = asyncio.get_running_loop().create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        try:
            reports = await self._reloader.reload_all()
        except Draining:
            return
        except Exception:
            self._logger.exception("unexpected")
            return
        for report in reports:
            _write_down(report.as_json(), self._logger)


def _write_down(report: Any, logger: logging.Logger) -> None:
    """A line for each version that was refused, of a report as JSON."""
    for change in report["versions"]:
        if code := change.get("code"):
            logger.error("reload_refused", extra={"model": report["model"], "version": change["version"], "code": code})
