"""How far apart two versions are is counted exactly, and never on what is no number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import MANIFEST_DATA
from isocenter.core.errors import BadInput, BadManifest, NumericFailure, TruncatedImage
from isocenter.core.tensor import Array
from isocenter.repository.accuracy import activated, comparable, reference_of
from isocenter.repository.comparison import Comparison, Figures, compare, cpu_name, distinct
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import Manifest
from model_folders import png, write_model
from rounding_runtime import rounding as rounding
from rounding_runtime import rounding_part


def manifest(task: str = "classification", **output: Any) -> Manifest:
    data = {key: part for key, part in MANIFEST_DATA.items() if task == "classification" or key != "transforms"}
    return Manifest.model_validate({**data, "task": task, "output": {**MANIFEST_DATA["output"], **output}})


def compared(of: Manifest, *pairs: tuple[Any, Any]) -> Figures:
    comparison = Comparison(of)
    name = of.output.tensor or "y"
    for found, reference in pairs:
        comparison.add({name: np.asarray(found, np.float32)}, {name: np.asarray(reference, np.float32)})
    return comparison.figures()


def logit(p: float) -> float:
    return float(np.log(p) - np.log1p(-p))


def test_the_difference_is_that_of_probabilities() -> None:
    found = compared(manifest(), ([logit(0.7), 0.0], [logit(0.6), 0.0]), ([5.0, 5.0], [-3.0, -3.0]))
    assert found.max_abs_dp == pytest.approx(0.1, abs=1e-6)
    assert (found.items, found.top1_agreement, found.dice) == (2, 1.0, None)


def test_the_worst_item_counts_and_every_item_for_the_agreement() -> None:
    same = ([2.0, 0.0], [2.0, 0.0])
    other = ([0.1, 0.0], [0.0, 0.1])
    found = compared(manifest(), same, same, other, same)
    assert found.top1_agreement == 0.75
    assert found.max_abs_dp == pytest.approx(np.tanh(0.05), abs=1e-6)


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=2), st.sampled_from(["softmax", "sigmoid", "none"]))
def test_equal_answers_do_not_differ(outputs: list[float], activation: str) -> None:
    assert compared(manifest(activation=activation), (outputs, outputs)) == Figures(1, 0.0, 1.0, None)


def test_a_single_class_agrees_on_its_side_of_one_half() -> None:
    alone = manifest(activation="sigmoid", labels=["nodule"])
    found = compared(alone, ([0.1], [0.2]), ([0.1], [-0.1]))
    assert found.top1_agreement == 0.5


def test_without_an_activation_large_outputs_are_compared_by_their_size() -> None:
    assert compared(manifest(activation="none"), ([0.5, 0.25], [0.5, 0.5])).max_abs_dp == 0.25
    assert compared(manifest(activation="none"), ([500.0, 250.0], [500.0, 500.0])).max_abs_dp == 0.5


def test_dice_is_the_smallest_of_a_label_over_all_items_without_the_background() -> None:
    of = manifest("segmentation", labels=["background", "lung", "nodule"])
    one, other = labelmap([[1, 1, 2, 0]]), labelmap([[1, 1, 2, 2]])
    found = compared(of, (one, other), (other, other))
    # lung: 4 + 4 voxels, 4 in common. nodule: 1 + 2 of the one item and 2 + 2 of the other, 1 + 2 in common.
    assert found.dice == pytest.approx(2 * 3 / 7)
    assert found.top1_agreement == 7 / 8


def test_without_any_label_nothing_was_compared() -> None:
    of = manifest("segmentation", labels=["background", "lung", "nodule"])
    assert compared(of, (labelmap([[0, 0]]), labelmap([[0, 0]]))).dice is None


def test_labels_that_do_not_exclude_each_other_are_compared_one_by_one() -> None:
    of = manifest("segmentation", activation="sigmoid", labels=["lung", "nodule"])
    one = np.array([[[3.0, 3.0]], [[3.0, -3.0]]])
    other = np.array([[[3.0, 3.0]], [[-3.0, -3.0]]])
    found = compared(of, (one, other))
    assert (found.dice, found.top1_agreement) == (0.0, 0.5)


def test_a_declared_threshold_decides() -> None:
    of = manifest("segmentation", activation="sigmoid", labels=["lung", "nodule"], threshold=0.1)
    both = np.full((2, 1, 2), logit(0.2))
    assert compared(of, (both, np.full((2, 1, 2), logit(0.15)))).dice == 1.0
    assert compared(of, (both, np.full((2, 1, 2), logit(0.05)))).dice == 0.0


def labelmap(labels: list[list[int]]) -> Array:
    """Outputs [3, H, W] of which the most probable label is the one given."""
    return 4.0 * np.stack([np.asarray(labels) == label for label in range(3)]).astype(np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sick", [0, 1])
def test_what_is_no_number_cannot_be_compared(value: float, sick: int) -> None:
    pair = [[1.0, 2.0], [1.0, 2.0]]
    pair[sick] = [1.0, value]
    with pytest.raises(NumericFailure, match="NaN or infinity in logits"):
        compared(manifest(), (pair[0], pair[1]))


def test_answers_of_other_shapes_cannot_be_compared() -> None:
    with pytest.raises(BadManifest, match=r"has shape \[2\], the reference's \[3\]"):
        compared(manifest(), ([1.0, 2.0], [1.0, 2.0, 3.0]))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_a_batch_is_compared_as_its_items_are(activation: str) -> None:
    one, other = 3 * np.random.default_rng(0).standard_normal((2, 4, 3), dtype=np.float32)
    batch = np.stack(comparable(one, other, activation, axis=1))
    items = [np.stack(comparable(*pair, activation, axis=0)) for pair in zip(one, other, strict=True)]
    np.testing.assert_allclose(batch, np.stack(items, axis=1))


def test_the_activation_of_huge_values_stays_finite() -> None:
    for activation in ("softmax", "sigmoid"):
        found = activated(np.array([3e38, -3e38], np.float32), activation, axis=0)
        np.testing.assert_allclose(found, [1.0, 0.0])


def pictures(folder: Path, count: int) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(rng.integers(0, 255, (8, 8), dtype=np.uint8)))
    return distinct(folder.iterdir())


def in_bf16(models: Path, error: float) -> ModelFolder:
    return write_model(models, runtime=rounding_part(error=error))


@pytest.mark.usefixtures("rounding")
def test_two_versions_answer_the_same_files_each_through_its_own_preprocessing(tmp_path: Path) -> None:
    version = in_bf16(tmp_path, error=0.2)
    files = pictures(tmp_path / "pictures", 5)
    heard: list[int] = []
    found = compare(version, reference_of(version), files, tell=lambda so_far: heard.append(so_far.items))
    assert heard == [1, 2, 3, 4, 5]
    assert (found.items, found.precision, found.reference.precision) == (5, "bf16", "fp32")
    assert found.weights_sha256 == found.reference.sha256 == version.manifest.runtime.sha256
    assert 0.02 < found.max_abs_dp <= 0.05
    brighter = version.manifest.model_copy(
        update={"transforms": write_model(tmp_path, "other", transforms=BRIGHTER).manifest.transforms}
    )
    apart = compare(ModelFolder(version.path, brighter), reference_of(version), files)
    assert apart.max_abs_dp > found.max_abs_dp


BRIGHTER = [{"kind": "color", "to": "rgb"}, {"kind": "normalize", "mean": [0.1] * 3, "std": [0.25] * 3}]


@pytest.mark.usefixtures("rounding")
def test_tensors_are_taken_as_they_are(tmp_path: Path) -> None:
    version = in_bf16(tmp_path, error=0.2)
    (tmp_path / "tensors").mkdir()
    np.save(tmp_path / "tensors" / "a.npy", np.ones((3, 8, 8), np.float32))
    found = compare(version, reference_of(version), distinct((tmp_path / "tensors").iterdir()))
    assert found.items == 1


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize(
    ("name", "content", "kind", "sentence"),
    [
        ("cut.png", png()[:60], TruncatedImage, "cut.png: "),
        ("small.npy", np.ones((3, 4, 8), np.float32), BadInput, "small.npy: "),
        ("objects.npy", np.array([{}]), BadInput, "objects.npy: not an array"),
        ("junk.npz", b"PK\x03\x04junk", BadInput, "junk.npz: not an array"),
    ],
)
def test_a_file_that_cannot_be_answered_is_named(
    name: str, content: Any, kind: type[Exception], sentence: str, tmp_path: Path
) -> None:
    version, file = in_bf16(tmp_path, error=0.2), tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(kind, match=sentence):
        compare(version, reference_of(version), distinct([file]))


@pytest.mark.usefixtures("rounding")
def test_versions_that_mean_something_else_are_not_compared(tmp_path: Path) -> None:
    version = in_bf16(tmp_path, error=0.0)
    output = {"tensor": "scores", "activation": "softmax", "labels": ["yes", "no"]}
    with pytest.raises(BadManifest, match="has labels"):
        compare(version, write_model(tmp_path, "other", output=output), pictures(tmp_path / "pictures", 1))


def test_the_same_content_counts_once_and_no_name_decides_the_order(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    found = distinct(tmp_path.iterdir())
    assert sorted(file.read_bytes() for file in found.values()) == [b"1", b"2"]
    assert list(found) == sorted(found)


def test_the_processor_is_named_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n")
    assert cpu_name(tmp_path / "cpuinfo") == "A CPU @ 2 GHz"
    assert cpu_name(tmp_path / "nothing")
