"""A network of the registry in every format that a runtime reads, with inputs and the answers that belong to them.

    python benchmarks/runtime_files.py resnet50 --out /tmp/files

Random weights, settled so that answers differ from item to item. The answers are those of torch in fp32.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from isocenter.core.tensor import FloatArray, Tensors
from isocenter.importers.quantize import write_int8
from isocenter.networks.export import answer, to_onnx, to_openvino, to_torchscript
from isocenter.networks.registry import NETWORKS, NetworkEntry
from isocenter.networks.weights import seeded, settle, unlike_items

SEED = 7
CALIBRATION_ITEMS = 8
INPUTS, ANSWERS = "inputs.npy", "answers.npy"


def shape_of(entry: NetworkEntry, *, small: bool, side: int | None) -> tuple[int, ...]:
    """What one item is.

    >>> shape_of(NETWORKS["unet3d"], small=False, side=64)
    (1, 64, 64, 64)

    Raises:
        ValueError: another side, of a network that takes one size.
    """
    shape = entry.small_shape if small else entry.input_shape
    if side is None:
        return shape
    if not entry.fully_convolutional:
        raise ValueError(f"{entry.name} takes {' x '.join(map(str, shape))}, no other side")
    return (shape[0], *(side for _ in shape[1:]))


def write(name: str, out: Path, *, shape: tuple[int, ...], reference_items: int) -> None:
    """Write all files of one network."""
    entry = NETWORKS[name]
    out.mkdir(parents=True, exist_ok=True)
    with seeded(SEED):
        network = entry.build()
    settle(network, unlike_items(entry.small_shape, seed=SEED), seed=SEED)
    network.eval()
    inputs: FloatArray = unlike_items(shape, seed=SEED + 1)[:reference_items].numpy()
    np.save(out / INPUTS, inputs)
    np.save(out / ANSWERS, np.concatenate([answer(network, item[None]) for item in inputs]))
    torch.save(network.state_dict(), out / "weights.pt")
    onnx = to_onnx(network, out, item_shape=shape, input_name=entry.input_name)
    to_torchscript(network, out, item_shape=shape, input_name=entry.input_name)
    program = torch.export.export(network, (torch.zeros(2, *shape),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, str(out / "model.pt2"))

    def calibration() -> Iterator[Tensors]:
        for item in unlike_items(shape, seed=SEED + 2)[:CALIBRATION_ITEMS]:
            yield {entry.input_name: item.numpy()}

    write_int8(onnx, out / "int8.onnx", calibration())
    to_openvino(onnx, out)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="a network in every format")
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="as small as it goes, to try things out")
    parser.add_argument("--side", type=int, help="of an item, in place of the network's own")
    parser.add_argument("--items", type=int, default=4, help="inputs to compare on")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    shape = shape_of(NETWORKS[given.network], small=given.small, side=given.side)
    write(given.network, given.out, shape=shape, reference_items=given.items)


if __name__ == "__main__":
    main()
