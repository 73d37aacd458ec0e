"""Every network in every runtime and precision on this machine: how fast, how much memory, how far from fp32.

    python benchmarks/runtimes.py
    python benchmarks/runtimes.py --networks resnet50,unet2d
    python benchmarks/runtimes.py --gpu

Each cell of the table is a process of its own. All cells of a network are opened first, then measured in turn, so that
their ratios are those of neighbours in time. What a cell cannot do stands in its row. A page that was measured in the
same way keeps the tables of networks that are not measured now.
"""

import argparse
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from asked_process import AskedProcess, Refused
from isocenter.core.tensor import FloatArray
from isocenter.measure.percentiles import nearest_rank
from isocenter.networks.registry import NETWORKS, NetworkEntry
from isocenter.repository.load import usable_cores
from isocenter.runtimes.devices import cuda_devices
from runtime_cells import Cell, measured
from runtime_files import ANSWERS, INPUTS, shape_of
from tables import RESULTS, cpu_name, rounds, table, write
from tables import Cell as TableCell

NETWORKS_SHOWN = ("resnet50", "hrnet-w18", "cbam-resunet", "unet2d", "unet3d")
STREAMS = (1, 2, 4)
OPEN_WITHIN_S = 240.0
"""A compiler may take its time, but not an hour."""
FRAMEWORKS = ("onnxruntime", "openvino", "torch")

ON_CPU = (
    Cell(name="ONNX Runtime", kind="onnxruntime", file="model.onnx"),
    Cell(name="ONNX Runtime", kind="onnxruntime", file="int8.onnx", precision="int8"),
    Cell(name="OpenVINO", kind="openvino", file="model.xml"),
    Cell(name="OpenVINO", kind="openvino", file="model.xml", precision="bf16"),
    Cell(name="OpenVINO", kind="openvino", file="int8.onnx", precision="int8"),
    Cell(name="torch eager", kind="torch", file="weights.pt"),
    Cell(name="torch eager", kind="torch", file="weights.pt", precision="bf16"),
    Cell(name="torch eager, channels last", kind="torch", file="weights.pt", options={"channels_last": True}),
    Cell(name="torch compiled", kind="torch", file="weights.pt", options={"compile": True}),
    Cell(name="TorchScript", kind="torch", file="model.pt"),
    Cell(name="TorchScript, channels last", kind="torch", file="model.pt", options={"channels_last": True}),
    Cell(name="exported program", kind="torch", file="model.pt2"),
)
ON_GPU = tuple(
    replace(cell, device="cuda")
    for cell in (
        *(
            Cell(name="torch eager", kind="torch", file="weights.pt", precision=precision)
            for precision in ("fp32", "tf32", "bf16", "fp16")
        ),
        *(
            Cell(
                name="torch eager, channels last, CUDA graphs",
                kind="torch",
                file="weights.pt",
                precision=precision,
                options={"channels_last": True, "cuda_graphs": True},
            )
            for precision in ("fp32", "tf32", "bf16", "fp16")
        ),
        Cell(name="torch compiled", kind="torch", file="weights.pt", precision="fp16", options={"compile": True}),
        Cell(name="TorchScript", kind="torch", file="model.pt", precision="fp16"),
        Cell(name="exported program", kind="torch", file="model.pt2", precision="fp16"),
        Cell(name="ONNX Runtime", kind="onnxruntime", file="model.onnx"),
        Cell(name="ONNX Runtime", kind="onnxruntime", file="model.onnx", precision="tf32"),
    )
)


@dataclass
class Row:
    """What was found of one cell."""

    cell: Cell
    why_not: str = ""
    proof: str = ""
    opened_s: float = 0.0
    best_batch: int = 1
    rates: dict[int, list[float]] = field(default_factory=dict)
    """Items a second in each round, by number of sessions at once."""
    alone_s: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    difference: float = float("nan")
    """Of the largest absolute output."""
    max_abs_dp: float = float("nan")


@dataclass(frozen=True)
class Plan:
    """How long and how much."""

    seconds: float
    rounds: int
    small: bool
    side: int | None
    """Of an item; None: the network's own."""
    threads: int
    streams: tuple[int, ...]
    max_batch: int | None
    """None: as the registry says of each network."""

    def shape(self, entry: NetworkEntry) -> tuple[int, ...]:
        """Of one item."""
        return shape_of(entry, small=self.small, side=self.side)


