"""COCO instance annotations, with polygons or run lengths, as pycocotools reads them."""

from collections.abc import Sequence
from itertools import groupby
from typing import Literal, TypeAlias

import numpy as np
import orjson

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.postprocess.contours import Polygon

MEDIA_TYPE = "application/json"
Form: TypeAlias = Literal["polygon", "rle"]


def document(
    labels: Array,
    polygons: Sequence[Polygon],
    *,
    confidences: FloatArray | None = None,
    name: str = "cell",
    file_name: str = "",
    form: Form = "polygon",
) -> bytes:
    """The annotations of one image, whose label image [H, W] has these polygons.

    `polygon` writes polygons, x and y in turn; the format has none with holes, so an object that has one is written as
    run lengths. `rle` writes run lengths of every object, compressed as pycocotools does. `confidences` are by label
    from 1, and become `score`.
    """
    height, width = labels.shape
    pieces_of = {label: [*group] for label, group in groupby(polygons, key=lambda polygon: polygon.label)}
    areas = np.bincount(labels.ravel())
    runs = run_lengths(labels)
    annotations = []
    for number, (label, pieces) in enumerate(pieces_of.items(), 1):
        corners = np.concatenate([piece.outer.points_px for piece in pieces])
        (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        whole = form == "polygon" and not any(piece.holes for piece in pieces)
        annotation: dict[str, object] = {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [piece.outer.points_px.ravel() for piece in pieces]
            if whole
            else {"size": [height, width], "counts": runs[label]},
            "area": int(areas[label]),
            "bbox": [left, top, right - left, bottom - top],
            "iscrowd": 0,
        }
        if confidences is not None:
            annotation["score"] = round(float(confidences[label - 1]), 4)
        annotations.append(annotation)
    found = {
        "info": {"description": "objects found by a model"},
        "licenses": [],
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "categories": [{"id": 1, "name": name, "supercategory": ""}],
        "annotations": annotations,
    }
    return orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)


def run_lengths(labels: Array) -> dict[int, str]:
    """The compressed run lengths of each object, by label.

    A mask is read column by column: pixels outside, inside, outside, and so on.

    >>> run_lengths(np.array([[0, 5], [5, 5]]))
    {5: '13'}
    """
    flat = np.ascontiguousarray(labels.T).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=0))
    label = flat[starts]
    ends = np.append(starts[1:], flat.size)
    inside = label > 0
    order = np.argsort(label[inside], kind="stable")
    label, starts, ends = label[inside][order], starts[inside][order], ends[inside][order]
    first = np.diff(label, prepend=0) != 0
    last = np.append(first[1:], True)[: len(first)]
    gaps = starts - np.where(first, 0, np.roll(ends, 1))
    # Of each run the gap before it and its length; behind the last one of a label what is left of the image, if any.
    counts = np.stack([gaps, ends - starts, np.where(last, flat.size - ends, 0)], axis=1)
    used = np.ones(counts.shape, bool)
    used[:, 2] = last & (ends < flat.size)
    sizes = np.add.reduceat(used.sum(axis=1), np.flatnonzero(first)) if len(label) else np.zeros(0, int)
    return dict(zip(label[first].tolist(), _compressed(counts[used], sizes), strict=True))


def _compressed(counts: Array, sizes: Array) -> list[str]:
    """Counts of several masks one behind the other, as text.

    As `rleToString` of the COCO API: from the fourth on, the difference to the one before the last; in groups of five
    bits with the sign in the last one, the lowest first; the sixth bit says that more follow; from the character 48 on.
    """
    place = np.arange(len(counts)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    values = counts - np.where(place > 2, np.roll(counts, 2), 0)
    groups: list[Array] = []
    open_, left = np.ones(len(values), bool), values
    while open_.any():
        bits, left = left & 31, left >> 5
        more = open_ & np.where(bits & 16, left != -1, left != 0)
        groups.append(np.where(open_, bits + 32 * more + 48, 0))
        open_ = more
    if not groups:
        return []
    letters = np.stack(groups, axis=1).astype(np.uint8)
    text = letters[letters > 0].tobytes().decode("ascii")
    ends = np.cumsum((letters > 0).sum(axis=1))[np.cumsum(sizes) - 1].tolist()
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
