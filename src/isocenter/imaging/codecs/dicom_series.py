"""From planes to one volume: grouped into series, split into volumes, and held against what a volume is.

A volume is a stack of parallel slices of one size, one frame of reference, evenly spaced along their normal. Anything
else is refused with what was measured, or recorded. Neither file names nor InstanceNumber decide about order.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from isocenter.core.errors import (
    BadGeometry,
    BadImage,
    DuplicateSlices,
    GantryTilt,
    Localizer,
    MissingSlices,
    MixedFramesOfReference,
    MixedOrientation,
    MixedSeries,
    MixedSizes,
)
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.dicom import Plane
from isocenter.imaging.codecs.dicom_announced import (
    GAP_LIMIT,
    TILT_LIMIT_DEG,
    notes_of,
    refuse_every_other,
    refuse_missing_files,
)
from isocenter.imaging.codecs.dicom_pixels import stored_frames
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.image import Note
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

_SAME_MM: Final = 0.01
_ASIDE_LIMIT_MM: Final = 0.1
_ALONG_LIMIT: Final = 0.1
"""Of the median distance between slices: what gaps that are each a little off may come to."""
_ALIKE: Final = 0.05
"""How far apart numbers of one kind may be, of the larger one: scanners round."""
_ONE_KIND: Final = (
    ("type", "image types"), ("component", "parts of complex numbers"), ("echo_time", "echo times"),
    ("b_value", "b-values"),
)  # fmt: skip
"""What all slices of a volume share. Others may differ from slice to slice, as the time of a trigger does."""
_ALL_OF_TYPE: Final = {"MR"}
"""Where each value of ImageType says what the pixels are of (PS3.3 C.8.3.1.1.1): magnitude or phase, water or fat. Of
other modalities only the third is, as AXIAL; what scanners put after it differs within good series."""
_DIRECTION_LIMIT: Final = 1e-3
_SPACING_LIMIT: Final = 1e-3
_NAMED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Planes of one volume in the order along their normal, and how far apart they are."""

    planes: tuple[Plane, ...]
    geometry: Geometry
    notes: tuple[Note, ...]


def by_series(planes: Iterable[Plane]) -> list[list[Plane]]:
    """The planes of each series, in the order of their series numbers."""
    found: dict[str, list[Plane]] = {}
    for plane in planes:
        found.setdefault(plane.file.series_key, []).append(plane)
    return sorted(found.values(), key=_series_order)


def volumes_of(series: Sequence[Plane]) -> list[list[Plane]]:
    """The planes of each volume of a series: by stack, then by what differs where several share their positions.

    Raises:
        MixedSeries: the planes are of several patients, modalities or kinds.
        MissingSlices: a file is missing of those that one object was cut into.
        Localizer: they are what scans were planned on.
        BadVolume: planes of one stack are of several sizes, orientations or frames of reference.
    """
    _refuse_mixed(series)
    refuse_missing_files({plane.file.part.number: plane.file for plane in series}.values())
    if any("LOCALIZER" in plane.image_type for plane in series):
        raise Localizer(
            f"{len(series)} pictures that scans were planned on (ImageType LOCALIZER), no volume",
            details={"slices": len(series)},
        )
    volumes: list[list[Plane]] = []
    for name in dict.fromkeys(plane.stack for plane in series):
        stack = [plane for plane in series if plane.stack == name]
        _refuse_unlike(stack)
        volumes += _apart(stack)
    return sorted(volumes, key=lambda planes: min((plane.number, plane.index) for plane in planes))


