"""Scores become labels while they come, row after row; only what the way back needs is held whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.postprocess.activation import Activation, loudest, masks_of, probabilities_of, threshold_of
from isocenter.imaging.sliding.merge import Whole, in_half
from isocenter.imaging.transforms.arrays.pipeline import Trail

Back: TypeAlias = Literal["probabilities", "scores", "labels"]
"""What is brought back onto the source grid: linearly, or, for labels, by nearest neighbour."""
_BLOCK_BYTES: Final = 4 * 2**20
"""What becomes labels at a time, about, where it is held whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRule:
    """How scores become labels."""

    activation: Activation
    threshold: float | None = None
    """See `threshold_of`."""
    foreground: float | None = None
    """See `loudest`."""
    back: Back = "probabilities"
    half: bool = False
    """Scores are rounded to half precision once more on the source grid, as nnU-Net keeps them."""


def by_rows(back: Back, trail: Trail) -> bool:
    """Whether labels can be made on the prepared grid: nothing is mixed from several voxels on the way back."""
    return back == "labels" or not trail.resamples


class Labels:
    """A sink for scores of the prepared grid. `finish` gives labels of the source grid.

    What was not prepared at all is background, with certainty. Without resampling on the way back (or with `back:
    labels`), only labels are held, 1 byte a voxel; else scores or probabilities, 4 bytes a voxel and label.

    >>> from isocenter.imaging.geometry import Geometry
    >>> trail = Trail(Geometry.of((2, 2)))
    >>> labels = Labels((2, 2), trail, LabelRule(activation="softmax"), probabilities=False)
    >>> labels(0, np.float32([[[0, 3]], [[1, 2]]]))
    >>> labels(1, np.float32([[[5, 0]], [[1, 2]]]))
    >>> labels.finish()[0]
    array([[1, 0],
           [0, 1]], dtype=uint8)
    """

    def __init__(self, shape: tuple[int, ...], trail: Trail, rule: LabelRule, *, probabilities: bool) -> None:
        """`shape`: of the prepared grid, without channels; `probabilities`: they are wanted too."""
        self._shape, self._trail, self._rule, self._wanted = shape, trail, rule, probabilities
        self._threshold = threshold_of(rule.activation, rule.threshold)
        self._by_rows = by_rows(rule.back, trail)
        self._layers: Array | None = None
        """[K, *spatial] where labels may overlap, else [1, *spatial]."""
        self._values: Whole | None = Whole(shape) if probabilities or not self._by_rows else None
        self._argmax = (
            self._by_rows and rule.activation == "softmax" and self._threshold is None and rule.foreground is None
        )
        """The highest score is the highest probability too: where only labels are asked for, softmax is left out."""

    def __call__(self, row: int, rows: FloatArray) -> None:
        """Take finished rows of scores."""
        as_scores = not self._wanted and self._argmax if self._by_rows else self._rule.back == "scores"
        values = rows if as_scores else probabilities_of(rows, self._rule.activation)
        if self._by_rows:
            found = self._masks(rows if self._argmax else values)
            layers = found if self._threshold is not None else found[np.newaxis]
            if self._layers is None:
                self._layers = np.empty((len(layers), *self._shape), layers.dtype)
            self._layers[:, row : row + rows.shape[1]] = layers
        if self._values is not None:
            self._values(row, values)

    def finish(self) -> tuple[Array, FloatArray | None]:
        """The labels, and the probabilities [K, *spatial] if they are wanted, on the source grid.

        Labels: [*spatial], the number of each voxel's label; with a threshold [K, *spatial] of 0 and 1.

        Raises:
            ValueError: nothing has come.
        """
        if self._by_rows:
            return self._labels_back(), self._probabilities_back() if self._wanted else None
        if self._rule.back == "scores":
            return self._of_scores()
        if not self._wanted:
            return self._of_probabilities(), None
        values = self._probabilities_back()
        return self._of_blocks(values), values

    def _labels_back(self) -> Array:
        if self._layers is None:
            raise ValueError("no rows have come")
        back = self._trail.back(self._layers, labels=True)
        return back if self._threshold is not None else back[0]

    def _probabilities_back(self) -> FloatArray:
        values = self._taken()
        return self._channel_by_channel(values, self._background(len(values)))

    def _of_probabilities(self) -> Array:
        """The loudest label so far, channel after channel: two of them are held on the source grid, however many."""
        values = self._taken()
        nothing = self._background(len(values))
        if self._threshold is not None:
            return np.stack([self._masks(self._back(values, k, nothing))[0] for k in range(len(values))])
        layers = (self._back(values, number, nothing)[0] for number in range(len(values)))
        return loudest(layers, len(values), foreground=self._rule.foreground, over=True)

    def _of_scores(self) -> tuple[Array, FloatArray | None]:
        values = self._taken()
        nothing = self._background(len(values))
        left_out = None
        if self._trail.leaves_out:
            left_out = self._trail.back(np.ones((1, *self._shape), np.uint8), labels=True)[0] == 0
        back = self._channel_by_channel(values, [0.0] * len(values))
        for rows in _blocks(back):
            scores = in_half(back[:, rows]) if self._rule.half else back[:, rows]
            back[:, rows] = probabilities_of(scores, self._rule.activation)
            if left_out is not None:
                back[:, rows][:, left_out[rows]] = np.array(nothing, np.float32)[:, np.newaxis]
        return self._of_blocks(back), back if self._wanted else None

    def _of_blocks(self, values: FloatArray) -> Array:
        found = [self._masks(values[:, rows]) for rows in _blocks(values)]
        return np.concatenate(found, axis=0 if self._threshold is None else 1)

    def _masks(self, values: FloatArray) -> Array:
        return masks_of(values, self._threshold, foreground=self._rule.foreground)

    def _channel_by_channel(self, values: FloatArray, fill: Sequence[float]) -> FloatArray:
        """All channels on the source grid; on the way, one of them is held in between."""
        if not self._trail.undos:
            return values
        out = np.empty((len(values), *self._trail.source.shape), np.float32)
        for number in range(len(values)):
            out[number] = self._back(values, number, fill)[0]
        return out

    def _back(self, values: FloatArray, number: int, fill: Sequence[float]) -> FloatArray:
        found: FloatArray = self._trail.back(values[number : number + 1], fill=fill[number])
        return found

    def _taken(self) -> FloatArray:
        assert self._values is not None
        values, self._values = self._values.array, None
        return values

    def _background(self, labels: int) -> list[float]:
        return [0.0 if self._threshold is not None or label else 1.0 for label in range(labels)]


def _blocks(values: FloatArray) -> Iterator[slice]:
    """A few rows along the first spatial axis at a time."""
    at_once = max(1, _BLOCK_BYTES // values[:, :1].nbytes)
    return (slice(start, start + at_once) for start in range(0, values.shape[1], at_once))
