"""Objects of an image that is never in memory as a whole: found tile by tile, joined where tiles meet.

A tile sees a margin around what it is responsible for (its core), so that its objects are those of the whole image as
long as they are smaller than the margin. Where two cores meet, both tiles have seen the pixels on both sides; what
they call by two numbers and is the same object, is given one. So are the gaps between objects where holes are filled:
what encloses a gap is known when all of it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.postprocess.components import roots
from isocenter.imaging.postprocess.flood import components
from isocenter.imaging.postprocess.objects import ObjectRule, foreground_of, objects_of

RECORD = np.dtype(
    [
        ("area_px", np.int64),
        ("x_px", np.float64),
        ("y_px", np.float64),
        ("left_px", np.int32),
        ("top_px", np.int32),
        ("right_px", np.int32),
        ("bottom_px", np.int32),
        ("confidence", np.float32),
    ]
)
"""One object: its area, its centre (of pixel centres), its box (edges of pixels: right and bottom lie outside), and
the mean over its pixels of the probability to belong to one."""
_Ids = npt.NDArray[np.int64]
_SEAM_PX = 8
_TILE_COLUMNS = 1024
_HELD_BYTES = 160 * 2**20
_LEAST_ROWS, _MOST_ROWS = 64, 1024


@dataclass(frozen=True, eq=False)
class Joined:
    """What all tiles came to."""

    number: Array
    """uint32: the label of the object for each number that a tile gave; 0 for those that do not count."""
    objects: npt.NDArray[np.void]
    """`RECORD` by label, the first is label 1."""


class Seams:
    """A sink for probabilities, rows first to last; gives rows of the tiles' own numbers, and what they come to.

    >>> rows = []
    >>> seams = Seams((4, 6), ["cell"], ObjectRule(), rows.append, margin_px=2, tile_px=(2, 3))
    >>> seams(0, np.float32([[[0, 0, 1, 1, 0, 0]] * 4]))
    >>> joined = seams.finish()
    >>> first, *_ = joined.number[np.concatenate(rows)].tolist()
    >>> first, joined.objects["area_px"].tolist()
    ([0, 0, 1, 1, 0, 0], [8])
    """

    def __init__(
        self,
        shape: tuple[int, int],
        labels: Sequence[str | int],
        rule: ObjectRule,
        sink: Callable[[Array], object],
        *,
        margin_px: int,
        tile_px: tuple[int, int] | None = None,
    ) -> None:
        """`shape` is height and width; `sink` takes finished rows, uint32."""
        self._height, self._width = shape
        self._labels, self._rule, self._sink = labels, rule, sink
        # What only the whole object can tell is asked of it in the end.
        self._local_rule = rule.model_copy(update={"min_area_px": 0, "drop_border": False, "fill_holes": False})
        self._margin = margin_px
        self._seam = min(_SEAM_PX, margin_px)
        self._tile = tile_px or (_tile_rows(len(labels), self._width, margin_px), _TILE_COLUMNS)
        self._held: FloatArray | None = None
        self._top = self._end = 0
        """The first row that is held, and the one after the last."""
        self._core = 0
        """The first row that no tile has answered for."""
        self._ids = 0
        self._tables: list[npt.NDArray[np.void]] = []
        self._pairs: list[_Ids] = []
        self._alike: list[npt.NDArray[np.bool_]] = []
        """Of each pair, whether it is one object, if it is two objects."""
        self._touching: list[_Ids] = []
        """Objects and the gaps beside them."""
        self._above: Array | None = None
        """The seam below the last tiles, as they see it."""

    def __call__(self, row: int, rows: FloatArray) -> None:
        """Take finished rows [K, n, width] of probabilities.

        Raises:
            ValueError: they are not the next ones.
        """
        if row != self._end:
            raise ValueError(f"row {self._end} is next, not {row}")
        if self._held is None:
            room = min(self._tile[0] + 2 * self._margin, self._height)
            self._held = np.empty((len(rows), room, self._width), np.float32)
        while rows.shape[1]:
            held = self._end - self._top
            now = min(rows.shape[1], self._held.shape[1] - held)
            self._held[:, held : held + now] = rows[:, :now]
            self._end += now
            rows = rows[:, now:]
            self._answer()

    def finish(self) -> Joined:
        """Join what the tiles found.

        Raises:
            ValueError: rows are missing.
        """
        if self._core != self._height:
            raise ValueError(f"{self._end} of {self._height} rows have come")
        table = np.concatenate([np.zeros(1, _PIECE), *self._tables])
        pairs = np.concatenate([_NO_PAIRS, *self._pairs])
        pairs = pairs[np.concatenate([np.empty(0, bool), *self._alike]) | table["gap"][pairs[:, 0]]]
        root = roots(len(table), pairs)
        if self._rule.fill_holes:
            touching = root[np.concatenate([_NO_PAIRS, *self._touching])]
            holes = _holes(_summed(table, root), touching, self._rule.max_hole_px, (self._height, self._width))
            root = roots(len(table), np.concatenate([pairs, holes]))
        return _joined(_summed(table, root), root, self._rule, (self._height, self._width))

    def _answer(self) -> None:
        """Answer for every band that its margin has come for."""
        while self._core < self._height:
            core_end = min(self._core + self._tile[0], self._height)
            if self._end < min(core_end + self._margin, self._height):
                return
            self._band(self._core, core_end)
            self._core = core_end
            self._drop(max(0, core_end - self._margin))

    def _drop(self, before: int) -> None:
        assert self._held is not None
        gone, kept = before - self._top, self._end - before
        for layer in self._held:  # one at a time: no copy of all of them
            layer[:kept] = layer[gone : gone + kept].copy()
        self._top = before

    def _band(self, start: int, end: int) -> None:
        """Answer for the rows between two."""
        top, bottom = max(0, start - self._seam), min(self._height, end + self._seam)
        seen: Array = np.empty((bottom - top, self._width), np.uint32)
        beside: Array | None = None
        for left in range(0, self._width, self._tile[1]):
            right = min(left + self._tile[1], self._width)
            tile, first = self._numbered((start, end), (left, right))
            inside = tile[:, left - first : right - first]
            seen[:, left:right] = inside
            if beside is not None:
                self._meet(beside, tile[:, : beside.shape[1]])
            beside = tile[:, right - self._seam - first :] if right < self._width else None
        if self._above is not None:
            self._meet(self._above, seen[: len(self._above)])
        self._above = seen[end - self._seam - top :].copy() if end < self._height else None
        self._sink(seen[start - top : end - top])

    def _numbered(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Array, int]:
        """A tile's core and the seams around it, by numbers that no other tile gives; and its first column."""
        (up, down), (left, right) = (
            (max(0, edges[0] - self._margin), min(size, edges[1] + self._margin))
            for edges, size in ((rows, self._height), (columns, self._width))
        )
        assert self._held is not None
        part = self._held[:, up - self._top : down - self._top, left:right]
        found = objects_of(part, self._local_rule, self._labels).labels
        top, bottom = max(0, rows[0] - self._seam), min(self._height, rows[1] + self._seam)
        first, last = max(0, columns[0] - self._seam), min(self._width, columns[1] + self._seam)
        near = found[top - up : bottom - up, first - left : last - left]
        local, objects = _without_absent(near)
        count = objects
        inside = slice(rows[0] - top, rows[1] - top), slice(columns[0] - first, columns[1] - first)
        if self._rule.fill_holes:
            gaps = components((found == 0).astype(np.uint8), 4)[top - up : bottom - up, first - left : last - left]
            local, count = self._with_gaps(local, objects, gaps, inside)
        core = local[inside]
        light = foreground_of(part, self._local_rule, self._labels)
        light = light[rows[0] - up : rows[1] - up, columns[0] - left : columns[1] - left]
        table = _pieces(core, light, count, (rows[0], columns[0]), self._width)
        table["gap"][objects:] = True
        self._tables.append(table)
        tile = np.where(local > 0, local + np.uint32(self._ids), np.uint32(0))
        self._ids += count
        return tile, first

    def _with_gaps(self, labels: Array, objects: int, gaps: Array, inside: tuple[slice, slice]) -> tuple[Array, int]:
        """Objects, and gaps by further numbers; and how many there are. A hole that no other tile sees is filled."""
        gaps, count = _without_absent(gaps)
        labels = np.where(gaps > 0, gaps + np.uint32(objects), labels)
        touching = _touching(labels, inside, objects)
        rim = gaps.copy()
        rim[tuple(slice(part.start + self._seam, max(0, part.stop - self._seam)) for part in inside)] = 0
        areas = np.bincount(gaps.ravel(), minlength=count + 1)[1:]
        owner = _owner(touching, objects + count + 1)[objects + 1 :]
        stay = (np.bincount(rim.ravel(), minlength=count + 1)[1:] > 0) | (owner == 0)
        if self._rule.max_hole_px is not None:
            stay |= areas > self._rule.max_hole_px
        number = np.arange(objects + count + 1)
        number[objects + 1 :] = np.where(stay, objects + np.cumsum(stay), owner)
        self._touching.append(number[touching[stay[touching[:, 1] - objects - 1]]] + self._ids)
        return number.astype(np.uint32)[labels], objects + int(np.count_nonzero(stay))

    def _meet(self, one: Array, other: Array) -> None:
        """Note which numbers of two tiles, for the same pixels, are of one object or gap."""
        both = (one > 0) & (other > 0)
        if not both.any():
            return
        keys, overlaps = np.unique(one[both].astype(np.uint64) << 32 | other[both], return_counts=True)
        pairs = np.stack([keys >> 32, keys & np.uint64(2**32 - 1)], axis=1).astype(np.int64)
        alike = np.ones(len(pairs), bool)
        if self._rule.split != "none":
            alike = 2 * overlaps >= np.minimum(_counts_of(one, pairs[:, 0]), _counts_of(other, pairs[:, 1]))
        self._pairs.append(pairs)
        self._alike.append(alike)