def stack_of(planes: Sequence[Plane]) -> Stack:
    """One volume's planes in order, and the grid they form.

    Raises:
        MissingSlices, DuplicateSlices, GantryTilt, BadGeometry, BadImage: they form none.
    """
    first = planes[0]
    if len(planes) < 2:
        raise MissingSlices("1 slice: how far apart slices are cannot be told", details={"slices": 1})
    normal = np.cross(first.along_row, first.along_column)
    ordered = sorted(planes, key=lambda plane: float(normal @ plane.position_mm))
    positions = np.array([plane.position_mm for plane in ordered])
    heights = positions @ normal
    _refuse_duplicates(positions, heights, ordered)
    gaps = np.diff(heights)
    median = float(np.median(gaps))
    uneven = np.flatnonzero(np.abs(gaps - median) > max(GAP_LIMIT * median, _SAME_MM))
    _refuse_tilt(positions, normal, gaps)
    if uneven.size:
        _refuse_gaps(heights, gaps, median, uneven, ordered)
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    _refuse_aside(positions - positions[0] - np.arange(len(ordered))[:, None] * step, normal, median)
    refuse_every_other(first.file, median)
    _refuse_half_scaled(ordered)
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.along_row, first.spacing_mm[1])
    affine[:3, 1] = np.multiply(first.along_column, first.spacing_mm[0])
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    shape = (first.file.columns, first.file.rows, len(ordered))
    return Stack(planes=tuple(ordered), geometry=Geometry(shape, affine), notes=notes_of(ordered))


def voxels_of(stack: Stack, *, limits: VolumeLimits) -> tuple[Volume, tuple[Note, ...]]:
    """The volume, float32 [1, columns, rows, slices]: each slice by its own slope and intercept, in double precision.

    Raises:
        BadImage, TruncatedImage, MissingExtra: as `stored_frames`.
    """
    limits.check_grid(stack.geometry.shape)
    columns, rows, slices = stack.geometry.shape
    voxels = np.empty((slices, rows, columns), np.float32)
    wanted: dict[int, dict[int, int]] = {}
    for at, plane in enumerate(stack.planes):
        wanted.setdefault(plane.file.part.number, {})[plane.index] = at
    for places in wanted.values():
        file = stack.planes[next(iter(places.values()))].file
        for index, stored in enumerate(stored_frames(file, limits=limits)):
            if index in places:
                plane = stack.planes[places[index]]
                _rescale(stored, plane, voxels[places[index]])
    notes = _invert(voxels, stack.planes)
    return Volume(voxels.transpose(2, 1, 0)[None], stack.geometry, notes=(*stack.notes, *notes)), notes


def _rescale(stored: Array, plane: Plane, out: Array) -> None:
    if (plane.slope, plane.intercept) == (1.0, 0.0):
        out[...] = stored
    else:
        out[...] = stored * np.float64(plane.slope) + plane.intercept


def _invert(voxels: Array, planes: Sequence[Plane]) -> tuple[Note, ...]:
    """Once, after slope and intercept, within the range that the stored bits can express: the same for every slice."""
    if planes[0].file.photometric != "MONOCHROME1":
        return ()
    ends = []
    for plane in planes:
        bits = plane.file.bits_stored
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if plane.file.signed else (0, (1 << bits) - 1)
        ends += [low * plane.slope + plane.intercept, high * plane.slope + plane.intercept]
    np.subtract(np.float32(min(ends) + max(ends)), voxels, out=voxels)
    return (
        Note(
            "inverted", f"MONOCHROME1: inverted once, within {min(ends):g} to {max(ends):g}, after slope and intercept"
        ),
    )


def _series_order(planes: list[Plane]) -> tuple[float, str]:
    number = planes[0].file.series_number
    return (math.inf if number is None else number, planes[0].file.series_key)


def _refuse_mixed(series: Sequence[Plane]) -> None:
    rules: tuple[tuple[str, Callable[[Plane], str], bool], ...] = (
        ("patients", lambda plane: plane.file.patient_key, False),
        ("modalities", lambda plane: plane.file.modality, True),
        ("kinds of object", lambda plane: plane.file.sop_class, True),
        ("ways to show gray", lambda plane: plane.file.photometric, True),
    )
    for what, of, shown in rules:
        counts = Counter(map(of, series))
        if len(counts) > 1:
            names: list[str | int] = [*counts] if shown else [*counts.values()]
            raise MixedSeries(
                f"slices of {len(counts)} {what} in one series",
                details={"slices": len(series), what.replace(" ", "_"): names},
            )


