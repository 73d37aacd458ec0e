"""Package an ONNX image classifier as a model folder, so that any server's model can be served by this one.

    python benchmarks/package_model.py tiny.onnx --out /tmp/models --labels 4

The input is float32 [batch, 3, H, W], RGB, bilinear resize, ImageNet mean and deviation; golden answers are taken from
a direct run through the reference preprocessing.
"""

import argparse
import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import yaml
from PIL import Image

from isocenter.imaging.codecs.raster import decode_reference
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.phantoms import brain_slice
from isocenter.imaging.transforms.reference import preprocess
from isocenter.repository.integrity import sha256_of
from isocenter.repository.manifest import read_manifest

GOLDEN_SEEDS = range(2_000_000, 2_000_004)


def package(onnx: Path, out: Path, *, labels: int, max_batch_size: int, max_queue_delay_ms: float) -> Path:
    """Write `<out>/<name>/1`; returns that folder."""
    session = ort.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    name = onnx.stem.lower()
    folder = out / name / "1"
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    shutil.copy(onnx, folder / "model.onnx")
    manifest = {
        "schema": 1,
        "name": name,
        "version": 1,
        "task": "classification",
        "runtime": {"kind": "onnxruntime", "file": "model.onnx", "sha256": sha256_of(onnx), "precision": "fp32"},
        "input": {"kind": "image2d", "tensor": taken.name},
        "transforms": [
            {"kind": "color", "to": "rgb"},
            {
                "kind": "resize",
                "size": taken.shape[2:],
                "mode": "stretch",
                "filter": "bilinear",
                "antialias": True,
            },
            {"kind": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        ],
        "output": {"tensor": given.name, "activation": "softmax", "labels": list(range(labels))},
        "batching": {
            "max_batch_size": max_batch_size,
            "preferred_batch_sizes": [size for size in (1, 2, 4, 8, 16, 32) if size <= max_batch_size],
            "max_queue_delay_ms": max_queue_delay_ms,
            "max_queue_size": 1024,
        },
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    steps = read_manifest(folder / "model.yaml").transforms
    for number, seed in enumerate(GOLDEN_SEEDS, 1):
        buffer = io.BytesIO()
        Image.fromarray(brain_slice(seed).pixels).save(buffer, "png")
        tensor = preprocess(decode_reference(buffer.getvalue(), limits=ImageLimits()), steps).tensor
        (logits,) = session.run([given.name], {taken.name: np.stack([tensor])})[0]
        (folder / "golden" / f"case-{number}.png").write_bytes(buffer.getvalue())
        (folder / "golden" / f"case-{number}.json").write_text(json.dumps({"logits": logits.tolist()}))
    return folder


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="MODELS")
    parser.add_argument("--labels", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--max-queue-delay-ms", type=float, default=1.0)
    given = parser.parse_args()
    folder = package(
        given.onnx,
        given.out,
        labels=given.labels,
        max_batch_size=given.max_batch_size,
        max_queue_delay_ms=given.max_queue_delay_ms,
    )
    print(folder)


if __name__ == "__main__":
    main()
