"""A small model beside a large one at full load, on one server: does the small one stay quick, does neither starve?

    python benchmarks/mixed.py --models DIR --small tiny --large resnet50
    python benchmarks/mixed.py --kit                       # packages the two models of the peer benchmark kit first

Closed loops on this machine. Each model alone, then both at the same time: the large one from 16 connections, the small
one from 1, 4 and 8. Every setting starts once a round; the order within a round is alone, beside, for each number.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contenders import our_name
from generators import Closed, closed_loop, closed_loop_beside
from isocenter.repository.layout import find
from package_model import Packaging, package
from peer_kit import find_kit
from pictures import as_requests, write_jpegs
from server_process import Running, isocenter, started, stop_when_told
from tables import RESULTS, Cell, command_line, conditions, percent, rounds, table, write

BOUND = 3.0
"""The small model's P95 beside the large one may be this many times its P95 alone."""


@dataclass(frozen=True)
class Together:
    """Both models in one round at one number of the small one's connections."""

    setting: str
    turn: int
    connections: int
    small_alone: Closed
    small_beside: Closed
    large_alone: Closed
    large_beside: Closed


def measure(
    running: Running, small: Path, large: Path, given: argparse.Namespace, setting: str, turn: int
) -> list[Together]:
    """One round on a server that answers."""
    found = []
    large_alone = closed_loop(running.port, large, given.large_connections, given.seconds)
    for connections in map(int, given.connections.split(",")):
        small_alone = closed_loop(running.port, small, connections, given.seconds)
        # The same window for both; the large one goes on a little longer, so that the small one is never alone.
        with closed_loop_beside(
            running.port, large, given.large_connections, given.seconds, warm_s=given.warm, linger_s=0.5
        ) as finish:
            small_beside = closed_loop(running.port, small, connections, given.seconds, warm_s=given.warm)
            large_beside = finish()
        found.append(Together(setting, turn, connections, small_alone, small_beside, large_alone, large_beside))
        print(f"round {turn + 1}: {setting} {_sentence(found[-1])}", flush=True)
    return found


def _sentence(one: Together) -> str:
    alone, beside = one.small_alone.latency_ms, one.small_beside.latency_ms
    p95 = f"{alone.p95:.1f} -> {beside.p95:.1f} ms" if alone and beside else "no answers"
    return (
        f"small c{one.connections}: P95 {p95}, {one.small_alone.per_second:.1f} -> "
        f"{one.small_beside.per_second:.1f}/s; large {one.large_alone.per_second:.1f} -> "
        f"{one.large_beside.per_second:.1f}/s; failed {one.small_beside.failed + one.large_beside.failed}"
    )


HEADS = (
    "server",
    "small's connections",
    "small P50 alone, beside ms",
    "small P95 alone, beside ms",
    "P95 ratio",
    "small/s alone, beside",
    "small's share of its lone rate",
    "large/s alone, beside",
    "large's share of its lone rate",
    "both shares",
    "longest wait of the small ms",
    "failed",
    "holds",
)


def rows(found: Sequence[Together]) -> list[list[Cell]]:
    """One row a setting and number of connections: medians over the rounds."""
    made: list[list[Cell]] = []
    for setting, connections in dict.fromkeys((one.setting, one.connections) for one in found):
        mine = [one for one in found if (one.setting, one.connections) == (setting, connections)]
        small = _rate([one.small_alone for one in mine]), _rate([one.small_beside for one in mine])
        large = _rate([one.large_alone for one in mine]), _rate([one.large_beside for one in mine])
        p50 = _latency([one.small_alone for one in mine], "p50"), _latency([one.small_beside for one in mine], "p50")
        p95 = _latency([one.small_alone for one in mine], "p95"), _latency([one.small_beside for one in mine], "p95")
        ratio = p95[1] / p95[0] if p95[0] else float("inf")
        shares = small[1] / small[0] if small[0] else 0.0, large[1] / large[0] if large[0] else 0.0
        made.append(
            [
                setting,
                connections,
                f"{p50[0]:.1f}, {p50[1]:.1f}",
                f"{p95[0]:.1f}, {p95[1]:.1f}",
                f"{ratio:.2f}x",
                f"{small[0]:.1f}, {small[1]:.1f}",
                percent(shares[0]),
                f"{large[0]:.1f}, {large[1]:.1f}",
                percent(shares[1]),
                percent(sum(shares)),
                max(one.small_beside.longest_wait_ms for one in mine),
                sum(one.small_beside.failed + one.large_beside.failed for one in mine),
                "yes" if ratio <= BOUND and min(shares) > 0 else "no",
            ]
        )
    return made


