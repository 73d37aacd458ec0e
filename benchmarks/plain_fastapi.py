"""The server that people write first: FastAPI, Pillow, numpy, ONNX Runtime called inside an async handler.

It exists to be measured against. `benchmarks/serving.py` starts it with the model, the labels and the normalisation
of a model folder.
"""

import io
import json
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, UploadFile
from PIL import Image

GIVEN = json.loads(os.environ["PLAIN_MODEL"])
MEAN = np.array(GIVEN["mean"], np.float32)
STD = np.array(GIVEN["std"], np.float32)

options = ort.SessionOptions()
options.intra_op_num_threads = GIVEN["threads"]
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(GIVEN["file"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, Any]:
    """One image in, one class out."""
    image = Image.open(io.BytesIO(await file.read())).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    pixels = (np.asarray(image, np.float32) / 255.0 - MEAN) / STD
    batch = np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]
    (logits,) = session.run(None, {GIVEN["input"]: batch})[0]
    exponents = np.exp(logits - logits.max())
    probabilities = exponents / exponents.sum()
    best = int(probabilities.argmax())
    return {"prediction": GIVEN["labels"][best], "confidence": float(probabilities[best])}
