"""GeoJSON as QuPath opens it: a feature an object, in pixels of the full image from its top left corner."""

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import orjson

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.postprocess.contours import Polygon, Ring
from isocenter.imaging.postprocess.quantities import Quantities

MEDIA_TYPE = "application/geo+json"
_NAMESPACE = uuid.UUID("5f0c9d2e-6b1a-5c3e-9a54-1d2f7a8e4b60").bytes


def feature_collection(
    polygons: Sequence[Polygon],
    quantities: Sequence[Quantities] = (),
    confidences: FloatArray | None = None,
    *,
    name: str = "cell",
    color: tuple[int, int, int] = (0, 200, 120),
    channels: Sequence[str] = (),
) -> bytes:
    """A FeatureCollection of detections, by label.

    An object in one piece is a Polygon, in several a MultiPolygon. Rings are closed; outer ones run counter-clockwise
    by the numbers (RFC 7946, 3.1.6). Ids come from the geometry: the same objects give the same bytes. `confidences`
    are by label from 1, as in a `LabelImage`; `name` and `color` are those of the classification in QuPath; `channels`
    name the mean intensities.
    """
    measured = {each.label: each for each in quantities}
    features = []
    for label, group in groupby(polygons, key=lambda polygon: polygon.label):
        pieces = [*group]
        kind, coordinates = _geometry(pieces)
        found = dict(_measurements(measured.get(label), channels))
        if confidences is not None:
            found["Confidence"] = round(float(confidences[label - 1]), 4)
        features.append(
            {
                "type": "Feature",
                "id": _id(pieces),
                "geometry": {"type": kind, "coordinates": coordinates},
                "properties": {
                    "objectType": "detection",
                    "classification": {"name": name, "color": [*color]},
                    "measurements": {"Label": label, **found},
                },
            }
        )
    return orjson.dumps({"type": "FeatureCollection", "features": features}, option=orjson.OPT_SERIALIZE_NUMPY)


def _geometry(pieces: Sequence[Polygon]) -> tuple[str, object]:
    polygons: list[object] = [[_closed(ring) for ring in (piece.outer, *piece.holes)] for piece in pieces]
    return ("Polygon" if len(pieces) == 1 else "MultiPolygon"), (polygons[0] if len(pieces) == 1 else polygons)


def _closed(ring: Ring) -> Array:
    return np.concatenate([ring.points_px, ring.points_px[:1]])


def _id(pieces: Sequence[Polygon]) -> str:
    """A UUID of version 5, of the points."""
    rings = [ring.points_px.astype("<i4") for piece in pieces for ring in (piece.outer, *piece.holes)]
    content = b"".join(part for ring in rings for part in (len(ring).to_bytes(4, "little"), ring.tobytes()))
    return str(uuid.UUID(bytes=hashlib.sha1(_NAMESPACE + content).digest()[:16], version=5))


def _measurements(found: Quantities | None, channels: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Names as QuPath writes them: the unit behind the quantity."""
    if found is None:
        return
    yield "Area px^2", found.area_px
    if found.area_um2 is not None:
        yield "Area µm^2", found.area_um2
    yield "Perimeter px", found.perimeter_px
    if found.perimeter_um is not None:
        yield "Perimeter µm", found.perimeter_um
    yield "Eccentricity", found.eccentricity
    yield "Centroid X px", found.centroid_px[0]
    yield "Centroid Y px", found.centroid_px[1]
    if found.centroid_um is not None:
        yield "Centroid X µm", found.centroid_um[0]
        yield "Centroid Y µm", found.centroid_um[1]
    for number, mean in enumerate(found.mean_intensity):
        yield f"Mean {channels[number] if number < len(channels) else f'channel {number + 1}'}", mean
