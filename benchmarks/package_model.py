"""Package an ONNX image classifier as a model folder, so that any server's model can be served by this one.

    python benchmarks/package_model.py tiny.onnx --out /tmp/models --labels 4

The input is float32 [batch, 3, H, W], RGB, bilinear resize, ImageNet mean and deviation; golden answers are taken from
a direct run through the reference preprocessing.
"""

import argparse
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
WEIGHT = "instances.weight"
"""The manifest's key for a model's share of a machine that it shares with others."""


@dataclass(frozen=True, kw_only=True)
class Packaging:
    """What the manifest says beyond the file itself."""

    labels: int
    max_batch_size: int = 16
    preferred_batch_sizes: Sequence[int] | None = None
    """None: the powers of two up to the largest."""
    max_queue_delay_ms: float = 1.0
    max_queue_size: int = 1024
    instances: int = 1
    threads: int | None = None
    """Of each instance; None leaves it to the server."""
    timeout_ms: float = 10_000.0
    weight: float | None = None
    more: dict[str, Any] = field(default_factory=dict)
    """Other keys, such as {"runtime.options.arena": False}."""


def package(onnx: Path, out: Path, how: Packaging) -> Path:
    """Write `<out>/<name>/1`; returns that folder."""
    session = ort.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    folder = out / onnx.stem.lower() / "1"
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    shutil.copy(onnx, folder / "model.onnx")
    described = manifest(onnx, taken.name, list(taken.shape[2:]), given.name, how)
    (folder / "model.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    steps = read_manifest(folder / "model.yaml").transforms
    for number, seed in enumerate(GOLDEN_SEEDS, 1):
        buffer = io.BytesIO()
        Image.fromarray(brain_slice(seed).pixels).save(buffer, "png")
        tensor = preprocess(decode_reference(buffer.getvalue(), limits=ImageLimits()), steps).tensor
        (logits,) = session.run([given.name], {taken.name: np.stack([tensor])})[0]
        (folder / "golden" / f"case-{number}.png").write_bytes(buffer.getvalue())
        (folder / "golden" / f"case-{number}.json").write_text(json.dumps({"logits": logits.tolist()}))
    return folder


def manifest(onnx: Path, taken: str, size: list[int], given: str, how: Packaging) -> dict[str, Any]:
    """The content of `model.yaml`, for input and output tensors of these names."""
    sizes = how.preferred_batch_sizes
    if sizes is None:
        sizes = [1 << power for power in range(how.max_batch_size.bit_length())]
    described: dict[str, Any] = {
        "schema": 1,
        "name": onnx.stem.lower(),
        "version": 1,
        "task": "classification",
        "runtime": {"kind": "onnxruntime", "file": "model.onnx", "sha256": sha256_of(onnx), "precision": "fp32"},
        "input": {"kind": "image2d", "tensor": taken},
        "transforms": [
            {"kind": "color", "to": "rgb"},
            {"kind": "resize", "size": size, "mode": "stretch", "filter": "bilinear", "antialias": True},
            {"kind": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        ],
        "output": {"tensor": given, "activation": "softmax", "labels": list(range(how.labels))},
        "batching": {
            "max_batch_size": how.max_batch_size,
            "preferred_batch_sizes": list(sizes),
            "max_queue_delay_ms": how.max_queue_delay_ms,
            "max_queue_size": how.max_queue_size,
        },
        "instances": {"count": how.instances, "threads": how.threads or "auto"},
        "slo": {"timeout_ms": how.timeout_ms},
    }
    more = dict(how.more)
    if how.weight is not None:
        more[WEIGHT] = how.weight
    for path, value in more.items():
        *sections, key = path.split(".")
        part = described
        for section in sections:
            part = part.setdefault(section, {})
        part[key] = value
    return described


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="MODELS")
    parser.add_argument("--labels", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--preferred", metavar="1,4,16", help="preferred batch sizes; else the powers of two")
    parser.add_argument("--max-queue-delay-ms", type=float, default=1.0)
    parser.add_argument("--max-queue-size", type=int, default=1024)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of each instance; else as the server finds fit")
    parser.add_argument("--timeout-ms", type=float, default=10_000.0)
    parser.add_argument("--weight", type=float, help="share of a machine that several models share")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key of the manifest")
    given = parser.parse_args()
    how = Packaging(
        labels=given.labels,
        max_batch_size=given.max_batch_size,
        preferred_batch_sizes=[int(size) for size in given.preferred.split(",")] if given.preferred else None,
        max_queue_delay_ms=given.max_queue_delay_ms,
        max_queue_size=given.max_queue_size,
        instances=given.instances,
        threads=given.threads,
        timeout_ms=given.timeout_ms,
        weight=given.weight,
        more=settings(given.set),
    )
    print(package(given.onnx, given.out, how))


def settings(words: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words; a value is read as YAML, so that numbers are numbers.

    >>> settings(["runtime.options.arena=false", "batching.max_queue_size=64"])
    {'runtime.options.arena': False, 'batching.max_queue_size': 64}
    """
    return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}


if __name__ == "__main__":
    main()
