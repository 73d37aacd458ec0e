"""A precision is what was seen, or it is refused."""

import pytest

from isocenter.core.errors import BadManifest
from isocenter.core.precision import Precision
from isocenter.runtimes.proof import proven


@pytest.mark.parametrize(
    ("stated", "layers", "says"),
    [
        ("fp32", {"fp32": 5}, "fp32: 5 of 5 layers; seen"),
        ("fp32", {}, "fp32: the model has no layers with products; seen"),
        ("bf16", {"bf16": 5, "fp32": 5}, "bf16: 5 of 10 layers, the rest in fp32; seen"),
    ],
)
def test_what_is_as_stated_is_said(stated: Precision, layers: dict[str, int], says: str) -> None:
    assert proven(stated, layers, "seen") == says


@pytest.mark.parametrize(
    ("stated", "layers"),
    [
        ("fp32", {"fp32": 5, "int8": 1}),
        ("fp32", {"fp32": 5, "fp16": 1}),
        ("int8", {"int8": 4, "fp32": 5}),
        ("int8", {"int8": 9, "bf16": 1}),
        ("int8", {"fp32": 9}),
        ("fp16", {}),
        ("tf32", {"fp32": 9}),
    ],
    ids=["one in int8", "one in fp16", "under half", "a third kind", "none", "no layers", "all in fp32"],
)
def test_what_is_not_as_stated_is_refused(stated: Precision, layers: dict[str, int]) -> None:
    with pytest.raises(BadManifest, match=f"precision is {stated}, but "):
        proven(stated, layers, "seen")
