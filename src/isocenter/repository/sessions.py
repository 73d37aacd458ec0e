"""Opening sessions: as a manifest says, with the share of the machine that it is due, at the start and again later."""

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from isocenter.core.errors import DigestMismatch
from isocenter.repository import integrity
from isocenter.repository.accuracy import check_fallback_difference
from isocenter.repository.composite import augmented, open_composite
from isocenter.repository.golden import Pipeline
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import FallbackPart, Manifest
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.registry import open_runtime

T = TypeVar("T")

# Linux gives a thread 1.25 times the time of one that is nicer by 1, where the two compete for a core.
_NICE_RATIO, _NICEST = 1.25, 19


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def session_threads(manifest: Manifest) -> int:
    """Threads for each instance; `auto` shares the usable cores out over the instances."""
    threads = manifest.instances.threads
    return max(1, usable_cores() // manifest.instances.count) if threads == "auto" else threads


def niceness(weight: float, weights: Iterable[float]) -> int:
    """How much a model's threads stand back for those of the heaviest one.

    >>> niceness(1.0, [1.0, 1.0]), niceness(1.0, [1.0, 4.0]), niceness(4.0, [])
    (0, 6, 0)
    """
    return min(_NICEST, round(math.log(max([*weights, weight]) / weight, _NICE_RATIO)))


def open_sessions(folder: ModelFolder, *, nice: int = 0) -> list[Session]:
    """One session an instance, with the tensors that the manifest names.

    Raises:
        MissingExtra, BadManifest: see `open_one`; then none is left open.
    """
    sessions: list[Session] = []
    try:
        for _ in range(folder.manifest.instances.count):
            sessions.append(open_one(folder, nice=nice))  # noqa: PERF401 - those before one that fails are closed
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return sessions


def open_one(folder: ModelFolder, *, nice: int = 0) -> Session:
    """One session of the model's own runtime: with its ensemble and its augmentation, where it has them.

    Raises:
        MissingExtra, BadManifest: it cannot be opened, or has other tensors than the manifest says.
        DigestMismatch: a member of its ensemble is another file.
    """
    manifest = folder.manifest
    integrity.check_beside(folder, manifest.runtime)
    options = SessionOptions(
        precision=manifest.runtime.precision,
        device=manifest.instances.device,
        threads=session_threads(manifest),
        url=manifest.runtime.url or "",
        options=dict(manifest.runtime.options),
    )
    runtime = open_runtime(manifest.runtime_kind)
    session = _nicely(nice, lambda: open_composite(folder, lambda file: runtime.open(file, options)))
    with _closed_on_failure(session):
        integrity.check_tensors(manifest, session)
    return session


def reopen(folder: ModelFolder, pipeline: Pipeline, *, nice: int) -> Session:
    """A session in place of one that broke, of the same weights, proven by the first golden case.

    Raises:
        SetupError: it is not what it was: the folder may have changed since, and not been taken over.
    """
    integrity.check_digest(folder)
    return _proven(folder, pipeline, open_one(folder, nice=nice))


def open_fallback(folder: ModelFolder, fallback: FallbackPart, pipeline: Pipeline, *, nice: int) -> Session:
    """A session of the model's fallback, with the model's augmentation, proven by its first golden case.

    Raises:
        SetupError: it is missing, another file, or answers otherwise than the model; or it is of a precision whose
            difference was not measured or is outside the gate.
    """
    file = folder.path / (fallback.file or "")
    found = integrity.sha256_of(file) if file.is_file() else "no file"
    if fallback.sha256 is not None and found != fallback.sha256:
        raise DigestMismatch(
            f"{folder.manifest.name} {folder.manifest.version}: fallback {fallback.file} has sha256 {found[:12]}…, "
            f"the manifest names {fallback.sha256[:12]}…",
            details={"found": found, "named": fallback.sha256},
        )
    for part in fallback.beside:
        integrity.check_file(folder, part.file, part.sha256)
    integrity.check_beside(folder, fallback)
    check_fallback_difference(folder)
    options = SessionOptions(
        precision=fallback.precision,
        device=fallback.device,
        threads=usable_cores() if fallback.threads == "auto" else fallback.threads,
        url=fallback.url or "",
        options=dict(fallback.options),
    )
    session = _nicely(nice, lambda: augmented(open_runtime(fallback.kind).open(file, options), folder.manifest))
    with _closed_on_failure(session):
        integrity.check_tensors(folder.manifest, session)
    in_its_place = folder.manifest.model_copy(update={"runtime": fallback})
    return _proven(ModelFolder(folder.path, in_its_place), pipeline, session)


def _proven(folder: ModelFolder, pipeline: Pipeline, session: Session) -> Session:
    with _closed_on_failure(session):
        cases = integrity.golden_cases(folder)[:1]
        integrity.check_golden(folder.manifest, session, cases, integrity.golden_items(cases, pipeline, session))
    return session


@contextlib.contextmanager
def _closed_on_failure(session: Session) -> Iterator[None]:
    try:
        yield
    except BaseException:
        session.close()
        raise


def _nicely(nice: int, open_session: Callable[[], T]) -> T:
    """Open on a thread of that niceness: threads that a framework starts for the session inherit it."""
    if not nice or sys.platform != "linux":
        return open_session()
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        try:
            found.append(open_session())
        except BaseException as error:  # it belongs to whoever asked
            failed.append(error)

    thread = threading.Thread(target=work, name="isocenter-open", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
