"""Labels that are made row by row are those of everything at once."""

from collections.abc import Sequence

import numpy as np
import pytest

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.postprocess.activation import masks_of, probabilities_of, threshold_of
from isocenter.imaging.sliding.labels import LabelRule, Labels
from isocenter.imaging.sliding.merge import in_half
from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline, PreparedVolume
from isocenter.imaging.transforms.arrays.steps import ArrayStep, CenterCrop, Orient, PadTo, Resample
from isocenter.imaging.volume import Volume

SOURCE = (17, 12, 9)
TURN = Orient(kind="orient", axcodes="SPL")
FINER = Resample(kind="resample", spacing_mm=(0.7, 1.3, 0.8))
CUT = CenterCrop(kind="center_crop", size=(9, 20, 9))
WIDE = PadTo(kind="pad_to", size=(20, 14, 18))
TRAILS: dict[str, tuple[ArrayStep, ...]] = {
    "as it is": (),
    "turned, cut, padded": (TURN, CUT, WIDE),
    "resampled": (FINER,),
    "turned, resampled, cut": (TURN, FINER, CUT),
}
RULES = [
    LabelRule(activation="softmax"),
    LabelRule(activation="softmax", foreground=0.4),
    LabelRule(activation="softmax", back="labels"),
    LabelRule(activation="softmax", back="labels", foreground=0.7),
    LabelRule(activation="softmax", back="scores"),
    LabelRule(activation="softmax", back="scores", half=True),
    LabelRule(activation="softmax", back="scores", foreground=0.4),
    LabelRule(activation="sigmoid"),
    LabelRule(activation="sigmoid", back="scores", threshold=0.6),
    LabelRule(activation="none", back="labels", threshold=0.4),
]


def at_once(scores: FloatArray, prepared: PreparedVolume, rule: LabelRule) -> tuple[Array, FloatArray]:
    """The same without rows: the whole array through one step after the other."""
    trail, threshold = prepared.trail, threshold_of(rule.activation, rule.threshold)
    nothing: Sequence[float] = [0.0 if threshold is not None or label else 1.0 for label in range(len(scores))]
    if rule.back == "scores":
        back = in_half(trail.back(scores)) if rule.half else trail.back(scores)
        values = probabilities_of(back, rule.activation)
        if trail.leaves_out:
            left_out = trail.back(np.ones((1, *scores.shape[1:]), np.uint8), labels=True)[0] == 0
            values[:, left_out] = np.array(nothing, np.float32)[:, np.newaxis]
        return masks_of(values, threshold, foreground=rule.foreground), values
    values = probabilities_of(scores, rule.activation)
    if rule.back == "probabilities":
        values = trail.back(values, fill=nothing)
        return masks_of(values, threshold, foreground=rule.foreground), values
    layers = masks_of(values, threshold, foreground=rule.foreground)
    mask = trail.back(layers if threshold is not None else layers[np.newaxis], labels=True)
    return mask if threshold is not None else mask[0], trail.back(values, fill=nothing)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.activation}-{rule.back}-{rule.half}-{rule.foreground}")
@pytest.mark.parametrize("steps", TRAILS.values(), ids=list(TRAILS))
@pytest.mark.parametrize("labels", [2, 5])
def test_rows_give_what_the_whole_gives(steps: tuple[ArrayStep, ...], rule: LabelRule, labels: int) -> None:
    random = np.random.default_rng(3)
    prepared = ArrayPipeline(steps)(Volume.of(random.standard_normal((1, *SOURCE)).astype(np.float32)))
    shape = prepared.tensor.shape[1:]
    scores = random.standard_normal((labels, *shape)).astype(np.float32)
    scores = in_half(scores) if rule.half else scores
    mask, values = at_once(scores, prepared, rule)

    for wanted in (False, True):
        sink = Labels(shape, prepared.trail, rule, probabilities=wanted)
        for row in range(0, shape[0], 4):
            sink(row, scores[:, row : row + 4])
        found, probabilities = sink.finish()

        assert np.array_equal(found, mask)
        assert found.dtype == mask.dtype
        assert (probabilities is None) is not wanted
        assert probabilities is None or np.array_equal(probabilities, values)


def test_scores_that_softmax_makes_equal_still_have_a_highest() -> None:
    prepared = ArrayPipeline(())(Volume.of(np.ones((1, *SOURCE), np.float32)))
    scores = np.full((2, *SOURCE), 1e-3, np.float32)
    scores[1] = np.nextafter(scores[1], np.float32(1))
    for wanted in (False, True):
        sink = Labels(SOURCE, prepared.trail, LabelRule(activation="softmax"), probabilities=wanted)
        sink(0, scores)

        assert sink.finish()[0].min() == 1


def test_without_rows_there_are_no_labels() -> None:
    prepared = ArrayPipeline(())(Volume.of(np.ones((1, *SOURCE), np.float32)))

    with pytest.raises(ValueError, match="no rows"):
        Labels(SOURCE, prepared.trail, LabelRule(activation="softmax"), probabilities=False).finish()
