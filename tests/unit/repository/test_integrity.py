"""A model is what it claims to be, or it is not served."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builders import MANIFEST_DATA
from isocenter.core.errors import BadManifest, BatchVariance, DigestMismatch, GoldenMismatch
from isocenter.core.tensor import Array, Tensors, TensorSpec
from isocenter.repository import integrity
from isocenter.repository.integrity import GoldenCase
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import GoldenPart, Manifest

F32 = np.dtype(np.float32)


def sums(batch: Array) -> Array:
    return np.stack([batch.sum((1, 2, 3)), -batch.sum((1, 2, 3))], axis=1).astype(np.float32)


class FakeSession:
    """A session that computes what it is told."""

    def __init__(
        self,
        compute: Callable[[Array], Array] = sums,
        *,
        inputs: tuple[TensorSpec, ...] = (TensorSpec("image", F32, (3, 2, 2)),),
        outputs: tuple[TensorSpec, ...] = (TensorSpec("logits", F32, (2,)),),
    ) -> None:
        self._compute = compute
        self.inputs = inputs
        self.outputs = outputs

    def run(self, batch: Tensors) -> Tensors:
        return {"logits": self._compute(batch["image"])}

    @property
    def proof(self) -> str:
        return "fp32: a fake"

    def close(self) -> None: ...


MANIFEST = Manifest.model_validate(MANIFEST_DATA)
ITEMS: list[Tensors] = [{"image": np.full((3, 2, 2), value, np.float32)} for value in (0.25, 1.0, -2.0)]
CASES = [GoldenCase(f"case-{n}", b"", sums(item["image"][None])[0]) for n, item in enumerate(ITEMS)]


def folder(path: Path, weights: bytes, digest: str) -> ModelFolder:
    (path / "model.onnx").write_bytes(weights)
    data = {**MANIFEST_DATA, "runtime": {**MANIFEST_DATA["runtime"], "sha256": digest}}
    return ModelFolder(path, Manifest.model_validate(data))


def test_the_digest_is_the_one_that_the_manifest_names(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()

    assert integrity.check_digest(folder(tmp_path, b"weights", digest)) == digest


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match="the manifest names"):
        integrity.check_digest(folder(tmp_path, b"other weights", hashlib.sha256(b"weights").hexdigest()))


@pytest.mark.parametrize(
    ("session", "sentence"),
    [
        (FakeSession(inputs=(TensorSpec("x", F32, (3, 2, 2)),)), r"the model takes \['x'\]"),
        (FakeSession(outputs=(TensorSpec("y", F32, (2,)),)), r"the model gives \['y'\]"),
        (FakeSession(inputs=(TensorSpec("image", np.dtype(np.uint8), (3, 2, 2)),)), "takes float32"),
        (FakeSession(outputs=(TensorSpec("logits", F32, (5,)),)), "2 labels"),
    ],
    ids=["input name", "output name", "element type", "count of labels"],
)
def test_tensors_that_the_manifest_does_not_name_are_refused(session: FakeSession, sentence: str) -> None:
    with pytest.raises(BadManifest, match=sentence):
        integrity.check_tensors(MANIFEST, session)


def test_a_golden_case_that_is_reproduced_passes() -> None:
    assert integrity.check_golden(MANIFEST, FakeSession(), CASES, ITEMS).misses == 0


@pytest.mark.parametrize(
    "compute", [lambda batch: sums(batch) + 0.1, lambda batch: sums(batch) * np.nan], ids=["off", "nan"]
)
def test_a_golden_case_that_is_missed_is_refused(compute: Callable[[Array], Array]) -> None:
    with pytest.raises(GoldenMismatch, match="golden values are off"):
        integrity.check_golden(MANIFEST, FakeSession(compute), CASES, ITEMS)


def test_an_answer_that_does_not_depend_on_its_batch_mates_passes() -> None:
    assert integrity.check_batch_invariance(MANIFEST, FakeSession(), ITEMS).worst == 0


def test_a_session_that_uses_its_output_memory_again_is_compared_all_the_same() -> None:
    memory = np.empty((MANIFEST.batching.max_batch_size, 2), np.float32)

    def into_the_same_memory(batch: Array) -> Array:
        memory[: len(batch)] = sums(batch)
        return memory[: len(batch)]

    session = FakeSession(into_the_same_memory)
    assert integrity.check_golden(MANIFEST, session, CASES, ITEMS).misses == 0
    assert integrity.check_batch_invariance(MANIFEST, session, ITEMS).worst == 0


def test_a_model_that_normalises_over_its_batch_is_refused() -> None:
    def over_the_batch(batch: Array) -> Array:
        return sums(batch - batch.mean(axis=0, keepdims=True))

    with pytest.raises(BatchVariance, match="in a batch of 8"):
        integrity.check_batch_invariance(MANIFEST, FakeSession(over_the_batch), ITEMS)


@pytest.mark.parametrize(
    ("misses", "values", "within"),
    [(0, 4, True), (1, 4, False), (1, 10_000, True), (2, 10_000, False), (100, 1_000_000, True)],
)
def test_the_tolerance_counts_misses_per_million(misses: int, values: int, within: bool) -> None:
    assert integrity.Deviation(values, 1.0, misses).within(GoldenPart()) is within


@pytest.mark.parametrize("content", [None, "{", "{}", '{"logits": ["a"]}'])
def test_an_incomplete_golden_case_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "a.png").write_bytes(b"")
    if content is not None:
        (tmp_path / "golden" / "a.json").write_text(content)

    with pytest.raises(BadManifest, match="golden case a"):
        integrity.golden_cases(ModelFolder(tmp_path, MANIFEST))


def test_a_model_without_a_golden_case_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="no golden case"):
        integrity.golden_cases(ModelFolder(tmp_path, MANIFEST))


def test_golden_cases_are_pairs_of_files(tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "a.png").write_bytes(b"png")
    (tmp_path / "golden" / "a.json").write_text(json.dumps({"logits": [1, 2.5]}))

    (case,) = integrity.golden_cases(ModelFolder(tmp_path, MANIFEST))

    assert isinstance(case.expected, np.ndarray)
    assert (case.name, case.image, case.expected.tolist()) == ("a", b"png", [1.0, 2.5])
