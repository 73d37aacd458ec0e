"""Objects as polygons: rings along the edges of pixels, so that a ring encloses exactly the pixels of its object.

A ring never crosses or touches itself. Where pixels of an object touch only at a corner, it is in pieces, a polygon
each; where a hole reaches the outline at a corner, its ring touches the outer one in that point, as OGC simple features
allow.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from isocenter.core.tensor import Array

_EAST, _SOUTH, _WEST, _NORTH = range(4)


@dataclass(frozen=True, eq=False)
class Ring:
    """A closed line: its first point is not repeated at the end."""

    points_px: Array
    """[N, 2] int32, x and y of pixel corners: one pixel at the origin is (0, 0), (1, 0), (1, 1), (0, 1). Outer rings
    run clockwise as one sees them (counter-clockwise by the numbers, as RFC 7946 asks), holes the other way round."""


@dataclass(frozen=True, eq=False)
class Polygon:
    """One piece of an object, with its holes."""

    label: int
    outer: Ring
    holes: tuple[Ring, ...]
    area_px: float
    """Of the outer ring without the holes."""


def polygons_of(labels: Array) -> list[Polygon]:
    """The polygons of a label image [H, W], by label, then by their first pixels; one or more of each label.

    >>> [polygon] = polygons_of(np.array([[0, 7, 7], [0, 0, 0]]))
    >>> polygon.label, polygon.outer.points_px.tolist(), polygon.area_px
    (7, [[1, 0], [3, 0], [3, 1], [1, 1]], 2.0)
    """
    edges = _edges(np.pad(labels, 1))
    if not len(edges.pixel):
        return []
    order, starts = _loops(edges)
    loop_of = np.empty(len(order), np.int64)
    loop_of[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(order)]))
    label = edges.label[order[starts]]
    areas = _areas(edges, order, starts)
    owner = _owners(edges, loop_of, areas)
    rings = _rings(edges, order, starts)
    inner: dict[int, list[int]] = {}
    for hole in np.flatnonzero(areas < 0).tolist():
        inner.setdefault(int(owner[hole]), []).append(hole)
    outer = np.flatnonzero(areas > 0)
    outer = outer[np.lexsort((edges.pixel[order[starts[outer]]], label[outer]))]
    names, sizes = label.tolist(), areas.tolist()
    return [
        Polygon(
            names[loop],
            rings[loop],
            tuple(rings[hole] for hole in inner.get(loop, ())),
            float(sizes[loop] + sum(sizes[hole] for hole in inner.get(loop, ()))),
        )
        for loop in outer.tolist()
    ]


@dataclass(frozen=True, eq=False)
class _Edges:
    """Sides of pixels between a label and something else, the label on the right hand; by direction, then by pixel."""

    pixel: Array
    """Number of the pixel in the padded image."""
    way: Array
    """East along the top of the pixel, south along its right side, west along its bottom, north along its left."""
    next: Array
    """The edge that goes on where this one ends."""
    label: Array
    x: Array
    y: Array
    """Where it starts."""


def _edges(padded: Array) -> _Edges:
    """All edges. Where pixels of a label meet at a corner, they turn right: neighbours are those that share a side."""
    width = padded.shape[1]
    flat = padded.ravel()
    inside = np.flatnonzero(flat)
    own = flat[inside]
    outward = (-width, 1, width, -1)  # from a pixel over its top, right, bottom and left side
    ahead = (1, width, -1, -width)
    found = [np.flatnonzero(flat[inside + step] != own) for step in outward]
    counts = [len(each) for each in found]
    first = np.cumsum([0, *counts])
    number = np.empty((4, len(flat)), np.int32)  # by side and pixel; filled and read only where an edge is
    for side, each in enumerate(found):
        number[side, inside[each]] = np.arange(first[side], first[side + 1], dtype=np.int32)
    following = []
    for side, each in enumerate(found):
        pixel, label = inside[each], own[each]
        straight = pixel + ahead[side]
        aside = straight + outward[side]
        turns_right = flat[straight] != label
        goes_on = flat[aside] != label
        sides = np.where(turns_right, (side + 1) % 4, np.where(goes_on, side, (side + 3) % 4))
        following.append(number[sides, np.where(turns_right, pixel, np.where(goes_on, straight, aside))])
    pixel = inside[np.concatenate(found)]
    way = np.repeat(np.arange(4), counts)
    y, x = np.divmod(pixel, width)
    return _Edges(
        pixel=pixel,
        way=way,
        next=np.concatenate(following),
        label=own[np.concatenate(found)],
        x=x - 1 + np.array([0, 1, 1, 0])[way],
        y=y - 1 + np.array([0, 0, 1, 1])[way],
    )


def _loops(edges: _Edges) -> tuple[Array, Array]:
    """The edges in the order of their loops, and where each loop starts; no loop meets one of its corners twice."""
    following = edges.next.tolist()
    seen = bytearray(len(following))
    order: list[int] = []
    starts: list[int] = []
    for first in range(len(following)):
        if seen[first]:
            continue
        starts.append(len(order))
        edge = first
        while not seen[edge]:
            seen[edge] = 1
            order.append(edge)
            edge = following[edge]
    return _untied(edges, np.array(order), np.array(starts))


def _untied(edges: _Edges, order: Array, starts: Array) -> tuple[Array, Array]:
    """Loops that touch themselves, taken apart where they do."""
    width = int(edges.x.max()) + 1
    loop = np.repeat(np.arange(len(starts)), np.diff([*starts, len(order)]))
    corner = edges.y[order] * width + edges.x[order]
    by_corner = np.lexsort((loop, corner))
    again = (np.diff(corner[by_corner]) == 0) & (np.diff(loop[by_corner]) == 0)
    tied = set(loop[by_corner[1:][again]].tolist())
    if not tied:
        return order, starts
    pieces: list[list[int]] = []
    for number, each in enumerate(np.split(order, starts[1:])):
        if number not in tied:
            pieces.append(each.tolist())
            continue
        pieces += _apart(each.tolist(), (edges.y[each] * width + edges.x[each]).tolist())
    lengths = [len(piece) for piece in pieces]
    return np.concatenate([np.array(piece) for piece in pieces]), np.cumsum([0, *lengths[:-1]])


def _apart(loop: Sequence[int], corners: Sequence[int]) -> list[list[int]]:
    pieces: list[list[int]] = []
    path: list[int] = []
    met: dict[int, int] = {}
    path_corners: list[int] = []
    for edge, corner in zip(loop, corners, strict=True):
        if corner in met:
            since = met[corner]
            pieces.append(path[since:])
            for left in path_corners[since:]:
                del met[left]
            del path[since:], path_corners[since:]
        met[corner] = len(path)
        path.append(edge)
        path_corners.append(corner)
    pieces.append(path)
    # From the first edge on, so that a ring starts at its top left corner.
    return [piece[(at := piece.index(min(piece))) :] + piece[:at] for piece in pieces]


def _areas(edges: _Edges, order: Array, starts: Array) -> Array:
    """Pixels that each loop encloses; negative: it is a hole."""
    step = np.array([-1, 0, 1, 0])[edges.way[order]]
    return np.add.reduceat(step * edges.y[order], starts)


def _owners(edges: _Edges, loop_of: Array, areas: Array) -> Array:
    """The outer loop of each loop, itself of an outer one.

    Every run of pixels in a row begins with a left side and ends with a right one, so the two kinds pair up in order.
    The right side that is furthest left in a hole ends a run whose left side belongs to a loop further left: its outer
    loop, or another hole of the same pixels.
    """
    owner = np.arange(len(areas))
    right, left = np.flatnonzero(edges.way == _SOUTH), np.flatnonzero(edges.way == _NORTH)
    of_hole = areas[loop_of[right]] < 0
    right, left = right[of_hole], left[of_hole]
    furthest = np.argsort(-edges.x[right], kind="stable")
    owner[loop_of[right[furthest]]] = loop_of[left[furthest]]
    while not np.array_equal(owner, again := owner[owner]):
        owner = again
    return owner


def _rings(edges: _Edges, order: Array, starts: Array) -> list[Ring]:
    """The corners of each loop: starts of edges that do not go on straight."""
    way = edges.way[order]
    before = np.roll(way, 1)
    before[starts] = way[np.append(starts[1:], len(order)) - 1]
    turns = way != before
    points = np.stack([edges.x[order][turns], edges.y[order][turns]], axis=1).astype(np.int32)
    ends = np.cumsum(np.add.reduceat(turns.astype(np.int64), starts))
    return [Ring(points[first:last]) for first, last in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]


def rasterised(polygons: Iterable[Polygon], shape: tuple[int, int]) -> Array:
    """Labels [H, W] uint32 of the pixels whose centres lie in polygons, whatever the slope of their sides.

    Polygons may touch, not overlap; what lies outside of the shape is left out.
    """
    height, width = shape
    change = np.zeros((height, width + 1), np.int64)
    rings = [(polygon.label, ring.points_px) for polygon in polygons for ring in (polygon.outer, *polygon.holes)]
    if rings:
        here = np.concatenate([points for _, points in rings]).astype(np.float64)
        there = np.concatenate([np.roll(points, -1, axis=0) for _, points in rings]).astype(np.float64)
        label = np.repeat([label for label, _ in rings], [len(points) for _, points in rings])
        first, last = np.ceil(np.stack([here[:, 1], there[:, 1]]) - 0.5).astype(np.int64)  # rows by their centres
        rises = last < first  # upwards: the object is on the right
        rows_of = np.abs(last - first)
        side = np.repeat(np.arange(len(here)), rows_of)
        row = np.arange(len(side)) - np.repeat(np.cumsum(rows_of) - rows_of, rows_of) + np.minimum(first, last)[side]
        slope = (there[side, 0] - here[side, 0]) / (there[side, 1] - here[side, 1])
        column = np.ceil(here[side, 0] + (row + 0.5 - here[side, 1]) * slope - 0.5).astype(np.int64)
        seen = (row >= 0) & (row < height)
        value = np.where(rises, label, -label)[side[seen]]
        np.add.at(change, (row[seen], np.clip(column[seen], 0, width)), value)
    return np.cumsum(change, axis=1)[:, :-1].astype(np.uint32)


def agreement(labels: Array, polygons: Iterable[Polygon]) -> float:
    """The smallest intersection over union of an object with its polygons rasterised; 1 where there are none.

    >>> labels = np.array([[0, 1, 1], [2, 2, 0]])
    >>> agreement(labels, polygons_of(labels))
    1.0
    """
    found = rasterised(polygons, (labels.shape[0], labels.shape[1]))
    count = int(max(labels.max(initial=0), found.max(initial=0))) + 1
    there, back = np.bincount(labels.ravel(), minlength=count), np.bincount(found.ravel(), minlength=count)
    both = np.bincount(labels[labels == found].ravel(), minlength=count)
    either = (there + back - both)[1:]
    return float((both[1:][either > 0] / either[either > 0]).min(initial=1.0))
