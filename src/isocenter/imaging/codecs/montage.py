"""Slices of a scan with the outline of a mask, as one picture, for the eye.

As radiologists look: the patient's right on the left, and axial slices from the feet. Nothing on it says who it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from isocenter.core.tensor import Array
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.postprocess.findings import Lesion
from isocenter.imaging.volume import Volume

MEDIA_TYPE: Final = "image/png"
_TILE_PX: Final = 256
_MOST_TILES: Final = 12
_THICK: Final = 1.5
"""Slices so many times as thick as their pixels are wide are shown as they are, whatever way they lie."""
_ENDS_LEFT_OUT: Final = 0.1
_DARKEST, _BRIGHTEST = 1.0, 99.5
_SAMPLED: Final = 200_000
_OPPOSITE: Final = dict(zip("LRPASI", "RLAPIS", strict=True))
# By the axis across the slices: where columns and rows grow to.
_SHOWN: Final = {"S": ("L", "P"), "P": ("L", "I"), "L": ("P", "I")}
_COLOURS: Final = ((255, 82, 82), (64, 196, 255), (255, 214, 64), (105, 240, 118), (224, 120, 255), (255, 158, 64))
_TEXT: Final = (225, 225, 225)
_FONT, _SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """Which way the array is cut and shown. Axes are those of the array; `letters` are left, right, top, bottom."""

    across: int
    rows: int
    columns: int
    flip_rows: bool
    flip_columns: bool
    letters: str

    def cut(self, voxels: Array, at: int) -> Array:
        """A slice [rows, columns] of voxels [i, j, k] as it is shown."""
        plane: Array = voxels.transpose(self.across, self.rows, self.columns)[at]
        return plane[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def place(self, index: Sequence[float], shape: Sequence[int]) -> tuple[float, float]:
        """Column and row of an index of the array."""
        column, row = index[self.columns], index[self.rows]
        return (
            shape[self.columns] - 1 - column if self.flip_columns else column,
            shape[self.rows] - 1 - row if self.flip_rows else row,
        )


def montage_of(volume: Volume, mask: Array, *, lesions: Sequence[Lesion] = (), columns: int = 4) -> bytes:
    """A PNG of up to 12 slices, so many in a row: spread over the volume, the middle of each lesion among them.

    Slices are axial, or as they were taken where they are thick. Of several channels the first is shown, from its
    darkest to its brightest percent. A lesion's number stands beside its middle.

    Args:
        volume: three axes, any spacing and orientation.
        mask: [i, j, k] of label numbers, 0 is the background; or [K, i, j, k] of 0 and 1, a layer a label.
        lesions: from `findings_of`, on the same grid.
        columns: tiles in a row.

    Raises:
        ValueError: the mask does not lie on the volume's grid, or that has not three axes.
    """
    geometry = volume.geometry
    if len(geometry.shape) != 3 or mask.shape[-3:] != geometry.shape:
        raise ValueError(f"a montage of {geometry.shape} with a mask of {mask.shape}")
    view = _view(geometry)
    at = _chosen(geometry.shape[view.across], [lesion.centroid_voxel[view.across] for lesion in lesions])
    if geometry.axcodes[view.across] in "RAI":
        at.reverse()
    voxels = volume.voxels[0]
    low, high = _range(voxels)
    tiles = [_tile(volume, mask, lesions, view, each, (low, high)) for each in at]
    columns = max(1, min(columns, len(tiles)))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[first : first + columns], axis=1) for first in range(0, len(tiles), columns)]
    done, data = cv2.imencode(".png", np.concatenate(rows)[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done
    return bytes(data.tobytes())


def _view(geometry: Geometry) -> _View:
    codes, spacing = geometry.axcodes, geometry.spacing_mm
    thick = max(range(3), key=spacing.__getitem__)
    alone = spacing[thick] >= _THICK * max(spacing[axis] for axis in range(3) if axis != thick)
    across = thick if alone else next(axis for axis in range(3) if codes[axis] in "SI")
    to_right, down = next(shown for normal, shown in _SHOWN.items() if codes[across] in (normal, _OPPOSITE[normal]))
    columns = next(axis for axis in range(3) if codes[axis] in (to_right, _OPPOSITE[to_right]))
    rows = 3 - across - columns
    return _View(
        across=across,
        rows=rows,
        columns=columns,
        flip_rows=codes[rows] != down,
        flip_columns=codes[columns] != to_right,
        letters=_OPPOSITE[to_right] + to_right + _OPPOSITE[down] + down,
    )


def _chosen(count: int, wanted: Sequence[float]) -> list[int]:
    """Slices spread evenly, those nearest to what is wanted moved there, in their order."""
    margin = int(count * _ENDS_LEFT_OUT) if count > _MOST_TILES else 0
    spread = np.linspace(margin, count - 1 - margin, min(count, _MOST_TILES)).round().astype(int).tolist()
    moved: list[int] = []
    for each in dict.fromkeys(round(index) for index in wanted):
        if each not in moved and spread:
            spread.remove(min(spread, key=lambda other: abs(other - each)))
            moved.append(each)
    return sorted({*spread, *moved})


def _range(voxels: Array) -> tuple[float, float]:
    """What is black and what is white, from a sample of the voxels that are not 0."""
    step = max(1, round((voxels.size / _SAMPLED) ** (1 / 3)))
    some = voxels[::step, ::step, ::step].ravel()
    some = some[some != 0] if np.any(some) else some
    low, high = np.percentile(some, (_DARKEST, _BRIGHTEST)).tolist()
    return float(low), float(max(high, low + 1e-6 * max(1.0, abs(low))))


def _tile(
    volume: Volume, mask: Array, lesions: Sequence[Lesion], view: _View, at: int, levels: tuple[float, float]
) -> Array:
    geometry = volume.geometry
    plane = view.cut(volume.voxels[0], at).astype(np.float32)
    gray = np.clip((plane - levels[0]) * (255 / (levels[1] - levels[0])), 0, 255).astype(np.uint8)
    height, width = (
        plane.shape[side] * geometry.spacing_mm[axis] for side, axis in enumerate((view.rows, view.columns))
    )
    scale = _TILE_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shrinks = size[0] < plane.shape[1] or size[1] < plane.shape[0]
    picture = cv2.cvtColor(
        cv2.resize(gray, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), cv2.COLOR_GRAY2RGB
    )
    for number, layer in _layers(mask, view, at):
        shown = cv2.resize(layer, size, interpolation=cv2.INTER_NEAREST)
        inner = cv2.erode(shown, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        picture[shown > inner] = _COLOURS[number % len(_COLOURS)]
    tile = np.zeros((_TILE_PX, _TILE_PX, 3), np.uint8)
    left, top = (_TILE_PX - size[0]) // 2, (_TILE_PX - size[1]) // 2
    tile[top : top + size[1], left : left + size[0]] = picture
    for lesion in lesions:
        if round(lesion.centroid_voxel[view.across]) == at:
            column, row = view.place(lesion.centroid_voxel, geometry.shape)
            x = left + (column + 0.5) * size[0] / plane.shape[1]
            y = top + (row + 0.5) * size[1] / plane.shape[0]
            _write(tile, str(lesion.number), int(x) + 6, int(y) - 6)
    _letters(tile, view.letters)
    _write(tile, _position(geometry, view, at), 4, _TILE_PX - 6)
    return tile


def _layers(mask: Array, view: _View, at: int) -> Iterator[tuple[int, Array]]:
    """The labels of a slice that any pixel has, from 0 on, and where each is, uint8."""
    if mask.ndim == 4:
        planes = [(number, np.ascontiguousarray(view.cut(layer, at) != 0)) for number, layer in enumerate(mask)]
    else:
        plane = view.cut(mask, at)
        planes = [(int(value) - 1, plane == value) for value in np.unique(plane) if value]
    for number, where in planes:
        if where.any():
            yield number, where.astype(np.uint8)


def _letters(tile: Array, letters: str) -> None:
    middle = _TILE_PX // 2
    for letter, x, y in zip(
        letters, (4, _TILE_PX - 14, middle - 4, middle - 4), (middle + 5, middle + 5, 14, _TILE_PX - 6), strict=True
    ):
        _write(tile, letter, x, y)


def _position(geometry: Geometry, view: _View, at: int) -> str:
    """Where the middle of a slice lies along the patient's axis that is nearest to its normal."""
    middle = [(size - 1) / 2 for size in geometry.shape]
    middle[view.across] = at
    code = geometry.axcodes[view.across]
    axis = next(number for number, pair in enumerate(("LR", "PA", "SI")) if code in pair)
    where_mm = geometry.position_lps_mm(middle)[axis]
    return f"{'LPS'[axis] if where_mm >= 0 else 'RAI'[axis]} {abs(where_mm):.1f} mm"


def _write(tile: Array, text: str, x: int, y: int) -> None:
    for colour, width in (((0, 0, 0), 3), (_TEXT, 1)):
        cv2.putText(tile, text, (x, y), _FONT, _SIZE, colour, width, cv2.LINE_AA)
