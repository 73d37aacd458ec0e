"""Hot reload: ready the new version, swap, drain the old one. No request notices.

Whoever resolved the old version before the swap holds a place in its engine or takes one in the same turn of the
event loop; the drain waits for all places. For a moment both versions are in memory.

A version counts as changed if its manifest, its weights, those of its ensemble or of its fallback are other bytes than
those that are served; golden cases are read again with the next change. A measured difference that is gone, or lies
outside the gate by now, is a refusal.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from isocenter.core.errors import BadManifest, Draining, IsocenterError, ReloadRefused, SetupError, UnknownModel
from isocenter.core.events import Observer, Reloaded, StateChanged
from isocenter.repository import layout
from isocenter.repository.accuracy import check_difference, check_fallback_difference
from isocenter.repository.integrity import sha256_of
from isocenter.repository.layout import ModelFolder
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VersionChange:
    """What became of one version.

    `what` is a fixed word: unchanged, added, replaced, removed, refused (it is not what it claims to be; what was
    served under its number still is) or kept (its folder has gone, and still it answers, as another one was refused).
    """

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
    """Brings what is served in line with the folder. One reload at a time; another waits.

    A reload that has begun goes on to its end, whether or not the one who asked for it still waits.
    """

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
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def reload(self, name: str) -> ReloadReport:
        """Take over what has changed in one model's folder.

        Raises:
            UnknownModel: neither served nor in the folder.
            ReloadRefused: a version is not what it claims to be, or nothing would be left of the model; what was
                served in its place still is. The details hold the whole report.
            Draining: the server is stopping.
        """
        report = await self._to_its_end(self._reload(name))
        if not report.versions:
            raise UnknownModel(f"no model is called {name[:64]!r}")
        if report.refused:
            first = next(change for change in report.versions if change.what == "refused")
            raise ReloadRefused(
                f"{name} {first.version} was not taken over: {first.message}", details={"report": report.as_json()}
            )
        return report

    async def reload_all(self) -> list[ReloadReport]:
        """Take over what has changed in any model's folder; refusals are in the reports.

        Raises:
            Draining: the server is stopping.
        """
        found = await asyncio.to_thread(layout.names, self._models)
        names = sorted({*found, *(model.name for model in self._repository)})
        reports = [await self._to_its_end(self._reload(name)) for name in names]
        return [report for report in reports if report.versions]

    async def close(self) -> None:
        """Begin nothing more. What is being loaded is given up; of what is being drained, what is left fails."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Work that the departure of the one who waits does not stop: half a swap is none."""
        if self._closed:
            work.close()
            raise Draining("the server is stopping")
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait([task])
        if task.cancelled():
            raise Draining("the server is stopping; the reload was given up")
        return task.result()

    async def _reload(self, name: str) -> ReloadReport:
        async with self._lock:
            served = {model.version: model for model in self._repository if model.name == name}
            try:
                there = await asyncio.to_thread(layout.versions_of, self._models, name)
            except OSError as error:
                return _all_refused(name, served, SetupError(f"cannot read the folder of {name}: {error.strerror}"))
            if not there:
                # More likely a mishap than a wish; stopping the server is the way to stop a model.
                return _all_refused(name, served, SetupError(f"no version of {name} is left in its folder"))
            changes = [await self._take_over(found, served.get(number), number) for number, found in there.items()]
            refused = any(change.what == "refused" for change in changes)
            for number in sorted(served.keys() - there.keys()):
                if not refused:
                    await self._remove(served[number])
                changes.append(VersionChange(number, "kept" if refused else "removed"))
            return ReloadReport(name, tuple(changes))

    async def _take_over(
        self, found: ModelFolder | BadManifest, served: ServedModel | None, number: int
    ) -> VersionChange:
        if isinstance(found, BadManifest):
            return _refused(number, found)
        try:
            if served is not None and await asyncio.to_thread(_is_same, found, served):
                return VersionChange(number, "unchanged")
            made = await self._load(found)
        except IsocenterError as error:
            return self._not_taken_over(number, error, served)
        except Exception as error:  # whatever a framework or a disk has to say: the old one answers, and others go on
            kind = type(error).__name__
            return self._not_taken_over(number, SetupError(f"loading it raised {kind}", details={"kind": kind}), served)
        if served is None:
            self._swap(made, "added")
            return VersionChange(number, "added")
        self._swap(_with_footprint(made, served), "replaced")
        await self._retire(served)
        self._say_state(made)
        return VersionChange(number, "replaced")

    def _not_taken_over(self, number: int, error: IsocenterError, served: ServedModel | None) -> VersionChange:
        if served is not None:
            self._say_state(served)
        return _refused(number, error)

    def _swap(self, made: ServedModel, what: str) -> None:
        self._repository.add(made)
        self._changed(made, what)

    async def _remove(self, served: ServedModel) -> None:
        self._repository.remove(served.name, served.version)
        self._changed(served, "removed")
        await self._retire(served)

    async def _retire(self, served: ServedModel) -> None:
        try:
            await served.retire(self._drain_bound_s)
        except asyncio.CancelledError:  # it is in nobody's hands but ours
            await served.retire(0.0)
            raise

    def _changed(self, model: ServedModel, what: str) -> None:
        self._observer.observe(Reloaded(model.name, model.version, what))
        self._on_change()

    def _say_state(self, answering: ServedModel) -> None:
        """Of two engines with one name and number, the last word shall be about the one that answers."""
        self._observer.observe(StateChanged(answering.name, answering.version, answering.engine.state.value))


def _is_same(found: ModelFolder, served: ServedModel) -> bool:
    manifest = found.manifest
    files = {found.weights: served.digest} if manifest.runtime.file else {}
    if (fallback := manifest.fallback) is not None and fallback.file and fallback.sha256:
        files[found.path / fallback.file] = fallback.sha256
    for member in manifest.ensemble.members if manifest.ensemble is not None else ():
        files[found.path / member.file] = member.sha256
    same = manifest == served.manifest and all(
        file.is_file() and sha256_of(file) == digest for file, digest in files.items()
    )
    if same:  # what was measured may have changed all the same, and is to be held against the gate
        check_difference(found)
        check_fallback_difference(found)
    return same


def _with_footprint(made: ServedModel, served: ServedModel) -> ServedModel:
    """With what its predecessor cost, if it is run alike: beside other work, memory cannot be measured."""
    new, old = made.manifest, served.manifest
    alike = (new.runtime, new.batching, new.instances) == (old.runtime, old.batching, old.instances)
    return replace(made, footprint=served.footprint) if made.footprint is None and alike else made


def _all_refused(name: str, versions: Iterable[int], error: IsocenterError) -> ReloadReport:
    return ReloadReport(name, tuple(_refused(version, error) for version in sorted(versions)))


def _refused(version: int, error: IsocenterError) -> VersionChange:
    return VersionChange(version, "refused", error.code, error.message)
