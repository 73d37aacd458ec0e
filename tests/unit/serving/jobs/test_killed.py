"""`kill -9` in the middle of whatever it is: every job is answered once, with whole files, and nothing is lost."""

import multiprocessing
import random
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from isocenter.serving.jobs.store import JobStore
from job_worker import PARTS, work_off

JOBS, KILLS = 160, 20
"""At most 7 jobs are done between two kills."""


def work(folder: Path, most: int = JOBS) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["job_worker"])
    told, ready = context.Pipe(duplex=False)
    process = context.Process(target=work_off, args=(folder, ready, most))
    process.start()
    ready.close()
    told.recv()
    told.close()
    return process


def answered(folder: Path) -> int:
    told = folder / "answered"
    return len(told.read_bytes().splitlines()) if told.exists() else 0


@pytest.mark.slow
def test_whoever_is_killed_nothing_is_lost_and_nothing_is_answered_twice(tmp_path: Path) -> None:
    chance = random.Random(7)
    with JobStore(tmp_path / "jobs.sqlite") as store:
        put = {store.add(str(number), "scan", {"n": number}).id for number in range(JOBS)}

        for _ in range(KILLS):
            process = work(tmp_path, most=7)
            enough = answered(tmp_path) + chance.randint(0, 6)
            while answered(tmp_path) < enough:
                process.join(timeout=0.001)
            process.join(timeout=chance.uniform(0.0, 0.01))
            process.kill()
            process.join()
        done = store.list({"done"})
        for job in done:
            assert {name: store.result(job.id, name) for name in job.files} == PARTS
        assert 0 < len(done) < JOBS  # it was killed in the middle
        last = work(tmp_path)
        last.join()
        assert last.exitcode == 0

        jobs = store.list()
        assert {job.id for job in jobs} == put
        assert {job.state for job in jobs} == {"done"}
        assert sum(job.attempts for job in jobs) <= JOBS + KILLS
        told = (tmp_path / "answered").read_text().splitlines()
        assert len(told) == len(set(told)) <= JOBS
        left = [each for job in jobs for each in store.folder_of(job.id).iterdir()]
        assert sorted(left) == sorted(store.folder_of(job.id) / f"result-{job.attempts}" for job in jobs)