def measure(entry: NetworkEntry, cells: tuple[Cell, ...], folder: Path, plan: Plan) -> list[Row]:
    """All cells of one network."""
    rows = [Row(_placed(cell, entry, folder, plan)) for cell in cells]
    with ExitStack() as stack:
        working: list[tuple[Row, AskedProcess]] = []
        for row in rows:
            one = stack.enter_context(measured(row.cell))
            if _tried(row, lambda row=row, one=one: _begin(row, one, entry, folder, plan)):
                working.append((row, one))
        for _ in range(plan.rounds):
            for row, one in working:
                if not row.why_not:
                    _tried(row, lambda row=row, one=one: _round(row, one, plan))
        for row, one in working:
            if not row.why_not:
                row.peak_bytes = one.ask("peak")["bytes"]
    return rows


def _placed(cell: Cell, entry: NetworkEntry, folder: Path, plan: Plan) -> Cell:
    options = dict(cell.options)
    if cell.file == "weights.pt":
        options["network"] = entry.name
        if not entry.fully_convolutional:
            options["inputs"] = f"{entry.input_name}: float32{list(plan.shape(entry))}"
    return replace(cell, file=str(folder / cell.file), options=options, threads=plan.threads)


def _tried(row: Row, doing: Any) -> bool:
    try:
        doing()
    except Refused as refused:
        row.why_not = str(refused).replace("|", "/")
        return False
    return True


def _begin(row: Row, one: AskedProcess, entry: NetworkEntry, folder: Path, plan: Plan) -> None:
    """Open it, compare its answers, and find the batch size at which it is fastest."""
    opened = one.ask("open", bound_s=OPEN_WITHIN_S, shape=list(plan.shape(entry)))
    row.proof, row.opened_s = opened["proof"], opened["opened_s"]
    out = folder / "found.npy"
    one.ask("answers", inputs=str(folder / INPUTS), out=str(out))
    row.difference, row.max_abs_dp = differences(np.load(out), np.load(folder / ANSWERS), entry.activation)
    most = plan.max_batch or entry.max_batch_size
    sizes = [1 << power for power in range(most.bit_length())]
    if len(sizes) > 1:
        tried = {size: one.ask("rate", batch=size, seconds=plan.seconds / 4)["per_s"] for size in sizes}
        row.best_batch = max(tried, key=lambda each: tried[each])


def _round(row: Row, one: AskedProcess, plan: Plan) -> None:
    alone_s = one.ask("alone", seconds=plan.seconds / 2)["seconds"]
    row.alone_s += alone_s
    for streams in plan.streams:
        if row.best_batch == streams == 1:  # one at a time is what was measured just now; it may take minutes again
            row.rates.setdefault(1, []).append(len(alone_s) / sum(alone_s))
            continue
        found = one.ask("rate", batch=row.best_batch, seconds=plan.seconds, streams=streams)["per_s"]
        row.rates.setdefault(streams, []).append(found)


def differences(found: FloatArray, reference: FloatArray, activation: str) -> tuple[float, float]:
    """Largest absolute difference, of the largest absolute output; and the largest one of a probability.

    >>> differences(np.array([[0.0, 2.0]]), np.array([[0.0, 4.0]]), "none")[0]
    0.5
    """
    reference64, found64 = reference.astype(np.float64), found.astype(np.float64)
    worst = float(np.abs(found64 - reference64).max() / np.abs(reference64).max())
    one, other = (_probabilities(array, activation) for array in (found64, reference64))
    return worst, float(np.abs(one - other).max())


def _probabilities(outputs: Any, activation: str) -> Any:
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-outputs))
    raised = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def shown(rows: list[Row], plan: Plan) -> str:
    """A table of one network; the first row is what the others are compared with."""
    first = next((row for row in rows if not row.why_not), None)
    heads = ["runtime", "precision", "items/s", "of the first", "batch", "P50 ms alone", "P95 ms", "n", "opened in s"]
    heads += ["peak MB", "off fp32", "max \\|dp\\|", "proof"]
    heads[3:4] = [heads[3], *(f"items/s of {streams} sessions" for streams in plan.streams[1:])]
    lines: list[list[TableCell]] = []
    for row in rows:
        if row.why_not or first is None:
            lines.append([row.cell.name, row.cell.precision, "-", *[""] * (len(heads) - 4), row.why_not])
            continue
        rate = statistics.median(row.rates[1])
        alone_ms = sorted(1e3 * seconds for seconds in row.alone_s)
        lines.append(
            [
                row.cell.name,
                row.cell.precision,
                rate,
                rate / statistics.median(first.rates[1]),
                *(statistics.median(row.rates[streams]) for streams in plan.streams[1:]),
                row.best_batch,
                nearest_rank(alone_ms, 0.5),
                nearest_rank(alone_ms, 0.95),
                len(alone_ms),
                row.opened_s,
                round(row.peak_bytes / 1e6) if row.peak_bytes else None,
                f"{row.difference:.1e}",
                f"{row.max_abs_dp:.1e}",
                row.proof,
            ]
        )
    return table(heads, lines)


