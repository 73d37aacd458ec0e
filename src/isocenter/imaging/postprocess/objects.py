"""Probabilities to objects: which pixels belong to one, and where one ends and its neighbour begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.postprocess.flood import MOST_PX, components, deep_peaks, flood, in_steps

_PROBABILITY_STEP = 1 / 64
_DISTANCE_STEP_PX = 0.5


class ObjectRule(BaseModel):
    """How pixels become objects. Areas and distances are in pixels of the source image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inside: list[str | int] = []
    """Labels whose pixels belong to objects, their outlines included; left out, every label but the background."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Sum of the probabilities of `inside` from which a pixel belongs to an object."""
    split: Literal["none", "seeds", "distance"] = "none"
    """What parts objects that touch: nothing, `seeds` of a label of their own, or necks in the outline (`distance`)."""
    seeds: str | int | None = None
    """For `split: seeds`: the label of the pixels of which each group is one object. For `split: distance`: necks are
    looked for in the outline of these pixels; left out, in that of the object."""
    border: str | int | None = None
    """A label whose probability is taken off that of `seeds`; of labels that may overlap."""
    seed_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability from which a pixel belongs to `seeds`."""
    min_seed_px: Annotated[int, Field(ge=0)] = 0
    """Smaller seeds do not count."""
    neck_px: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """For `split: distance`: by how much a neck is narrower on each side than the object is on both sides of it."""
    fill_holes: bool = False
    """Whether pixels that one object encloses are given to it."""
    max_hole_px: Annotated[int, Field(ge=1)] | None = None
    """Larger holes are not filled."""
    min_area_px: Annotated[int, Field(ge=0)] = 0
    """Smaller objects do not count."""
    drop_border: bool = False
    """Whether objects that touch the edge of the image are left out."""
    connectivity: Literal[4, 8] = 4
    """Neighbours of a pixel. With 8, pixels that only share a corner are one object, of several polygons."""

    @model_validator(mode="after")
    def _seeds_go_with_their_split(self) -> Self:
        if self.split == "seeds" and self.seeds is None:
            raise ValueError("split: seeds goes with the label of the seeds")
        if self.split == "none" and self.seeds is not None:
            raise ValueError("seeds goes with split: seeds or split: distance")
        if self.border is not None and self.seeds is None:
            raise ValueError("border goes with seeds")
        return self

    @property
    def names(self) -> tuple[str | int, ...]:
        """Every label that it names."""
        return (*self.inside, *(name for name in (self.seeds, self.border) if name is not None))


@dataclass(frozen=True, eq=False)
class LabelImage:
    """Objects of one image, numbered 1 to `count` in the order of their first pixels, row by row; 0 is none of them."""

    labels: Array
    """[H, W], uint32."""
    confidences: FloatArray
    """Of each object: the mean over its pixels of the probability to belong to one."""

    @property
    def count(self) -> int:
        """How many objects there are."""
        return len(self.confidences)


def objects_of(
    probabilities: FloatArray, rule: ObjectRule, labels: Sequence[str | int], *, threshold: float | None = None
) -> LabelImage:
    """Find the objects in probabilities [K, H, W], one layer a label.

    `threshold` stands for that of the rule. A component of pixels without a seed is one object.

    >>> found = objects_of(np.float32([[[0.9, 0.2, 0.7]]]), ObjectRule(), ["cell"])
    >>> found.labels.tolist(), found.confidences.round(2).tolist()
    ([[1, 0, 2]], [0.8999999761581421, 0.699999988079071])

    Raises:
        ValueError: the rule names a label that is not there.
    """
    foreground = foreground_of(probabilities, rule, labels)
    mask = (foreground >= (rule.threshold if threshold is None else threshold)).astype(np.uint8)
    found = _split(mask, probabilities, rule, labels)
    if rule.fill_holes:
        _fill(found, rule.max_hole_px)
    return _numbered(found, foreground, rule)


def foreground_of(probabilities: FloatArray, rule: ObjectRule, labels: Sequence[str | int]) -> FloatArray:
    """The probability [H, W] of a pixel to belong to an object: the sum over the labels inside, 1 at most."""
    inside = [_number(label, labels) for label in rule.inside] or [*range(len(labels) > 1, len(labels))]
    total: FloatArray = probabilities[inside[0]]
    if len(inside) > 1:
        total = probabilities[inside].sum(axis=0)
        np.minimum(total, np.float32(1), out=total)
    return total


def _number(label: str | int, labels: Sequence[str | int]) -> int:
    try:
        return list(labels).index(label)
    except ValueError:
        raise ValueError(f"no label {label!r} among {', '.join(map(str, labels))}") from None


def _split(mask: Array, probabilities: FloatArray, rule: ObjectRule, labels: Sequence[str | int]) -> Array:
    """Labels [H, W] int32, in no particular order."""
    whole = components(mask, rule.connectivity)
    if rule.split == "none" or not mask.any():
        return whole
    likely = None if rule.seeds is None else _likely(probabilities, rule, labels)
    inner = mask if likely is None else ((likely >= rule.seed_threshold) & (mask != 0)).astype(np.uint8)
    if rule.split == "seeds":
        assert likely is not None
        landscape, lowest, step = likely, 0.0 if rule.border is None else -1.0, _PROBABILITY_STEP
        seeds = inner
    else:
        landscape, lowest, step = _distances_px(mask), 0.0, _DISTANCE_STEP_PX
        inner_px = landscape if inner is mask else _distances_px(inner)
        seeds = deep_peaks(inner_px, rule.neck_px, rule.connectivity)
    marked = components(seeds, rule.connectivity)
    if rule.min_seed_px > 1:
        marked[np.bincount(marked.ravel())[marked] < rule.min_seed_px] = 0
    return flood(whole, marked, in_steps(landscape, mask, lowest=lowest, step=step), rule.connectivity)


def _likely(probabilities: FloatArray, rule: ObjectRule, labels: Sequence[str | int]) -> FloatArray:
    """The probability [H, W] of `seeds`, less that of `border` if there is one."""
    assert rule.seeds is not None
    likely: FloatArray = probabilities[_number(rule.seeds, labels)]
    return likely if rule.border is None else likely - probabilities[_number(rule.border, labels)]


def _distances_px(mask: Array) -> FloatArray:
    """From each pixel to the nearest one outside; there is none where the mask is the whole image."""
    return np.minimum(cv2.distanceTransform(mask, cv2.DIST_L2, 5), np.float32(MOST_PX))


def _fill(labels: Array, max_hole_px: int | None) -> None:
    """Give pixels that one object alone encloses, along the axes, to it."""
    gaps = components((labels == 0).astype(np.uint8), 4)
    sizes = np.bincount(gaps.ravel())
    fills = sizes <= (max_hole_px or labels.size)
    fills[[0, *_at_edge(gaps)]] = False
    if not fills.any():
        return
    flat, width = labels.ravel(), labels.shape[1]
    at = np.flatnonzero(fills[gaps])
    gap = gaps.ravel()[at]
    least, most = np.full(len(sizes), np.iinfo(np.int32).max), np.zeros(len(sizes), np.int64)
    for side in (-width, -1, 1, width):  # a gap away from the edge has all four
        beside = flat[at + side]
        there = beside > 0
        np.minimum.at(least, gap[there], beside[there])
        np.maximum.at(most, gap[there], beside[there])
    one = least[gap] == most[gap]
    flat[at[one]] = least[gap[one]]


def _at_edge(labels: Array) -> list[int]:
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return [int(label) for label in np.unique(edges)]


def _numbered(labels: Array, foreground: FloatArray, rule: ObjectRule) -> LabelImage:
    """Without what does not count, numbered by first pixels."""
    flat = labels.ravel()
    at = np.flatnonzero(flat > 0)
    areas = np.bincount(flat[at], minlength=int(flat.max(initial=0)) + 1)
    keep = areas >= max(1, rule.min_area_px)
    keep[0] = False
    if rule.drop_border:
        keep[_at_edge(labels)] = False
    first = np.full(len(areas), labels.size)
    first[flat[at[::-1]]] = at[::-1]  # of an index that comes twice, the last one stays
    order = np.argsort(np.where(keep, first, labels.size), kind="stable")[: np.count_nonzero(keep)]
    number = np.zeros(len(areas), np.uint32)
    number[order] = np.arange(1, len(order) + 1)
    sums = np.bincount(flat[at], weights=foreground.ravel()[at], minlength=len(areas))
    return LabelImage(number[labels], (sums[order] / areas[order]).astype(np.float32))
