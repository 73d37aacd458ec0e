"""This server beside its peers and beside the bare model, in the same minutes: throughput, latency, CPU, overload.

    make bench-peers                                            # everything: about two hours on a quiet machine
    python benchmarks/peers.py --quick                          # does it run at all?
    python benchmarks/peers.py --what closed --model resnet50 --rounds 3 --seconds 30 --frontends 0,2

It needs the peer benchmark kit (PEERBENCH) with its environments (PEERBENCH_HOME); `make bench` does not. Writes
`benchmarks/results/peers-MODEL.md` and `overload-MODEL.md`, and every window as a line of JSON into the kit's results.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import overload
from bare_model import BareModel, Way, bare_model, best, sweep, sweep_table
from package_model import Packaging, package, settings
from peer_kit import Candidate, Kit, find_kit
from peer_pages import Window, headline, main_table, quiet, ratio_table
from server_process import stop_when_told
from tables import RESULTS, command_line, conditions, rounds, write

KIT_MODELS = {"resnet50": "resnet50", "small": "tiny"}
TITLES = {"resnet50": "ResNet-50", "small": "a small model"}
DEADLINE_S = {"resnet50": 1.0, "small": 0.25}
LABELS = 4


@dataclass(frozen=True)
class Setting:
    """One way to run this server."""

    frontends: int
    instances: int
    threads: int


def settings_of(frontends: str, instances: str, threads: int) -> list[Setting]:
    """Every combination; `instances` are counts of sessions, which share the model threads.

    >>> [(one.frontends, one.instances, one.threads) for one in settings_of("0,2", "1", 2)]
    [(0, 1, 2), (2, 1, 2)]
    """
    pairs = itertools.product(frontends.split(","), instances.split(","))
    return [Setting(int(front), int(count), max(1, threads // int(count))) for front, count in pairs]


def name_of(setting: Setting, among: Sequence[Setting]) -> str:
    """What tells it from the others, and no more.

    >>> among = settings_of("0,2", "1", 2)
    >>> [name_of(one, among) for one in among], name_of(among[0], among[:1])
    (['isocenter', 'isocenter-f2'], 'isocenter')
    """
    name = "isocenter"
    if len({one.frontends for one in among}) > 1 and setting.frontends:
        name += f"-f{setting.frontends}"
    if len({one.instances for one in among}) > 1:
        name += f"-{setting.instances}x{setting.threads}"
    return name


def candidates(
    kit: Kit, model: str, among: Sequence[Setting], scratch: Path, given: argparse.Namespace, headers: dict[str, str]
) -> list[Candidate]:
    """Our settings, each with its model folder."""
    made = []
    for setting in among:
        models = scratch / f"models-{setting.instances}x{setting.threads}"
        how = Packaging(
            labels=LABELS,
            max_batch_size=given.max_batch_size,
            preferred_batch_sizes=[int(size) for size in given.preferred.split(",")] if given.preferred else None,
            max_queue_delay_ms=given.max_queue_delay_ms,
            instances=setting.instances,
            threads=setting.threads,
            timeout_ms=given.timeout_ms,
            more=settings(given.set),
        )
        package(kit.weights(model), models, how)
        made.append(Candidate(name_of(setting, among), models, setting.frontends, headers))
    return made


def closed(
    kit: Kit, model: str, ours: Sequence[Candidate], peers: Sequence[str], given: argparse.Namespace, way: Way
) -> tuple[list[Window], dict[str, str]]:
    """Every server in every round, with a window of the bare model before and after each of its windows."""
    targets = kit.targets(model, peers, ours, threads=given.threads)
    our_names = {candidate.name for candidate in ours}
    names = list(targets)
    found: list[Window] = []
    left_out: dict[str, str] = {}
    with bare_model(kit.weights(model), way) as bare, _lines(kit, f"closed-{model}") as lines:
        for turn in range(given.rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if name in left_out:
                    continue
                try:
                    with targets[name]() as target:
                        target.check(model)
                        for window in _one_server(target, bare, given, turn, name in our_names):
                            found.append(window)
                            lines.write(json.dumps(asdict(window)) + "\n")
                            lines.flush()
                except (RuntimeError, OSError) as error:
                    left_out[name] = str(error).splitlines()[0]
                    _say(f"{name} left out: {error}")
    return found, left_out


def _one_server(target: Any, bare: BareModel, given: argparse.Namespace, turn: int, ours: bool) -> Iterator[Window]:
    before = bare.per_second(given.bare_seconds)
    for connections in map(int, given.connections.split(",")):
        spec = target.spec(
            mode="closed", concurrency=connections, warm=given.warm, seconds=given.seconds, settle=given.settle
        )
        got = target.measure(spec)
        after = bare.per_second(given.bare_seconds)
        got.update(agree=target.agree, start_s=target.start_s)
        window = Window(target.name, ours, turn, connections, (before + after) / 2, got)
        _say(
            f"round {turn + 1} {target.name} c{connections}: {got['rps']}/s, {window.of_bare:.1%} of the bare model's "
            f"{window.bare_per_s:.1f}/s, P95 {got['p95_ms']} ms, {got.get('cpu_ms_req')} ms CPU, failed "
            f"{got['error'] + got['refused']}, other load {got['other_load_pct']} %"
        )
        yield window
        before = after


def closed_page(
    kind: str, kit: Kit, windows: list[Window], left_out: dict[str, str], given: argparse.Namespace, sweep_text: str
) -> str:
    """The whole page of a closed loop."""
    ours = list(dict.fromkeys(one.server for one in windows if one.ours))
    parts = [
        f"# This server and its peers: {TITLES[kind]}, closed loop",
        f"{conditions(threads=given.threads)}\nRepeat: {command_line()}.",
        f"{given.seconds:g} s a window after {given.warm:g} s of warm-up, {rounds(given.rounds)} in turn; all "
        f"connections open {given.settle:g} s before the first request. JPEG of 320 x 320 in a form (MLServer: base64 "
        f"in JSON; PyTriton: a binary tensor). The bare model runs alone for {given.bare_seconds:g} s right before and "
        "right after every window, while the server is idle: *of the bare model* is the median of those ratios. "
        "*Agree*: of 16 answers taken before the load, how many equal the model's own. " + quiet(windows),
        *(headline(windows, name) if len(ours) == 1 else f"{name}:\n\n{headline(windows, name)}" for name in ours),
        main_table(windows),
        "Ratios inside a round, then their median over the rounds:",
        *(ratio_table(windows, name) for name in ours),
        f"The bare model, {sweep_text}",
        "Versions: " + "; ".join(f"{name}: {', '.join(found)}" for name, found in kit.versions().items()) + ".",
        *(f"Left out: {name}: {why}" for name, why in left_out.items()),
    ]
    return "\n\n".join(parts) + "\n"


def run_closed(kind: str, kit: Kit, peers: Sequence[str], given: argparse.Namespace, scratch: Path) -> None:
    """The closed loop of one model, measured and written."""
    model = KIT_MODELS[kind]
    _say(f"{model}: the bare model, every batch size")
    swept = sweep(kit.weights(model), threads=given.threads, seconds=given.bare_seconds)
    way = best(swept)
    among = settings_of(given.frontends, given.instances, given.threads)
    ours = candidates(kit, model, among, scratch / kind, given, {})
    windows, left_out = closed(kit, model, ours, peers, given, way)
    text = f"swept once before the first round; the ratios are against its fastest, {way}:\n\n{sweep_table(swept)}"
    write(given.out / f"peers-{kind}.md", closed_page(kind, kit, windows, left_out, given, text))


def run_overload(kind: str, kit: Kit, peers: Sequence[str], given: argparse.Namespace, scratch: Path) -> None:
    """The open loop of one model, measured and written."""
    model = KIT_MODELS[kind]
    plan = overload.Plan(
        DEADLINE_S[kind],
        given.overload_seconds,
        given.capacity_seconds,
        given.overload_rounds,
        [float(factor) for factor in given.factors.split(",")],
    )
    among = settings_of(given.frontends, given.instances, given.threads)
    headers = {"X-Timeout-Ms": f"{plan.deadline_s * 1e3:g}"}
    ours = candidates(kit, model, among, scratch / f"{kind}-overload", given, headers)
    servers = kit.contenders(model, peers, ours, scratch / f"{kind}-requests", threads=given.threads)
    seen, left_out = overload.measure(servers, plan)
    with _lines(kit, f"overload-{model}") as lines:
        lines.writelines(json.dumps(asdict(one)) + "\n" for one in seen)
    remark = "JPEG of 320 x 320 in a form (MLServer: base64 in JSON; PyTriton: a binary tensor)."
    text = overload.page(f"This server and its peers: {TITLES[kind]}, overload", seen, left_out, plan, remark)
    write(given.out / f"overload-{kind}.md", text)


def _lines(kit: Kit, what: str) -> Any:
    folder = kit.home / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"isocenter-{what}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl").open("w", encoding="utf-8")


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def _read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="this server beside its peers")
    add = parser.add_argument
    add("--what", default="closed,overload", help="closed, overload or both")
    add("--model", default="resnet50,small", help="resnet50, small or both")
    add("--peers", default="installed", help="installed, none, or names as the kit knows them: naive-async,litserve-w1")
    add("--frontends", default="0", help="0,2 measures both settings side by side")
    add("--instances", default="1", help="sessions; 1,2 measures both, sharing the model threads out")
    add("--threads", type=int, default=2, help="model threads of every server and of the bare model")
    add("--connections", default="8,32,64")
    add("--seconds", type=float, default=12.0, help="closed loop: a window")
    add("--rounds", type=int, default=2, help="closed loop")
    add("--warm", type=float, default=2.0)
    add("--settle", type=float, default=0.5)
    add("--bare-seconds", type=float, default=4.0)
    add("--factors", default="1,2,4")
    add("--overload-seconds", type=float, default=20.0)
    add("--overload-rounds", type=int, default=1)
    add("--capacity-seconds", type=float, default=8.0)
    add("--max-batch-size", type=int, default=16)
    add("--preferred", help="preferred batch sizes; else the powers of two")
    add("--max-queue-delay-ms", type=float, default=1.0)
    add("--timeout-ms", type=float, default=10_000.0)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key of our manifests")
    add("--out", type=Path, default=RESULTS)
    add("--quick", action="store_true", help="windows of a second or two, one round: does it run at all?")
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rounds, given.warm, given.bare_seconds, given.connections = 2.0, 1, 0.5, 0.5, "8"
        given.overload_seconds, given.capacity_seconds, given.factors = 2.0, 1.0, "1,4"
    return given


def main() -> None:
    """Read the command line, measure, write."""
    stop_when_told()
    given = _read()
    kit = find_kit()
    installed = kit.installed()
    peers = [name for name in given.peers.split(",") if name not in ("installed", "none", "")]
    if given.peers == "installed":
        peers = installed
    for name in peers:
        if name not in installed:
            raise SystemExit(f"The peer {name} is not installed; the kit has: {', '.join(installed) or 'none'}.")
    with tempfile.TemporaryDirectory() as scratch:
        for kind in given.model.split(","):
            if "closed" in given.what:
                run_closed(kind, kit, peers, given, Path(scratch))
            if "overload" in given.what:
                run_overload(kind, kit, peers, given, Path(scratch))


if __name__ == "__main__":
    main()
