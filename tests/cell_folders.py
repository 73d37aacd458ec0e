"""A folder of a model that finds cells and costs nothing: what is brighter than half of 255 is a cell."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from isocenter.core.tensor import Array
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import read_manifest
from onnx_writer import Node, Port, write_onnx
from patience import PATIENCE_S

SIDE = 8


def write_cell_model(models: Path, name: str = "cells", **changes: Any) -> ModelFolder:
    """Write a version for gray pictures of any size: scores [-x, x], where x runs from -8 (black) to 8 (white)."""
    folder = models / name / "1"
    (folder / "golden").mkdir(parents=True)
    weights = folder / "model.onnx"
    axes = ("batch", 1, "h", "w")
    nodes = [Node("Neg", ["x"], ["n"]), Node("Concat", ["n", "x"], ["scores"], {"axis": 1})]
    write_onnx(weights, nodes, [Port("x", axes)], [Port("scores", ("batch", 2, "h", "w"))])
    data: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "version": 1,
        "task": "segmentation",
        "runtime": {
            "kind": "onnxruntime",
            "file": weights.name,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        },
        "input": {"kind": "image2d", "tensor": "x", "channels": ["gray"]},
        "steps": [{"kind": "scale", "low": {"value": 0}, "high": {"value": 255}, "to": [-8.0, 8.0]}],
        "sliding": {"roi": [64, 64], "overlap": 0.25},
        "output": {
            "tensor": "scores",
            "activation": "softmax",
            "labels": ["background", "cell"],
            "objects": {"inside": ["cell"]},
        },
        "batching": {"max_batch_size": 4, "max_queue_delay_ms": 0},
        "slo": {"timeout_ms": 1e3 * PATIENCE_S},
        **changes,
    }
    data = json.loads(json.dumps({key: part for key, part in data.items() if part is not None}))
    (folder / "model.yaml").write_text(yaml.safe_dump(data))
    case = np.random.default_rng(0).standard_normal((1, 64, 64), dtype=np.float32)
    np.save(folder / "golden" / "noise.input.npy", case)
    np.save(folder / "golden" / "noise.output.npy", np.concatenate([-case, case]))
    return ModelFolder(folder, read_manifest(folder / "model.yaml"))


def drawn_cells(side: int = 96, *, seed: int = 0, count: int = 6) -> tuple[Array, Array]:
    """A gray picture [side, side] of uint8 with round cells on a grid, each of its own size; and its labels."""
    random = np.random.default_rng(seed)
    columns = int(np.ceil(np.sqrt(count)))
    step = side // columns
    labels = np.zeros((side, side), np.uint32)
    y, x = np.mgrid[:side, :side]
    for number in range(count):
        row, column = divmod(number, columns)
        middle = (row * step + step // 2, column * step + step // 2)
        radius = random.uniform(0.2, 0.4) * step
        labels[(y - middle[0]) ** 2 + (x - middle[1]) ** 2 <= radius**2] = number + 1
    noise = random.integers(0, 20, labels.shape)
    return np.where(labels > 0, 220, 20).astype(np.uint8) + noise.astype(np.uint8), labels


def png(pixels: Array) -> bytes:
    """A gray picture as a file."""
    return bytes(cv2.imencode(".png", pixels)[1].tobytes())
