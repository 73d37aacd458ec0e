"""Where the results of `isocenter segment` go, and what is said of them."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from isocenter.cli.errors import Hopeless

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


def outside(files: Sequence[Path], arguments: Iterable[str], out: Path) -> list[Path]:
    """The files that are no results of an earlier run: what lies in `out` counts only if it is named itself.

    Raises:
        Hopeless: there is no other.
    """
    folders, results = _folders(arguments), out.resolve()

    def is_result(file: Path) -> bool:
        return results in file.resolve().parents and any(folder in file.parents for folder in folders)

    images = [file for file in files if not is_result(file)]
    if not images:
        raise Hopeless(f"every image is in {out}, where the results go", hint="--out with another folder")
    return images


def places(files: Sequence[Path], arguments: Iterable[str], out: Path) -> list[Path]:
    """The path of each file's results, without a suffix; no two are the same.

    What was found in a folder keeps its place within it. Files of one name are told apart by their endings, or by a
    number if these are the same too.

    >>> [str(each) for each in places([Path("a.png"), Path("a.tif"), Path("b.tif")], [], Path("out"))]
    ['out/a.png', 'out/a.tif', 'out/b']
    """
    folders = _folders(arguments)
    within = [_within(file, folders) for file in files]
    stems = Counter(_key(place.with_suffix("")) for place in within)
    found: list[Path] = []
    taken: set[str] = set()
    for place in within:
        first = place if stems[_key(place.with_suffix(""))] > 1 else place.with_suffix("")
        chosen, number = first, 2
        while _key(chosen) in taken:
            chosen, number = first.with_name(f"{first.name}-{number}"), number + 1
        taken.add(_key(chosen))
        found.append(out / chosen)
    return found


def write(answer: "CellAnswer", formats: Iterable["CellFormat"], place: Path, **about: Any) -> list[str]:
    """Write an answer in every format; the names of the files. One that is there is replaced, as a whole.

    Raises:
        OSError: it cannot be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for form in formats:
        rendered = answer.render(form, **about)
        suffix = _TIFF if rendered.media_type == "image/tiff" else SUFFIXES[form]
        file = place.with_name(place.name + suffix)
        part = file.with_name(f"{file.name}.part")
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


def large_place(place: Path) -> Path:
    """The file for the labels of a large image, in a folder that is there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    return place.with_name(place.name + _TIFF)


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


def _folders(arguments: Iterable[str]) -> list[Path]:
    return [path for path in map(Path, arguments) if path.is_dir()]


def _within(file: Path, folders: Sequence[Path]) -> Path:
    """Its path inside the outermost folder that it was found in; its name if it was named itself."""
    above = [folder for folder in folders if folder in file.parents]
    place = file.relative_to(min(above, key=lambda folder: len(folder.parts))) if above else Path(file.name)
    return Path(os.path.normpath(place))


def _key(place: Path) -> str:
    """Two names that some file systems hold for the same are the same."""
    return str(place).casefold()
