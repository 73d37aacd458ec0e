"""What the exported file is worth: figures, model card, golden cases."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image

from isocenter.imaging.phantoms import CLASSES, brain_slice
from isocenter.networks.slice_resnet import INPUT_NAME, SliceResNet
from slices import GOLDEN_PHANTOM_SEEDS, MEAN, REPORT_PHANTOM_SEEDS, STD, Slices, draw_phantoms, normalised

log = logging.getLogger("train_brain_mri_classifier")


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
    """Mean gap between top-1 confidence and accuracy over equal-width bins, weighted by count (Guo et al., 2017)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[bin_of == index].mean() - confidence[bin_of == index].mean()) * (bin_of == index).mean()
        for index in range(bins)
        if (bin_of == index).any()
    ]
    return float(sum(gaps))


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return accuracy, per-class recall, calibration error and the confusion matrix (rows: truth)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    answers = logits.argmax(axis=1)
    confusion = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(confusion, (labels, answers), 1)
    return {
        "count": len(labels),
        "accuracy": float((answers == labels).mean()),
        "recall": [
            float(answers[labels == index].tolist().count(index) / max(1, (labels == index).sum()))
            for index in range(len(CLASSES))
        ],
        "ece": expected_calibration_error(probabilities, labels),
        "confusion": confusion.tolist(),
    }


def answers_of(session: onnxruntime.InferenceSession, pixels: np.ndarray, *, batch: int = 32) -> np.ndarray:
    """Return logits float32 [N, 4] of uint8 planes [N, 224, 224] from the exported file itself."""
    rows = []
    for start in range(0, len(pixels), batch):
        planes = torch.from_numpy(pixels[start : start + batch]).unsqueeze(1).float() / 255.0
        rows.append(session.run(["logits"], {INPUT_NAME: normalised(planes).contiguous().numpy()})[0])
    return np.concatenate(rows)


def write_golden(session: onnxruntime.InferenceSession, folder: Path) -> None:
    """Write one phantom of each class with the logits it gets, for runtimes and machines to be compared by."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, label in enumerate(CLASSES):
        pixels = brain_slice(GOLDEN_PHANTOM_SEEDS + index, label=label).pixels
        logits = answers_of(session, pixels[np.newaxis])[0]
        Image.fromarray(pixels).save(folder / f"case-{index + 1}.png")
        case = {"logits": [round(float(logit), 5) for logit in logits], "label": CLASSES[int(logits.argmax())]}
        if case["label"] != label:
            log.warning("golden case %d is a %s and is called %s", index + 1, label, case["label"])
        (folder / f"case-{index + 1}.json").write_text(json.dumps(case, indent=2) + "\n")


def table_of(found: dict[str, Any]) -> str:
    """Return the measured numbers of one set as Markdown."""
    confusion = np.array(found["confusion"])
    lines = [
        f"{found['count']} images, accuracy **{found['accuracy']:.4f}**, calibration error {found['ece']:.4f}.",
        "",
        "| truth | images | recall | " + " | ".join(f"called {label}" for label in CLASSES) + " |",
        "| --- " * (3 + len(CLASSES)) + "|",
    ]
    for label, row, recall in zip(CLASSES, confusion, found["recall"], strict=True):
        lines.append(f"| {label} | {row.sum()} | {recall:.4f} | " + " | ".join(str(count) for count in row) + " |")
    return "\n".join(lines)


def write_report(arguments: argparse.Namespace, parts: dict[str, Slices], out: Path) -> None:
    """Measure the exported file and write MODEL_CARD.md and golden/ beside it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(out / "model.onnx", options, providers=["CPUExecutionProvider"])
    held_out, phantoms = parts["held-out"], draw_phantoms(REPORT_PHANTOM_SEEDS, 1000)
    on_slices = measure(answers_of(session, held_out.pixels), held_out.labels)
    on_phantoms = measure(answers_of(session, phantoms.pixels), phantoms.labels)
    log.info("held-out slices: %s", json.dumps(on_slices))
    log.info("phantoms of unused seeds: %s", json.dumps(on_phantoms))
    write_golden(session, out / "golden")
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in SliceResNet(len(CLASSES)).parameters()),
        kilobytes=(out / "model.onnx").stat().st_size / 1000,
        mean=MEAN,
        std=STD,
        training=len(parts["training"]),
        calibration=len(parts["calibration"]),
        held_out=len(held_out),
        seed=arguments.seed,
        command=f"--seed {arguments.seed} --epochs {arguments.epochs} --minutes {arguments.minutes:g}",
        on_slices=table_of(on_slices),
        on_phantoms=table_of(on_phantoms),
        first_phantom=REPORT_PHANTOM_SEEDS,
        last_phantom=REPORT_PHANTOM_SEEDS + len(phantoms) - 1,
    )
    (out / "MODEL_CARD.md").write_text(card)


CARD = """\
# brain-mri-classifier, version 1

**For demonstration, not for diagnosis.**

A small residual network ({parameters:,} parameters, {kilobytes:.0f} kB of fp32 ONNX, opset 17) that sorts one brain-MRI
slice into Glioma, Meningioma, Pituitary or No Tumor. It shows a serving path at work; it has seen no clinical trial.

## Input and output

`image`, float32 [B, 3, 224, 224]: a gray slice as uint8, divided by 255, less {mean}, divided by {std}, the same plane
in all three channels. Slices of another size are fitted into a black square, bilinear.
`logits`, float32 [B, 4], in the order above; softmax gives the probabilities, the temperature being in
the weights already.

## Data

- figshare brain tumor dataset, J. Cheng, 2017, doi 10.6084/m9.figshare.1512427, CC BY 4.0
- SARTAJ and Br35H, as gathered with the above in the training part of the public "Brain Tumor MRI Dataset"
  (M. Nickparvar, Kaggle; its page states CC0), near-duplicates removed
- phantoms drawn by `isocenter.imaging.phantoms`, training seeds below 1,000,000

Split: a slice is held out if `int(sha256(file bytes).hexdigest()[:8], 16) % 5 == 0`; of the others it is for
calibration if `int(sha256(file bytes).hexdigest()[8:16], 16) % 20 == 0`, and else for training. That makes {training}
for training, {calibration} for calibration and selection, {held_out} held out.
**The set has no patient numbers, so slices of one patient may stand on both sides of the split: the accuracy on slices
of new patients is likely to be lower than the one below.**

## Accuracy

On the held-out slices: {on_slices}

On phantoms, seeds {first_phantom} to {last_phantom}, which training did not use: {on_phantoms}

Calibration error: 15 equal-width bins of the top probability.

## Training

Seed {seed}; time limits bind by the clock, so a run on another machine gives other weights of the same kind.

    PYTHONPATH=src python training/train_brain_mri_classifier.py --slices DIR --out MODELDIR {command}
"""
