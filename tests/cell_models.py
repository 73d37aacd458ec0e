"""Model folders of cell segmenters that cost nothing: a pixel brighter than 128 of 255 is inside an object."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from isocenter.core.tensor import Array
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import read_manifest
from onnx_writer import Node, Port, write_onnx
from patience import PATIENCE_S
from segmenters import scores

SIDE_PX = 16
GAIN = 1 / 16
"""A pixel of value v has the probability 1 / (1 + exp(-(v - 128) / 16))."""


def write_cells(
    models: Path,
    name: str = "cells",
    *,
    version: int = 1,
    max_batch_size: int = 4,
    per_item_ms: float = 0,
    onnx: bool = False,
    **changes: Any,
) -> ModelFolder:
    """Write a version that runs on windows of 16 x 16 gray pixels, or as ONNX on an image of any size.

    `changes` are sections of the manifest.
    """
    folder = models / name / str(version)
    (folder / "golden").mkdir(parents=True)
    weights = folder / ("model.onnx" if onnx else "model.bin")
    if onnx:
        axes = ("batch", 1, "h", "w")
        nodes = [Node("Mul", ["x", "nothing"], ["z"]), Node("Concat", ["z", "x"], ["scores"], {"axis": 1})]
        ports = [Port("x", axes)], [Port("scores", ("batch", 2, "h", "w"))]
        write_onnx(weights, nodes, *ports, {"nothing": np.zeros((1, 1, 1, 1), np.float32)})
    else:
        weights.write_bytes(b"weights")
    options = {
        "image": f"1x{SIDE_PX}x{SIDE_PX}",
        "labels": 2,
        "voxels": True,
        "per_item_ms": per_item_ms,
        "busy": False,
    }
    data: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "version": version,
        "description": "Bright things on a dark ground",
        "task": "segmentation",
        "runtime": {
            "kind": "onnxruntime" if onnx else "synthetic",
            "file": weights.name,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            **({} if onnx else {"options": options}),
        },
        "input": {"kind": "image2d", "tensor": "x", "channels": ["gray"]},
        "steps": [{"kind": "shift_scale", "gain": [GAIN], "offset": [-128 * GAIN]}],
        "sliding": None if onnx else {"roi": [SIDE_PX, SIDE_PX], "overlap": 0.0, "mode": "constant"},
        "output": {"tensor": "scores", "activation": "softmax", "labels": ["ground", "cell"]},
        "batching": {"max_batch_size": max_batch_size, "max_queue_delay_ms": 0},
        "slo": {"timeout_ms": 1e3 * PATIENCE_S},
        **changes,
    }
    data = json.loads(json.dumps({key: part for key, part in data.items() if part is not None}))
    (folder / "model.yaml").write_text(yaml.safe_dump(data))
    case = np.random.default_rng(0).standard_normal((1, SIDE_PX, SIDE_PX), dtype=np.float32)
    np.save(folder / "golden" / "noise.input.npy", case)
    np.save(folder / "golden" / "noise.output.npy", scores(case))
    return ModelFolder(folder, read_manifest(folder / "model.yaml"))


def picture() -> Array:
    """Three objects of 40 x 24 pixels on black: a square, one with a hole, a fainter one."""
    pixels = np.zeros((24, 40), np.uint8)
    pixels[2:8, 3:9] = 250
    pixels[10:20, 12:24] = 250
    pixels[13:16, 15:19] = 0
    pixels[4:10, 30:36] = 140  # a probability of 0.68
    return pixels


def png(pixels: Array | None = None, form: str = "png") -> bytes:
    """A picture as a caller would send it."""
    buffer = io.BytesIO()
    Image.fromarray(picture() if pixels is None else pixels).save(buffer, form)
    return buffer.getvalue()