_PIECE = np.dtype(
    [
        ("area", np.int64),
        ("first", np.int64),
        ("light", np.float64),
        ("x", np.float64),
        ("y", np.float64),
        ("left", np.int32),
        ("top", np.int32),
        ("right", np.int32),
        ("bottom", np.int32),
        ("gap", np.bool_),
    ]
)
_NO_PAIRS: Final = np.empty((0, 2), np.int64)


def _tile_rows(layers: int, width: int, margin_px: int) -> int:
    held = _HELD_BYTES // (4 * layers * width) - 2 * margin_px
    return max(_LEAST_ROWS, min(_MOST_ROWS, held))


def _pieces(core: Array, light: FloatArray, count: int, at: tuple[int, int], width: int) -> npt.NDArray[np.void]:
    """What a tile's core holds of each of its objects."""
    table = np.zeros(count, _PIECE)
    where = np.flatnonzero(core)
    piece = core.ravel()[where].astype(np.int64) - 1
    y, x = np.divmod(where, core.shape[1])
    y, x = y + at[0], x + at[1]
    table["area"] = np.bincount(piece, minlength=count)
    table["light"] = np.bincount(piece, weights=light.ravel()[where], minlength=count)
    table["x"] = np.bincount(piece, weights=x, minlength=count)
    table["y"] = np.bincount(piece, weights=y, minlength=count)
    first = np.full(count, np.iinfo(np.int64).max)
    first[piece[::-1]] = (y * width + x)[::-1]  # of an index that comes twice, the last one stays
    table["first"] = first
    for name, values, start, extreme in (
        ("left", x, 2**31 - 1, np.minimum),
        ("top", y, 2**31 - 1, np.minimum),
        ("right", x + 1, 0, np.maximum),
        ("bottom", y + 1, 0, np.maximum),
    ):
        edge = np.full(count, start, np.int64)
        extreme.at(edge, piece, values)
        table[name] = edge
    return table


