"""A long time at most of the capacity, with callers who leave and files that are broken: what grows, what gets slower?

    python benchmarks/soak.py                        # 15 minutes at 80 % of the capacity measured first
    python benchmarks/soak.py --minutes 0.2          # does it run at all?

Open loop with Poisson arrivals. Watches the server's whole process tree: resident memory, open files; and the P95 of
those who stayed with a good file, minute by minute. Writes a Markdown page and, with matplotlib, a plot.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contenders import our_name
from generators import CONNECTIONS, Open, Row, closed_loop, open_loop, outcome_name, percentiles
from isocenter.repository.layout import find
from pictures import as_requests, injured, write_jpegs
from server_process import Running, isocenter, started, stop_when_told, tree
from tables import RESULTS, Cell, command_line, conditions, figure, percent, table, write

SLOPE_BOUND_MB_PER_MIN = 1.0
P95_BOUND = 1.10
FILES_BOUND = 8
"""Open files at the end may be this many more than at the start: connections come and go between two looks."""
SETTLES_S = 120.0
"""What is allocated once is over by then; the slope counts from here."""
BAD_STATUSES = frozenset((400, 413, 415, 422))


@dataclass(frozen=True)
class Look:
    """The server's process tree at one instant, seconds after the start of the load."""

    at_s: float
    host_ms: float
    """CPU time of a fixed piece of work: what rises here is the machine's, not the server's."""
    resident_mb: float
    open_files: int
    processes: int


@dataclass(frozen=True)
class Minute:
    """One minute of the load."""

    number: int
    p95_ms: float | None
    answered: int
    refused: int
    resident_mb: float | None
    open_files: float | None
    host_ms: float | None


def fixed_work_ms() -> float:
    """CPU time of the same arithmetic each time, about 10 ms; waiting for a core does not count."""
    began_ns = time.thread_time_ns()
    total = 0
    for number in range(200_000):
        total += number * number
    return (time.thread_time_ns() - began_ns) / 1e6


def watch(running: Running, seconds: float, every_s: float, looks: list[Look]) -> None:
    """Look at the server until the load is over."""
    began_s = time.perf_counter()
    while (at_s := time.perf_counter() - began_s) < seconds:
        looks.append(Look(at_s, fixed_work_ms(), running.resident_mb(), running.open_files(), len(tree(running.pid))))
        time.sleep(max(0.0, min(every_s, seconds - at_s)))


def slope_per_min(looks: Sequence[Look]) -> float:
    """Growth of resident memory in MB a minute, by least squares; 0 of fewer than two looks.

    >>> slope_per_min([Look(60.0 * minute, 10.0, 100.0 + 2 * minute, 20, 1) for minute in range(4)])
    2.0
    """
    if len(looks) < 2:
        return 0.0
    found = statistics.linear_regression([look.at_s / 60 for look in looks], [look.resident_mb for look in looks])
    return round(found.slope, 6)


def minutes_of(rows: Sequence[Row], looks: Sequence[Look], seconds: float) -> list[Minute]:
    """The load minute by minute; a last part of less than half a minute belongs to the minute before."""
    count = max(1, int(seconds / 60 + 0.5))
    made = []
    for number in range(count):
        begin_s, end_s = number * 60.0, seconds if number == count - 1 else (number + 1) * 60.0
        mine = [row for row in rows if begin_s <= row.due_s < end_s and not row.bad]
        latencies = percentiles([row.latency_s * 1e3 for row in mine if row.outcome == 200])
        seen = [look for look in looks if begin_s <= look.at_s < end_s]
        made.append(
            Minute(
                number + 1,
                latencies.p95 if latencies else None,
                latencies.count if latencies else 0,
                sum(row.outcome in (429, 503) for row in mine),
                statistics.median(look.resident_mb for look in seen) if seen else None,
                statistics.median(look.open_files for look in seen) if seen else None,
                statistics.median(look.host_ms for look in seen) if seen else None,
            )
        )
    return made


