"""One small model on Triton: behind this server, and behind FastAPI as it is usually done. In turns, in one run.

    python benchmarks/behind_triton.py                    # about four minutes
    python benchmarks/behind_triton.py --seconds 2 --rounds 1 --connections 8

It needs the peer benchmark kit (PEERBENCH, PEERBENCH_HOME) with its peer `fastapi-triton`, and a tritonserver
(`tests/real/install_tritonserver.sh`, TRITONSERVER_HOME). Writes `benchmarks/results/triton.md`.
"""

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from isocenter.importers.triton_repository import write_triton_repository
from isocenter.repository.layout import find
from package_model import Packaging, package
from peer_kit import Candidate, find_kit
from peer_pages import Window, quiet, ratio
from server_process import free_port, stop_when_told
from tables import RESULTS, Cell, command_line, conditions, rounds, table, write
from triton_stack import home

MODEL = "tiny"
PEER = "fastapi-triton"
LABELS = 4
WAYS: Mapping[str, tuple[str, str, bool]] = {
    "shared": ("isocenter + Triton, shared memory", "http", True),
    "http": ("isocenter + Triton, HTTP", "http", False),
    "grpc": ("isocenter + Triton, gRPC", "grpc", False),
}
"""How tensors travel: the name of the candidate, the scheme, and whether memory is shared."""

WHAT = f"""\
JPEG of 320 x 320 in a form. `{PEER}`: FastAPI decodes with Pillow in its thread pool and sends one float tensor a
request over gRPC to PyTriton, which batches (16, 5 ms). Behind this server: tritonserver with the repository that
`isocenter export --to triton --backend python` writes; batches are formed here. Both run the same ONNX file in ONNX
Runtime, in a Python process of Triton's. CPU and memory are those of the whole process tree, tritonserver
included."""


@dataclass(frozen=True)
class Behind(Candidate):
    """This server in front of a tritonserver of its own, both in one process tree."""

    repository: Path = Path()
    http_port: int = 0
    grpc_port: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    def as_json(self, model: str) -> dict[str, Any]:
        """One entry of the kit's candidates file."""
        plain = super().as_json(model)
        stack = [sys.executable, str(Path(__file__).with_name("triton_stack.py")), "--repository", str(self.repository)]
        stack += ["--http", str(self.http_port), "--grpc", str(self.grpc_port), "--"]
        return {**plain, "cmd": f"{shlex.join(stack)} {plain['cmd']}"}


def behind(way: str, local: Path, repository: Path, models: Path) -> Behind:
    """A model folder whose runtime is a tritonserver on free ports."""
    name, scheme, shared = WAYS[way]
    ports = {"http": free_port(), "grpc": free_port()}
    shutil.copytree(local, models / MODEL / "1")
    file = models / MODEL / "1" / "model.yaml"
    described = yaml.safe_load(file.read_text())
    described["runtime"] = {
        "kind": "triton",
        "url": f"{scheme}://127.0.0.1:{ports[scheme]}",
        "options": {"model": MODEL, "shared_memory": shared},
    }
    file.write_text(yaml.safe_dump(described, sort_keys=False))
    return Behind(name, models, 0, repository=repository, http_port=ports["http"], grpc_port=ports["grpc"])


def measured(targets: Mapping[str, Any], ours: Sequence[str], given: argparse.Namespace) -> list[Window]:
    """Every server in every round, at every number of connections."""
    names = list(targets)
    found = []
    for turn in range(given.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            with targets[name]() as target:
                target.check(MODEL)
                for connections in map(int, given.connections.split(",")):
                    spec = target.spec(
                        mode="closed", concurrency=connections, warm=given.warm, seconds=given.seconds, settle=0.5
                    )
                    got = target.measure(spec)
                    got.update(agree=target.agree, start_s=target.start_s)
                    found.append(Window(name, name in ours, turn, connections, 1.0, got))
                    failed = got["error"] + got["refused"]
                    _say(f"round {turn + 1} {name} c{connections}: {got['rps']}/s, failed {failed}")
    return found


def page(windows: Sequence[Window], given: argparse.Namespace) -> str:
    """The whole page."""
    names = list(dict.fromkeys(one.server for one in sorted(windows, key=lambda one: not one.ours)))
    levels = sorted({one.connections for one in windows})
    rows: list[list[Cell]] = []
    for name in names:
        for connections in levels:
            mine = [one.kit for one in windows if (one.server, one.connections) == (name, connections)]
            middle = [_median(mine, key) for key in ("rps", "p50_ms", "p95_ms", "cpu_ms_req")]
            memory = max(int(each.get("pss_mb") or 0) for each in mine)
            failed = sum(int(each["error"]) + int(each["refused"]) for each in mine)
            times = ratio(windows, name, PEER, connections, "rps") if name != PEER else None
            rows.append(
                [
                    name,
                    connections,
                    *middle,
                    memory,
                    str(mine[0]["agree"]),
                    failed,
                    "" if times is None else f"{times:.2f}x",
                ]
            )
    heads = ("server", "connections", "requests/s", "P50 ms", "P95 ms", "CPU ms/request", "PSS MB", "agree", "failed")
    return "\n\n".join(
        [
            "# A small model on Triton: behind this server, and behind FastAPI",
            f"{conditions(threads=given.threads)}\nRepeat: {command_line()}.",
            f"{given.seconds:g} s a window after {given.warm:g} s of warm-up, {rounds(given.rounds)} in turn, medians. "
            f"{WHAT} {quiet(windows).partition('; the bare model')[0]}.",
            table((*heads, f"requests/s against {PEER}"), rows),
        ]
    )


def _median(found: Sequence[Mapping[str, Any]], key: str) -> float:
    values = sorted(float(each[key]) for each in found)
    return values[len(values) // 2] if len(values) % 2 else sum(values[len(values) // 2 - 1 :][:2]) / 2


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line, measure, write."""
    stop_when_told()
    parser = argparse.ArgumentParser(description="Triton behind this server and behind FastAPI")
    add = parser.add_argument
    add("--ways", default="shared,http,grpc", help=f"of {', '.join(WAYS)}")
    add("--connections", default="8,32")
    add("--seconds", type=float, default=6.0)
    add("--rounds", type=int, default=2)
    add("--warm", type=float, default=2.0)
    add("--threads", type=int, default=2, help="model threads")
    add("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    home()
    kit = find_kit()
    if PEER not in kit.installed():
        raise SystemExit(f"The peer {PEER} is not installed in the kit: `python bench.py setup` there.")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        local = package(kit.weights(MODEL), scratch / "local", Packaging(labels=LABELS, threads=given.threads))
        repository = scratch / "repository"
        write_triton_repository(find(scratch / "local", MODEL), repository, backend="python", max_queue_delay_us=0)
        ours = [behind(way, local, repository, scratch / way) for way in given.ways.split(",")]
        ours_too = [*ours, Candidate("isocenter alone", scratch / "local", 0)]
        targets = kit.targets(MODEL, [PEER], ours_too, threads=given.threads)
        windows = measured(targets, [candidate.name for candidate in ours_too], given)
    write(given.out / "triton.md", page(windows, given))


if __name__ == "__main__":
    main()
