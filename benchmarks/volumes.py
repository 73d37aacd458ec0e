"""Volumes through sliding windows: this project beside MONAI's own inferer, over the same network and sessions.

    python benchmarks/volumes.py                          # needs the extra torch, monai and openvino
    python benchmarks/volumes.py --size 160x160x96 --rounds 1 --scan-size 132x132x96

Each way in a process of its own; they take turns within a round. Reading files and resampling are no part of it.
"""

import argparse
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from asked_process import AskedProcess
from isocenter.repository.integrity import sha256_of
from isocenter.repository.load import usable_cores
from tables import RESULTS, Cell, command_line, conditions, figure, percent, rounds, table, write
from volume_ways import INPUT, OUTPUT, OVERLAP, SEVERAL, Way, folder_name, network, opened

PACKAGES = (("onnxruntime", 1), ("openvino", 1), ("openvino", SEVERAL))
CLASSIFIER = Path(__file__).resolve().parent.parent / "models" / "brain-mri-classifier"
MIB = 2**20


@dataclass
class Found:
    """What one way was seen to do."""

    way: Way
    seconds: list[float] = field(default_factory=list)
    network_s: list[float] = field(default_factory=list)
    more_bytes: list[float] = field(default_factory=list)
    peak_bytes: list[float] = field(default_factory=list)
    off: float | None = None
    labels_off: int | None = None

    @property
    def best_s(self) -> float:
        """The quickest volume."""
        return min(self.seconds)


