"""How the results of `isocenter segment` are written, and what is said of them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from isocenter.cli.segment_places import Place

if TYPE_CHECKING:
    from isocenter.serving.cell_answer import CellAnswer, CellFormat
    from isocenter.serving.segment_large import LargeAnswer

SUFFIXES: Final[Mapping[str, str]] = {
    "json": ".json",
    "geojson": ".geojson",
    "coco": ".coco.json",
    "coco-rle": ".coco-rle.json",
    "labels": ".labels.png",
    "overlay": ".overlay.png",
}
"""What the name of a result ends in, by format. Labels that a PNG cannot hold are in a `.labels.tif`."""
_TIFF: Final = ".labels.tif"


def suffixes(formats: Iterable["CellFormat"]) -> list[str]:
    """All that the names of results may end in; labels, also of an image that is too large for memory, in a TIFF."""
    return [*(SUFFIXES[form] for form in formats), _TIFF]


def write(answer: "CellAnswer", formats: Iterable["CellFormat"], place: Place, **about: Any) -> list[str]:
    """Write an answer in every format; the names of the files. One that is there is replaced, as a whole.

    Raises:
        OSError: it cannot be written.
    """
    place.results.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for form in formats:
        rendered = answer.render(form, file_name=place.image, **about)
        suffix = _TIFF if rendered.media_type == "image/tiff" else SUFFIXES[form]
        file = place.results.with_name(place.results.name + suffix)
        part = file.with_name(f".{uuid4().hex}.part")  # nobody else's: two commands may write to one folder
        try:
            part.write_bytes(rendered.body)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        written.append(str(file))
    return written


def told(answer: "CellAnswer", written: Sequence[str], *, latency_ms: float) -> dict[str, Any]:
    """What is said of an answer beside the files that hold it: strings and numbers only."""
    width, height = answer.image_size_px
    areas_um2 = [each.area_um2 for each in answer.quantities if each.area_um2 is not None]
    return {
        "objects": answer.count,
        "median_area_px": _median([each.area_px for each in answer.quantities]),
        "median_area_um2": _median(areas_um2),
        "image_size": {"width": width, "height": height},
        "threshold": answer.threshold,
        "model": answer.model,
        "version": answer.version,
        "latency_ms": round(latency_ms, 3),
        "warnings": [{"code": note.code, "message": note.message} for note in answer.warnings],
        "written": [*written],
    }


def large_place(place: Place) -> Path:
    """The file for the labels of a large image, in a folder that is there."""
    place.results.parent.mkdir(parents=True, exist_ok=True)
    return place.results.with_name(place.results.name + _TIFF)


def told_large(answer: "LargeAnswer", *, latency_ms: float) -> dict[str, Any]:
    """The same of an image that was too large for memory."""
    width, height = answer.image_size_px
    area_px = _median(answer.areas_px.tolist())
    pixel = answer.pixel_size_um
    only_labels = {"code": "only_labels", "message": "too large for memory: labels were written, and nothing else"}
    return {
        "objects": answer.count,
        "median_area_px": area_px,
        "median_area_um2": None if area_px is None or pixel is None else area_px * pixel[0] * pixel[1],
        "image_size": {"width": width, "height": height},
        "threshold": answer.threshold,
        "model": answer.model,
        "version": answer.version,
        "latency_ms": round(latency_ms, 3),
        "warnings": [*({"code": note.code, "message": note.message} for note in answer.warnings), only_labels],
        "written": [str(answer.labels)],
    }


def _median(values: Sequence[float]) -> float | None:
    return float(median(values)) if values else None
