"""Files that are a text header and a block of voxels: what NRRD and MetaImage share."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Literal

import numpy as np

from isocenter.core.errors import BadGeometry, BadImage, SeveralVolumes, TruncatedImage
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.volume_parts import Part
from isocenter.imaging.geometry import Affine, Geometry
from isocenter.imaging.image import Note
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

HEADER_BYTES: Final = 64 * 2**10
SHEAR_LIMIT_DEG: Final = 0.5
_LONGEST_MM: Final = 1e4
FARTHEST_MM: Final = 1e5
"""From the origin to a corner of a grid. Masks are written with places in float32, which rounds to 0.004 mm there."""
_MM: Final = {
    **dict.fromkeys(("", "?", "mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("um", "\u00b5m", "micron", "microns", "micrometer", "micrometers"), 1e-3),
    **dict.fromkeys(("nm", "nanometer", "nanometers"), 1e-6),
}
_ANY_WRAPPER: Final = 32 + zlib.MAX_WBITS
"""Of deflated data: zlib's or gzip's, as its first bytes say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridHeader:
    """What a header says, checked. `volumes` lie behind each other, or voxel by voxel when `interleaved`."""

    shape: tuple[int, int, int]
    volumes: int
    interleaved: bool
    dtype: np.dtype[Any]
    offset: int
    packing: Literal["raw", "deflate"]
    geometry: Geometry
    notes: tuple[Note, ...] = ()

    @property
    def all_bytes(self) -> int:
        """The voxels of every volume, unpacked."""
        return math.prod(self.shape) * self.volumes * self.dtype.itemsize


def geometry_of(shape: tuple[int, int, int], lps_from_voxel: Affine) -> Geometry:
    """The place that a header names.

    Raises:
        BadGeometry: it is impossible.
    """
    lengths = np.linalg.norm(lps_from_voxel[:3, :3], axis=0)
    if not (np.isfinite(lps_from_voxel).all() and 0 < lengths.min() <= lengths.max() < _LONGEST_MM):
        raise BadGeometry(
            f"voxels of {' x '.join(f'{each:g}' for each in lengths)} mm", details={"spacing_mm": [*map(str, lengths)]}
        )
    if (far := farthest_corner_mm(shape, lps_from_voxel)) > FARTHEST_MM:
        raise BadGeometry(
            f"a corner of the grid lies {far:g} mm from the origin, at most {FARTHEST_MM:g} mm are read",
            details={"farthest_mm": far, "limit_mm": FARTHEST_MM},
        )
    try:
        return Geometry(shape, lps_from_voxel)
    except ValueError as exc:
        raise BadGeometry(f"the place that the header names is impossible: {exc}") from exc


def farthest_corner_mm(shape: tuple[int, int, int], lps_from_voxel: Affine) -> float:
    """How far from the origin the middle of a corner voxel lies, at most.

    >>> farthest_corner_mm((4, 1, 1), np.eye(4))
    3.0
    """
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))]).T
    return max(math.hypot(*corner) for corner in (lps_from_voxel @ corners)[:3].T.tolist())


def in_millimetres(affine: Affine, units: Sequence[str]) -> tuple[Affine, tuple[Note, ...]]:
    """A place whose lengths are of other units, and a note if they are; units that a file leaves empty are mm.

    >>> in_millimetres(np.eye(4), ["cm", "cm", "cm"])[0].diagonal().tolist()
    [10.0, 10.0, 10.0, 1.0]

    Raises:
        BadGeometry: they are unknown, or differ from axis to axis.
    """
    known = {_MM.get(each.strip().lower().replace("\u03bc", "\u00b5")) for each in units} or {1.0}
    scale = known.pop()
    if scale is None or known:
        raise BadGeometry(
            f"lengths in {', '.join(dict.fromkeys(each[:20] for each in units))}; one unit of length is needed",
            details={"units": [each[:20] for each in units]},
        )
    return counted_in(scale, affine)