def _refuse_unlike(stack: Sequence[Plane]) -> None:
    sizes = Counter((plane.file.rows, plane.file.columns) for plane in stack)
    if len(sizes) > 1:
        said = ", ".join(f"{count} of {rows} x {columns}" for (rows, columns), count in sizes.items())
        raise MixedSizes(f"slices of several sizes: {said}", details={"sizes": [[*size] for size in sizes]})
    spacings = np.array([plane.spacing_mm for plane in stack])
    if (np.ptp(spacings, axis=0) > _SPACING_LIMIT * spacings.min(axis=0)).any():
        low, high = spacings.min(axis=0), spacings.max(axis=0)
        raise MixedSizes(
            f"slices with pixels of {low[0]:g} x {low[1]:g} to {high[0]:g} x {high[1]:g} mm",
            details={"spacing_mm": [low.tolist(), high.tolist()], "limit": _SPACING_LIMIT},
        )
    if len(places := Counter(plane.file.place_key for plane in stack)) > 1:
        raise MixedFramesOfReference(
            f"slices in {len(places)} frames of reference: {', '.join(map(str, places.values()))} slices",
            details={"slices": [*places.values()]},
        )
    directions = np.array([(*plane.along_row, *plane.along_column) for plane in stack])
    off = np.abs(directions - np.median(directions, axis=0)).max(axis=1)
    if off.max() > _DIRECTION_LIMIT:
        unlike = off > _DIRECTION_LIMIT
        numbers = [plane.file.part.number for plane, each in zip(stack, unlike, strict=True) if each]
        raise MixedOrientation(
            f"{int(unlike.sum())} of {len(stack)} slices lie otherwise than most, by {off.max():.3g} in a direction; "
            f"at most {_DIRECTION_LIMIT:g}",
            details={"slices": len(stack), "files": numbers[:_NAMED], "difference": float(off.max())},
        )


def _apart(stack: list[Plane]) -> list[list[Plane]]:
    """Volumes that share their positions, told apart by as few kinds as do; one volume where none does.

    Raises:
        MixedSeries: however they are told apart into so many, slices of several kinds take turns in one.
    """
    if not _repeated(stack):
        _refuse_kinds(stack)
        return [stack]
    names = [
        name
        for name in dict.fromkeys(name for plane in stack for name, _ in plane.kinds)
        if len({dict(plane.kinds).get(name) for plane in stack}) > 1
    ]
    mixed: MixedSeries | None = None
    into = 0
    for count in (1, 2, len(names)):
        for chosen in combinations(names, count):
            groups: dict[tuple[str | None, ...], list[Plane]] = {}
            for plane in stack:
                kinds = dict(plane.kinds)
                groups.setdefault(tuple(kinds.get(name) for name in chosen), []).append(plane)
            whole = len({len(group) for group in groups.values()}) == 1
            if len(groups) < 2 or not whole or any(map(_repeated, groups.values())):
                continue
            if mixed is not None and len(groups) != into:
                continue  # more kinds would make volumes of every other slice
            try:
                for group in groups.values():
                    _refuse_kinds(group)
            except MixedSeries as exc:
                mixed, into = mixed or exc, len(groups)
            else:
                return [*groups.values()]
    if mixed is not None:
        raise mixed
    return [stack]


def _refuse_kinds(stack: Sequence[Plane]) -> None:
    """See that slices side by side are of one kind: those of two echoes that take turns are no volume.

    Raises:
        MixedSeries: they are not.
    """
    for name, what in _ONE_KIND:
        counts = Counter(_kind(plane, name) for plane in stack)
        if len(counts) > 1 and not _alike([*counts]):
            raise MixedSeries(
                f"slices of {len(counts)} {what} in one volume: {', '.join(each or 'none' for each in counts)}",
                details={"slices": len(stack), what.replace(" ", "_").replace("-", "_"): [*counts]},
            )


def _kind(plane: Plane, name: str) -> str:
    value = dict(plane.kinds).get(name) or ""
    return value.split("\\")[0] if name == "type" and plane.file.modality not in _ALL_OF_TYPE else value


def _alike(values: list[str]) -> bool:
    try:
        found = [float(each) for each in values]
    except ValueError:
        return False
    return max(found) - min(found) <= _ALIKE * max(map(abs, found))


def _repeated(planes: Sequence[Plane]) -> bool:
    return len({tuple(round(each / _SAME_MM) for each in plane.position_mm) for plane in planes}) < len(planes)


