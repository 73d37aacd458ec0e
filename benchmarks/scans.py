"""Whole scans over HTTP, one call after the other: from the path of a file to the checked answer.

    python benchmarks/scans.py                            # brain-tumor-3d, 24 files, 90 calls
    python benchmarks/scans.py --files 2 --calls 4        # does it run at all?

The scans are drawn heads of 256 x 256 x 128 voxels in uncompressed .nii files, from seeds that no model was made with.
The whole way counts: reading, reorienting, resampling, windows, merging, the mask on the scan's own grid, its check,
and the JSON with the mask in it. What is found is compared with what was drawn.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from isocenter.imaging.codecs.nifti_write import nifti_of
from isocenter.imaging.phantoms_3d import head_scan
from isocenter.repository.layout import find
from server_process import Running, isocenter, started, stop_when_told
from soak import fixed_work_ms
from tables import RESULTS, command_line, conditions, figure, table, write

SEED = 9_600_000
DEADLINE_S = 10.0
ANSWERED_WITHIN_S = 600.0


@dataclass(frozen=True)
class Drawn:
    """One file, and whether there is a lesion in it."""

    path: Path
    present: bool


@dataclass(frozen=True)
class Call:
    """One call and its answer."""

    seconds: float
    status: int
    right: bool
    stages_ms: dict[str, float]
    host_ms: float
    """CPU time of a fixed piece of work right before it."""


def draw(folder: Path, count: int, seed: int) -> list[Drawn]:
    """Scans as files, written as a scanner's converter writes them."""
    drawn = []
    for number in range(seed, seed + count):
        phantom = head_scan(number)
        path = folder / f"{number}.nii"
        path.write_bytes(nifti_of(phantom.volume.voxels[0], phantom.volume.geometry, compress=False))
        drawn.append(Drawn(path, bool(np.any(phantom.truth))))
        print(f"\rdrawn {len(drawn)} of {count}", end="", flush=True)
    print()
    return drawn


def ask(server: Running, scans: Sequence[Drawn], calls: int) -> tuple[list[Call], float]:
    """The calls, file after file in turn, and the seconds from the first to the last answer."""
    done: list[Call] = []
    began_s = time.perf_counter()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=ANSWERED_WITHIN_S) as client:
        for number in range(calls):
            scan = scans[number % len(scans)]
            host_ms = fixed_work_ms()
            asked_s = time.perf_counter()
            answer = client.post("/predict", json={"scan_path": str(scan.path)})
            seconds = time.perf_counter() - asked_s
            said: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
            right = said.get("present") == scan.present
            done.append(Call(seconds, answer.status_code, right, said.get("timings_ms", {}), host_ms))
            print(f"\r{number + 1} of {calls}: {seconds:.2f} s", end="", flush=True)
    print()
    return done, time.perf_counter() - began_s


def page(calls: Sequence[Call], all_s: float, given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    seconds = [call.seconds for call in calls]
    p50, p95 = (float(np.percentile(seconds, share)) for share in (50, 95))
    stages: dict[str, list[float]] = defaultdict(list)
    for call in calls:
        for stage, took_ms in call.stages_ms.items():
            stages[stage].append(took_ms)
    host = [call.host_ms for call in calls]
    return "\n".join(
        [
            f"# Scans over HTTP: {given.model}",
            "",
            conditions(),
            f"Repeat: {command_line()}.",
            "",
            f"{len(calls)} calls one after the other, {given.files} drawn heads of 256 x 256 x 128 voxels from seed "
            f"{given.seed} on in .nii files; the answer is the JSON with the mask in it. *Slow* are answers after more "
            f"than {DEADLINE_S:.0f} s; *right* are those that say whether there is a lesion as it was drawn.",
            "",
            table(
                ["calls", "answered", "right", "P50 s", "P95 s", "longest s", "slow", "scans an hour"],
                [
                    (
                        len(calls),
                        sum(call.status == 200 for call in calls),
                        sum(call.right for call in calls),
                        figure(p50),
                        figure(p95),
                        figure(max(seconds)),
                        sum(each > DEADLINE_S for each in seconds),
                        figure(len(calls) / all_s * 3600),
                    )
                ],
            ),
            "",
            table(["stage", "median ms"], [(stage, statistics.median(took)) for stage, took in stages.items()]),
            "",
            f"A fixed piece of arithmetic took {min(host):.0f} to {max(host):.0f} ms of CPU time between the calls, "
            f"{statistics.median(host):.0f} in the median; 10 is usual.",
        ]
    )


def main() -> None:
    """Read the command line, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, default=Path(__file__).resolve().parent.parent / "models")
    parser.add_argument("--model", default="brain-tumor-3d")
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--calls", type=int, default=90)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=RESULTS / "scans.md")
    given = parser.parse_args()
    stop_when_told()
    with tempfile.TemporaryDirectory(prefix="isocenter-scans-") as home:
        folder = Path(home).resolve() / "scans"
        folder.mkdir()
        scans = draw(folder, given.files, given.seed)
        models = Path(home) / "models"
        shutil.copytree(find(given.models, given.model).path.parent, models / given.model)
        with started(isocenter(models, environment={"ISOCENTER_SCANS__ROOTS": str(folder)})) as server:
            ask(server, scans, 1)
            calls, all_s = ask(server, scans, given.calls)
    write(given.out, page(calls, all_s, given))


if __name__ == "__main__":
    main()
