"""Several processes over one folder of jobs: one of them runs, all of them know."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from patience import PATIENCE_S
from scan_files import ball, nifti
from segmenters import write_segmenter
from serverproc import ServerProcess, running


@pytest.mark.slow
@pytest.mark.long
def test_front_ends_share_jobs_and_one_takes_over_when_the_other_is_killed(
    tmp_path: Path,
) -> None:
    models, scans = tmp_path / "models", tmp_path / "scans"
    write_segmenter(models)
    scans.mkdir()
    (scans / "head.nii.gz").write_bytes(nifti(ball(), packed=True))
    environment = {"ISOCENTER_JOBS__FOLDER": str(tmp_path / "jobs"), "ISOCENTER_SCANS__ROOTS": str(scans)}
    with running(models, "--frontends", "2", **environment) as server:
        jobs = [put(server, f"before-{number}") for number in range(4)]
        assert [ended(server, job)["state"] for job in jobs] == ["done"] * 4

        holder = holder_of(tmp_path / "jobs" / "jobs.sqlite.lock")
        os.kill(holder, signal.SIGKILL)
        job = put(server, "after")
        assert ended(server, job)["state"] == "done"
        assert put(server, "before-0") == jobs[0]
        assert holder_of(tmp_path / "jobs" / "jobs.sqlite.lock") != holder
        assert "head" not in server.written()


def put(server: ServerProcess, key: str) -> str:
    """Put a job in; a front end that has just died may take the first try with it, which the key makes harmless."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < until_s
        try:
            connection = server.connect()
            headers = {"Content-Type": "application/json", "Idempotency-Key": key}
            connection.request("POST", "/v1/jobs", json.dumps({"scan_path": "head.nii.gz"}), headers)
            answer = connection.getresponse()
            body = json.loads(answer.read())
            connection.close()
        except (OSError, ValueError):
            continue
        if answer.status == 202:
            return str(body["id"])
        assert answer.status == 503, body


def ended(server: ServerProcess, job_id: str) -> dict[str, Any]:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        status, job = server.get(f"/v1/jobs/{job_id}")
        assert status == 200
        if job["finished_at"]:
            return job
        time.sleep(0.02)
    raise AssertionError("it has not ended")


def holder_of(lock: Path) -> int:
    """Who holds a file lock, as the system says."""
    inode = lock.stat().st_ino
    found = [line.split() for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]
    assert found, "nobody holds it"
    return int(found[0][4])