def _counts_of(labels: Array, ids: _Ids) -> _Ids:
    """How many pixels each id has."""
    found, counts = np.unique(labels, return_counts=True)
    return counts[np.searchsorted(found, ids)]


def _without_absent(labels: Array) -> tuple[Array, int]:
    """Labels numbered from 1 without gaps, uint32, and how many there are."""
    present = np.bincount(labels.ravel(), minlength=1) > 0
    present[0] = False
    count = int(np.count_nonzero(present))
    number = np.zeros(len(present), np.uint32)
    number[present] = np.arange(1, count + 1)
    return number[labels], count


def _touching(labels: Array, inside: tuple[slice, slice], objects: int) -> _Ids:
    """Objects inside, and the gaps that they share a side with [n, 2]; gaps have the numbers above those of objects.

    Gaps may lie outside: an object's pixel is one tile's, and that tile says what it is called.
    """
    padded = np.pad(labels, 1)
    rows, columns = ((part.start + 1, part.stop + 1) for part in inside)
    core = labels[inside]
    found = []
    for down, across in ((-1, 0), (0, -1), (0, 1), (1, 0)):
        beside = padded[rows[0] + down : rows[1] + down, columns[0] + across : columns[1] + across]
        there = (core <= objects) & (beside > objects)
        found.append(np.unique(core[there].astype(np.uint64) << 32 | beside[there]))
    keys = np.unique(np.concatenate(found))
    return np.stack([keys >> 32, keys & np.uint64(2**32 - 1)], axis=1).astype(np.int64)


