"""The answer for one image of cells, and how it is written."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import orjson

from isocenter.core.errors import BadValue
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import coco, geojson, label_image, overlay
from isocenter.imaging.image import Note
from isocenter.imaging.postprocess.contours import Polygon, Ring
from isocenter.imaging.postprocess.objects import LabelImage
from isocenter.imaging.postprocess.quantities import Quantities
from isocenter.imaging.volume import COLOURS, Volume

CellFormat: TypeAlias = Literal["json", "geojson", "coco", "coco-rle", "labels", "overlay"]
FORMATS: Final[tuple[CellFormat, ...]] = get_args(CellFormat)

# What is shown of samples that are not 8 bits wide: the rest, at both ends, is dust and noise.
_SHOWN_PERCENTILES = (0.1, 99.9)


class Rendered(NamedTuple):
    """An answer as it is written."""

    media_type: str
    body: bytes


@dataclass(frozen=True, eq=False, kw_only=True)
class CellAnswer:
    """The objects of one image, in the pixels of that image."""

    labels: LabelImage
    polygons: list[Polygon]
    quantities: list[Quantities]
    """One an object, in the order of their labels."""
    model: str
    version: int
    threshold: float
    """Probability from which a pixel belongs to an object."""
    detect_holes: bool
    """False: a gap within one object is part of it."""
    batch_size: int
    """Items in the largest batch that a part of the image was run in."""
    warnings: tuple[Note, ...]
    stages_s: dict[str, float]
    """Seconds by stage, in the order in which they happened."""
    pixel_size_um: tuple[float, float] | None
    """Height and width, if the file knows them."""
    volume: Volume
    """The image, with all channels that were asked for."""
    name: str = "cell"
    """What an object is called: the label that the model gives its pixels, if there is one of them."""
    shown: int = 0
    """Number of the channel that is drawn on, where an image is neither gray nor of three colours."""
    fallback: str = ""
    """What answered in place of the model's own runtime; empty: the model's own did."""
    request_id: str = ""
    total_s: float | None = None
    """From the call to the answer."""
    _polygons_json: list[bytes] = field(default_factory=list, repr=False)

    @property
    def count(self) -> int:
        """How many objects there are."""
        return self.labels.count

    @property
    def image_size_px(self) -> tuple[int, int]:
        """Width and height."""
        height, width = self.labels.labels.shape
        return width, height

    @property
    def image(self) -> Array:
        """What is drawn on: [H, W] or [H, W, 3] of uint8; other samples are windowed, all channels alike."""
        voxels = self.volume.voxels
        if self.volume.channels != COLOURS:
            voxels = voxels[self.shown : self.shown + 1]
        if voxels.dtype != np.uint8:
            low, high = np.percentile(voxels, _SHOWN_PERCENTILES)
            scaled = (voxels.astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
            voxels = np.clip(scaled, 0, 255).astype(np.uint8)
        colours = np.moveaxis(voxels, 0, -1)
        return np.ascontiguousarray(colours if len(voxels) == 3 else colours[..., 0])

    def polygons_json(self) -> bytes:
        """The rings as a JSON list, outer ones before their holes; written once."""
        if not self._polygons_json:
            self._polygons_json.append(orjson.dumps(rings_of(self.polygons, self.labels.confidences.tolist())))
        return self._polygons_json[0]

    def as_json(self) -> dict[str, Any]:
        """Strings, numbers, lists and mappings only."""
        found: dict[str, Any] = orjson.loads(self.render("json").body)
        return found

    def render(
        self,
        form: CellFormat,
        *,
        request_id: str | None = None,
        total_s: float | None = None,
        tiff: bool = False,
        file_name: str = "",
    ) -> Rendered:
        """Write it. `tiff` is for `labels`: a TIFF also where a 16-bit PNG holds all of them.

        `file_name` is for `coco`, whose documents name their image.

        >>> FORMATS
        ('json', 'geojson', 'coco', 'coco-rle', 'labels', 'overlay')

        Raises:
            BadValue: there is no such format.
        """
        if form not in FORMATS:
            raise BadValue(
                f"format {str(form)[:64]!r} is not written; there are {', '.join(FORMATS)}",
                details={"format": str(form)[:64], "formats": list(FORMATS)},
            )
        match form:
            case "json":
                return Rendered("application/json", self._json(request_id, total_s))
            case "geojson":
                return Rendered(geojson.MEDIA_TYPE, self._geojson())
            case "coco":
                return Rendered(coco.MEDIA_TYPE, self._coco("polygon", file_name))
            case "coco-rle":
                return Rendered(coco.MEDIA_TYPE, self._coco("rle", file_name))
            case "labels" if tiff or self.count > np.iinfo(np.uint16).max:
                labels = label_image.tiff(self.labels.labels, pixel_size_um=self.pixel_size_um)
                return Rendered(label_image.TIFF_MEDIA_TYPE, labels)
            case "labels":
                return Rendered(label_image.PNG_MEDIA_TYPE, label_image.png(self.labels.labels))
            case "overlay":
                return Rendered(overlay.MEDIA_TYPE, overlay.png(self.image, self.labels.labels))

    def _json(self, request_id: str | None, total_s: float | None) -> bytes:
        width, height = self.image_size_px
        total_s = self.total_s if total_s is None else total_s
        pixel = self.pixel_size_um
        written = {
            "image_size": {"width": width, "height": height},
            "count": self.count,
            "name": self.name,
            "shown": self.shown,
            "polygons": orjson.Fragment(self.polygons_json()),
            "objects": self.objects(),
            "threshold": self.threshold,
            "detect_holes": self.detect_holes,
            "pixel_size_um": None if pixel is None else {"x": pixel[1], "y": pixel[0]},
            "batch_size": self.batch_size,
            "model": self.model,
            "version": self.version,
            "latency_ms": None if total_s is None else round(total_s * 1e3, 3),
            "request_id": request_id or self.request_id,
            "timings_ms": {stage: round(seconds * 1e3, 3) for stage, seconds in self.stages_s.items()},
            "warnings": [{"code": note.code, "message": note.message} for note in self.warnings],
        } | ({"fallback": self.fallback} if self.fallback else {})
        return orjson.dumps(written, option=orjson.OPT_SERIALIZE_NUMPY)

    def objects(self) -> list[dict[str, Any]]:
        """What was measured of each object, by the names of `Quantities`, and its confidence."""
        confidences = self.labels.confidences.tolist()
        channels = self.volume.channels or tuple(map(str, range(len(self.volume.voxels))))
        written = []
        for each in self.quantities:
            means = dict(zip(channels, each.mean_intensity, strict=True))
            written.append(asdict(each) | {"confidence": confidences[each.label - 1], "mean_intensity": means})
        return written

    def _geojson(self) -> bytes:
        return geojson.feature_collection(
            self.polygons, self.quantities, self.labels.confidences, name=self.name, channels=self.volume.channels
        )

    def _coco(self, form: coco.Form, file_name: str) -> bytes:
        return coco.document(
            self.labels.labels,
            self.polygons,
            confidences=self.labels.confidences,
            name=self.name,
            file_name=file_name,
            form=form,
        )


def rings_of(polygons: list[Polygon], confidences: list[float]) -> list[dict[str, Any]]:
    """One entry a ring, an outer one before its holes, which name it as their parent."""
    written: list[dict[str, Any]] = []
    for polygon in polygons:
        outer = f"polygon_{len(written) + 1}"
        about = {"label": polygon.label, "confidence": confidences[polygon.label - 1]}
        written.append({"id": outer, "type": "external", **about, **_ring(polygon.outer)})
        for hole in polygon.holes:
            own = {"id": f"polygon_{len(written) + 1}", "type": "internal", "parentIds": [outer]}
            written.append({**own, **about, **_ring(hole)})
    return written


def _ring(ring: Ring) -> dict[str, Any]:
    points = ring.points_px.astype(np.float64)
    x, y = points.T
    # The shoelace formula, from the first point on: small differences keep their digits far from the origin.
    dx, dy = x - x[0], y - y[0]
    area = 0.5 * abs(float(np.dot(dx, np.roll(dy, -1)) - np.dot(dy, np.roll(dx, -1))))
    return {"area": area, "points": [{"x": px, "y": py} for px, py in points.tolist()]}
