"""Windows cover everything, and what comes out of them is what went in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.core.errors import NumericFailure
from isocenter.core.tensor import FloatArray
from isocenter.imaging.sliding.merge import Merge, Whole
from isocenter.imaging.sliding.plan import Rule, Sliding, WindowPlan, plan
from isocenter.imaging.sliding.weights import importance

SIDES = st.integers(1, 13)
RULES: st.SearchStrategy[Rule] = st.sampled_from(("monai", "nnunet"))


@st.composite
def plans(draw: st.DrawFn) -> WindowPlan:
    rank = draw(st.integers(2, 3))
    sides = st.lists(SIDES, min_size=rank, max_size=rank)
    overlap = draw(st.floats(0, 0.95))
    return plan(draw(sides), draw(sides), overlap=overlap, rule=draw(RULES))


def merged(windows: WindowPlan, weights: FloatArray, source: FloatArray) -> FloatArray:
    whole = Whole(windows.shape)
    merge = Merge(windows, weights, whole)
    for at in windows:
        merge.add(windows.cut(source, at))
    merge.finish()
    return whole.array


@given(plans())
def test_every_voxel_is_in_a_window_and_every_window_is_inside(windows: WindowPlan) -> None:
    covered = np.zeros(windows.padded, bool)
    for at in windows:
        where = tuple(slice(start, start + side) for start, side in zip(at, windows.roi, strict=True))
        assert covered[where].shape == windows.roi
        covered[where] = True

    assert covered.all()
    assert len(windows) == len(windows.positions)


@given(plans(), st.sampled_from(["constant", "gaussian"]), RULES)
@settings(max_examples=60)
def test_windows_that_answer_what_they_see_give_the_array_back(windows: WindowPlan, mode: str, rule: Rule) -> None:
    source = np.random.default_rng(0).standard_normal((2, *windows.shape)).astype(np.float32)
    weights = importance(Sliding(roi=windows.roi, mode=mode, rule=rule))

    found = merged(windows, weights, source)

    assert found.shape == source.shape
    assert np.allclose(found, source, atol=1e-5)


@given(plans())
@settings(max_examples=30)
def test_a_constant_stays_constant(windows: WindowPlan) -> None:
    whole = Whole(windows.shape)
    merge = Merge(windows, importance(Sliding(roi=windows.roi, mode="gaussian")), whole)
    for _ in windows:
        merge.add(np.full((1, *windows.roi), 0.75, np.float32))
    merge.finish()

    assert np.allclose(whole.array, 0.75, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "roi", "overlap", "monai", "nnunet"),
    [
        (100, 100, 0.5, (0,), (0,)),
        (101, 100, 0.5, (0, 1), (0, 1)),
        (160, 96, 0.5, (0, 48, 64), (0, 32, 64)),
        (110, 64, 0.25, (0, 46), (0, 46)),
        (10, 4, 0.9, (0, 1, 2, 3, 4, 5, 6), None),
    ],
)
def test_windows_begin_where_the_rule_says(
    size: int, roi: int, overlap: float, monai: tuple[int, ...], nnunet: tuple[int, ...] | None
) -> None:
    shape, window = (size, roi), (roi, roi)
    assert plan(shape, window, overlap=overlap).starts[0] == monai
    if nnunet is not None:
        assert plan(shape, window, overlap=overlap, rule="nnunet").starts[0] == nnunet


def test_a_small_array_stands_in_the_middle_of_zeros() -> None:
    windows = plan((3, 2), (6, 2), overlap=0.5)
    window = windows.cut(np.ones((1, 3, 2), np.float32), (0, 0))

    assert (windows.before, windows.padded) == ((1, 0), (6, 2))
    assert window[0, :, 0].tolist() == [0, 1, 1, 1, 0, 0]


def test_finished_rows_are_handed_over_as_soon_as_no_window_touches_them() -> None:
    windows = plan((10, 4), (4, 4), overlap=0.5)
    handed: list[tuple[int, int]] = []
    merge = Merge(windows, np.ones((4, 4), np.float32), lambda row, rows: handed.append((row, rows.shape[1])))
    after = []
    for _ in windows:
        merge.add(np.ones((1, 4, 4), np.float32))
        after.append(sum(rows for _, rows in handed))
    merge.finish()

    assert after == [0, 2, 4, 6]
    assert handed == [(0, 2), (2, 2), (4, 2), (6, 4)]


@pytest.mark.parametrize(("half", "score"), [(False, 3e38), (True, 60_000.0)])
def test_scores_whose_sum_is_infinite_are_told_and_not_passed_on(half: bool, score: float) -> None:
    windows = plan((6, 4), (4, 4), overlap=0.5)
    handed: list[FloatArray] = []
    merge = Merge(windows, np.ones((4, 4), np.float32), lambda _, rows: handed.append(rows), half=half)

    with pytest.raises(NumericFailure, match="too large"):  # noqa: PT012 - whichever comes first
        for _ in windows:
            merge.add(np.full((1, 4, 4), score, np.float32))
        merge.finish()
    assert all(np.isfinite(rows).all() for rows in handed)


@pytest.mark.parametrize("outputs", [0, 3, 5])
def test_a_window_too_many_or_too_few_is_noticed(outputs: int) -> None:
    windows = plan((10, 4), (4, 4), overlap=0.5)
    merge = Merge(windows, np.ones((4, 4), np.float32), Whole(windows.shape))

    with pytest.raises(ValueError, match="window"):  # noqa: PT012 - whichever comes first
        for _ in range(outputs):
            merge.add(np.ones((1, 4, 4), np.float32))
        merge.finish()


def test_an_output_of_another_size_is_refused() -> None:
    windows = plan((10, 4), (4, 4), overlap=0.5)

    with pytest.raises(ValueError, match=r"\[4, 4\] voxels was answered with \[1, 2, 4\]"):
        Merge(windows, np.ones((4, 4), np.float32), Whole(windows.shape)).add(np.ones((1, 2, 4), np.float32))


@pytest.mark.parametrize(
    ("shape", "roi", "overlap"), [((4,), (4, 4), 0.5), ((0, 4), (4, 4), 0.5), ((4, 4), (4, 4), 1.0)]
)
def test_windows_that_cannot_be_are_refused(shape: tuple[int, ...], roi: tuple[int, ...], overlap: float) -> None:
    with pytest.raises(ValueError, match=r"windows|axes"):
        plan(shape, roi, overlap=overlap)


def test_the_middle_counts_most_and_nothing_counts_for_nothing() -> None:
    for rule in ("monai", "nnunet"):
        weights = importance(Sliding(roi=(64, 64, 32), mode="gaussian", rule=rule))
        place = tuple(int(index) for index in np.unravel_index(weights.argmax(), weights.shape))
        assert place in {(31, 31, 15), (32, 32, 16)}
        assert weights.min() > 0
        assert weights.dtype == np.float32


def test_the_gaussian_of_nnunet_is_in_half_precision_with_its_smallest_weight_at_the_corners() -> None:
    weights = importance(Sliding(roi=(64, 64, 64), mode="gaussian", rule="nnunet"))

    assert float(weights.max()) == 10
    assert np.array_equal(weights, weights.astype(np.float16))
    assert weights[0, 0, 0] == weights[weights > 0].min() == np.float16(6e-8)
    assert weights[32, 32, 24] == np.float16(10 * np.exp(-0.5))


def test_the_weights_of_a_window_are_made_once_and_nobody_writes_over_them() -> None:
    weights = importance(Sliding(roi=(6, 4), mode="gaussian"))

    assert importance(Sliding(roi=(6, 4), mode="gaussian")) is weights
    with pytest.raises(ValueError, match="read-only"):
        weights[0] = 1.0
