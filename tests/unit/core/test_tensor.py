"""What a model takes and gives."""

import numpy as np
import pytest

from isocenter.core.tensor import Array, TensorSpec

FIXED = TensorSpec("image", np.dtype(np.uint8), (1, 4, 6))
VARYING = TensorSpec("image", np.dtype(np.uint8), (1, -1, -1))
SCALAR = TensorSpec("age", np.dtype(np.float32), ())


@pytest.mark.parametrize(
    ("spec", "array", "fits"),
    [
        pytest.param(FIXED, np.zeros((1, 4, 6), np.uint8), True, id="fits"),
        pytest.param(FIXED, np.zeros((1, 6, 4), np.uint8), False, id="axes swapped"),
        pytest.param(FIXED, np.zeros((4, 6), np.uint8), False, id="an axis short"),
        pytest.param(FIXED, np.zeros((2, 1, 4, 6), np.uint8), False, id="a batch is not an item"),
        pytest.param(FIXED, np.zeros((1, 4, 6), np.int8), False, id="another element type"),
        pytest.param(VARYING, np.zeros((1, 9, 2), np.uint8), True, id="any length"),
        pytest.param(VARYING, np.zeros((2, 9, 2), np.uint8), False, id="any length, but one axis is fixed"),
        pytest.param(SCALAR, np.zeros((), np.float32), True, id="scalar"),
        pytest.param(SCALAR, np.zeros(1, np.float32), False, id="one element is no scalar"),
    ],
)
def test_a_spec_describes_items(spec: TensorSpec, array: Array, fits: bool) -> None:
    assert spec.describes(array) is fits
