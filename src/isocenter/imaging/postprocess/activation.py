"""Scores [K, *spatial] to probabilities, probabilities to masks. What is applied is declared, never guessed."""

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np

from isocenter.core.tensor import Array, FloatArray

Activation: TypeAlias = Literal["softmax", "sigmoid", "none"]


def probabilities_of(scores: Array, activation: Activation) -> FloatArray:
    """Apply an activation over axis 0, in float32, with nothing that overflows; `none` leaves them as they are.

    >>> probabilities_of(np.float32([[1000, 0], [1000, 0]]), "softmax")
    array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """
    values: FloatArray = scores.astype(np.float32, copy=activation != "none")
    if activation == "softmax":
        with np.errstate(over="ignore"):  # what is further below than a number can say has the probability 0
            values -= values.max(axis=0)
        np.exp(values, out=values)
        values /= values.sum(axis=0)
    elif activation == "sigmoid":
        # 0.5 * (1 + tanh(x / 2)): the same function, and its exponential cannot overflow.
        values *= np.float32(0.5)
        np.tanh(values, out=values)
        values *= np.float32(0.5)
        values += np.float32(0.5)
    return values


def threshold_of(activation: Activation, threshold: float | None) -> float | None:
    """The probability from which a voxel has a label; None: the most probable label is the voxel's.

    >>> threshold_of("sigmoid", None), threshold_of("softmax", None), threshold_of("none", 0.4)
    (0.5, None, 0.4)
    """
    return 0.5 if threshold is None and activation == "sigmoid" else threshold


def masks_of(values: Array, threshold: float | None, *, foreground: float | None = None) -> Array:
    """Which label each voxel has.

    Without a threshold, [*spatial]: the number of the label with the highest value, the first of equals, in the
    smallest unsigned type; see `loudest`. With one, [K, *spatial] of 0 and 1, as labels may lie over one another.

    >>> masks_of(np.float32([[0.4, 0.1], [0.6, 0.9]]), None), masks_of(np.float32([[0.4, 0.9]]), 0.5)
    (array([1, 1], dtype=uint8), array([[0, 1]], dtype=uint8))
    """
    if threshold is not None:
        return (values >= threshold).astype(np.uint8)
    return loudest(iter(values), len(values), foreground=foreground)


def loudest(layers: Iterator[Array], count: int, *, foreground: float | None, over: bool = False) -> Array:
    """The number of each voxel's label, where labels exclude each other: of the highest value, the first of equals.

    Args:
        layers: values [*spatial] of one label after the other, the background first.
        count: how many there are, 2 or more.
        foreground: from which probability of all labels but the background together a voxel has one of those; None:
            the background is a label like any other.
        over: layers may be written over; two of them are held then, else three.

    >>> loudest(iter(np.float32([[0.5, 0.7], [0.2, 0.1], [0.3, 0.2]])), 3, foreground=0.4)
    array([2, 0], dtype=uint8)
    """
    best, first = next(layers), 1
    labels: Array = np.zeros(best.shape, np.uint8 if count <= 256 else np.uint16)
    if foreground is not None:
        np.copyto(labels, labels.dtype.type(1), where=best <= np.float32(1.0 - foreground))
        best, first = next(layers), 2
    for number, layer in enumerate(layers, first):  # argmax over the slowest axis takes ten times as long
        ahead = layer > best
        if foreground is not None:
            ahead &= labels > 0
        if number == 1:  # nothing has been written yet
            labels = ahead.view(np.uint8).astype(labels.dtype, copy=False)
        else:
            np.copyto(labels, labels.dtype.type(number), where=ahead)
        if number < count - 1:
            best = np.maximum(layer, best, out=best if over else None)
    return labels
