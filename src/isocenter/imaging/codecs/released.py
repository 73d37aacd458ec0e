"""What was written is read again and held against what it was written from, before anyone gets it.

Held are every voxel and every corner of the grid, in millimetres. So each component has its size, and its centroid is
where it was: within the limit on corners, which is far below half a voxel.
"""

import gzip
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

import numpy as np

from isocenter.core.errors import BadInput, OutputMismatch
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import dicom, nifti
from isocenter.imaging.codecs.volume_parts import Part
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.limits import VolumeLimits

CORNER_LIMIT_MM: Final = 0.01
SLICE_LIMIT_VOXEL: Final = 0.5
"""Of a DICOM SEG, whose slices lie where those of the series do, be they as evenly spaced as they may."""
_GZIP: Final = b"\x1f\x8b"
_LONGEST_LO: Final = 64
_ANY_SIZE: Final = VolumeLimits(
    max_bytes=2**50, max_unpacked_bytes=2**50, max_voxels=2**50, max_side=2**20, expansion_from_bytes=2**50
)
"""What was written here is no stranger's file."""


def check_nifti(data: bytes, mask: Array, geometry: Geometry) -> None:
    """See that a NIfTI holds a mask [i, j, k], or layers or probabilities [K, i, j, k], on its grid.

    Raises:
        OutputMismatch: it does not; the details say in what.
    """
    try:
        plain = gzip.decompress(data) if data[:2] == _GZIP else data
        part = Part(1, "", len(plain), held=plain)
        found = [nifti.read(part, limits=_ANY_SIZE, volume=at) for at in range(len(mask) if mask.ndim == 4 else 1)]
    except (BadInput, OSError, EOFError, zlib.error) as exc:
        raise OutputMismatch(f"the NIfTI that was written cannot be read ({type(exc).__name__})") from exc
    layers = mask if mask.ndim == 4 else mask[np.newaxis]
    for volume, layer in zip(found, layers, strict=True):
        _compare("NIfTI", volume.voxels[0], layer)
        _compare_grids("NIfTI", volume.geometry, geometry)


def check_seg(data: bytes, mask: Array, geometry: Geometry, labels: Sequence[str | int]) -> None:
    """See that a DICOM SEG holds a mask: each label under its name, every voxel, on its grid.

    Raises:
        OutputMismatch: it does not; the details say in what.
    """
    library = dicom.pydicom()
    exclusive = mask.ndim == len(geometry.shape)
    named = [str(label)[:_LONGEST_LO] for label in (labels[1:] if exclusive else labels)]
    try:
        found = library.dcmread(BytesIO(data))
        said = [str(segment.SegmentLabel) for segment in found.SegmentSequence]
        frames, apart_voxel = _frames(found, geometry)
    except (AttributeError, KeyError, ValueError, IndexError, TypeError, EOFError) as exc:
        raise OutputMismatch(f"the DICOM SEG that was written cannot be read ({type(exc).__name__})") from exc
    if said != named:
        raise OutputMismatch(
            f"the DICOM SEG names {len(said)} segments otherwise than the {len(named)} labels",
            details={"segments": len(said), "labels": len(named)},
        )
    if not apart_voxel <= SLICE_LIMIT_VOXEL:
        raise OutputMismatch(
            f"a corner of a slice of the DICOM SEG lies {apart_voxel:.3g} voxels from its place",
            details={"apart_voxel": apart_voxel, "limit_voxel": SLICE_LIMIT_VOXEL},
        )
    for number in range(1, len(named) + 1):
        layer = np.zeros(geometry.shape, bool)
        for at, frame in frames.get(number, ()):
            layer[:, :, at] |= frame
        _compare("DICOM SEG", layer, mask == number if exclusive else mask[number - 1] != 0)


def _frames(found: Any, geometry: Geometry) -> tuple[dict[int, list[tuple[int, Array]]], float]:
    """The frames [i, j] of each segment with the slice each is; and how far a corner lies from its place, in voxels."""
    count, rows, columns = int(found.NumberOfFrames), int(found.Rows), int(found.Columns)
    bits = np.unpackbits(np.frombuffer(found.PixelData, np.uint8), bitorder="little")
    pixels = bits[: count * rows * columns].reshape(count, rows, columns).astype(bool)
    shared = found.SharedFunctionalGroupsSequence[0]
    directions = np.reshape(np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, np.float64), (2, 3))
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    corners = np.array([(0, 0), (columns - 1, 0), (0, rows - 1), (columns - 1, rows - 1)], np.float64)
    aside_mm = (corners * (between_columns, between_rows)) @ directions
    voxel_from_lps = np.linalg.inv(geometry.lps_from_voxel)
    by_segment: dict[int, list[tuple[int, Array]]] = {}
    furthest = 0.0
    for frame, own in zip(pixels, found.PerFrameFunctionalGroupsSequence, strict=True):
        place_mm = np.array(own.PlanePositionSequence[0].ImagePositionPatient, np.float64) + aside_mm
        index = place_mm @ voxel_from_lps[:3, :3].T + voxel_from_lps[:3, 3]
        at = round(float(index[0, 2]))
        wanted = np.column_stack([corners, np.full(4, at)])
        furthest = max(furthest, float(np.abs(index - wanted).max()))
        named = own.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        if not 0 <= at < geometry.shape[2]:
            raise IndexError(at)
        by_segment.setdefault(int(named[0].ReferencedSegmentNumber), []).append((at, frame.T))
    return by_segment, furthest


def _compare(what: str, found: Array, wanted: Array) -> None:
    if found.shape != wanted.shape:
        raise OutputMismatch(
            f"the {what} that was written holds {list(found.shape)} voxels instead of {list(wanted.shape)}",
            details={"found": [*found.shape], "wanted": [*wanted.shape]},
        )
    if not np.array_equal(found, wanted):
        differing = int(np.count_nonzero(found != wanted))
        raise OutputMismatch(
            f"{differing} of {wanted.size} voxels of the {what} that was written are not those that were found",
            details={"differing": differing, "voxels": wanted.size},
        )


def _compare_grids(what: str, found: Geometry, wanted: Geometry) -> None:
    if not found.same_place(wanted, within_mm=CORNER_LIMIT_MM):
        raise OutputMismatch(
            f"a corner of the {what} that was written is more than {CORNER_LIMIT_MM:g} mm from its place",
            details={"limit_mm": CORNER_LIMIT_MM},
        )
