"""How much of the bare model is left when it is served, beside plain FastAPI and LitServe: ratios inside one run.

    make bench                                   # the demonstration model, phantoms as JPEG
    python benchmarks/serving.py --model NAME --models DIR --connections 1,8,32,64 --seconds 10 --rounds 2

Servers take turns within each round, on the same images and the same model file; the bare model is measured right
before and after each window. CPU time is that of the server's whole process tree. Prints a Markdown table and writes
it, with the machine named, to `benchmarks/results/serving.md`.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import contenders
from bare_model import BareModel, Way, bare_model, best, sweep
from contenders import Contender
from generators import Closed, closed_loop
from isocenter.repository.layout import find
from isocenter.repository.load import usable_cores
from pictures import as_requests, write_jpegs
from server_process import stop_when_told
from tables import RESULTS, Cell, command_line, conditions, percent, rounds, table, write


@dataclass(frozen=True)
class Window:
    """One server at one number of connections in one round, and the bare model around it."""

    server: str
    seen: Closed
    bare_per_s: float


def measure(servers: Sequence[Contender], bare: BareModel, given: argparse.Namespace) -> list[Window]:
    """Every server in every round."""
    found = []
    for turn in range(given.rounds):
        for server in servers:
            with server.start() as live:
                before_per_s = bare.per_second(given.bare_seconds)
                for connections in map(int, given.connections.split(",")):
                    seen = closed_loop(live.port, live.requests, connections, given.seconds, weigh=live.weigh)
                    after_per_s = bare.per_second(given.bare_seconds)
                    found.append(Window(server.name, seen, (before_per_s + after_per_s) / 2))
                    before_per_s = after_per_s
                    print(f"round {turn + 1}: {found[-1]}", file=sys.stderr)
    return found


HEADS = (
    "server",
    "connections",
    "requests/s",
    "of the bare model",
    "P50 ms",
    "P95 ms",
    "n",
    "CPU ms/request",
    "failed",
)


def rows(found: Sequence[Window]) -> list[list[Cell]]:
    """Medians over the rounds."""
    made: list[list[Cell]] = []
    for server, connections in dict.fromkeys((one.server, one.seen.connections) for one in found):
        mine = [one for one in found if (one.server, one.seen.connections) == (server, connections)]
        latencies = [one.seen.latency_ms for one in mine if one.seen.latency_ms]
        cpu_ms = [one.seen.cpu_ms for one in mine if one.seen.cpu_ms is not None]
        made.append(
            [
                server,
                connections,
                statistics.median(one.seen.per_second for one in mine),
                percent(statistics.median(one.seen.per_second / one.bare_per_s for one in mine)),
                statistics.median(latency.p50 for latency in latencies) if latencies else None,
                statistics.median(latency.p95 for latency in latencies) if latencies else None,
                sum(latency.count for latency in latencies),
                statistics.median(cpu_ms) if cpu_ms else None,
                sum(one.seen.failed for one in mine),
            ]
        )
    return made


def page(title: str, found: Sequence[Window], way: Way, given: argparse.Namespace) -> str:
    """The whole page."""
    bare_per_s = statistics.median(one.bare_per_s for one in found)
    return "\n\n".join(
        [
            f"# Served against bare: {title}",
            f"{conditions()}\nRepeat: {command_line()}.",
            f"Closed loop, {given.seconds:g} s a window after 1.5 s of warm-up, {rounds(given.rounds)} in turn, "
            f"medians; {given.side_px} x {given.side_px} colour JPEG in a form. The bare model alone, {way}: "
            f"{bare_per_s:.1f} items/s, "
            "measured right before and after each window; *of the bare model* is the median of those ratios.",
            table(HEADS, rows(found)),
        ]
    )


def main() -> None:
    """Read the command line, measure, print, write."""
    stop_when_told()
    parser = argparse.ArgumentParser(description="served against bare, in one run")
    parser.add_argument("--models", type=Path, default=RESULTS.parent.parent / "models")
    parser.add_argument("--model", default="brain-mri-classifier")
    parser.add_argument("--connections", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--bare-seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--frontends", default="0", help="0,2 measures both settings side by side")
    parser.add_argument("--side-px", type=int, default=320)
    parser.add_argument("--litserve-python", default=sys.executable, help="a Python that has LitServe")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.md")
    given = parser.parse_args()
    folder = find(given.models, given.model)
    way = best(sweep(folder.weights, threads=usable_cores(), seconds=given.bare_seconds / 2))
    with tempfile.TemporaryDirectory() as name, bare_model(folder.weights, way) as bare:
        images = write_jpegs(Path(name) / "jpegs", 48, given.side_px)
        requests = as_requests(Path(name) / "requests", images)
        servers = contenders.ours(given.models, given.model, requests, [int(n) for n in given.frontends.split(",")])
        servers += contenders.yardsticks(folder, requests, litserve_python=given.litserve_python)
        found = measure(servers, bare, given)
    write(given.out, page(f"{folder.manifest.name} {folder.manifest.version}", found, way, given))


if __name__ == "__main__":
    main()
