"""Raw values become probabilities as declared, whatever their size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.serving.predict import activate

logits = st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=8)


@given(logits)
def test_softmax_is_a_distribution_and_keeps_the_order(values: list[float]) -> None:
    found = np.array(activate(np.array(values, np.float32), "softmax"))

    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1.0)
    assert found[int(np.argmax(values))] == found.max()


@given(logits, st.floats(-1e3, 1e3))
def test_softmax_does_not_change_when_all_logits_move_together(values: list[float], shift: float) -> None:
    array = np.array(values, np.float64)

    assert activate(array, "softmax") == pytest.approx(activate(array + shift, "softmax"), abs=1e-9)


@given(logits)
def test_sigmoid_stays_between_0_and_1_and_never_overflows(values: list[float]) -> None:
    found = np.array(activate(np.array(values, np.float32), "sigmoid"))

    assert ((found >= 0) & (found <= 1)).all()


def test_none_gives_the_values_as_they_are() -> None:
    assert activate(np.array([-3.0, 40.0]), "none") == [-3.0, 40.0]
