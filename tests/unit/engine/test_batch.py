"""Items into a batch and back."""

import numpy as np
import pytest

from isocenter.core.errors import InputNotAccepted, NumericFailure, RuntimeFault
from isocenter.core.tensor import Array, TensorSpec
from isocenter.engine.batch import check_item, collate, make_buffers, scatter, shape_key

IMAGE = TensorSpec("image", np.dtype(np.uint8), (1, 2, 3))
AGE = TensorSpec("age", np.dtype(np.float32), ())
ANY_SIZE = TensorSpec("image", np.dtype(np.uint8), (1, -1, -1))
SCORE = TensorSpec("score", np.dtype(np.float32), (2,))
LABEL = TensorSpec("label", np.dtype(np.int64), ())


def picture(value: int, shape: tuple[int, ...] = (1, 2, 3)) -> dict[str, Array]:
    return {"image": np.full(shape, value, np.uint8)}


def test_items_are_gathered_in_order() -> None:
    specs = (IMAGE, AGE)
    items = [{**picture(n), "age": np.asarray(n / 2, np.float32)} for n in range(3)]
    batch = collate(items, specs, make_buffers(specs, 4))
    assert batch["image"].shape == (3, 1, 2, 3)
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch["age"].tolist() == [0.0, 0.5, 1.0]


def test_buffers_are_used_again() -> None:
    buffers = make_buffers((IMAGE,), 4)
    first = collate([picture(1), picture(2)], (IMAGE,), buffers)
    second = collate([picture(3), picture(4), picture(5)], (IMAGE,), buffers)
    assert np.shares_memory(first["image"], second["image"])
    assert np.shares_memory(second["image"], buffers["image"])


def test_a_lone_item_is_not_copied() -> None:
    item = picture(1)
    batch = collate([item], (IMAGE,), make_buffers((IMAGE,), 4))
    assert batch["image"].shape == (1, 1, 2, 3)
    assert np.shares_memory(batch["image"], item["image"])


def test_shapes_that_vary_are_stacked() -> None:
    buffers = make_buffers((ANY_SIZE,), 4)
    assert buffers == {}
    batch = collate([picture(1, (1, 5, 7)), picture(2, (1, 5, 7))], (ANY_SIZE,), buffers)
    assert batch["image"].shape == (2, 1, 5, 7)


def test_only_items_of_equal_shape_share_a_key() -> None:
    assert shape_key(picture(1, (1, 5, 7)), (ANY_SIZE,)) == shape_key(picture(2, (1, 5, 7)), (ANY_SIZE,))
    assert shape_key(picture(1, (1, 5, 7)), (ANY_SIZE,)) != shape_key(picture(1, (1, 7, 5)), (ANY_SIZE,))


@pytest.mark.parametrize(
    ("item", "says"),
    [
        pytest.param({}, "'image' is missing", id="missing"),
        pytest.param(picture(1, (1, 3, 2)), r"uint8\[1, 3, 2\], the model takes uint8\[1, 2, 3\]", id="shape"),
        pytest.param(picture(1, (2, 3)), r"uint8\[2, 3\]", id="axes"),
        pytest.param({"image": np.zeros((1, 2, 3))}, r"float64\[1, 2, 3\]", id="element type"),
        pytest.param({**picture(1), "mask": np.zeros(1)}, "no tensor mask", id="unknown"),
    ],
)
def test_an_item_that_does_not_fit_is_refused(item: dict[str, Array], says: str) -> None:
    with pytest.raises(InputNotAccepted, match=says):
        check_item(item, (IMAGE,))


def test_an_item_that_fits_passes() -> None:
    check_item(picture(1), (IMAGE,))
    check_item(picture(1, (1, 9, 4)), (ANY_SIZE,))


def test_answers_are_copies() -> None:
    outputs: dict[str, Array] = {"score": np.arange(6, dtype=np.float32).reshape(3, 2), "label": np.arange(3)}
    answers = scatter(outputs, (SCORE, LABEL), 3)
    outputs["score"][:] = -1
    outputs["label"][:] = -1
    for n, answer in enumerate(answers):
        assert not isinstance(answer, NumericFailure)
        assert answer["score"].tolist() == [2 * n, 2 * n + 1]
        assert answer["label"].shape == ()
        assert answer["label"] == n
        assert answer["score"].base is None


def test_a_lone_answer_that_is_nobody_elses_is_not_copied() -> None:
    outputs: dict[str, Array] = {"score": np.ones((1, 2), np.float32), "label": np.arange(1)}
    (answer,) = scatter(outputs, (SCORE, LABEL), 1, fresh=True)
    assert not isinstance(answer, NumericFailure)
    assert np.shares_memory(answer["score"], outputs["score"])
    assert answer["score"].shape == (2,)
    assert answer["label"].shape == ()
    (copied,) = scatter(outputs, (SCORE, LABEL), 1)
    assert not isinstance(copied, NumericFailure)
    assert not np.shares_memory(copied["score"], outputs["score"])


def test_one_answer_of_several_does_not_hold_the_others() -> None:
    outputs: dict[str, Array] = {"score": np.ones((2, 2), np.float32), "label": np.arange(2)}
    for answer in scatter(outputs, (SCORE, LABEL), 2, fresh=True):
        assert not isinstance(answer, NumericFailure)
        assert not np.shares_memory(answer["score"], outputs["score"])


def test_an_answer_that_is_not_finite_fails_alone() -> None:
    scores = np.zeros((4, 2), np.float32)
    scores[1, 0] = np.nan
    scores[3] = -np.inf
    answers = scatter({"score": scores, "label": np.arange(4)}, (SCORE, LABEL), 4)
    assert [isinstance(answer, NumericFailure) for answer in answers] == [False, True, False, True]
    assert isinstance(answers[3], NumericFailure)
    assert answers[3].details == {"output": "score", "non_finite": 2, "values": 2}
    assert "2 of 2 values of output 'score'" in answers[3].message


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        pytest.param({}, "no output 'score'", id="missing"),
        pytest.param({"score": np.zeros((2, 2))}, r"shape \[2, 2\], not 3 along axis 0", id="too few"),
        pytest.param({"score": np.zeros((4, 2))}, r"shape \[4, 2\], not 3 along axis 0", id="too many"),
        pytest.param({"score": np.zeros(())}, r"shape \[\], not 3", id="no axis"),
    ],
)
def test_outputs_need_one_row_for_each_item(outputs: dict[str, Array], says: str) -> None:
    with pytest.raises(RuntimeFault, match=says):
        scatter(outputs, (SCORE,), 3)