def machine(gpu: bool) -> tuple[str, str]:
    """Its name for a file, and a sentence for people."""
    name = cuda_devices()[0].name if gpu else f"{cpu_name()} {usable_cores()} cores"
    memory_gb = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    described = f"{cpu_name()}, {usable_cores()} usable cores, {memory_gb:.0f} GB; Linux {platform.release()}, Python "
    described += f"{platform.python_version()}; {', '.join(filter(None, map(_version, FRAMEWORKS)))}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"), f"{name}; {described}" if gpu else described


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def main() -> None:
    """Read the command line, measure, write the page."""
    parser = argparse.ArgumentParser(description="networks x runtimes x precisions on this machine")
    parser.add_argument("--networks", default=",".join(NETWORKS_SHOWN), metavar="A,B")
    parser.add_argument("--gpu", action="store_true", help="on the first GPU: batches up to 64, 1, 2 and 4 sessions")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--max-batch", type=int, help="else as the registry says; 64 on a GPU")
    parser.add_argument("--items", type=int, default=4, help="inputs to compare answers on")
    parser.add_argument("--small", action="store_true", help="the smallest inputs, to try things out")
    parser.add_argument("--side", type=int, help="of an item, in place of the network's own")
    parser.add_argument("--out", type=Path, help="else benchmarks/results/runtimes-MACHINE.md")
    given = parser.parse_args()
    if given.gpu and not cuda_devices():
        sys.exit("no CUDA device is here")
    plan = Plan(
        seconds=given.seconds,
        rounds=given.rounds,
        small=given.small,
        side=given.side,
        threads=given.threads,
        streams=STREAMS if given.gpu else (1,),
        max_batch=given.max_batch or (64 if given.gpu else None),
    )
    slug, described = machine(given.gpu)
    page = given.out or RESULTS / f"runtimes-{slug}.md"
    head = f"# Runtimes: {slug}\n\n{_explained(described, plan)}"
    sections = _kept(page, head)
    with tempfile.TemporaryDirectory(prefix="isocenter-") as made_in:
        for name in given.networks.split(","):
            entry, folder = NETWORKS[name], Path(made_in) / name
            # In a process of its own, so that memory and threads of making them are gone.
            argv = [sys.executable, str(Path(__file__).with_name("runtime_files.py")), name, "--out", str(folder)]
            argv += ["--items", str(given.items), *["--small"] * plan.small]
            argv += [f"--side={plan.side}"] if plan.side else []
            subprocess.run(argv, check=True)
            rows = measure(entry, ON_GPU if given.gpu else ON_CPU, folder, plan)
            shape = " x ".join(map(str, plan.shape(entry)))
            sections[f"{entry.title}, {shape}"] = f"{_way(name, plan, gpu=given.gpu)}\n\n{shown(rows, plan)}"
            # After each network: an hour of measuring is not lost to what goes wrong in its last minute.
            write(page, "\n\n".join((head, *(f"## {title}\n\n{rows}" for title, rows in sections.items()))))


def _kept(page: Path, head: str) -> dict[str, str]:
    """Tables of a page by their titles, if they were measured in the same way."""
    if not page.exists():
        return {}
    found, *sections = page.read_text(encoding="utf-8").split("\n## ")
    if found.strip() != head:
        return {}
    return {title: rows.strip() for title, _, rows in (section.partition("\n") for section in sections)}


def _explained(described: str, plan: Plan) -> str:
    return (
        f"{described}; {plan.threads} threads a session. Random weights, settled. Each row is a process of its own; "
        "rows of a table take turns, figures are medians. *items/s*: at best; *alone*: one item at a time. *peak MB*: "
        "the whole process with its framework; on a GPU what its allocator reserved. *off fp32*: largest absolute "
        "difference from torch eager in fp32, of the largest absolute output; *max |dp|*: of a probability. int8 was "
        "calibrated with noise, so that its differences say little of a trained model. Repeat: `make bench-runtimes`, "
        "or a table by itself as it says."
    )


def _way(network: str, plan: Plan, *, gpu: bool) -> str:
    """How a table came to be, and how to repeat it."""
    words = ["python benchmarks/runtimes.py --networks", network, "--gpu" * gpu, "--small" * plan.small]
    words += [f"--seconds {plan.seconds:g} --rounds {plan.rounds}"]
    words += [f"--side {plan.side}"] if plan.side else []
    words += [f"--max-batch {plan.max_batch}"] if plan.max_batch and not gpu else []
    return f"{rounds(plan.rounds)} of {plan.seconds:g} s: `{' '.join(filter(None, words))}`."


if __name__ == "__main__":
    main()
