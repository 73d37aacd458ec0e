"""Which scans of a cohort are answered, and what became of them: kept in a file, so that a run goes on where one ended.

A scan is known by its path, the fingerprint of its files, the model and the formats: if one of these changes, it is
asked again. Results are written first, each as a whole, and recorded after: a scan is answered exactly once. No
two scans share a name of results: one would show the mask of the other.
"""

import hashlib
import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

from isocenter.cli.cohort_find import FoundScan
from isocenter.cli.cohort_rows import Row, State, lesions_csv, printable, results_csv
from isocenter.cli.cohort_sheet import sheet_html
from isocenter.cli.errors import Hopeless
from isocenter.core.bad_input import BadInput
from isocenter.core.errors import IsocenterError
from isocenter.serving.jobs.files import sync_folder, write_durably
from isocenter.serving.jobs.job import Job
from isocenter.serving.jobs.store import JobStore

KIND: Final = "cohort"
LOST: Final = 3
"""A scan that was begun so often without an end comes after all others: it may be what ends the process."""
_LATE: Final = 1_000
_NO_LIMIT: Final = 2**31
_SHEETS_EVERY_S: Final = 5.0
_SUFFIXES: Final = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".zip")
_SERIES: Final = re.compile(r"\.series-[0-9]+\Z")
NAME_TAKEN: Final = "name_taken"
"""The code of a scan whose results would go where those of another one are."""
ENDINGS: Final[Mapping[str, str]] = {
    "nifti": ".mask.nii.gz",
    "dicom-seg": ".mask.dcm",
    "probabilities": ".probabilities.nii.gz",
    "montage": ".montage.png",
}
"""What the name of a result ends in, by format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortAnswer:
    """What is kept of the answer for one scan."""

    present: bool | None
    probability: float | None
    volume_ml: float | None
    lesions: tuple[Mapping[str, Any], ...] | None
    spacing_mm: tuple[float, ...]
    seconds: float
    warnings: tuple[str, ...]
    parts: Mapping[str, bytes]
    """The results by format."""


@dataclass(frozen=True, slots=True)
class Task:
    """One scan that is to be answered now."""

    job: Job
    scan: FoundScan
    series: int | None


class Ledger:
    """The rows of one run, in the order of the cohort; every change is on disk before it is told.

    Raises:
        Hopeless: another process works on the same folder.
        StoreUnavailable, DiskFull: it cannot be written.
    """

    def __init__(self, out: Path, *, model: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._hidden = out / ".isocenter"
        self._model = model
        self._now_s = now_s
        self._sheets_at_s = -_SHEETS_EVERY_S
        self._tasks: dict[str, Task] = {}
        self._rows: dict[tuple[str, int], Row] = {}
        self._places: dict[str, str] = {}
        self._holders: dict[str, Job] = {}
        self._store = JobStore(self._hidden / "jobs.sqlite")
        if not self._store.lock_for_running():
            raise Hopeless(
                f"another process segments into {out} at this moment", hint="wait until it ends, or --out elsewhere"
            )
        self._store.open()

    def close(self) -> None:
        """Let another process work on the folder."""
        self._store.close()

    @property
    def rows(self) -> list[Row]:
        """What became of every scan, in the order of paths and series."""
        return [self._rows[key] for key in sorted(self._rows)]

    def plan(self, scans: Sequence[FoundScan], *, identity: str) -> int:
        """Put what is not answered into the queue; how many scans were answered before."""
        self._store.recover(max_attempts=_NO_LIMIT)
        self._places = _places([scan.path for scan in scans])
        for job in self._store.list():  # by age, and not by a clock that may be set back
            self._hold(job) if job.state == "done" else self._doubt(job)
        for scan in scans:
            key = hashlib.sha256(json.dumps([scan.path, scan.fingerprint, identity]).encode()).hexdigest()
            self._take_up(key, scan, None)
        for job in self._store.list(["queued"]):
            if job.id not in self._tasks:  # of another model, or of files that have changed
                self._store.cancel(job.id)
        self.write_sheets()
        return sum(row.state != "waiting" for row in self._rows.values())

    def next(self) -> Task | None:
        """The next scan, or None if every one is answered or under way."""
        job = self._store.claim(f"process {os.getpid()}")
        return None if job is None else replace(self._tasks[job.id], job=job)

    def split(self, task: Task, count: int) -> None:
        """Ask for each of several series by itself."""
        self._store.finish(task.job.id, {"series": count})
        self._split(task, count)

    def answered(self, task: Task, answer: CohortAnswer) -> Row:
        """Keep an answer: its files first. What would overwrite the results of another scan is failed instead.

        Raises:
            StoreUnavailable, DiskFull: it cannot be written; the scan is asked again by the next run.
        """
        place = self._place(task)
        written = {form: f"{place}{ENDINGS[form]}" for form in answer.parts}
        for name in written.values():
            if (other := self._other_row(name, task)) is not None:
                said = f"{printable(name)} holds the results of {other.name}; --out with another folder keeps both"
                return self.failed(task, NAME_TAKEN, said)
        _make(self._out, (self._out / f"{place}.").parent)
        for form, name in written.items():
            write_durably(self._out / name, answer.parts[form])
        summary = {
            "present": answer.present,
            "probability": answer.probability,
            "volume_ml": answer.volume_ml,
            "lesions": None if answer.lesions is None else [*answer.lesions],
            "spacing_mm": [*answer.spacing_mm],
            "seconds": round(answer.seconds, 3),
            "warnings": [*answer.warnings],
            "written": written,
        }
        job = self._store.finish(task.job.id, summary)
        self._hold(job)
        return self._ended(task, job)

    def failed(self, task: Task, code: str, message: str, *, read: bool = True) -> Row:
        """Keep why a scan has no answer; one whose files could not be `read` is asked again, whatever the code."""
        return self._ended(task, self._store.fail(task.job.id, code, message, None if read else {"read": False}))

    def release(self, task: Task) -> None:
        """Put a scan back that was begun and is not to be finished: a stop in order."""
        self._store.release(task.job.id)

    def write_sheets(self, *, now: bool = True) -> int:
        """Write the tables and the page, each as a whole; without `now`, only every few seconds. How many scans."""
        if not now and self._now_s() - self._sheets_at_s < _SHEETS_EVERY_S:
            return len(self._rows)
        rows = self.rows
        title = f"Cohort of {len(rows)} scan{'s' if len(rows) != 1 else ''}"
        page = sheet_html(rows, title=title, model=self._model)
        for name, text in (
            ("results.csv", results_csv(rows)),
            ("lesions.csv", lesions_csv(rows)),
            ("index.html", page),
        ):
            write_durably(self._out / name, text.encode())
        self._sheets_at_s = self._now_s()
        return len(rows)

    def _take_up(self, key: str, scan: FoundScan, series: int | None) -> None:
        job = self._current(key, scan, series)
        task = Task(job, scan, series)
        self._tasks[job.id] = task
        if job.state == "done" and job.summary and "series" in job.summary:
            self._split(task, int(job.summary["series"]))
        else:
            self._ended(task, job)

    def _current(self, key: str, scan: FoundScan, series: int | None) -> Job:
        """The job of a scan: the one that is there, or a new one where that is of no use any more."""
        asked = {"path": scan.path, "series": series}
        late, number = 0, 1
        while True:
            name = key if number == 1 else f"{key}~{number}"
            job = self._store.by_key(name) or self._store.add(name, KIND, asked, priority=late)
            if job.state == "queued" and job.attempts >= LOST and job.priority != _LATE:
                job, late = self._store.cancel(job.id), _LATE
            if job.state != "cancelled" and not self._again(job):
                return job
            number += 1

    def _again(self, job: Job) -> bool:
        """Whether an ended job is to be run again: its files are gone or another's, or it was not the scan's fault."""
        if job.state == "failed":
            return not _is_refused(job)
        return job.state == "done" and not all(self._holds(job, name) for name in _written(job))

    def _hold(self, job: Job) -> None:
        """Note whose the files are: of all that wrote one, it is the last one's."""
        self._holders.update((name.casefold(), job) for name in _written(job))

    def _doubt(self, job: Job) -> None:
        """One that was begun and has no end may have written over what an older one of the same scan had written."""
        if job.attempts > (job.state == "failed"):  # one that failed at once had written nothing
            mine = [name for name, holder in self._holders.items() if holder.asked == job.asked]
            self._holders.update((name, job) for name in mine)

    def _holds(self, job: Job, name: str) -> bool:
        """Whether what has a name now is what a job wrote, and not another model or scan after it."""
        return self._holders[name.casefold()].id == job.id and (self._out / name).is_file()

    def _other_row(self, name: str, task: Task) -> Row | None:
        """The scan that holds a name, if it is another one, of this cohort or of an earlier one."""
        holder = self._holders.get(name.casefold())
        if holder is None or not (self._out / name).is_file():
            return None
        path, series = str(holder.asked["path"]), holder.asked["series"]
        return None if (path, series) == (task.scan.path, task.series) else Row(path=path, series=series)

    def _split(self, task: Task, count: int) -> None:
        self._rows.pop((task.scan.path, 0), None)
        for number in range(1, count + 1):
            self._take_up(f"{task.job.key}#{number}", task.scan, number)

    def _ended(self, task: Task, job: Job) -> Row:
        row = row_of(job, task.scan.path, task.series)
        self._rows[task.scan.path, task.series or 0] = row
        return row

    def _place(self, task: Task) -> str:
        place = self._places[task.scan.path]
        return place if task.series is None else f"{place}.series-{task.series}"