def package(models: Path, roi: int) -> None:
    """One folder a runtime: the network as ONNX for volumes, and the demonstration's classifier for pictures."""
    import torch

    net = network()
    item = torch.randn(1, 1, *[roi] * 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = net(item)
    for runs, instances in PACKAGES:
        home = models / folder_name(runs, instances)
        folder = home / f"volumes-{runs}" / "1"
        (folder / "golden").mkdir(parents=True)
        file = folder / "model.onnx"
        axes = {name: {0: "batch"} for name in (INPUT, OUTPUT)}
        torch.onnx.export(
            net, (item,), str(file), opset_version=17, dynamo=False, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_axes=axes,
        )  # fmt: skip
        np.save(folder / "golden" / "noise.input.npy", item[0].numpy())
        np.save(folder / "golden" / "noise.output.npy", expected[0].numpy())
        content = manifest(runs, sha256_of(file), roi) | {"instances": {"count": instances}}
        (folder / "model.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        shutil.copytree(CLASSIFIER, home / CLASSIFIER.name)


def manifest(runs: str, digest: str, roi: int) -> dict[str, Any]:
    """The content of `model.yaml`."""
    return {
        "schema": 1,
        "name": f"volumes-{runs}",
        "version": 1,
        "task": "segmentation",
        "runtime": {"kind": runs, "file": "model.onnx", "sha256": digest, "precision": "fp32"},
        "input": {"kind": "volume3d", "tensor": INPUT, "channels": ["image"]},
        "sliding": {"roi": [roi] * 3, "overlap": OVERLAP, "mode": "gaussian"},
        "output": {"tensor": OUTPUT, "activation": "softmax", "labels": ["background", "finding"]},
        "batching": {"max_batch_size": 2, "max_queue_delay_ms": 0.0},
        "slo": {"timeout_ms": 3_600_000.0},
    }


def measure(found: list[Found], processes: list[AskedProcess], given: argparse.Namespace, scratch: Path) -> None:
    """Rounds, in each of which every way has one turn; what they gave is compared after the first."""
    for turn in range(given.rounds):
        for one, process in zip(found, processes, strict=True):
            said = process.ask("volume", size=given.size)
            one.seconds.append(said["seconds"])
            one.network_s.append(said.get("network_s", said.get("windows_s", 0.0)))
            one.more_bytes.append(said["more_bytes"])
            one.peak_bytes.append(said["peak_bytes"])
            print(f"round {turn + 1}: {one.way} {said['seconds']:.2f} s, {said}", flush=True)
    first: dict[str, Any] = {}
    for one, process in zip(found, processes, strict=True):
        file = scratch / "found.npz"
        process.ask("save", out=str(file), size=given.scores_size)
        with np.load(file) as saved:
            if not first:
                first = {name: saved[name] for name in saved.files}
            one.off = float(np.abs(saved["values"] - first["values"]).max())
            one.labels_off = int(np.count_nonzero(saved["labels"] != first["labels"]))
        file.unlink()


HEADS = (
    "windows by", "run by", "seconds a volume", "all seconds", "of MONAI with torch", "of MONAI over the same session",
    "in the network", "memory held more, MiB", "process at its peak, MiB",
    "largest difference of a score", "labels that differ",
)  # fmt: skip


def rows(found: list[Found]) -> list[list[Cell]]:
    """The table of single volumes."""
    seconds = {(each.way.slides, each.way.runs): each.best_s for each in found if each.way.slides == "monai"}
    return [
        [
            each.way.slides,
            each.way.runs if each.way.instances == 1 else f"{each.way.runs}, {each.way.instances} instances",
            each.best_s,
            ", ".join(figure(value) for value in each.seconds),
            f"{each.best_s / seconds['monai', 'torch']:.2f}x",
            f"{each.best_s / seconds['monai', each.way.runs]:.2f}x",
            min(each.network_s),
            f"{max(each.more_bytes) / MIB:.0f}",
            f"{max(each.peak_bytes) / MIB:.0f}",
            f"{each.off:.1e}",
            each.labels_off,
        ]
        for each in found
    ]


def together(processes: list[AskedProcess], ways: list[Way], given: argparse.Namespace) -> str:
    """Several scans at once, and the same with pictures beside them, by turns; around each, the bare session."""
    alone = processes[0].ask("picture", times=10)["seconds"]
    for process in processes:
        process.ask("together", size=given.scan_size, scans=given.scans, pictures=False)
    bare = [processes[0].ask("bare", seconds=given.bare_s)["per_s"]]
    cases = list(product(zip(processes, ways, strict=True), (False, True)))
    turns: dict[str, list[Turn]] = {_case(way, pictures): [] for (_, way), pictures in cases}
    for turn in range(given.turns):
        for (process, way), pictures in cases:
            said = process.ask("together", size=given.scan_size, scans=given.scans, pictures=pictures)
            bare.append(processes[0].ask("bare", seconds=given.bare_s)["per_s"])
            found = Turn(said, statistics.mean(bare[-2:]))
            turns[_case(way, pictures)].append(found)
            share = f"{percent(found.share)} of {found.bare_per_s:.2f}/s"
            print(f"turn {turn + 1}, {_case(way, pictures)}: {share}", flush=True)
    heads = (
        f"{given.scans} scans at once", "windows", "seconds", "windows/s", "bare session, windows/s", "share, median",
        "least, largest share", "runs that mixed scans", "one window run ms", "a picture: median, longest ms",
        "longest, in window runs",
    )  # fmt: skip
    lines = [_line(name, found) for name, found in turns.items()]
    return f"{table(heads, lines)}\n\nA picture alone: {1e3 * statistics.median(alone):.0f} ms in the median."


@dataclass(frozen=True)
class Turn:
    """Several scans at once, and the bare session around them."""

    said: dict[str, Any]
    bare_per_s: float

    @property
    def share(self) -> float:
        """Windows a second, of those of the bare session."""
        return float(self.said["windows"] / self.said["seconds"] / self.bare_per_s)


def _case(way: Way, pictures: bool) -> str:
    each = "one instance" if way.instances == 1 else f"{way.instances} instances"
    return f"{each}, and pictures" if pictures else each


def _line(name: str, turns: list[Turn]) -> list[Cell]:
    windows, seconds = (sum(each.said[what] for each in turns) for what in ("windows", "seconds"))
    bare = statistics.mean(each.bare_per_s for each in turns)
    shares = [each.share for each in turns]
    waits = [wait for each in turns for wait in each.said["pictures_s"]]
    runs = [max(each.said["pictures_s"], default=0.0) * each.bare_per_s for each in turns]
    return [
        name,
        windows,
        seconds,
        windows / seconds,
        bare,
        percent(statistics.median(shares)),
        f"{percent(min(shares))}, {percent(max(shares))}",
        f"{sum(each.said['shared'] for each in turns):.0f} of {sum(each.said['batches'] for each in turns):.0f}",
        1e3 / bare,
        f"{1e3 * statistics.median(waits):.0f}, {1e3 * max(waits):.0f}" if waits else "",
        f"{max(runs):.2f}" if waits else "",
    ]


def page(found: list[Found], eight: str, given: argparse.Namespace) -> str:
    """All of it, for people."""
    size = " x ".join(map(str, given.size))
    scan = " x ".join(map(str, given.scan_size))
    return "\n\n".join(
        (
            "# Volumes beside MONAI's inferer",
            f"{conditions(threads=given.threads)} MONAI {version('monai')}, torch {version('torch')}, OpenVINO "
            f"{version('openvino')}.\nRepeat: {command_line()}.",
            f"MONAI's BasicUNet (random weights, 2 labels), one volume of {size}, windows of {given.roi}, overlap "
            f"{OVERLAP}, gaussian, fp32; {rounds(given.rounds)}, the quickest counts. Ours includes the labels, "
            "MONAI's stops at the scores. *Memory held more*: the peak of the process during the volume, less what it "
            "held before, with the session open and run. Differences are against MONAI with torch.",
            table(HEADS, rows(found)),
            f"## {given.scans} scans at once",
            f"Volumes of {scan}, through OpenVINO. *Share*: windows a second against a session of the same file with "
            f"nothing around it, on all cores, right before and after; {given.turns} turns. One instance is the "
            f"default, a session on all cores; {SEVERAL} instances (`instances: {{count: {SEVERAL}}}`) have a share "
            "of the cores each and never wait for one another. *Runs that mixed scans*: on a CPU a window of this size "
            "fills the machine by itself, so that one run of two costs about as much as two runs of one.",
            eight,
        )
    )


def main() -> None:
    """Read the command line, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=_size, default=[256, 256, 128], metavar="IxJxK")
    parser.add_argument("--roi", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--scan-size", type=_size, default=[168, 168, 96], metavar="IxJxK")
    parser.add_argument("--scores-size", type=_size, default=[168, 120, 96], metavar="IxJxK")
    parser.add_argument("--turns", type=int, default=6, help="of scans at once")
    parser.add_argument("--bare-s", type=float, default=5.0, help="seconds of each window of the bare session")
    parser.add_argument("--what", choices=["all", "one", "together"], default="all")
    parser.add_argument("--out", type=Path, default=RESULTS / "volumes.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="isocenter-volumes-") as home, ExitStack() as stack:
        models = Path(home) / "models"
        package(models, given.roi)
        ways = [
            Way(slides=slides, runs=runs, models=str(models), threads=given.threads, instances=instances)
            for slides, runs, instances in WAYS
        ]
        wanted = ways if given.what != "together" else ways[-2:]
        processes = [stack.enter_context(opened(way)) for way in wanted]
        for process in processes:
            process.ask("open", roi=given.roi)
        found = [Found(way) for way in wanted]
        if given.what != "together":
            measure(found, processes, given, Path(home))
        eight = together(processes[-2:], ways[-2:], given) if given.what != "one" else ""
    if given.what == "all":
        write(given.out, page(found, eight, given))
    else:
        print(table(HEADS, rows(found)) if given.what == "one" else eight)


WAYS = (
    ("monai", "torch", 1),
    ("monai", "onnxruntime", 1),
    ("isocenter", "onnxruntime", 1),
    ("monai", "openvino", 1),
    ("isocenter", "openvino", 1),
    ("isocenter", "openvino", SEVERAL),
)


def _size(text: str) -> list[int]:
    return [int(side) for side in text.split("x")]


if __name__ == "__main__":
    main()
