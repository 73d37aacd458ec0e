"""A version is written whole and proven, or not at all; and never over another."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.errors import (
    BadManifest,
    BatchVariance,
    DigestMismatch,
    GoldenMismatch,
    ImportRefused,
    NumericFailure,
    RuntimeFault,
)
from isocenter.core.tensor import FloatArray
from isocenter.importers import folder
from isocenter.importers.folder import Imported, TensorCase, next_version, write_folder
from isocenter.repository.integrity import check_digest
from isocenter.repository.layout import ModelFolder, find
from model_folders import runtime_part

WEIGHTS = b"weights"
ITEM: FloatArray = np.linspace(0, 1, 192, dtype=np.float32).reshape(3, 8, 8)
MEAN = float(ITEM.mean(dtype=np.float64))
SCORES: FloatArray = np.array([MEAN, 2 * MEAN], np.float32)


def made(
    *, output: FloatArray | None = SCORES, files: dict[str, bytes | Path] | None = None, **changes: Any
) -> Imported:
    manifest = {
        "schema": 1,
        "name": "lungs",
        "version": 1,
        "task": "classification",
        "runtime": {key: part for key, part in runtime_part().items() if key != "sha256"},
        "input": {"kind": "image2d", "tensor": "x"},
        "transforms": [{"kind": "color", "to": "rgb"}, {"kind": "normalize", "mean": [0.5] * 3, "std": [0.25] * 3}],
        "output": {"tensor": "scores", "activation": "softmax", "labels": ["no", "yes"]},
        "batching": {"max_batch_size": 4},
        **changes,
    }
    return Imported(manifest, files or {"model.bin": WEIGHTS}, [TensorCase("noise", ITEM, output)])


def left_in(models: Path) -> list[str]:
    return [str(path.relative_to(models)) for path in sorted(models.rglob("*"))]


def test_a_version_comes_with_its_digest_and_its_golden_case(tmp_path: Path) -> None:
    written = write_folder(tmp_path, made())

    assert written.path == tmp_path / "lungs" / "1"
    assert check_digest(find(tmp_path, "lungs", 1)) == hashlib.sha256(WEIGHTS).hexdigest()
    assert left_in(tmp_path / "lungs") == [
        "1",
        "1/golden",
        "1/golden/noise.input.npy",
        "1/golden/noise.output.npy",
        "1/model.bin",
        "1/model.yaml",
    ]


def test_a_file_to_copy_and_bytes_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(WEIGHTS)

    written = write_folder(tmp_path / "models", made(files={"model.bin": tmp_path / "weights"}))

    assert written.weights.read_bytes() == WEIGHTS


def test_a_version_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    write_folder(tmp_path, made())
    before = left_in(tmp_path)

    with pytest.raises(ImportRefused, match=r"lungs 1 is there already.*--version 2"):
        write_folder(tmp_path, made())
    assert left_in(tmp_path) == before
    assert next_version(tmp_path, "lungs") == 2


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (made(output=SCORES + 1), GoldenMismatch),
        (made(runtime={**runtime_part(), "sha256": "0" * 64}), DigestMismatch),
        (made(runtime={**runtime_part(), "file": "other.bin"}), BadManifest),
        (made(tsak="classification"), BadManifest),
        (made(runtime={**runtime_part(), "options": {"image": "3x8x8", "labels": 3}}), BadManifest),
    ],
    ids=["golden output", "digest", "missing file", "key", "labels"],
)
def test_what_is_not_as_it_says_leaves_nothing(tmp_path: Path, wrong: Imported, error: type[Exception]) -> None:
    with pytest.raises(error):
        write_folder(tmp_path, wrong)
    assert left_in(tmp_path) == []


def test_other_versions_stay_where_one_fails(tmp_path: Path) -> None:
    write_folder(tmp_path, made())
    before = left_in(tmp_path)

    with pytest.raises(GoldenMismatch):
        write_folder(tmp_path, made(output=SCORES + 1, version=2))
    assert left_in(tmp_path) == before


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", ".hidden", "a/.b", "model.yaml", "", "a\\b"])
def test_a_file_never_leaves_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImportRefused, match="file name"):
        write_folder(tmp_path / "models", made(files={"model.bin": WEIGHTS, name: b"x"}))
    assert left_in(tmp_path) == ["models"]


@pytest.mark.parametrize(
    "change", [{"name": "../up"}, {"name": "Lungs"}, {"version": 0}, {"version": "1"}, {"version": True}]
)
def test_names_and_versions_are_those_of_folders(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ImportRefused):
        write_folder(tmp_path / "models", made(**change))
    assert left_in(tmp_path) == []


def test_a_golden_output_that_is_left_out_is_what_the_model_gives(tmp_path: Path) -> None:
    written = write_folder(tmp_path, made(output=None))

    np.testing.assert_allclose(np.load(written.golden / "noise.output.npy"), SCORES, rtol=1e-6)


def test_an_importer_may_refuse_what_the_model_gives(tmp_path: Path) -> None:
    def published(output: FloatArray) -> None:
        raise GoldenMismatch(f"{output[0]:.3f} was not published")

    wrong = made(output=None)
    wrong.golden[0] = TensorCase("noise", ITEM, None, published)

    with pytest.raises(GoldenMismatch, match="not published"):
        write_folder(tmp_path, wrong)
    assert left_in(tmp_path) == []


def test_infinity_is_no_golden_output(tmp_path: Path) -> None:
    wrong = made(output=None)
    wrong.golden[0] = TensorCase("noise", np.full_like(ITEM, np.inf), None)

    with pytest.raises(NumericFailure):
        write_folder(tmp_path, wrong)


def test_golden_cases_are_float32_and_come_once(tmp_path: Path) -> None:
    doubled = made()
    doubled.golden.append(doubled.golden[0])
    wide = made()
    wide.golden[0] = TensorCase("noise", ITEM.astype(np.float64), SCORES)
    outside = made()
    outside.golden[0] = TensorCase("../noise", ITEM, SCORES)

    for wrong, sentence in ((doubled, "twice"), (wide, "float64"), (outside, "golden case")):
        with pytest.raises(ImportRefused, match=sentence):
            write_folder(tmp_path, wrong)


@pytest.mark.parametrize("failure", [BatchVariance("other answers"), RuntimeFault("no batches")])
def test_only_a_batch_axis_that_was_opened_falls_back_to_batches_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def alone_only(there: ModelFolder) -> str:
        if there.manifest.batching.max_batch_size > 1:
            raise failure
        return ""

    monkeypatch.setattr(folder, "prove", alone_only)
    opened = Imported(made().manifest, {"model.bin": WEIGHTS}, made().golden, [], batch_axis_opened=True)

    with pytest.raises(type(failure)):
        write_folder(tmp_path, made())
    assert write_folder(tmp_path, opened).manifest.batching.max_batch_size == 1
    assert "one item a batch" in opened.notes[0]


def test_files_beside_the_weights_are_in_the_digest(tmp_path: Path) -> None:
    part = {**made().manifest["runtime"], "beside": [{"file": "model.data"}]}
    written = write_folder(tmp_path, made(runtime=part, files={"model.bin": WEIGHTS, "model.data": b"more"}))
    (written.path / "model.data").write_bytes(b"else")

    with pytest.raises(DigestMismatch, match=r"model\.data"):
        check_digest(written)
