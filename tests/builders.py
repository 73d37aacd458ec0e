"""Parts that several tests build on."""

from typing import Any

MANIFEST_DATA: dict[str, Any] = {
    "schema": 1,
    "name": "lungs",
    "version": 3,
    "task": "classification",
    "runtime": {"kind": "onnxruntime", "file": "model.onnx", "sha256": "0" * 64},
    "input": {"kind": "image2d", "tensor": "image"},
    "transforms": [{"kind": "color", "to": "rgb"}, {"kind": "normalize", "mean": [0.5] * 3, "std": [0.2] * 3}],
    "output": {"tensor": "logits", "activation": "softmax", "labels": ["yes", "no"]},
}
