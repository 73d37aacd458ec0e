"""bioimage.io packages written by hand, as the published formats 0.4 and 0.5 describe them: one convolution."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from isocenter.core.tensor import Array, FloatArray
from onnx_writer import Node, Port, write_onnx

CHANNELS, LABELS, SIDE = 2, 3, 24
RAW: Array = np.random.default_rng(7).integers(0, 4096, (1, CHANNELS, SIDE, SIDE)).astype(np.uint16)
WEIGHTS: FloatArray = np.random.default_rng(8).standard_normal((LABELS, CHANNELS, 3, 3)).astype(np.float32)


def npy(values: Array) -> bytes:
    """A file of one array."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def standardised(raw: Array) -> FloatArray:
    """What `zero_mean_unit_variance` over y and x makes of it, by its published formula."""
    wide = raw.astype(np.float64)
    mean, std = wide.mean((2, 3), keepdims=True), wide.std((2, 3), keepdims=True)
    found: FloatArray = ((wide - mean) / (std + 1e-6)).astype(np.float32)
    return found


def convolved(batch: Array) -> Array:
    """What the network gives, in 64 bits."""
    padded = np.pad(batch.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    found: Array = np.einsum("bcyxij,kcij->bkyx", windows, WEIGHTS.astype(np.float64))
    return found


def sigmoid(scores: Array) -> FloatArray:
    """Probabilities."""
    found: FloatArray = (1 / (1 + np.exp(-scores))).astype(np.float32)
    return found


def package(folder: Path, *, form: str = "0.5.4", batch: int | str = 1, **changes: Any) -> Path:
    """Write a package; `changes` replace what its description says."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = [batch, CHANNELS, SIDE, SIDE]
    nodes = [Node("Conv", ["in", "w"], ["out"], {"pads": [1, 1, 1, 1]})]
    write_onnx(
        folder / "weights.onnx", nodes, [Port("in", shape)], [Port("out", [batch, LABELS, SIDE, SIDE])], {"w": WEIGHTS}
    )
    (folder / "test_input.npy").write_bytes(npy(RAW))
    (folder / "test_output.npy").write_bytes(npy(sigmoid(convolved(standardised(RAW)))))
    said = {**(_as_0_5 if form.startswith("0.5") else _as_0_4)(folder), "format_version": form, **changes}
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    return folder


def zipped(folder: Path) -> Path:
    """The same as one file."""
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(folder.rglob("*")):
            archive.write(each, each.relative_to(folder))
    return file


def digest(file: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _source(folder: Path, name: str) -> dict[str, str]:
    return {"source": name, "sha256": digest(folder / name)}


def _as_0_5(folder: Path) -> dict[str, Any]:
    sides: list[dict[str, Any]] = [
        {"type": "space", "id": "y", "size": SIDE},
        {"type": "space", "id": "x", "size": SIDE},
    ]
    named = [{"type": "batch"}, {"type": "channel", "channel_names": ["dapi", "actin"]}, *sides]
    halos = [{**side, "halo": 4} for side in sides]
    return {
        "type": "model",
        "name": "Cells, two stains",
        "description": "Finds\ncells.",
        "license": "MIT",
        "inputs": [
            {
                "id": "raw",
                "axes": named,
                "test_tensor": _source(folder, "test_input.npy"),
                "preprocessing": [
                    {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
                    {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x", "y"]}},
                ],
            }
        ],
        "outputs": [
            {
                "id": "mask",
                "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["cell", "edge", "dust"]}, *halos],
                "test_tensor": _source(folder, "test_output.npy"),
                "postprocessing": [{"id": "sigmoid"}],
            }
        ],
        "weights": {"onnx": {**_source(folder, "weights.onnx"), "opset_version": 17}},
    }


def _as_0_4(folder: Path) -> dict[str, Any]:
    return {
        "type": "model",
        "name": "Cells, two stains",
        "description": "Finds\ncells.",
        "license": "MIT",
        "test_inputs": ["test_input.npy"],
        "test_outputs": ["test_output.npy"],
        "inputs": [
            {
                "name": "raw",
                "axes": "bcyx",
                "shape": [1, CHANNELS, SIDE, SIDE],
                "data_type": "uint16",
                "preprocessing": [
                    {"name": "zero_mean_unit_variance", "kwargs": {"axes": "yx", "mode": "per_sample"}},
                ],
            }
        ],
        "outputs": [
            {
                "name": "mask",
                "axes": "bcyx",
                "halo": [0, 0, 4, 4],
                "data_type": "float32",
                "postprocessing": [{"name": "sigmoid"}],
            }
        ],
        "weights": {"onnx": _source(folder, "weights.onnx")},
    }
