"""A mask to findings: which lesions there are, how large, where, how sure; an answer too where there are none."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.postprocess.components import Connectivity, Ids, components_of, largest_distance

_ROUNDING = 1e-9


class FindingRule(BaseModel):
    """What of a mask is a finding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: Annotated[list[str | int], Field(min_length=1)]
    """Labels whose voxels are findings. Each component of such a label is a lesion."""
    min_volume_ml: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    """Smaller components are left out of the mask and of the lesions; how many, and how much, is answered."""
    min_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    """So are components whose mean probability is less, whatever their size."""
    connectivity: Connectivity = 26
    """Neighbours of a voxel: 6 share a side with it, 18 at least an edge, 26 at least a corner."""

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str | int]) -> list[str | int]:
        if len(set(labels)) != len(labels):
            raise ValueError(f"labels repeat: {labels}")
        return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    """One component of a label."""

    label: str | int
    number: int
    """From 1, the largest first, whatever the label."""
    voxels: int
    volume_ml: float
    centroid_voxel: tuple[float, float, float]
    """Indices of the source's array; whole numbers are the centres of voxels."""
    centroid_lps_mm: tuple[float, float, float]
    diameter_mm: float
    """The largest distance between the centres of two of its voxels; 0 of a single one."""
    probability: float | None
    """Mean over its voxels of the probability of its label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found in a volume, or that nothing was."""

    present: bool
    """Whether any lesion was."""
    probability: float | None
    """Mean over the most probable voxels, as many as make up the smallest lesion that counts (one voxel at least); by
    the same rule where nothing was found. Components that were not probable enough do not count. None without
    probabilities."""
    volume_ml: float
    """Of all lesions; where labels overlap, a voxel counts once."""
    lesions: tuple[Lesion, ...]
    removed: int
    """Components that were smaller than the rule's `min_volume_ml`, or less probable than its `min_probability`."""
    removed_ml: float
    volume_ml_by_label: dict[str, float]
    """Of every label but the background, in the mask as it is answered."""


def findings_of(
    mask: Array,
    labels: Sequence[str | int],
    geometry: Geometry,
    rule: FindingRule,
    *,
    probabilities: FloatArray | None,
) -> tuple[Findings, Array]:
    """What a rule finds in a mask, and the mask without what the rule removes: the same array if that is nothing.

    Args:
        mask: [*spatial] of label numbers, 0 is the background; or [K, *spatial] of 0 and 1, a layer a label.
        labels: of the model, in its order.
        geometry: of the mask, three axes.
        rule: the manifest's.
        probabilities: [K, *spatial], if they were kept.

    >>> mask = np.zeros((4, 5, 6), np.uint8)
    >>> mask[1, 1, 1:3] = 1
    >>> found, _ = findings_of(mask, ["none", "tumor"], Geometry.of(mask.shape), FindingRule(labels=["tumor"]),
    ...                        probabilities=None)
    >>> found.present, found.lesions[0].voxels, found.lesions[0].centroid_voxel
    (True, 2, (1.0, 1.0, 1.5))

    Raises:
        ValueError: the rule names a label that is not there, or the background; the shapes do not fit; or the rule asks
            for probabilities, and there are none.
    """
    exclusive = mask.ndim == len(geometry.shape)
    if mask.shape != (geometry.shape if exclusive else (len(labels), *geometry.shape)) or len(geometry.shape) != 3:
        raise ValueError(f"a mask of {mask.shape} with {len(labels)} labels on a grid of {geometry.shape}")
    if rule.min_probability and probabilities is None:
        raise ValueError(f"lesions of probability {rule.min_probability:g} or more, and no probabilities")
    numbers = [_number(label, labels, exclusive) for label in rule.labels]
    voxel_ml = abs(float(np.linalg.det(geometry.lps_from_voxel[:3, :3]))) / 1000
    least = math.ceil(rule.min_volume_ml / voxel_ml - _ROUNDING)
    found: list[tuple[_Component, float | None]] = []
    removed: list[int] = []
    improbable: list[_Component] = []
    kept = mask
    for number in numbers:
        layer = mask == number if exclusive else mask[number] != 0
        for component in _components(layer, number, rule.connectivity):
            if component.voxels >= least:
                probability = None if probabilities is None else component.mean(probabilities)
                if probability is None or probability >= rule.min_probability:
                    found.append((component, probability))
                    continue
                improbable.append(component)
            removed.append(component.voxels)
            kept = mask.copy(order="K") if kept is mask else kept
            component.erase(kept if exclusive else kept[number])
    found.sort(key=lambda each: (-each[0].voxels, numbers.index(each[0].number), each[0].centroid_voxel))
    findings = Findings(
        present=bool(found),
        probability=None
        if probabilities is None
        else _present(_without(probabilities, improbable), numbers, exclusive, max(1, least)),
        volume_ml=_volume(kept, numbers, exclusive, [component for component, _ in found]) * voxel_ml,
        lesions=tuple(
            _lesion(component, number, labels, geometry, voxel_ml, probability)
            for number, (component, probability) in enumerate(found, 1)
        ),
        removed=len(removed),
        removed_ml=sum(removed) * voxel_ml,
        volume_ml_by_label={
            str(label): int(np.count_nonzero(kept == number if exclusive else kept[number])) * voxel_ml
            for number, label in enumerate(labels)
            if number or not exclusive
        },
    )
    return findings, kept


