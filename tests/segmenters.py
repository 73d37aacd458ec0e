"""Model folders of segmenters that cost nothing: a voxel whose value is above zero has the label."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from isocenter.core.tensor import Array
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import read_manifest
from onnx_writer import Node, Port, write_onnx
from patience import PATIENCE_S

ROI = (8, 8, 8)


def write_segmenter(models: Path, name: str = "blobs", *, onnx: bool = False, **changes: Any) -> ModelFolder:
    """Write a version: scores [0, x] of the synthetic runtime, or [-x, x] of an ONNX file of open size."""
    folder = models / name / "1"
    (folder / "golden").mkdir(parents=True)
    weights = folder / ("model.onnx" if onnx else "model.bin")
    if onnx:
        axes = ("batch", 1, "d", "h", "w")
        nodes = [Node("Neg", ["x"], ["n"]), Node("Concat", ["n", "x"], ["scores"], {"axis": 1})]
        write_onnx(weights, nodes, [Port("x", axes)], [Port("scores", ("batch", 2, "d", "h", "w"))])
    else:
        weights.write_bytes(b"weights")
    shape = "x".join(map(str, (1, *ROI)))
    data: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "version": 1,
        "task": "segmentation",
        "runtime": {
            "kind": "onnxruntime" if onnx else "synthetic",
            "file": weights.name,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            **({} if onnx else {"options": {"image": shape, "labels": 2, "voxels": True}}),
        },
        "input": {"kind": "volume3d", "tensor": "x", "channels": ["t1"]},
        "steps": [{"kind": "orient", "axcodes": "RAS"}],
        "sliding": {"roi": list(ROI), "overlap": 0.5, "mode": "gaussian"},
        "output": {"tensor": "scores", "activation": "softmax", "labels": ["background", "blob"]},
        "batching": {"max_batch_size": 4, "max_queue_delay_ms": 0},
        "slo": {"timeout_ms": 1e3 * PATIENCE_S},
        **changes,
    }
    data = json.loads(json.dumps({key: part for key, part in data.items() if part is not None}))
    (folder / "model.yaml").write_text(yaml.safe_dump(data))
    case = np.random.default_rng(0).standard_normal((1, *ROI), dtype=np.float32)
    np.save(folder / "golden" / "noise.input.npy", case)
    np.save(folder / "golden" / "noise.output.npy", scores(case, onnx=onnx))
    return ModelFolder(folder, read_manifest(folder / "model.yaml"))


def scores(item: Array, *, onnx: bool = False) -> Array:
    """What belongs to an item."""
    return np.concatenate([-item if onnx else 0 * item, item])
