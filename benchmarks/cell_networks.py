"""The three networks of a shared cell-segmentation service, as model folders without meaning: the weights are random.

    make cell-models                                            # into build/cell-models
    python benchmarks/cell_networks.py --out /tmp/cells --side 256

HRNet, CBAM-ResUNet and U-Net for RGB pictures of 1024 x 1024 with one mask, as `isocenter export` makes them, with the
largest safe batches of the service that they stand for. Speed and memory do not depend on the weights; masks do: what
these models answer means nothing, and their titles say so.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

SIDE_PX = 1024
TIMEOUT_MS = 600_000.0
"""A batch of twelve such pictures takes a CPU a minute."""
WITHOUT_MEANING = "random weights, without meaning"


@dataclass(frozen=True, slots=True)
class CellModel:
    """A network under the name by which callers ask for it."""

    name: str
    network: str
    """Of `isocenter export`."""
    max_batch_size: int


CELL_MODELS = (
    CellModel("hrnet", "hrnet-w18", 12),
    CellModel("cbam_resunet", "cbam-resunet", 4),
    CellModel("unet", "unet2d", 8),
)


def make(model: CellModel, out: Path, *, side_px: int = SIDE_PX, max_batch_size: int | None = None) -> Path:
    """Export one into a repository unless it is there; its folder."""
    folder = out / model.name / "1"
    if folder.is_dir():
        return folder
    largest = min(model.max_batch_size, max_batch_size or model.max_batch_size)
    export = [sys.executable, "-m", "isocenter", "export", model.network, "--models", str(out)]
    options = ["--name", model.name, "--version", "1", "--size", f"{side_px}x{side_px}"]
    subprocess.run([*export, *options, "--max-batch-size", str(largest)], check=True, stdout=subprocess.DEVNULL)
    file = folder / "model.yaml"
    manifest = yaml.safe_load(file.read_text(encoding="utf-8"))
    manifest["title"] = f"{manifest['title']} ({WITHOUT_MEANING})"
    manifest["slo"] = {"timeout_ms": TIMEOUT_MS}
    file.write_text(yaml.safe_dump(manifest, sort_keys=False, width=120), encoding="utf-8")
    return folder


def main() -> None:
    """Read the command line, make what is not there yet."""
    parser = argparse.ArgumentParser(description="HRNet, CBAM-ResUNet and U-Net with random weights, as model folders")
    parser.add_argument("--out", type=Path, required=True, metavar="MODELS")
    parser.add_argument("--side", type=int, default=SIDE_PX, metavar="PX", help="of the square pictures")
    parser.add_argument("--max-batch-size", type=int, metavar="N", help="where the models' own are too large here")
    parser.add_argument("--model", action="append", choices=[model.name for model in CELL_MODELS])
    given = parser.parse_args()
    for model in CELL_MODELS:
        if given.model is None or model.name in given.model:
            print(make(model, given.out, side_px=given.side, max_batch_size=given.max_batch_size))


if __name__ == "__main__":
    main()
