"""The shipped brain-MRI model is as accurate and as honest about it as its card says."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from isocenter.imaging.phantoms import CLASSES, brain_slice

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "models" / "brain-mri-classifier" / "1"
TEST_DATA = Path(os.environ.get("TEST_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
SLICES = TEST_DATA / "mri_slices"
FOLDERS = ("glioma", "meningioma", "pituitary", "notumor")  # in the order of CLASSES
MEAN, STD = 0.185, 0.202
UNUSED_SEEDS = 1_500_000  # training takes its seeds below 1,000,000

Gray = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Answers:
    """Class indices int64 [N] as they are, and probabilities float64 [N, 4] as answered."""

    truth: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.asarray(self.probabilities.argmax(axis=1) == self.truth)


def _logits(session: onnxruntime.InferenceSession, planes: list[Gray]) -> NDArray[np.float32]:
    rows = []
    for start in range(0, len(planes), 32):
        gray = (np.stack(planes[start : start + 32]).astype(np.float32) / 255.0 - MEAN) / STD
        image = np.repeat(gray[:, np.newaxis], 3, axis=1).astype(np.float32)
        rows.append(session.run(["logits"], {"image": image})[0])
    return np.concatenate(rows)


def _answers(session: onnxruntime.InferenceSession, planes: list[Gray], truth: list[int]) -> Answers:
    logits = _logits(session, planes).astype(np.float64)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Answers(np.array(truth), raised / raised.sum(axis=1, keepdims=True))


def _calibration_error(answers: Answers, *, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins of the top confidence (Guo et al., 2017)."""
    confidence = answers.probabilities.max(axis=1)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = (answers.correct - confidence) / len(confidence)
    return float(sum(abs(gaps[bin_of == index].sum()) for index in range(bins)))


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(MODEL / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def on_phantoms(session: onnxruntime.InferenceSession) -> Answers:
    phantoms = [brain_slice(UNUSED_SEEDS + index, label=CLASSES[index % 4]) for index in range(200)]
    return _answers(session, [phantom.pixels for phantom in phantoms], [index % 4 for index in range(200)])


@pytest.fixture(scope="module")
def on_held_out_slices(session: onnxruntime.InferenceSession) -> Answers:
    if not SLICES.is_dir():
        pytest.skip("no mri_slices in the directory that TEST_DATA_DIR names")
    planes: list[Gray] = []
    truth: list[int] = []
    for label, folder in enumerate(FOLDERS):
        for path in sorted((SLICES / folder).glob("*.jpg")):
            # The rule of training/train_brain_mri_classifier.py: a fifth, chosen by the bytes of the file.
            if int(hashlib.sha256(path.read_bytes()).hexdigest()[:8], 16) % 5 == 0:
                with Image.open(path) as image:
                    planes.append(np.asarray(image.convert("L")))
                truth.append(label)
    return _answers(session, planes, truth)


def test_phantoms_of_unused_seeds_are_told_apart(on_phantoms: Answers) -> None:
    assert on_phantoms.correct.mean() >= 0.97


def test_held_out_slices_are_classified_as_well_as_promised(on_held_out_slices: Answers) -> None:
    assert on_held_out_slices.correct.mean() >= 0.97


@pytest.mark.parametrize("label", range(4), ids=CLASSES)
def test_no_class_is_left_behind_on_held_out_slices(on_held_out_slices: Answers, label: int) -> None:
    assert on_held_out_slices.correct[on_held_out_slices.truth == label].mean() >= 0.94


def test_confidence_on_held_out_slices_means_what_it_says(on_held_out_slices: Answers) -> None:
    assert _calibration_error(on_held_out_slices) <= 0.03


@pytest.mark.parametrize("case", [1, 2, 3, 4])
def test_a_golden_phantom_gets_its_golden_logits(session: onnxruntime.InferenceSession, case: int) -> None:
    golden = json.loads((MODEL / "golden" / f"case-{case}.json").read_text())
    with Image.open(MODEL / "golden" / f"case-{case}.png") as image:
        assert (image.mode, image.size) == ("L", (224, 224))
        logits = _logits(session, [np.asarray(image)])[0]
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-3)
    assert CLASSES[int(logits.argmax())] == golden["label"]
