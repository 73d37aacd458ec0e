"""Hot reload: ready the new version, swap, drain the old one. No request notices.

Whoever resolved the old version before the swap holds a place in its engine or takes one in the same turn of the
event loop; the drain waits for all places. For a moment both versions are in memory.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isocenter.core.errors import BadManifest, IsocenterError, ReloadRefused, SetupError, UnknownModel
from isocenter.core.events import Observer, Reloaded
from isocenter.repository import layout
from isocenter.repository.integrity import sha256_of
from isocenter.repository.layout import ModelFolder
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class VersionChange:
    """What became of one version: unchanged, added, replaced, removed or refused."""

    version: int
    what: str
    code: str = ""
    message: str = ""

    def as_json(self) -> dict[str, Any]:
        """As it is written."""
        found: dict[str, Any] = {"version": self.version, "what": self.what}
        return found | ({"code": self.code, "message": self.message} if self.code else {})


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload did for one model."""

    model: str
    versions: tuple[VersionChange, ...]

    @property
    def refused(self) -> bool:
        """Whether a version is not what it claims to be; what was served in its place goes on being served."""
        return any(change.what == "refused" for change in self.versions)

    def as_json(self) -> dict[str, Any]:
        """As it is written."""
        return {"model": self.model, "versions": [change.as_json() for change in self.versions]}


class Reloader:
    """Brings what is served in line with the folder. One reload at a time; another waits."""

    def __init__(
        self,
        repository: Repository,
        models: Path,
        *,
        load: Callable[[ModelFolder], Awaitable[ServedModel]],
        observer: Observer,
        drain_bound_s: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called after each swap, before the old engine is drained."""
        self._repository = repository
        self._models = models
        self._load = load
        self._observer = observer
        self._drain_bound_s = drain_bound_s
        self._on_change = on_change
        self._lock = asyncio.Lock()

    async def reload(self, name: str) -> ReloadReport:
        """Take over what has changed in one model's folder.

        Raises:
            UnknownModel: neither served nor in the folder.
            ReloadRefused: a version is not what it claims to be, or nothing would be left of the model; what was
                served in its place still is. The details hold the whole report.
        """
        async with self._lock:
            report = await self._reload(name)
        if report.refused:
            first = next(change for change in report.versions if change.what == "refused")
            raise ReloadRefused(
                f"{name} {first.version} was not taken over: {first.message}", details={"report": report.as_json()}
            )
        return report

    async def reload_all(self) -> list[ReloadReport]:
        """Take over what has changed in any model's folder; refusals are in the reports."""
        async with self._lock:
            found = await asyncio.to_thread(layout.names, self._models)
            names = sorted({*found, *(model.name for model in self._repository)})
            return [await self._reload(name) for name in names]

    async def _reload(self, name: str) -> ReloadReport:
        there = await asyncio.to_thread(layout.versions_of, self._models, name)
        served = {model.version: model for model in self._repository if model.name == name}
        if not there and not served:
            raise UnknownModel(f"no model is called {name[:64]!r}")
        if not any(isinstance(found, ModelFolder) for found in there.values()):
            # An empty folder is more likely a mishap than a wish; stopping the server is the way to stop a model.
            gone = SetupError(f"no version of {name} is left in its folder")
            return ReloadReport(name, tuple(_refused(version, gone) for version in sorted({*there, *served})))
        changes = [await self._take_over(found, served.get(number), number) for number, found in there.items()]
        for number in sorted(served.keys() - there.keys()):
            await self._remove(served[number])
            changes.append(VersionChange(number, "removed"))
        return ReloadReport(name, tuple(changes))

    async def _take_over(
        self, found: ModelFolder | BadManifest, served: ServedModel | None, number: int
    ) -> VersionChange:
        if isinstance(found, BadManifest):
            return _refused(number, found)
        if served is not None and await asyncio.to_thread(_is_same, found, served):
            return VersionChange(number, "unchanged")
        try:
            made = await self._load(found)
        except IsocenterError as error:
            return _refused(number, error)
        self._repository.add(made)
        self._changed(made, "added" if served is None else "replaced")
        if served is not None:
            await served.retire(self._drain_bound_s)
        return VersionChange(number, "added" if served is None else "replaced")

    async def _remove(self, served: ServedModel) -> None:
        self._repository.remove(served.name, served.version)
        self._changed(served, "removed")
        await served.retire(self._drain_bound_s)

    def _changed(self, model: ServedModel, what: str) -> None:
        self._observer.observe(Reloaded(model.name, model.version, what))
        self._on_change()


def _is_same(found: ModelFolder, served: ServedModel) -> bool:
    if found.manifest != served.manifest or not found.weights.is_file():
        return False
    return sha256_of(found.weights) == served.digest


def _refused(version: int, error: IsocenterError) -> VersionChange:
    return VersionChange(version, "refused", error.code, error.message)
