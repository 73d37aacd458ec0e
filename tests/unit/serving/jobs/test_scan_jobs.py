"""A scan that is kept for a job comes back as it was sent: each channel by its name, and nothing that was not sent."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from isocenter.core.errors import StoreUnavailable
from isocenter.serving.jobs.job import Job
from isocenter.serving.jobs.scan_jobs import Sent, asked_of, keep, kept
from isocenter.serving.jobs.store import JobStore
from isocenter.serving.scan_paths import ScanPath
from isocenter.serving.scan_reading import Files, GivenScan
from isocenter.serving.scans import ScanAsked

SERIES = Files({"00001/b.dcm": b"first", "00002/a.dcm": b"second"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with JobStore(tmp_path / "jobs.sqlite") as store:
        yield store


def begun(store: JobStore, source: Sent | Mapping[str, Sent]) -> tuple[Job, Path]:
    """A job as whoever runs it finds it, and where its files are."""
    store.add(None, "segment_scan", asked_of(source, ScanAsked()))
    job = store.claim("here")
    assert job is not None
    keep(source, store.folder_of(job.id) / "input")
    return job, store.folder_of(job.id) / "input"


def read(found: GivenScan) -> bytes | dict[str, bytes] | str:
    if isinstance(found, ScanPath):
        return found.text
    return found.read_bytes() if isinstance(found, Path) else dict(found) if isinstance(found, Files) else b""


@pytest.mark.parametrize("order", [("t1", "flair", "t2"), ("flair", "t1", "t2"), ("t2", "t1", "flair")])
def test_channels_come_back_by_their_names_in_whatever_order_they_were_sent(
    store: JobStore, order: tuple[str, ...]
) -> None:
    sent: dict[str, Sent] = {"t1": b"I am T1", "flair": SERIES, "t2": ScanPath("/scans/t2.nii")}
    job, folder = begun(store, {name: sent[name] for name in order})

    found = kept(job.asked["scan"], folder)

    assert isinstance(found, dict)
    assert {name: read(each) for name, each in found.items()} == {
        "t1": b"I am T1",
        "flair": dict(SERIES),
        "t2": "/scans/t2.nii",
    }


@pytest.mark.parametrize("source", [b"a scan", SERIES], ids=["one file", "several"])
def test_what_is_not_what_was_sent_is_not_read(store: JobStore, source: Sent) -> None:
    job, folder = begun(store, source)
    blob = folder / "0"
    blob.write_bytes(blob.read_bytes()[::-1])

    with pytest.raises(StoreUnavailable, match="not what was sent"):
        kept(job.asked["scan"], folder)


def test_channels_that_changed_places_on_disk_are_not_read(store: JobStore) -> None:
    job, folder = begun(store, {"t1": b"I am T1", "flair": b"I am FLAIR"})
    first, second = folder / "0", folder / "1"
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)

    with pytest.raises(StoreUnavailable):
        kept(job.asked["scan"], folder)


def test_what_files_are_called_is_nothing_that_is_asked() -> None:
    renamed = Files({"00001/x": b"first", "00002/y": b"second"})

    assert asked_of(renamed, ScanAsked()) == asked_of(SERIES, ScanAsked())
    assert asked_of(Files(reversed(SERIES.items())), ScanAsked()) != asked_of(SERIES, ScanAsked())