@dataclass(frozen=True, eq=False, slots=True)
class _Component:
    """A component of a label, by its runs: stretches of voxels along one axis of the mask."""

    number: int
    """Of the label."""
    first: Ids
    """[runs, 3]: the first voxel of each run."""
    length: Ids
    axis: int
    """Along which the runs lie."""

    @property
    def voxels(self) -> int:
        return int(self.length.sum())

    @property
    def centroid_voxel(self) -> tuple[float, float, float]:
        sums = self.length @ self.first.astype(np.float64)
        sums[self.axis] += (self.length * (self.length - 1)).sum() / 2
        a, b, c = (sums / self.length.sum()).tolist()
        return a, b, c

    def ends(self) -> Ids:
        """[n, 3]: the voxels at both ends of every run. The two voxels that lie furthest apart are among them."""
        last = self.first.copy()
        last[:, self.axis] += self.length - 1
        return np.concatenate([self.first, last[self.length > 1]])

    def where(self) -> tuple[Ids, Ids, Ids]:
        """The indices of every voxel."""
        start = np.cumsum(self.length) - self.length
        at = np.repeat(self.first, self.length, axis=0)
        at[:, self.axis] += np.arange(len(at)) - np.repeat(start, self.length)
        return at[:, 0], at[:, 1], at[:, 2]

    def erase(self, layer: Array) -> None:
        """Set its voxels to 0."""
        layer[self.where()] = 0

    def mean(self, probabilities: FloatArray) -> float:
        """Of its label's probability [K, *spatial], over its voxels."""
        return float(probabilities[self.number][self.where()].mean(dtype=np.float64))


def _components(layer: Array, number: int, connectivity: Connectivity) -> Iterator[_Component]:
    """The components of a layer [*spatial] of True and False."""
    box = _box(layer)
    if box is None:
        return
    # Runs lie along the axis that is dense in memory.
    order = sorted(range(3), key=lambda axis: -abs(layer.strides[axis]))
    runs = components_of(layer[box].transpose(order), connectivity)
    first = np.empty((len(runs.start), 3), np.int64)
    for place, axis in enumerate(order):
        first[:, axis] = (runs.start if place == 2 else runs.row[:, place]) + box[axis].start
    by_owner = np.argsort(runs.owner, kind="stable")
    first, length = first[by_owner], (runs.end - runs.start)[by_owner]
    edges = np.flatnonzero(np.diff(runs.owner[by_owner], prepend=-1, append=runs.count)).tolist()
    for start, end in pairwise(edges):
        yield _Component(number, first[start:end], length[start:end], order[2])


def _box(layer: Array) -> tuple[slice, slice, slice] | None:
    """The smallest box around what is not 0."""
    sides = []
    for axis in range(3):
        at = np.flatnonzero(layer.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(at):
            return None
        sides.append(slice(int(at[0]), int(at[-1]) + 1))
    return sides[0], sides[1], sides[2]


def _number(label: str | int, labels: Sequence[str | int], exclusive: bool) -> int:
    number = list(labels).index(label) if label in labels else -1
    if number < (1 if exclusive else 0):
        raise ValueError(f"no label {label!r} among {', '.join(map(str, labels[1 if exclusive else 0 :]))}")
    return number


def _lesion(
    found: _Component,
    number: int,
    labels: Sequence[str | int],
    geometry: Geometry,
    voxel_ml: float,
    probability: float | None,
) -> Lesion:
    centroid = found.centroid_voxel
    return Lesion(
        label=labels[found.number],
        number=number,
        voxels=found.voxels,
        volume_ml=found.voxels * voxel_ml,
        centroid_voxel=centroid,
        centroid_lps_mm=geometry.position_lps_mm(centroid),
        diameter_mm=largest_distance(found.ends() @ geometry.lps_from_voxel[:3, :3].T),
        probability=probability,
    )


def _without(probabilities: FloatArray, components: Sequence[_Component]) -> FloatArray:
    """The probabilities with 0 in place of those components; the same array if there are none."""
    if not components:
        return probabilities
    left = probabilities.copy(order="K")
    for each in components:
        each.erase(left[each.number])
    return left


def _present(probabilities: FloatArray, numbers: Sequence[int], exclusive: bool, voxels: int) -> float:
    """Mean of the most probable voxels, so many of them."""
    values = probabilities[numbers[0]]
    if len(numbers) > 1:
        # Labels that exclude each other add up; of those that may overlap, the surest says at least as much.
        some = probabilities[list(numbers)]
        values = np.minimum(some.sum(axis=0), np.float32(1)) if exclusive else some.max(axis=0)
    wanted = min(voxels, values.size)
    if wanted == 1:
        return float(values.max())
    # The highest of each row stand for their rows: what is lower than so many of them is not wanted.
    tops = values.max(axis=2).ravel()
    floor = np.partition(tops, len(tops) - wanted)[len(tops) - wanted] if len(tops) >= wanted else values.min()
    high = values[values >= floor]
    if high.max() == floor:
        return float(floor)
    return float(np.partition(high, len(high) - wanted)[len(high) - wanted :].mean(dtype=np.float64))


def _volume(kept: Array, numbers: Sequence[int], exclusive: bool, found: Sequence[_Component]) -> int:
    """Voxels that are part of any lesion."""
    if exclusive or len(numbers) == 1:
        return sum(each.voxels for each in found)
    return int(np.count_nonzero(kept[list(numbers)].any(axis=0)))
