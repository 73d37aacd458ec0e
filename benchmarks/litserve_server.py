"""LitServe with batching, as its manual shows it: decoding in the worker, one model call a batch.

It exists to be measured against; `benchmarks/serving.py` and `benchmarks/overload.py` start it. LitServe is no
dependency of this project. Into this environment, or into another one whose Python is then named to them:

    python -m pip install litserve python-multipart onnxruntime pillow numpy
    python benchmarks/serving.py --litserve-python PATH/bin/python
"""

import importlib
import io
import json
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

ls: Any = importlib.import_module("litserve")
GIVEN = json.loads(os.environ["LITSERVE_MODEL"])
MEAN = np.array(GIVEN["mean"], np.float32)
STD = np.array(GIVEN["std"], np.float32)
MAX_BATCH_SIZE = 16
BATCH_TIMEOUT_S = 0.005


class Classifier(ls.LitAPI):  # type: ignore[misc]
    """One image in, one class out; the steps between are called by LitServe."""

    def setup(self, device: str) -> None:
        """Open the session in the worker process."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = GIVEN["threads"]
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(GIVEN["file"], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request) -> NDArray[np.float32]:  # type: ignore[no-untyped-def]
        """An upload to a tensor. LitServe takes an annotation here for a schema; without one, it takes a form."""
        image = Image.open(io.BytesIO(request["file"].file.read())).convert("RGB")
        resized = image.resize((224, 224), Image.Resampling.BILINEAR)
        pixels = (np.asarray(resized, np.float32) / 255.0 - MEAN) / STD
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def batch(self, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Tensors to one batch."""
        return np.stack(inputs)

    def predict(self, x: NDArray[np.float32]) -> list[dict[str, Any]]:
        """One run for the batch."""
        logits = self.session.run(None, {GIVEN["input"]: x})[0]
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        return [
            {"prediction": GIVEN["labels"][int(row.argmax())], "confidence": float(row.max())} for row in probabilities
        ]

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer for each item."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """The answer as it is written."""
        return output


if __name__ == "__main__":
    server = ls.LitServer(
        Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S),
        accelerator="cpu",
        workers_per_device=1,
        timeout=60,
    )
    server.run(host="127.0.0.1", port=GIVEN["port"], generate_client_file=False, log_level="warning")
