"""What is measured of each object: size, shape, brightness, place.

Area, perimeter and eccentricity are those of scikit-image's `regionprops`: tests hold them against its figures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isocenter.core.tensor import Array

_Numbers = npt.NDArray[np.float64]
_SQUARE_WITHIN = 0.01
# Benkrid and Crookes, "Design and FPGA implementation of a perimeter estimator" (2000): a pixel of the outline counts
# by where its neighbours on the outline lie; 2 for one beside it, 10 for one at a corner, 1 for itself.
_BESIDE, _AT_CORNER = 2, 10
_STEP = np.zeros(1 + 4 * (_BESIDE + _AT_CORNER) + 1)
_STEP[[5, 7, 15, 17, 25, 27]] = 1
_STEP[[21, 33]] = math.sqrt(2)
_STEP[[13, 23]] = (1 + math.sqrt(2)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantities:
    """Of one object. What is in micrometres is None where the size of a pixel is not known."""

    label: int
    area_px: int
    area_um2: float | None
    perimeter_px: float
    """Along the outermost pixels, slanted steps counted as such; 0 of a single pixel."""
    perimeter_um: float | None
    """None as well where pixels are not square."""
    eccentricity: float
    """Of the ellipse with the same second moments: 0 is a circle, 1 a line. In micrometres where they are known."""
    mean_intensity: tuple[float, ...]
    """Of each channel, in the values of the image."""
    centroid_px: tuple[float, float]
    """x and y from the top left corner of the image, as in polygons: the middle of the first pixel is (0.5, 0.5)."""
    centroid_um: tuple[float, float] | None


def quantities_of(
    labels: Array, image: Array | None = None, *, pixel_size_um: tuple[float, float] | None = None
) -> list[Quantities]:
    """Measure every object of a label image [H, W], by label.

    `image` is [H, W] or [C, H, W], of any real type. `pixel_size_um` is height and width of a pixel, in the order of
    the array's axes.

    >>> [found] = quantities_of(np.array([[0, 3, 3], [0, 3, 3]]), pixel_size_um=(0.5, 0.5))
    >>> found.label, found.area_um2, found.centroid_px
    (3, 1.0, (2.0, 1.0))

    Raises:
        ValueError: the image has another size than the labels.
    """
    if image is not None and image.shape[-2:] != labels.shape:
        raise ValueError(f"an image of {image.shape} with labels of {labels.shape}")
    flat = labels.ravel()
    at = np.flatnonzero(flat)
    areas = np.bincount(flat[at])
    names = np.flatnonzero(areas)
    number = np.zeros(len(areas), np.int64)
    number[names] = np.arange(len(names))
    owner, area = number[flat[at]], areas[names].astype(np.float64)

    def mean(values: Array) -> _Numbers:
        return np.bincount(owner, weights=values, minlength=len(names)) / area

    rows, columns = np.divmod(at, labels.shape[1])
    x, y = mean(columns), mean(rows)
    height_um, width_um = pixel_size_um or (1.0, 1.0)
    eccentricity = _eccentricity((rows - y[owner]) * height_um, (columns - x[owner]) * width_um, mean)
    perimeter = _perimeters(labels, at, owner, len(names))
    layers = () if image is None else image.reshape(-1, labels.size)
    brightness = np.array([mean(layer[at]) for layer in layers]).reshape(len(layers), len(names)).T
    known = pixel_size_um is not None
    square = known and abs(height_um - width_um) <= _SQUARE_WITHIN * max(height_um, width_um)
    side_um = math.sqrt(height_um * width_um)
    columns_of = (names, areas[names], perimeter, eccentricity, brightness, x + 0.5, y + 0.5)
    return [
        Quantities(
            label=label,
            area_px=area_px,
            area_um2=area_px * height_um * width_um if known else None,
            perimeter_px=perimeter_px,
            perimeter_um=perimeter_px * side_um if square else None,
            eccentricity=shape,
            mean_intensity=tuple(means),
            centroid_px=(x_px, y_px),
            centroid_um=(x_px * width_um, y_px * height_um) if known else None,
        )
        for label, area_px, perimeter_px, shape, means, x_px, y_px in zip(
            *(column.tolist() for column in columns_of), strict=True
        )
    ]


def _eccentricity(down: _Numbers, right: _Numbers, mean: Callable[[Array], _Numbers]) -> _Numbers:
    """From offsets to the centroid, by the eigenvalues of their covariance."""
    yy, xx, xy = mean(down * down), mean(right * right), mean(down * right)
    middle, apart = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
    large, small = middle + apart, np.maximum(middle - apart, 0)
    return np.asarray(np.sqrt(1 - np.divide(small, large, out=np.ones_like(large), where=large > 0)))


def _perimeters(labels: Array, at: Array, owner: Array, count: int) -> _Numbers:
    """Of each object, as if it were alone."""
    width = labels.shape[1] + 2
    flat = np.pad(labels, 1).ravel()
    rows, columns = np.divmod(at, labels.shape[1])
    inside = (rows + 1) * width + columns + 1
    sides, corners = (-width, -1, 1, width), (-width - 1, 1 - width, width - 1, width + 1)
    own = flat[inside]
    outermost = np.zeros(len(own), bool)
    for side in sides:
        outermost |= flat[inside + side] != own
    outline = np.zeros_like(flat)
    outline[inside[outermost]] = own[outermost]
    here, label = inside[outermost], own[outermost]
    kind = np.ones(len(here), np.int64)
    for steps, weight in ((sides, _BESIDE), (corners, _AT_CORNER)):
        for step in steps:
            kind += weight * (outline[here + step] == label)
    return np.bincount(owner[outermost], weights=_STEP[kind], minlength=count).astype(np.float64)
