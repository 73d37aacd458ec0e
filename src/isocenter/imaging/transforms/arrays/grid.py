"""Steps that change the grid, each with its way back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import numpy as np

from isocenter.core.errors import EmptyInput, InputNotAccepted
from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.transforms.arrays.axes import AxisMap, resampled
from isocenter.imaging.transforms.arrays.centres import centred
from isocenter.imaging.transforms.arrays.steps import (
    CenterCrop,
    CropForeground,
    Filter,
    Orient,
    PadTo,
    PadToMultiple,
    Resample,
    ResizeArray,
    Transpose,
)

Gridded: TypeAlias = "tuple[FloatArray, Geometry, Undo | None]"
"""The array after a step, its grid, and the way back; None: nothing was changed."""
_BACK: Final[dict[Filter, Filter]] = {"linear": "linear", "cubic": "linear", "area": "linear", "nearest": "nearest"}
_KEEP_MM = 1e-3  # MONAI's AFFINE_TOL: a spacing so near to the wanted one stays


class Undo(Protocol):
    """The way back of one step."""

    def __call__(self, array: Array, *, labels: bool, fill: Array) -> Array:
        """An array [K, *spatial] on the grid before the step: labels by nearest neighbour, everything else linearly.

        Where the step had thrown something away stands `fill`, one value a channel.
        """
        ...


@dataclass(frozen=True, slots=True)
class Turned:
    """Axes mirrored, then permuted: result axis i is source axis `order[i]`, backwards where `mirrored` says so."""

    order: tuple[int, ...]
    mirrored: tuple[bool, ...]

    def apply(self, array: Array) -> Array:
        """Turn the spatial axes of [C, *spatial]."""
        axes = tuple(slice(None, None, -1 if each else 1) for each in self.mirrored)
        return np.ascontiguousarray(array[:, *axes].transpose(0, *(1 + axis for axis in self.order)))

    def __call__(self, array: Array, *, labels: bool, fill: Array) -> Array:
        """Turn back."""
        axes = tuple(slice(None, None, -1 if each else 1) for each in self.mirrored)
        back = array.transpose(0, *(1 + int(axis) for axis in np.argsort(self.order)))
        return np.ascontiguousarray(back[:, *axes])


@dataclass(frozen=True, slots=True)
class Mapped:
    """Axes resampled."""

    maps: tuple[AxisMap, ...]
    back: tuple[Filter, ...]

    def __call__(self, array: Array, *, labels: bool, fill: Array) -> Array:
        """Resample back."""
        filters: Sequence[Filter] = ["nearest"] * len(self.maps) if labels else self.back
        return resampled(array, [each.inverse for each in self.maps], filters)


@dataclass(frozen=True, slots=True)
class Boxed:
    """A box of the source, which may reach beyond it."""

    start: tuple[int, ...]
    size: tuple[int, ...]
    source: tuple[int, ...]

    def apply(self, array: Array, *, mode: str = "constant", value: float = 0.0) -> Array:
        """Cut it out of [C, *spatial], padding where there is nothing."""
        inside, margins = [], []
        for start, size, source in zip(self.start, self.size, self.source, strict=True):
            first, last = min(max(start, 0), source), min(max(start + size, 0), source)
            inside.append(slice(first, last))
            margins.append((max(0, -start), max(0, start + size - source)))
        cut = np.ascontiguousarray(array[:, *inside])
        if not any(map(any, margins)):
            return cut
        if mode == "constant":
            return np.pad(cut, [(0, 0), *margins], constant_values=value)
        return np.pad(cut, [(0, 0), *margins], mode="edge" if mode == "edge" else "reflect")

    def __call__(self, array: Array, *, labels: bool, fill: Array) -> Array:
        """Put it back where it was."""
        ones = (-1, *[1] * len(self.source))
        out = np.empty((len(array), *self.source), array.dtype)
        out[...] = np.asarray(fill, array.dtype).reshape(ones)
        here, there = [], []
        for start, size, source in zip(self.start, self.size, self.source, strict=True):
            first, last = max(start, 0), min(start + size, source)
            here.append(slice(first, last))
            there.append(slice(first - start, last - start))
        out[:, *here] = array[:, *there]
        return out


def oriented(array: FloatArray, geometry: Geometry, step: Orient) -> Gridded:
    """`orient`; see the step.

    Raises:
        InputNotAccepted: it is a picture, which has no third axis to speak of.
    """
    if len(geometry.shape) != 3:
        raise InputNotAccepted("a picture has no orientation in a patient", details={"axes": len(geometry.shape)})
    have, opposite = geometry.axcodes, dict(zip("LRPAIS", "RLAPSI", strict=True))
    order = tuple(
        next(axis for axis, code in enumerate(have) if code in (wanted, opposite[wanted])) for wanted in step.axcodes
    )
    mirrored = tuple(code not in step.axcodes for code in have)
    return _turned(array, geometry, Turned(order, mirrored))


def transposed(array: FloatArray, geometry: Geometry, step: Transpose) -> Gridded:
    """`transpose`; see the step."""
    check_rank(geometry, len(step.axes), step.kind)
    return _turned(array, geometry, Turned(step.axes, (False,) * len(step.axes)))


def _turned(array: FloatArray, geometry: Geometry, turned: Turned) -> Gridded:
    if turned.order == tuple(range(len(turned.order))) and not any(turned.mirrored):
        return array, geometry, None
    source_from_target = np.zeros((4, 4))
    source_from_target[3, 3] = 1
    source_from_target[2, 2] = len(turned.order) == 2  # the normal of a picture
    for target, source in enumerate(turned.order):
        mirror = turned.mirrored[source]
        source_from_target[source, target] = -1 if mirror else 1
        source_from_target[source, 3] = geometry.shape[source] - 1 if mirror else 0
    shape = [geometry.shape[axis] for axis in turned.order]
    return turned.apply(array), geometry.moved(shape, source_from_target), turned


def respaced(array: FloatArray, geometry: Geometry, step: Resample) -> Gridded:
    """`resample`; see the step."""
    spacing, wanted = geometry.spacing_mm, _wanted_mm(geometry, step)
    if tuple(wanted) == spacing:
        return array, geometry, None
    maps = respacing(geometry, step)
    there = _filters(step.filter, _coarsest(spacing, wanted, step.coarse_above), len(maps))
    # As nnU-Net, which looks first at the grid that it comes from: on the way back, that is the new one.
    back = _filters(_BACK[step.filter], _coarsest(wanted, spacing, step.coarse_above), len(maps))
    return _mapped(array, geometry, maps, there, back, antialias=step.antialias)


def respacing(geometry: Geometry, step: Resample) -> list[AxisMap]:
    """How `resample` maps each axis."""
    wanted = _wanted_mm(geometry, step)
    if tuple(wanted) == geometry.spacing_mm:
        return [AxisMap(size, size) for size in geometry.shape]
    if step.extent == "centres":
        return centred(geometry, wanted)
    axes = zip(geometry.shape, geometry.spacing_mm, wanted, strict=True)
    # Divided and rounded in nnU-Net's order: where a size is meant to be half, the last bit decides there too.
    return [AxisMap.edges(size, max(1, round(have / new * size))) for size, have, new in axes]


def _wanted_mm(geometry: Geometry, step: Resample) -> list[float]:
    check_rank(geometry, len(step.spacing_mm), step.kind)
    keep_mm = _KEEP_MM if step.extent == "centres" else 0.0
    return [
        have if new is None or abs(have - new) <= keep_mm else new
        for have, new in zip(geometry.spacing_mm, step.spacing_mm, strict=True)
    ]


def _filters(usual: Filter, coarse: int | None, rank: int) -> list[Filter]:
    return ["nearest" if axis == coarse else usual for axis in range(rank)]


def _coarsest(have: Sequence[float], wanted: Sequence[float], above: float | None) -> int | None:
    """The axis that is taken by nearest neighbour; as nnU-Net, none where two are equally coarse."""
    for spacing in (have, wanted):
        if above is not None and max(spacing) / min(spacing) > above:
            axes = [axis for axis, each in enumerate(spacing) if each == max(spacing)]
            return axes[0] if len(axes) == 1 else None
    return None


def resized(array: FloatArray, geometry: Geometry, step: ResizeArray) -> Gridded:
    """`resize`; see the step."""
    maps = resizing(geometry, step)
    there, back = (_filters(each, None, len(maps)) for each in (step.filter, _BACK[step.filter]))
    return _mapped(array, geometry, maps, there, back, antialias=step.antialias)


def resizing(geometry: Geometry, step: ResizeArray) -> list[AxisMap]:
    """How `resize` maps each axis."""
    check_rank(geometry, len(step.size), step.kind)
    make = AxisMap.centres if step.align_corners else AxisMap.edges
    return [make(have, new or have) for have, new in zip(geometry.shape, step.size, strict=True)]


def _mapped(
    array: FloatArray,
    geometry: Geometry,
    maps: list[AxisMap],
    there: list[Filter],
    back: list[Filter],
    *,
    antialias: bool,
) -> Gridded:
    if all(each.unchanged for each in maps):
        return array, geometry, None
    there_and_back = Mapped(tuple(maps), tuple(back))
    return resampled(array, maps, there, antialias=antialias), mapped_grid(geometry, maps), there_and_back


def mapped_grid(geometry: Geometry, maps: Sequence[AxisMap]) -> Geometry:
    """The grid whose axes are mapped so."""
    source_from_target = np.eye(4)
    for axis, each in enumerate(maps):
        source_from_target[axis, axis], source_from_target[axis, 3] = each.scale, each.offset
    return geometry.moved([each.target for each in maps], source_from_target)


def cropped_to_foreground(array: FloatArray, geometry: Geometry, step: CropForeground) -> Gridded:
    """`crop_foreground`; see the step.

    Raises:
        EmptyInput: there is no foreground.
        InputNotAccepted: there is no such channel.
    """
    rank = len(geometry.shape)
    margins = (step.margin,) * rank if isinstance(step.margin, int) else step.margin
    check_rank(geometry, len(margins), step.kind)
    if step.channel is not None and step.channel >= len(array):
        raise InputNotAccepted(f"crop_foreground looks at channel {step.channel}, there are {len(array)}")
    looked_at = array if step.channel is None else array[step.channel : step.channel + 1]
    found: Array = np.any(looked_at != 0 if step.nonzero else looked_at > step.above, axis=0)
    starts, sizes = [], []
    for axis, (size, margin) in enumerate(zip(geometry.shape, margins, strict=True)):
        there = np.flatnonzero(np.moveaxis(found, axis, 0).reshape(size, -1).any(axis=1))
        if not there.size:
            raise EmptyInput(f"no voxel is above {step.above:g}: there is no foreground", details={"above": step.above})
        first, last = int(there[0]) - margin, int(there[-1]) + margin + 1
        if step.stay_inside:
            first, last = max(first, 0), min(last, size)
        full = -(-(last - first) // step.multiple_of) * step.multiple_of
        starts.append(first - (full - (last - first)) // 2)
        sizes.append(full)
    return _boxed(array, geometry, starts, sizes)


def padded(array: FloatArray, geometry: Geometry, step: PadTo | PadToMultiple) -> Gridded:
    """`pad_to` and `pad_to_multiple`; see the steps."""
    starts, sizes = padding(geometry, step)
    return _boxed(array, geometry, starts, sizes, mode=step.mode, value=step.value)


def padding(geometry: Geometry, step: PadTo | PadToMultiple) -> tuple[list[int], list[int]]:
    """Where the padded grid begins, counted from the first voxel (0 or less), and its size."""
    rank = len(geometry.shape)
    if isinstance(step, PadTo):
        wanted: Sequence[int | None] = step.size
    else:
        of = (step.multiple_of,) * rank if isinstance(step.multiple_of, int) else step.multiple_of
        check_rank(geometry, len(of), step.kind)
        wanted = [-(-size // each) * each for size, each in zip(geometry.shape, of, strict=True)]
    check_rank(geometry, len(wanted), step.kind)
    sizes = [max(have, new or have) for have, new in zip(geometry.shape, wanted, strict=True)]
    starts = [
        -((new - have) // 2) if step.method == "symmetric" else 0
        for have, new in zip(geometry.shape, sizes, strict=True)
    ]
    return starts, sizes


def centre_cropped(array: FloatArray, geometry: Geometry, step: CenterCrop) -> Gridded:
    """`center_crop`; see the step."""
    check_rank(geometry, len(step.size), step.kind)
    sizes = [min(have, new or have) for have, new in zip(geometry.shape, step.size, strict=True)]
    starts = [max(have // 2 - new // 2, 0) for have, new in zip(geometry.shape, sizes, strict=True)]
    return _boxed(array, geometry, starts, sizes)


def _boxed(
    array: FloatArray,
    geometry: Geometry,
    start: list[int],
    size: list[int],
    *,
    mode: str = "constant",
    value: float = 0.0,
) -> Gridded:
    if not any(start) and tuple(size) == geometry.shape:
        return array, geometry, None
    box = Boxed(tuple(start), tuple(size), geometry.shape)
    source_from_target = np.eye(4)
    source_from_target[: len(start), 3] = start
    return box.apply(array, mode=mode, value=value), geometry.moved(size, source_from_target), box


def check_rank(geometry: Geometry, axes: int, what: str) -> None:
    """See that a step speaks of as many spatial axes as there are.

    Raises:
        InputNotAccepted: it does not.
    """
    if axes != len(geometry.shape):
        raise InputNotAccepted(
            f"{what} is of {axes} spatial axes, the input has {len(geometry.shape)}",
            details={"axes": axes, "found": len(geometry.shape)},
        )