def verdicts(rows: Sequence[Row], looks: Sequence[Look], minutes: Sequence[Minute]) -> list[tuple[str, str, bool]]:
    """What must hold, what was measured, and whether it holds."""
    settled = [look for look in looks if look.at_s >= SETTLES_S] or list(looks)
    slope = slope_per_min(settled)
    quarter = max(1, len(settled) // 4)
    files = [statistics.median(look.open_files for look in part) for part in (settled[:quarter], settled[-quarter:])]
    first, last = minutes[0].p95_ms, minutes[-1].p95_ms
    ratio = last / first if first and last else float("inf")
    wrong = [row for row in rows if _wrong(row)]
    return [
        (
            f"memory grows by less than {SLOPE_BOUND_MB_PER_MIN:g} MB/min after {SETTLES_S / 60:g} minutes",
            f"{slope:+.3f} MB/min",
            slope < SLOPE_BOUND_MB_PER_MIN,
        ),
        (
            "open files stay flat",
            f"{files[0]:g} in the first quarter, {files[1]:g} in the last",
            files[1] <= files[0] + FILES_BOUND,
        ),
        (
            f"P95 of the last minute within {P95_BOUND - 1:.0%} of the first",
            f"{figure(first)} ms, {figure(last)} ms: {ratio:.2f}x",
            ratio <= P95_BOUND,
        ),
        (
            "nobody gets a wrong kind of answer",
            f"{len(wrong)} of {len(rows)}: {dict(Counter(outcome_name(row.outcome) for row in wrong)) or 'none'}",
            not wrong,
        ),
    ]


def _wrong(row: Row) -> bool:
    """A good file is answered, or refused with a typed code; a broken one may be answered too, if it still decodes."""
    right = {200, 429, 503, 504, -2} | (BAD_STATUSES if row.bad else set())
    return row.outcome not in right


def page(seen: Open, looks: Sequence[Look], given: argparse.Namespace, capacity_per_s: float, name: str) -> str:
    """The whole page."""
    minutes = minutes_of(seen.rows, looks, seen.seconds)
    outcomes = Counter((row.bad, outcome_name(row.outcome)) for row in seen.rows)
    counted: list[list[Cell]] = [
        ["broken" if bad else "good", outcome, count] for (bad, outcome), count in sorted(outcomes.items())
    ]
    heads = ("minute", "P95 ms", "answered", "refused", "resident MB", "open files", "fixed work, CPU ms")
    by_minute: list[list[Cell]] = [
        [
            one.number,
            one.p95_ms,
            one.answered,
            one.refused,
            _one_digit(one.resident_mb),
            _one_digit(one.open_files),
            _one_digit(one.host_ms),
        ]
        for one in minutes
    ]
    held: list[list[Cell]] = [
        [rule, found, "yes" if holds else "no"] for rule, found, holds in verdicts(seen.rows, looks, minutes)
    ]
    return "\n\n".join(
        [
            f"# {given.minutes:g} minutes at {percent(given.load)} load",
            f"{conditions()}\nRepeat: {command_line()}.",
            f"{name}, model {given.model}; capacity {capacity_per_s:.1f}/s (closed loop, 16 connections, just before), "
            f"offered {capacity_per_s * given.load:.1f}/s, Poisson, {given.side_px} x {given.side_px} colour JPEG in a "
            f"form; {percent(given.leavers)} of the callers hang up within {given.leave_within_ms:g} ms, "
            f"{percent(given.bad)} of the files are broken. Memory and open files are those of the "
            "whole process tree, looked at every "
            f"{given.look_s:g} s; the generator noticed up to {seen.lag_p99_ms:.1f} ms late (P99) that a call was due.",
            table(("what must hold", "measured", "holds"), held),
            f"![memory, open files and P95 over time]({given.out.stem}.png)",
            table(heads, by_minute),
            table(("file", "outcome", "calls"), counted),
        ]
    )


def _one_digit(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def plot(out: Path, seen: Open, looks: Sequence[Look]) -> None:
    """Memory, open files and P95 over time."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    pictured, (memory, files, latency) = pyplot.subplots(3, 1, sharex=True, figsize=(9, 7), layout="constrained")
    at_min = [look.at_s / 60 for look in looks]
    memory.plot(at_min, [look.resident_mb for look in looks], label="resident, all processes")
    memory.set_ylabel("memory, MB")
    files.plot(at_min, [look.open_files for look in looks])
    files.set_ylabel("open files")
    minutes = minutes_of(seen.rows, looks, seen.seconds)
    latency.plot([one.number - 0.5 for one in minutes], [one.p95_ms or float("nan") for one in minutes], "o-")
    latency.set_ylabel("P95, ms")
    latency.set_xlabel("minutes")
    for axes in (memory, files, latency):
        axes.grid(alpha=0.3)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    pictured.savefig(out.with_suffix(".png"), dpi=110)
    pyplot.close(pictured)


def main() -> None:
    """Read the command line, soak, write; exit code 1 if something does not hold."""
    stop_when_told()
    parser = argparse.ArgumentParser(description="a long time at most of the capacity")
    parser.add_argument("--models", type=Path, default=RESULTS.parent.parent / "models")
    parser.add_argument("--model", default="brain-mri-classifier")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--load", type=float, default=0.8, help="share of the capacity")
    parser.add_argument("--leavers", type=float, default=0.05)
    parser.add_argument("--leave-within-ms", type=float, default=50.0)
    parser.add_argument("--bad", type=float, default=0.05)
    parser.add_argument("--frontends", type=int, default=0)
    parser.add_argument("--capacity-seconds", type=float, default=20.0)
    parser.add_argument("--look-s", type=float, default=5.0)
    parser.add_argument("--side-px", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.md")
    given = parser.parse_args()
    find(given.models, given.model)
    seconds = given.minutes * 60
    looks: list[Look] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        images = write_jpegs(scratch / "jpegs", 48, given.side_px)
        requests = as_requests(scratch / "good", images)
        bad = as_requests(scratch / "bad", injured(images, scratch / "injured", 500, given.seed))
        launch = isocenter(given.models, default_model=given.model, frontends=given.frontends)
        with started(launch) as running:
            closed = closed_loop(running.port, requests, 16, given.capacity_seconds)
            capacity_per_s = closed.per_second
            if not capacity_per_s:
                raise SystemExit(f"the server answered nothing: {closed.statuses}")
            seen = open_loop(
                running.port,
                requests,
                capacity_per_s * given.load,
                seconds,
                seed=given.seed,
                bad=str(bad),
                bad_share=given.bad,
                leave_share=given.leavers,
                connections=CONNECTIONS,
                leave_within_s=given.leave_within_ms / 1e3,
                meanwhile=lambda: watch(running, seconds, given.look_s, looks),
            )
    title = our_name(given.frontends, [0, given.frontends]) if given.frontends else "Isocenter, inline"
    write(given.out, page(seen, looks, given, capacity_per_s, title))
    plot(given.out, seen, looks)
    if not all(holds for _, _, holds in verdicts(seen.rows, looks, minutes_of(seen.rows, looks, seen.seconds))):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
