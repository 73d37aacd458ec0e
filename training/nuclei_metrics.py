"""How well objects were found, one label image against another: foreground IoU, and F1 of objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

IOU = 0.5
"""From which an object counts as found."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one image."""

    foreground_iou: float
    """Of all objects together, as pixels; 1 where there are none, neither found nor true."""
    hits: int
    """True objects that were found."""
    found: int
    true: int

    @property
    def object_f1(self) -> float:
        """2 * hits / (found + true); 1 where there are no objects, neither found nor true."""
        return 2 * self.hits / (self.found + self.true) if self.found + self.true else 1.0


@dataclass(frozen=True, slots=True)
class Summary:
    """Of several images."""

    images: int
    foreground_iou: float
    """Mean over the images."""
    object_f1: float
    """Mean over the images."""
    pooled_f1: float
    """Of all their objects together."""
    objects: int
    """True ones."""


def quality_of(found: np.ndarray, truth: np.ndarray, *, iou: float = IOU) -> Quality:
    """Compare label images [H, W] of whole numbers; 0 is the background.

    An object is matched to one true object at most, and that to it; of several pairs with an IoU of `iou` or more, the
    best comes first. Numbers need not be without gaps.

    >>> quality_of(np.array([[1, 1, 0]]), np.array([[5, 5, 5]]))
    Quality(foreground_iou=0.6666666666666666, hits=1, found=1, true=1)
    """
    either = int(np.count_nonzero((found > 0) | (truth > 0)))
    both = int(np.count_nonzero((found > 0) & (truth > 0)))
    found_names, found_at = np.unique(found, return_inverse=True)
    true_names, true_at = np.unique(truth, return_inverse=True)
    shape = (len(found_names), len(true_names))
    shared = np.bincount(found_at.ravel() * shape[1] + true_at.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0, keepdims=True) - shared
    ratio = shared / union
    ratio[found_names == 0] = 0.0
    ratio[:, true_names == 0] = 0.0
    return Quality(
        foreground_iou=both / either if either else 1.0,
        hits=_matches(ratio, iou),
        found=int(np.count_nonzero(found_names)),
        true=int(np.count_nonzero(true_names)),
    )


def summary_of(qualities: Sequence[Quality]) -> Summary:
    """Means over images, and the F1 of all their objects."""
    pooled = Quality(
        foreground_iou=0.0,
        hits=sum(each.hits for each in qualities),
        found=sum(each.found for each in qualities),
        true=sum(each.true for each in qualities),
    )
    return Summary(
        images=len(qualities),
        foreground_iou=fmean(each.foreground_iou for each in qualities),
        object_f1=fmean(each.object_f1 for each in qualities),
        pooled_f1=pooled.object_f1,
        objects=pooled.true,
    )


def _matches(ratio: np.ndarray, iou: float) -> int:
    rows, columns = np.nonzero(ratio >= iou)
    order = np.argsort(-ratio[rows, columns], kind="stable")
    row_free, column_free = np.ones(ratio.shape[0], bool), np.ones(ratio.shape[1], bool)
    count = 0
    for row, column in zip(rows[order], columns[order], strict=True):
        if row_free[row] and column_free[column]:
            row_free[row] = column_free[column] = False
            count += 1
    return count
