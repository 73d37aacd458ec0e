"""Steps that are measured over rows and done part by part give, to the last bit, what they give the whole array."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from isocenter.core.errors import EmptyInput, InputNotAccepted
from isocenter.core.tensor import Array
from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline
from isocenter.imaging.transforms.arrays.steps import ArraySteps
from isocenter.imaging.transforms.arrays.streamed import measured, percentiles
from isocenter.imaging.volume import Volume

PIXELS = np.random.default_rng(4).integers(0, 4096, (2, 91, 67)).astype(np.uint16)
PIXELS[:, 10:30, 20:50] = 0
NAMES = ("DAPI", "GFP")
PERCENT = {"low": {"percentile": 1}, "high": {"percentile": 99.8}}


def bands(rows: int = 20) -> Iterator[Array]:
    """The picture, some rows at a time."""
    return (PIXELS[:, start : start + rows] for start in range(0, PIXELS.shape[1], rows))


@pytest.mark.parametrize(
    "steps",
    [
        [{"kind": "scale", **PERCENT, "clip": True}],
        [{"kind": "scale", **PERCENT, "per_channel": True}, {"kind": "standardize", "per_channel": True}],
        [{"kind": "clip", "low": {"percentile": 0.5}}, {"kind": "standardize", "nonzero": True}],
        [
            {"kind": "scale"},
            {"kind": "shift_scale", "gain": [2.0, 3.0]},
            {"kind": "clip", "low": 0.1, "per_channel": True},
        ],
        [{"kind": "select_channels", "channels": [1]}, {"kind": "scale", "low": 100, "high": "max"}],
        [{"kind": "normalize_channels", "channels": [{"scheme": "divide", "by": 4095}, {"scheme": "none"}]}],
        [{"kind": "standardize", "mean": [5.0], "std": [3.0]}],
        [{"kind": "scale"}, {"kind": "pad_to_multiple", "multiple_of": 32, "mode": "reflect"}],
        [{"kind": "pad_to", "size": [100, None], "method": "end", "value": 7}],
    ],
    ids=lambda steps: "-".join(step["kind"] for step in steps),
)
def test_parts_are_as_in_the_whole(steps: list[dict[str, Any]]) -> None:
    checked = TypeAdapter(ArraySteps).validate_python(steps)
    whole = ArrayPipeline(checked)(Volume.of(PIXELS, channels=NAMES))
    streamed = measured(checked, bands, PIXELS.shape[1:], NAMES)

    done = np.concatenate([streamed(PIXELS[:, start : start + 17]) for start in range(0, 91, 17)], axis=1)
    rows, columns = streamed.pad.rows(0), streamed.pad.rows(1)
    outside = (rows < 0)[:, np.newaxis] | (columns < 0)
    done = np.where(outside, np.float32(streamed.pad.value), done[:, rows][:, :, columns])
    np.testing.assert_array_equal(done, whole.tensor)
    assert streamed.notes == whole.notes


@pytest.mark.parametrize("seed", range(20))
def test_percentiles_are_those_of_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 10 ** rng.uniform(-30, 30), int(rng.integers(1, 900))).astype(np.float32)
    values = np.round(values) if seed % 2 else values
    asked = [0.0, 100.0, *rng.uniform(0, 100, 4).tolist()]
    expected = tuple(np.percentile(values, asked).tolist())
    assert percentiles(lambda: iter(np.array_split(values, 3)), asked, values.size) == expected


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([{"kind": "resize", "size": [8, 8]}], "resize changes the grid"),
        ([{"kind": "crop_foreground"}], "crop_foreground changes the grid"),
        ([{"kind": "pad_to", "size": [99, 99]}, {"kind": "scale"}], "scale comes after padding"),
        ([{"kind": "normalize_channels", "channels": [{"scheme": "z_score"}] * 2}], "measures channels"),
        ([{"kind": "select_channels", "channels": [2]}], "takes channel 2, there are 2"),
    ],
)
def test_what_cannot_be_done_in_parts_is_refused(steps: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(InputNotAccepted, match=why):
        measured(TypeAdapter(ArraySteps).validate_python(steps), bands, PIXELS.shape[1:], NAMES)


SPARSE = np.zeros((2, 91, 67), np.uint16)
SPARSE[0, 40:42, 30:32] = 40_000
"""Four pixels of 6,097 are not the background, which the 1st and the 99.8th percentile both are."""


@pytest.mark.parametrize("kind", ["scale", "clip"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_window_with_nothing_inside_is_refused_and_not_left_out(kind: str, per_channel: bool) -> None:
    """What is left out of a window would go to the model as it is, 40,000 times what it has learned from."""
    steps = TypeAdapter(ArraySteps).validate_python([{"kind": kind, **PERCENT, "per_channel": per_channel}])

    with pytest.raises(EmptyInput, match="0 to 40000") as whole:
        ArrayPipeline(steps)(Volume.of(SPARSE, channels=NAMES))
    with pytest.raises(EmptyInput) as streamed:
        measured(steps, lambda: iter([SPARSE[:, :50], SPARSE[:, 50:]]), SPARSE.shape[1:], NAMES)
    assert str(streamed.value) == str(whole.value)


def test_a_channel_that_is_empty_beside_another_is_left_as_it_is() -> None:
    pixels = PIXELS.copy()
    pixels[1] = 7
    steps = TypeAdapter(ArraySteps).validate_python([{"kind": "scale", **PERCENT, "per_channel": True}])

    assert not ArrayPipeline(steps)(Volume.of(pixels, channels=NAMES)).tensor[1].any()
