"""Where the slices of a series lie, measured, also of one that is refused: gaps, doubled slices, tilt."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from isocenter.core.errors import BadInput
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import dicom, dicom_series
from isocenter.imaging.codecs.dicom import Plane
from isocenter.imaging.codecs.dicom_announced import GAP_LIMIT
from isocenter.imaging.codecs.volume_parts import Source, parts_of
from isocenter.imaging.limits import VolumeLimits

_SAME_MM = 0.01
_PARALLEL = 1e-3
_START_BYTES = 132


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceTrack:
    """The slices of one volume in the order along their normal.

    `series` counts as in `describe`; `volume` is None for a series that could not be split into volumes.
    """

    series: int
    volume: int | None
    along_mm: tuple[float, ...]
    """Along the normal, from the first slice."""
    aside_mm: tuple[float, ...]
    """Beside the normal through the first slice: they grow where a gantry is tilted."""
    tilt_deg: float | None = None
    """Between the normal and the way from slice to slice. None: the slices are not parallel, or there is one."""

    @classmethod
    def even(cls, series: int, volume: int, *, slices: int, gap_mm: float) -> "SliceTrack":
        """The track of a format that has no slices of its own.

        >>> SliceTrack.even(1, 0, slices=3, gap_mm=2.5).along_mm
        (0.0, 2.5, 5.0)
        """
        along_mm = tuple(number * gap_mm for number in range(slices))
        return cls(series=series, volume=volume, along_mm=along_mm, aside_mm=(0.0,) * slices)

    @property
    def gaps_mm(self) -> tuple[float, ...]:
        """Between neighbours."""
        return tuple(np.diff(self.along_mm).tolist())

    @property
    def median_gap_mm(self) -> float | None:
        """Of the gaps between slices that do not lie on one another."""
        apart = [gap for gap in self.gaps_mm if gap > _SAME_MM]
        return float(np.median(apart)) if apart else None

    @property
    def doubled(self) -> tuple[int, ...]:
        """Numbers of the slices, from 0, that lie where the one before lies."""
        return tuple(number for number, gap in enumerate(self.gaps_mm, 1) if gap <= _SAME_MM)

    @property
    def uneven(self) -> tuple[int, ...]:
        """Numbers of the slices, from 0, whose gap to the one before is more than 1 % off the median."""
        median = self.median_gap_mm or 0.0
        limit = max(GAP_LIMIT * median, _SAME_MM)
        return tuple(
            number for number, gap in enumerate(self.gaps_mm, 1) if gap > _SAME_MM and abs(gap - median) > limit
        )

    @property
    def missing(self) -> int:
        """About how many slices the uneven gaps have room for."""
        median = self.median_gap_mm
        if median is None:
            return 0
        return sum(max(0, round(self.gaps_mm[number - 1] / median) - 1) for number in self.uneven)


def series_of(source: Source, *, limits: VolumeLimits) -> list[list[Plane]]:
    """The slices of every DICOM series, in the order of `describe`; files that are broken are left out.

    Raises:
        BadInput: the source may not be opened at all.
        MissingExtra: a DICOM file, and pydicom is not installed.
    """
    planes: list[Plane] = []
    for part in parts_of(source, limits=limits):
        if dicom.is_dicom(part.read(_START_BYTES)):
            try:
                planes += dicom.read_planes(part, limits=limits)
            except BadInput:  # `describe` says why
                continue
    return dicom_series.by_series(planes)


def slice_tracks(series: Iterable[Sequence[Plane]]) -> list[SliceTrack]:
    """The track of every volume of every series; of a series as a whole where it cannot be split."""
    tracks = []
    for number, planes in enumerate(series, 1):
        try:
            volumes = dicom_series.volumes_of(planes)
        except BadInput:
            tracks.append(track_of(planes, series=number, volume=None))
            continue
        tracks += [track_of(each, series=number, volume=at) for at, each in enumerate(volumes)]
    return tracks


def track_of(planes: Sequence[Plane], *, series: int, volume: int | None) -> SliceTrack:
    """Where planes lie, by the normal of the first of them."""
    normals = np.array([np.cross(plane.along_row, plane.along_column) for plane in planes])
    normal = normals[0]
    positions = np.array([plane.position_mm for plane in planes], np.float64)
    order = np.argsort(positions @ normal, kind="stable")
    ways = positions[order] - positions[order[0]]
    along = ways @ normal
    aside = np.linalg.norm(ways - np.outer(along, normal), axis=1)
    parallel = bool(np.abs(normals - normal).max() <= _PARALLEL)
    return SliceTrack(
        series=series,
        volume=volume,
        along_mm=tuple(along.tolist()),
        aside_mm=tuple(aside.tolist()),
        tilt_deg=_tilt_deg(along, aside) if parallel else None,
    )


def _tilt_deg(along: Array, aside: Array) -> float | None:
    """By the slice that is farthest from the first."""
    far = int(np.argmax(np.hypot(along, aside)))
    if math.hypot(along[far], aside[far]) <= _SAME_MM:
        return None
    return math.degrees(math.atan2(float(aside[far]), float(along[far])))