def _owner(touching: _Ids, size: int) -> _Ids:
    """Of each gap, the only object that it touches; 0 if there are several, and of what is no gap."""
    least, most = np.full(size, size), np.zeros(size, np.int64)
    np.minimum.at(least, touching[:, 1], touching[:, 0])
    np.maximum.at(most, touching[:, 1], touching[:, 0])
    return np.where(least == most, least, 0)


def _summed(table: npt.NDArray[np.void], root: _Ids) -> npt.NDArray[np.void]:
    """What the pieces of each root come to, by root; it is a gap if all of them are."""
    size = len(table)
    summed = table.copy()
    for name in ("area", "light", "x", "y"):
        summed[name] = np.bincount(root, weights=table[name], minlength=size)
    for name, extreme in (
        ("first", np.minimum),
        ("left", np.minimum),
        ("top", np.minimum),
        ("right", np.maximum),
        ("bottom", np.maximum),
        ("gap", np.logical_and),
    ):
        values = table[name].copy()
        extreme.at(values, root, table[name])
        summed[name] = values
    return summed


def _inside(summed: npt.NDArray[np.void], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which do not touch the edge of the image."""
    found: npt.NDArray[np.bool_] = (summed["left"] > 0) & (summed["top"] > 0)
    return found & (summed["right"] < shape[1]) & (summed["bottom"] < shape[0])


def _holes(summed: npt.NDArray[np.void], touching: _Ids, max_hole_px: int | None, shape: tuple[int, int]) -> _Ids:
    """Objects, and the gaps that are filled by them [n, 2]: as `fill_holes` of a whole image."""
    owner = _owner(touching, len(summed))
    fills = (owner > 0) & _inside(summed, shape)
    if max_hole_px is not None:
        fills &= summed["area"] <= max_hole_px
    gaps = np.flatnonzero(fills)
    return np.stack([owner[gaps], gaps], axis=1)


def _joined(summed: npt.NDArray[np.void], root: _Ids, rule: ObjectRule, shape: tuple[int, int]) -> Joined:
    size, area = len(summed), summed["area"]
    keep = (root == np.arange(size)) & (area >= max(1, rule.min_area_px)) & ~summed["gap"]
    keep[0] = False
    if rule.drop_border:
        keep &= _inside(summed, shape)
    order = np.flatnonzero(keep)
    order = order[np.argsort(summed["first"][order], kind="stable")]
    label = np.zeros(size, np.uint32)
    label[order] = np.arange(1, len(order) + 1)
    objects = np.zeros(len(order), RECORD)
    objects["area_px"] = area[order]
    for name, source in (("x_px", "x"), ("y_px", "y"), ("confidence", "light")):
        objects[name] = summed[source][order] / area[order]
    for name in ("left", "top", "right", "bottom"):
        objects[f"{name}_px"] = summed[name][order]
    return Joined(label[root], objects)
