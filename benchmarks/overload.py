"""Open loop at once, twice and four times each server's own capacity: what still arrives by the deadline.

    python benchmarks/overload.py --model brain-mri-classifier --deadline-ms 250

Capacity is what a server answered in a closed loop of 16 connections just before. Every load starts with a fresh
server, so that none pays for work it was left with by the load before. Our server is told the deadline
(`X-Timeout-Ms`); the others have no means to be told.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import contenders
from contenders import Contender
from generators import GIVE_UP_S, Closed, Kept, Open, closed_loop, judge, open_loop
from isocenter.repository.layout import find
from pictures import as_requests, write_jpegs
from server_process import stop_when_told
from tables import RESULTS, Cell, command_line, conditions, percent, rounds, table, write

CAPACITY_CONNECTIONS = 16
AFTER_S = 3.0


@dataclass(frozen=True)
class Plan:
    """How long, how often, how much."""

    deadline_s: float
    seconds: float = 20.0
    capacity_seconds: float = 8.0
    rounds: int = 1
    factors: Sequence[float] = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Seen:
    """One server at one load in one round."""

    server: str
    factor: float
    capacity_per_s: float
    offered_per_s: float
    open: Open
    after_per_s: float


def measure(servers: Sequence[Contender], plan: Plan) -> tuple[list[Seen], dict[str, str]]:
    """Every server at every load, in turn; and why servers were left out."""
    found: list[Seen] = []
    left_out: dict[str, str] = {}
    for turn in range(plan.rounds):
        for server in servers:
            if server.name in left_out:
                continue
            try:
                found += _measure_one(server, plan, turn)
            except (RuntimeError, OSError) as error:
                left_out[server.name] = str(error).splitlines()[0]
                print(f"{server.name} left out: {error}", file=sys.stderr)
    return found, left_out


def _measure_one(server: Contender, plan: Plan, turn: int) -> list[Seen]:
    found: list[Seen] = []
    capacity_per_s = 0.0
    for factor in plan.factors:
        with server.start() as live:
            warm = closed_loop(
                live.port, live.requests, CAPACITY_CONNECTIONS, 1.0 if capacity_per_s else plan.capacity_seconds
            )
            capacity_per_s = capacity_per_s or _capacity(server, warm)
            offered_per_s = capacity_per_s * factor
            seen = open_loop(live.port, live.requests, offered_per_s, plan.seconds, seed=turn + 1)
            after = closed_loop(live.port, live.requests, CAPACITY_CONNECTIONS, AFTER_S, warm_s=0.5)
        found.append(Seen(server.name, factor, capacity_per_s, offered_per_s, seen, after.per_second))
        kept = judge(seen, plan.deadline_s)
        print(
            f"round {turn + 1}: {server.name} {factor:g}x: capacity {capacity_per_s:.1f}/s, goodput "
            f"{kept.goodput_per_s:.1f}/s, missed {percent(kept.missed_share)} of {kept.admitted} admitted, refused "
            f"{kept.refused}, generator late by {seen.lag_p99_ms:.1f} ms (p99), afterwards {after.per_second:.1f}/s",
            file=sys.stderr,
        )
    return found


def _capacity(server: Contender, warm: Closed) -> float:
    if not warm.per_second:
        raise RuntimeError(f"{server.name} answered nothing at {CAPACITY_CONNECTIONS} connections: {warm.statuses}")
    return warm.per_second


HEADS = (
    "server",
    "load",
    "capacity/s",
    "offered/s",
    "goodput/s",
    "of capacity",
    "of its goodput at 1x",
    "in deadline",
    "refused",
    "late",
    "gave up",
    "failed",
    "missed, of the admitted",
    "P99 of refusals ms",
    "P50 ms",
    "P95 ms",
    "answers/s afterwards",
)


def page(title: str, found: Sequence[Seen], left_out: dict[str, str], plan: Plan, remark: str) -> str:
    """The whole page as Markdown."""
    lag_ms = max((seen.open.lag_p99_ms for seen in found), default=0.0)
    lines = [
        f"# {title}",
        "",
        conditions(),
        f"Repeat: {command_line()}. {remark}",
        "",
        f"Poisson arrivals for {plan.seconds:g} s a window, {rounds(plan.rounds)} pooled; deadline "
        f"{plan.deadline_s * 1e3:.0f} ms, counted from the instant at which a request was due; callers give up after "
        f"{GIVE_UP_S:g} s. Capacity: closed loop, {CAPACITY_CONNECTIONS} connections, {plan.capacity_seconds:g} s. The "
        "columns from *in deadline* to *failed* are shares of what was offered and come to 100 %; *late* holds answers "
        "after the deadline and 504. *Missed* is everything admitted, which is everything not refused (429, 503), that "
        f"had no answer in time. The generator noticed up to {lag_ms:.1f} ms late that a call was due (worst P99 of a "
        "window).",
        "",
        table(HEADS, rows(found, plan)),
        "",
    ]
    lines += [f"Left out: {name}: {why}" for name, why in left_out.items()]
    return "\n".join(lines).rstrip() + "\n"


def rows(found: Sequence[Seen], plan: Plan) -> list[list[Cell]]:
    """One row a server and load."""
    made: list[list[Cell]] = []
    for server in dict.fromkeys(seen.server for seen in found):
        at_once: float | None = None
        for factor in plan.factors:
            mine = [seen for seen in found if (seen.server, seen.factor) == (server, factor)]
            if not mine:
                continue
            kept = pooled(mine, plan.deadline_s)
            at_once = kept.goodput_per_s if factor == 1.0 else at_once
            made.append(_row(server, factor, mine, kept, at_once))
    return made


def pooled(seen: Sequence[Seen], deadline_s: float) -> Kept:
    """The rounds of one server at one load, taken together."""
    calls = [row for one in seen for row in one.open.rows]
    return judge(Open(sum(one.open.seconds for one in seen), calls, 0.0), deadline_s)


def _row(server: str, factor: float, mine: Sequence[Seen], kept: Kept, at_once: float | None) -> list[Cell]:
    shares = (kept.in_time, kept.refused, kept.late + kept.expired, kept.gave_up, kept.failed)
    capacity_per_s = statistics.median(seen.capacity_per_s for seen in mine)
    return [
        server,
        f"{factor:g}x",
        capacity_per_s,
        statistics.median(seen.offered_per_s for seen in mine),
        kept.goodput_per_s,
        percent(kept.goodput_per_s / capacity_per_s),
        percent(kept.goodput_per_s / at_once) if at_once else "",
        *(percent(count / kept.offered) if kept.offered else "" for count in shares),
        percent(kept.missed_share),
        kept.refusal_ms.p99 if kept.refusal_ms else None,
        kept.latency_ms.p50 if kept.latency_ms else None,
        kept.latency_ms.p95 if kept.latency_ms else None,
        statistics.median(seen.after_per_s for seen in mine),
    ]


def main() -> None:
    """This server and the yardsticks of this project."""
    stop_when_told()
    parser = argparse.ArgumentParser(description="open loop above capacity")
    parser.add_argument("--models", type=Path, default=RESULTS.parent.parent / "models")
    parser.add_argument("--model", default="brain-mri-classifier")
    parser.add_argument("--deadline-ms", type=float, default=250.0)
    parser.add_argument("--factors", default="1,2,4")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--capacity-seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--frontends", default="0", help="0,2 measures both settings side by side")
    parser.add_argument("--side-px", type=int, default=320)
    parser.add_argument("--litserve-python", default=sys.executable, help="a Python that has LitServe")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/overload-MODEL.md")
    given = parser.parse_args()
    folder = find(given.models, given.model)
    plan = Plan(
        given.deadline_ms / 1e3,
        given.seconds,
        given.capacity_seconds,
        given.rounds,
        [float(factor) for factor in given.factors.split(",")],
    )
    with tempfile.TemporaryDirectory() as name:
        images = write_jpegs(Path(name) / "jpegs", 48, given.side_px)
        told = as_requests(Path(name) / "told", images, headers={"X-Timeout-Ms": f"{given.deadline_ms:g}"})
        plain = as_requests(Path(name) / "plain", images)
        servers = contenders.ours(given.models, given.model, told, [int(n) for n in given.frontends.split(",")])
        servers += contenders.yardsticks(folder, plain, litserve_python=given.litserve_python)
        found, left_out = measure(servers, plan)
    remark = f"{given.side_px} x {given.side_px} colour JPEG in a form."
    text = page(f"Overload: {folder.manifest.name} {folder.manifest.version}", found, left_out, plan, remark)
    write(given.out or RESULTS / f"overload-{given.model}.md", text)


if __name__ == "__main__":
    main()
