"""A process that works off a folder of jobs, to be killed at any moment."""

import threading
from multiprocessing.connection import Connection
from pathlib import Path

from isocenter.serving.jobs.store import JobStore

PARTS: dict[str, bytes | Path] = {"mask": b"m" * 40_000, "map": b"p" * 90_000}


def work_off(folder: Path, ready: "Connection[None, None]", most: int = 10**9) -> None:
    """Run jobs that wait, as the server and the command line do; each answer is told in `answered` too.

    After `most` of them: wait to be killed.
    """
    with JobStore(folder / "jobs.sqlite") as store:
        assert store.lock_for_running()
        store.recover(max_attempts=1_000)
        ready.send(None)
        done_here = 0
        while (job := store.claim("worker")) is not None:
            if done_here == most:
                threading.Event().wait()
            done_here += 1
            store.progress(job.id, "windows", 0.5)
            done = store.finish(job.id, {"n": job.asked["n"]}, PARTS, attempt=job.attempts)
            with (folder / "answered").open("a") as told:
                told.write(f"{job.id} {done.state}\n")
