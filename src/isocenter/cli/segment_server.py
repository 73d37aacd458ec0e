"""Ask a server for the objects of images. Each file is asked about once, and every format is written from that."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from isocenter.cli.ask_server import Server, ask_server, asked
from isocenter.cli.outcome import Outcome, Tell, failed, refused
from isocenter.cli.segment_files import told, write
from isocenter.cli.segment_places import Place
from isocenter.core.errors import IsocenterError
from isocenter.imaging.codecs.microscopy import PixelsAsked, read_image
from isocenter.imaging.image import Note
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.postprocess.contours import Polygon, Ring, rasterised
from isocenter.imaging.postprocess.objects import LabelImage
from isocenter.imaging.postprocess.quantities import Quantities
from isocenter.imaging.volume import Volume
from isocenter.serving.cell_answer import CellAnswer

_MOST_PX: Final = 2**27
"""More than a server segments at once."""

if TYPE_CHECKING:
    from isocenter.serving.cell_answer import CellFormat
    from isocenter.serving.cells import CellsAsked


def segment_server(
    files: Sequence[Path],
    server: Server,
    asked_for: "CellsAsked",
    formats: "Iterable[CellFormat]",
    places: Sequence[Place],
    *,
    at_once: int,
    tell: Tell,
) -> None:
    """Answer every file, `at_once` at a time.

    Raises:
        Hopeless: there is no server, or not the model.
    """
    place_of = dict(zip(files, places, strict=True))
    forms = [*formats]
    query = {
        "format": "json",
        "model": asked_for.model,
        "version": asked_for.version,
        "threshold": asked_for.threshold,
        "detect_holes": str(asked_for.detect_holes).lower(),
        "channel": asked_for.pixels.channel,
        "page": asked_for.pixels.page,
    }

    def ask(server: Server, file: Path) -> Outcome:
        def read(body: dict[str, Any], image: bytes) -> Outcome:
            return _written(file, body, image, asked_for.pixels, forms, place_of[file])

        return asked(server, file, "/segment", query, read, key="polygons")

    ask_server(
        [*files],
        server,
        model=asked_for.model,
        version=asked_for.version,
        at_once=at_once,
        tell=tell,
        ask=ask,
    )


def _written(
    file: Path,
    body: dict[str, Any],
    image: bytes,
    pixels: PixelsAsked,
    formats: "Sequence[CellFormat]",
    place: Place,
) -> Outcome:
    try:
        # The server has read it within its own limits; what it drew on is not sent back.
        limits = ImageLimits(max_bytes=max(len(image), ImageLimits().max_bytes))
        volume = read_image(image, limits=limits, asked=pixels) if {*formats} - {"json"} else None
        answer = rebuilt(body, volume)
        latency_ms = float(body["latency_ms"])
    except IsocenterError as error:
        return refused(file, error)
    try:
        written = write(answer, formats, place)
    except OSError as error:
        return failed(file, "unwritten_file", f"the results cannot be written: {error.strerror}")
    return Outcome(file, answer=told(answer, written, latency_ms=latency_ms))


def rebuilt(body: dict[str, Any], volume: Volume | None) -> CellAnswer:
    """The answer that a body of `POST /segment` was written from, on the image that it is about.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError, AttributeError: it is no such body, or its parts disagree.
    """
    size = body["image_size"]
    shape = (int(size["height"]), int(size["width"]))
    if min(shape) < 1 or shape[0] * shape[1] > _MOST_PX or (volume is not None and volume.geometry.shape != shape):
        raise ValueError("not the size of the image")
    polygons = _polygons(body["polygons"], shape)
    labels = rasterised(polygons, shape)
    objects = sorted(body["objects"], key=lambda each: int(each["label"]))
    if np.bincount(labels.ravel())[1:].tolist() != [each["area_px"] for each in objects]:
        raise ValueError("the polygons are not those of the objects")
    channels = tuple(map(str, objects[0]["mean_intensity"])) if objects else ("gray",)
    if volume is not None and not 0 <= int(body["shown"]) < len(volume.voxels):
        raise LookupError("no such channel is shown")
    pixel = body["pixel_size_um"]
    return CellAnswer(
        labels=LabelImage(labels, np.array([each["confidence"] for each in objects], np.float32)),
        polygons=polygons,
        quantities=[_quantities(each) for each in objects],
        model=str(body["model"]),
        version=int(body["version"]),
        threshold=float(body["threshold"]),
        detect_holes=bool(body["detect_holes"]),
        batch_size=int(body["batch_size"]),
        warnings=tuple(Note(str(each["code"]), str(each["message"])) for each in body["warnings"]),
        stages_s={stage: float(taken_ms) / 1e3 for stage, taken_ms in body["timings_ms"].items()},
        pixel_size_um=None if pixel is None else (float(pixel["y"]), float(pixel["x"])),
        volume=volume or Volume.of(np.zeros((len(channels), *shape), np.uint8), channels=channels),
        name=str(body["name"]),
        shown=int(body["shown"]),
        fallback=str(body.get("fallback", "")),
        request_id=str(body["request_id"]),
        total_s=float(body["latency_ms"]) / 1e3,
    )


def _polygons(rings: list[dict[str, Any]], shape: tuple[int, int]) -> list[Polygon]:
    if not isinstance(rings, list):
        raise TypeError("polygons are a list")
    holes: dict[str, list[dict[str, Any]]] = {}
    for ring in rings:
        if ring["type"] == "internal":
            holes.setdefault(str(ring["parentIds"][0]), []).append(ring)
    return [
        Polygon(
            int(ring["label"]),
            _ring(ring, shape),
            tuple(_ring(hole, shape) for hole in holes.get(str(ring["id"]), ())),
            float(ring["area"]) - sum(float(hole["area"]) for hole in holes.get(str(ring["id"]), ())),
        )
        for ring in rings
        if ring["type"] == "external"
    ]


def _ring(ring: dict[str, Any], shape: tuple[int, int]) -> Ring:
    points = np.array([(point["x"], point["y"]) for point in ring["points"]], np.float64)
    if not ((points >= 0) & (points <= shape[::-1])).all():
        raise ValueError("a point outside of the image")
    return Ring(points.astype(np.int32))


def _quantities(given: dict[str, Any]) -> Quantities:
    values: dict[str, Any] = {name: given[name] for name in Quantities.__dataclass_fields__}
    values["mean_intensity"] = tuple(map(float, given["mean_intensity"].values()))
    for name in ("centroid_px", "centroid_um"):
        values[name] = None if given[name] is None else tuple(map(float, given[name]))
    return Quantities(**values)