def row_of(job: Job, path: str, series: int | None) -> Row:
    """What became of a job."""
    if job.state == "failed":
        error = job.error or {}
        code, message = str(error.get("code", "")), str(error.get("message", ""))
        state: State = "refused" if _is_refused(job) else "failed"
        return Row(path=path, series=series, state=state, code=code, message=message)
    if job.state != "done" or job.summary is None:
        return Row(path=path, series=series)
    kept = dict(job.summary)
    lesions = kept["lesions"]
    return Row(
        path=path,
        series=series,
        state="answered",
        present=kept["present"],
        probability=kept["probability"],
        volume_ml=kept["volume_ml"],
        lesions=None if lesions is None else tuple(lesions),
        spacing_mm=tuple(kept["spacing_mm"]),
        seconds=kept["seconds"],
        warnings=tuple(kept["warnings"]),
        written=kept["written"],
    )


def series_of(error: IsocenterError) -> int | None:
    """How many series a source holds, if it was refused because none was named."""
    count = error.details.get("series")
    return count if isinstance(count, int) and count > 1 and "asked" not in error.details else None


def _written(job: Job) -> Collection[str]:
    """The names of the results of a job, within the folder of all results."""
    written: Mapping[str, str] = (job.summary or {}).get("written", {})
    return written.values()