def _refuse_duplicates(positions: Array, heights: Array, ordered: Sequence[Plane]) -> None:
    gaps = np.diff(heights)
    apart = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    stacked = float(np.linalg.norm(positions[-1] - positions[0]))
    nothing = max(_SAME_MM, GAP_LIMIT * float(np.median(gaps)))
    same = (gaps <= nothing) & ((apart <= nothing) | (heights[-1] - heights[0] > 0.5 * stacked))
    if not same.any():
        return
    at = np.flatnonzero(same)
    raise DuplicateSlices(
        f"{len(at)} of {len(ordered)} slices lie where another lies, first at {heights[at[0]]:.3f} mm along the normal",
        details={
            "slices": len(ordered),
            "positions_mm": [round(float(heights[each]), 4) for each in at[:_NAMED]],
            "files": [[ordered[each].file.part.number, ordered[each + 1].file.part.number] for each in at[:_NAMED]],
        },
    )


def _refuse_tilt(positions: Array, normal: Array, gaps: Array) -> None:
    along = positions[-1] - positions[0]
    length = float(np.linalg.norm(along))
    if length <= _SAME_MM:  # the ends meet: the longest way is that of the slices
        along = positions[np.argmax(np.linalg.norm(positions - positions[0], axis=1))] - positions[0]
        length = float(np.linalg.norm(along))
    angle = math.degrees(math.atan2(float(np.linalg.norm(np.cross(normal, along))), abs(float(normal @ along))))
    if angle <= TILT_LIMIT_DEG:
        return
    sizes = sorted({round(float(gap), 2) for gap in gaps})
    uneven = len(sizes) > 1 and sizes[-1] - sizes[0] > max(GAP_LIMIT * float(np.median(gaps)), _SAME_MM)
    said = f"; and their gaps are uneven: {', '.join(f'{size:.2f}' for size in sizes[:_NAMED])} mm" if uneven else ""
    raise GantryTilt(
        f"the slices are stacked {angle:.2f} degrees off their normal, at most {TILT_LIMIT_DEG:g} are taken{said}",
        details={"tilt_deg": angle, "limit_deg": TILT_LIMIT_DEG, "gaps_mm": sizes[:_NAMED]},
    )


def _refuse_aside(off: Array, normal: Array, median: float) -> None:
    """See that each slice lies where the grid puts it, however many there are: `off` [slices, 3], in mm."""
    along = np.abs(off @ normal)
    beside = np.linalg.norm(off - (off @ normal)[:, None] * normal, axis=1)
    for found, limit, where in (
        (beside, _ASIDE_LIMIT_MM, "beside the line through the first and the last"),
        (along, max(_ASIDE_LIMIT_MM, _ALONG_LIMIT * median), "from where even steps put it"),
    ):
        if found.max() > limit:
            at = int(found.argmax())
            raise BadGeometry(
                f"slice {at + 1} of {len(off)} lies {found[at]:.3g} mm {where}; at most {limit:.3g} mm",
                details={"slice": at + 1, "aside_mm": float(found[at]), "limit_mm": limit},
            )


def _refuse_gaps(heights: Array, gaps: Array, median: float, uneven: Array, ordered: Sequence[Plane]) -> None:
    missing = [max(0, round(float(gaps[at]) / median) - 1) for at in uneven]
    at = int(uneven[0])
    about = f"; about {sum(missing)} slices are missing" if any(missing) else ""
    raise MissingSlices(
        f"{len(uneven)} of {len(gaps)} gaps between slices are not {median:.4g} mm, first {gaps[at]:.4g} mm after "
        f"{heights[at]:.3f} mm along the normal{about}",
        details={
            "slices": len(ordered),
            "median_mm": median,
            "limit": GAP_LIMIT,
            "gaps": [
                {
                    "after_mm": round(float(heights[each]), 4),
                    "before_mm": round(float(heights[each + 1]), 4),
                    "gap_mm": round(float(gaps[each]), 4),
                    "missing": count,
                }
                for each, count in zip(uneven[:_NAMED].tolist(), missing, strict=False)
            ],
            "missing": sum(missing),
        },
    )


def _refuse_half_scaled(planes: Sequence[Plane]) -> None:
    """A slice that lost its slope or intercept on the way would lie beside the others in other units."""
    few = len(planes) - max(Counter(plane.scaled for plane in planes).values())
    if few:
        raise BadImage(
            f"{few} of {len(planes)} slices say otherwise than the rest whether they are scaled",
            details={"slices": len(planes), "unlike": few},
        )
