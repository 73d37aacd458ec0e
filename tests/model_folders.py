"""Model folders that cost nothing: a classifier of 8 x 8 pictures; its scores are the picture's mean, times 1 and 2."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from isocenter.core.tensor import FloatArray
from isocenter.imaging.codecs.raster import decode
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import Manifest, read_manifest
from patience import PATIENCE_S

PIXELS = (np.arange(64, dtype=np.uint8) * 3).reshape(8, 8)


def png(pixels: Any = PIXELS) -> bytes:
    """A picture as a caller would send it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_model(
    models: Path, name: str = "lungs", version: int = 1, *, weights: bytes = b"weights", **changes: Any
) -> ModelFolder:
    """Write a version, or write it again; `changes` are sections of the manifest, and None takes one away."""
    folder = models / name / str(version)
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(weights)
    data: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "version": version,
        "task": "classification",
        "runtime": runtime_part(weights),
        "input": {"kind": "image2d", "tensor": "x"},
        "transforms": [{"kind": "color", "to": "rgb"}, {"kind": "normalize", "mean": [0.5] * 3, "std": [0.25] * 3}],
        "output": {"tensor": "scores", "activation": "softmax", "labels": ["no", "yes"]},
        "batching": {"max_batch_size": 4, "max_queue_delay_ms": 0},
        "slo": {"timeout_ms": 1e3 * PATIENCE_S},
        **changes,
    }
    (folder / "model.yaml").write_text(yaml.safe_dump({key: part for key, part in data.items() if part is not None}))
    manifest = read_manifest(folder / "model.yaml")
    (folder / "golden" / "case.png").write_bytes(png())
    (folder / "golden" / "case.json").write_text(json.dumps({"logits": scores(manifest)}))
    return ModelFolder(folder, manifest)


def runtime_part(weights: bytes = b"weights", *, file: str = "model.bin", **options: Any) -> dict[str, Any]:
    """`runtime` of a manifest, or `fallback`."""
    return {
        "kind": "synthetic",
        "file": file,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "options": {"image": "3x8x8", "labels": 2, **options},
    }


def prepared(manifest: Manifest) -> FloatArray:
    """The picture as the model takes it."""
    return FastPipeline(manifest.transforms)(decode(png(), limits=ImageLimits())).tensor


def scores(manifest: Manifest) -> list[float]:
    """What belongs to the picture."""
    mean = float(prepared(manifest).mean(dtype=np.float64))
    return [mean, 2 * mean]
