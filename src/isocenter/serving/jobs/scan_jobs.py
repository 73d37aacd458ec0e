"""Scans as jobs: what was sent is kept on disk until the job ends, and what is asked becomes plain data and back."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from isocenter.core.deadline import Deadline
from isocenter.core.errors import StoreUnavailable
from isocenter.imaging.codecs.volume_files import Pick
from isocenter.serving.jobs.files import typed, write_folder
from isocenter.serving.jobs.job import Job
from isocenter.serving.jobs.runner import JobAnswer, OnThread, Tell
from isocenter.serving.scan_answer import ScanAnswer
from isocenter.serving.scan_paths import ScanPath
from isocenter.serving.scan_reading import Files, GivenScan
from isocenter.serving.scans import ScanAsked, SegmentScan

KIND: Final = "segment_scan"

Sent: TypeAlias = bytes | Files | ScanPath
"""One scan as a caller sends it: bytes of a file, several files, or a path."""

T = TypeVar("T")

_NAMES: Final = "names"
_SHAPE: Final = ("model", "version", "formats")


def asked_of(source: Sent | Mapping[str, Sent], asked: ScanAsked) -> dict[str, Any]:
    """What is asked as JSON: of files that were sent, how many bytes they have and their digest; of a path, the path.

    The same request is the same text, whatever its files are called here.
    """
    return {
        "scan": _channels(source, _described),
        "model": asked.model,
        "version": asked.version,
        "series": asked.pick.series,
        "volume": asked.pick.volume,
        "formats": list(asked.formats),
    }


def asked_in(job: Job) -> ScanAsked:
    """What is asked, back from JSON."""
    told = job.asked
    return ScanAsked(
        model=told["model"],
        version=told["version"],
        pick=Pick(series=told["series"], volume=told["volume"]),
        formats=tuple(told["formats"]),
        priority=job.priority,
    )


def sent_bytes(source: Sent | Mapping[str, Sent]) -> int:
    """How many bytes will be kept of it."""
    return sum(len(data) for each in _sent(source).values() for data in _files(each).values())


def keep(source: Sent | Mapping[str, Sent], folder: Path) -> None:
    """Write what was sent to a folder, for good; of paths, nothing.

    Raises:
        DiskFull, StoreUnavailable: it could not be.
    """
    files: dict[str, bytes | Path] = {}
    names: dict[str, list[tuple[str, int]]] = {}
    for number, (channel, each) in enumerate(_in_order(_sent(source))):
        held = _files(each)
        if held:
            files[str(number)] = b"".join(held.values())
        if isinstance(each, Files):
            names[channel] = [(name, len(data)) for name, data in held.items()]
    if files:
        files[_NAMES] = json.dumps(names).encode()
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_folder(folder, files)


@typed
def kept(told: Mapping[str, Any], folder: Path) -> GivenScan | Mapping[str, GivenScan]:
    """What was sent, as the use case takes it.

    Raises:
        StoreUnavailable: it cannot be read, or is not what was sent.
    """
    several = "channels" in told
    scans = told["channels"] if several else {"": told}
    names = json.loads((folder / _NAMES).read_bytes()) if (folder / _NAMES).exists() else {}
    found: dict[str, GivenScan] = {}
    for number, (channel, each) in enumerate(_in_order(scans)):
        if "scan_path" in each:
            found[channel] = ScanPath(each["scan_path"])
            continue
        blob = folder / str(number)
        held = _parted(blob, names[channel]) if channel in names else blob
        if _digest_of(held) != each["sha256"]:
            raise StoreUnavailable("what was kept of the scan is not what was sent")
        found[channel] = held
    return found if several else found[""]


class ScanJobs:
    """The work of a job that asks for a scan."""

    def __init__(self, scans: SegmentScan, on_thread: OnThread) -> None:
        self._scans = scans
        self._on_thread = on_thread

    async def check(self, source: Sent | Mapping[str, Sent], asked: ScanAsked) -> None:
        """Refuse at once what can be refused before anything is read.

        Raises:
            UnknownModel, WrongTask, BadRequest: no such model of scans.
            PathNotAllowed, ScanTooLarge: a path may not be read.
        """
        self._scans.models.served(asked.model, asked.version)
        for each in _sent(source).values():
            if isinstance(each, ScanPath):
                await self._on_thread(self._scans.roots.open, each.text)

    async def __call__(self, job: Job, folder: Path, tell: Tell) -> JobAnswer:
        """Answer it. Nobody waits on the line, so there is no deadline."""
        source = await self._on_thread(kept, job.asked["scan"], folder / "input")
        found = await self._scans(source, asked_in(job), request_id=job.id, deadline=Deadline.never(), progress=tell)
        return await self._on_thread(_answer_of, found)

    def meant_by(self, job: Job) -> tuple[str, int]:
        """The name and version of the model that it means."""
        return self._scans.models.meant_by(job.asked["model"], job.asked["version"])


def _answer_of(found: ScanAnswer) -> JobAnswer:
    """Every format as a file of its own, by the name of the format."""
    written = {form: replace(found, formats=(form,)).rendered() for form in found.formats}
    return JobAnswer(
        model=found.model,
        version=found.version,
        summary={
            "model": found.model,
            "version": found.version,
            "sha256": found.sha256,
            "results": {form: {"media_type": each.media_type, "file": each.filename} for form, each in written.items()},
            "timings_ms": {stage: round(seconds * 1e3, 3) for stage, seconds in found.stages_s.items()},
        },
        files={form: each.body for form, each in written.items()},
        stages_s=found.stages_s,
    )


def _sent(source: Sent | Mapping[str, Sent]) -> Mapping[str, Sent]:
    """By channel; an empty name where there are none."""
    return {"": source} if isinstance(source, bytes | Files | ScanPath) else source


def _channels(source: Sent | Mapping[str, Sent], describe: Callable[[Sent], dict[str, Any]]) -> dict[str, Any]:
    told = {channel: describe(each) for channel, each in _sent(source).items()}
    return told[""] if isinstance(source, bytes | Files | ScanPath) else {"channels": told}


def _described(scan: Sent) -> dict[str, Any]:
    if isinstance(scan, ScanPath):
        return {"scan_path": scan.text}
    return {"sha256": _digest_of(scan), "bytes": sum(map(len, _files(scan).values()))}


def _digest_of(scan: bytes | Files | Path) -> str:
    """Of its files in their order, whatever they are called."""
    if isinstance(scan, Path):
        with scan.open("rb") as file:
            each = [hashlib.file_digest(file, "sha256").digest()]
    else:
        each = [hashlib.sha256(data).digest() for data in _files(scan).values()]
    return hashlib.sha256(b"".join(each)).hexdigest()


def _in_order(channels: Mapping[str, T]) -> list[tuple[str, T]]:
    """By name: what is asked comes back from the store in another order than it was sent in."""
    return sorted(channels.items())


def _files(scan: Sent) -> Mapping[str, bytes]:
    if isinstance(scan, ScanPath):
        return {}
    return scan if isinstance(scan, Files) else {"": scan}


def _parted(blob: Path, names: list[tuple[str, int]]) -> Files:
    """Several files, which lie in one behind the other: a series may have a thousand, and each would be synced."""
    found = Files()
    with blob.open("rb") as file:
        for name, size in names:
            found[name] = file.read(size)
    return found