def _places(paths: Sequence[str]) -> dict[str, str]:
    """Where the results of each path go, without an ending: its own place, its suffix kept where names would meet.

    The names depend on nothing but the paths, so that a run that goes on finds them again. No two of them meet, in any
    letter case and with any number of series. Paths that are their own place come first: folders, above all.

    >>> _places(["a/head.nii.gz", "a/head.mha", "b/head.nii", "."])
    {'a/head.nii.gz': 'a/head.nii.gz', 'a/head.mha': 'a/head.mha', 'b/head.nii': 'b/head', '.': 'scan'}
    >>> _places(["mixed", "mixed.series-2.nii", "p.nii", "P.NII"])
    {'mixed': 'mixed', 'mixed.series-2.nii': 'mixed.series-2.nii', 'p.nii': 'p.nii.2', 'P.NII': 'P.NII'}
    """
    stems = {path: _stem(path) for path in paths}
    counts = Counter(stem.casefold() for stem in stems.values())
    wished = {path: stem if counts[stem.casefold()] == 1 or path == "." else path for path, stem in stems.items()}
    names: set[str] = set()
    before_series: set[str] = set()
    places: dict[str, str] = {}
    for path in sorted(wished, key=lambda path: (wished[path] != path, path)):
        whole = stems[path] if path == "." else path
        for place in itertools.chain((wished[path], whole), (f"{whole}.{number}" for number in itertools.count(2))):
            name = place.casefold()
            # Any source may turn out to hold several series, and only when it is read.
            of_series = _SERIES.sub("", name)
            if names.isdisjoint((name, of_series)) and name not in before_series:
                break
        names.add(name)
        before_series.add(of_series)
        places[path] = place
    return {path: places[path] for path in paths}


def _stem(path: str) -> str:
    if path == ".":
        return "scan"
    name = PurePosixPath(path).name
    ending = next((each for each in _SUFFIXES if name.lower().endswith(each) and len(name) > len(each)), "")
    return path.removesuffix(name) + name[: len(name) - len(ending)]


def _is_refused(job: Job) -> bool:
    """Whether a failed job failed by the scan's own fault: it would every time."""
    error = job.error or {}
    return error.get("code") in _refusals() and error.get("details", {}).get("read", True)


@cache
def _refusals() -> frozenset[str]:
    """The codes that are the scan's own fault."""
    return frozenset(_codes_below(BadInput))


def _codes_below(owner: type[IsocenterError]) -> set[str]:
    return {owner.code}.union(*map(_codes_below, owner.__subclasses__()))


def _make(out: Path, folder: Path) -> None:
    """Make a folder whose names stay, up to that of the results."""
    if folder.is_dir():
        return
    _make(out, folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