def _rate(windows: Sequence[Closed]) -> float:
    return statistics.median(one.per_second for one in windows)


def _latency(windows: Sequence[Closed], which: str) -> float:
    found = [getattr(one.latency_ms, which) for one in windows if one.latency_ms]
    return statistics.median(found) if found else float("inf")


def page(found: Sequence[Together], given: argparse.Namespace) -> str:
    """The whole page."""
    weights = f", weights {given.weights} (small, large)" if given.weights else ""
    return "\n\n".join(
        [
            "# A small model beside a large one",
            f"{conditions(threads=given.threads)}\nRepeat: {command_line()}.",
            f"Small: {given.small}; large: {given.large}{weights}. Closed loops, {given.seconds:g} s a window, "
            f"{rounds(given.rounds)}, medians; the large model from {given.large_connections} connections without a "
            f"pause. *Holds*: the small model's P95 beside is at most {BOUND:g} times its P95 alone, and both are "
            "answered. *Both shares* near 100 % means that nothing is lost by sharing the machine.",
            table(HEADS, rows(found)),
        ]
    )


def _package(scratch: Path, given: argparse.Namespace) -> Path:
    kit = find_kit()
    weights = [float(weight) for weight in given.weights.split(",")] if given.weights else [None, None]
    for model, weight in zip((given.small, given.large), weights, strict=True):
        package(kit.weights(model), scratch, Packaging(labels=4, threads=given.threads, weight=weight))
    return scratch


def main() -> None:
    """Read the command line, measure, write."""
    stop_when_told()
    parser = argparse.ArgumentParser(description="a small model beside a large one")
    parser.add_argument("--models", type=Path, help="a repository that holds both")
    parser.add_argument("--kit", action="store_true", help="package both from the peer benchmark kit (PEERBENCH_HOME)")
    parser.add_argument("--small", default="tiny")
    parser.add_argument("--large", default="resnet50")
    parser.add_argument("--weights", metavar="SMALL,LARGE", help="with --kit: the models' weights, as 1,1")
    parser.add_argument("--threads", type=int, default=2, help="with --kit: threads of each session")
    parser.add_argument("--connections", default="1,4,8")
    parser.add_argument("--large-connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--frontends", default="0", help="0,2 measures both settings side by side")
    parser.add_argument("--side-px", type=int, default=320)
    parser.add_argument("--out", type=Path, default=RESULTS / "mixed.md")
    given = parser.parse_args()
    if not given.kit and given.models is None:
        parser.error("give --models, a repository that holds both models, or --kit")
    frontends = [int(count) for count in given.frontends.split(",")]
    found: list[Together] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        models = _package(scratch / "models", given) if given.kit else given.models
        for model in (given.small, given.large):
            find(models, model)
        images = write_jpegs(scratch / "jpegs", 48, given.side_px)
        small = as_requests(scratch / "small", images, path=f"/predict?model={given.small}")
        large = as_requests(scratch / "large", images, path=f"/predict?model={given.large}")
        for turn in range(given.rounds):
            for count in frontends:
                setting = our_name(count, frontends)
                with started(isocenter(models, frontends=count)) as running:
                    found += measure(running, small, large, given, setting, turn)
    write(given.out, page(found, given))


if __name__ == "__main__":
    main()