def counted_in(unit_mm: float, affine: Affine) -> tuple[Affine, tuple[Note, ...]]:
    """A place whose lengths count so many millimetres each, in millimetres, and a note if that changes it."""
    if unit_mm == 1.0:
        return affine, ()
    note = Note("converted_to_mm", f"lengths of the header count {unit_mm:g} mm each")
    return np.diag([unit_mm, unit_mm, unit_mm, 1.0]) @ affine, (note,)


def shear_notes(affine: Affine) -> tuple[Note, ...]:
    """A note where the axes of a grid are not at right angles."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    leaning = max(abs(float(columns[:, a] @ columns[:, b])) for a, b in ((0, 1), (0, 2), (1, 2)))
    angle = math.degrees(math.asin(min(1.0, leaning)))
    if angle <= SHEAR_LIMIT_DEG:
        return ()
    return (Note("sheared", f"the axes of the grid are {angle:.2f} degrees off right angles; its place says so too"),)


def pick_volume(count: int, asked: int | None) -> int:
    """Which of several volumes is meant, counted from 0.

    >>> pick_volume(1, None), pick_volume(4, 3)
    (0, 3)

    Raises:
        SeveralVolumes: it is not said, or there is no such.
    """
    if asked is None and count != 1:
        raise SeveralVolumes(
            f"{count} volumes: which one is meant must be said, as volume 0 to {count - 1}", details={"volumes": count}
        )
    if asked is not None and not 0 <= asked < count:
        raise SeveralVolumes(
            f"volume {asked} of {count}: they count from 0 to {count - 1}", details={"volumes": count, "asked": asked}
        )
    return asked or 0


def volume_notes(count: int, picked: int) -> tuple[Note, ...]:
    """A note where one of several was asked for."""
    if count == 1:
        return ()
    return (Note("volume_picked", f"volume {picked} of {count} was asked for, counted from 0"),)


def read_grid(part: Part, header: GridHeader, *, limits: VolumeLimits, volume: int | None) -> Volume:
    """The voxels behind a header.

    Raises:
        SeveralVolumes: the file holds more than one and none is named, or there is no such.
        TruncatedImage, BadImage, TooManyBytes: the voxels are not what the header announces.
    """
    picked = pick_volume(header.volumes, volume)
    data = memoryview(part.read())[header.offset :]
    held = data if header.packing == "raw" else _inflated(data, header, part.size, limits)
    if len(held) < header.all_bytes:
        raise TruncatedImage(
            f"the file holds {len(held)} bytes of voxels, its header announces {header.all_bytes}",
            details={"bytes": len(held), "announced_bytes": header.all_bytes},
        )
    if len(held) > header.all_bytes:
        raise BadImage(
            f"the file holds {len(held)} bytes of voxels or more, its header announces {header.all_bytes}",
            details={"bytes": len(held), "announced_bytes": header.all_bytes},
        )
    voxels: Array = np.frombuffer(held, header.dtype)
    if header.interleaved:
        voxels = voxels.reshape((header.volumes, *header.shape), order="F")[picked]
    else:
        voxels = voxels.reshape((*header.shape, header.volumes), order="F")[..., picked]
    voxels = voxels.astype(header.dtype.newbyteorder("="), copy=False)
    return Volume(voxels[None], header.geometry, notes=(*header.notes, *volume_notes(header.volumes, picked)))


def _inflated(data: memoryview, header: GridHeader, size: int, limits: VolumeLimits) -> bytes:
    limits.check_unpacked(header.all_bytes, size)
    inflating = zlib.decompressobj(_ANY_WRAPPER)
    try:
        held = inflating.decompress(data, header.all_bytes + 1)
        ended = inflating.eof or not inflating.decompress(inflating.unconsumed_tail, 1)
    except zlib.error as exc:
        raise BadImage("the compressed voxels are broken") from exc
    if not inflating.eof and (len(held) < header.all_bytes or ended):
        raise TruncatedImage("the file ends before its compressed voxels do", details={"bytes": size})
    return held
