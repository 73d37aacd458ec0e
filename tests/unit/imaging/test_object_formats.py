"""Objects as files: GeoJSON, COCO, label images, overlays, each read back by somebody else."""

import contextlib
import io
import json
import re
import uuid
from typing import Any

import cv2
import numpy as np
import pytest
import shapely.geometry
from PIL.TiffImagePlugin import TiffImageFile
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from isocenter.core.errors import TooManyObjects
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import coco, geojson, label_image, overlay
from isocenter.imaging.postprocess.contours import polygons_of
from isocenter.imaging.postprocess.quantities import quantities_of
from label_images import by_chance, drawn

IMAGES = [*by_chance(40)]
# pycocotools 2.0.11 with numpy 2.
OLD_ARRAYS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SCENE = drawn("aaa..bb aaac.bb aaac... d...... .d..eee ....e.e ....eee")


def collection(labels: Array, **keywords: Any) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(geojson.feature_collection(polygons_of(labels), **keywords))
    return read


def test_a_feature_is_an_object_and_its_rings_are_closed_and_valid() -> None:
    for labels in IMAGES:
        features = collection(labels)["features"]
        assert [each["properties"]["measurements"]["Label"] for each in features] == np.unique(
            labels[labels > 0]
        ).tolist()
        for label, each in zip(np.unique(labels[labels > 0]), features, strict=True):
            geometry = each["geometry"]
            pieces = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
            assert all(ring[0] == ring[-1] for piece in pieces for ring in piece)
            shape = shapely.geometry.shape(geometry)
            assert shape.is_valid
            assert shape.area == np.count_nonzero(labels == label)


def test_features_are_what_qupath_reads() -> None:
    quantities = quantities_of(SCENE, np.stack([SCENE, SCENE * 2]), pixel_size_um=(0.5, 0.5))
    read = collection(
        SCENE,
        quantities=quantities,
        confidences=np.linspace(0.5, 0.9, 5, dtype=np.float32),
        name="nucleus",
        color=(1, 2, 3),
        channels=("dapi",),
    )
    first, last = read["features"][0], read["features"][-1]

    assert read["type"] == "FeatureCollection"
    assert first["type"] == "Feature"
    assert first["geometry"] == {"type": "Polygon", "coordinates": [[[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]]]}
    assert len(last["geometry"]["coordinates"]) == 2
    assert read["features"][3]["geometry"]["type"] == "MultiPolygon"
    properties = first["properties"]
    assert properties["objectType"] == "detection"
    assert properties["classification"] == {"name": "nucleus", "color": [1, 2, 3]}
    assert properties["measurements"] == {
        "Label": 1,
        "Area px^2": 9,
        "Area µm^2": 2.25,
        "Perimeter px": 8.0,
        "Perimeter µm": 4.0,
        "Eccentricity": pytest.approx(0, abs=1e-6),
        "Centroid X px": 1.5,
        "Centroid Y px": 1.5,
        "Centroid X µm": 0.75,
        "Centroid Y µm": 0.75,
        "Mean dapi": 1.0,
        "Mean channel 2": 2.0,
        "Confidence": 0.5,
    }


def test_ids_are_uuids_that_the_geometry_decides() -> None:
    ids = [each["id"] for each in collection(SCENE)["features"]]
    moved = [each["id"] for each in collection(np.pad(SCENE, ((1, 0), (0, 0))))["features"]]

    assert len(set(ids)) == 5
    assert all(str(uuid.UUID(each)) == each and uuid.UUID(each).version == 5 for each in ids)
    assert not set(ids) & set(moved)
    assert geojson.feature_collection(polygons_of(SCENE)) == geojson.feature_collection(polygons_of(SCENE.copy()))


def test_no_objects_are_a_collection_too() -> None:
    assert collection(np.zeros((3, 3), np.uint32)) == {"type": "FeatureCollection", "features": []}


def opened(labels: Array, form: coco.Form, **keywords: Any) -> COCO:
    """As pycocotools opens it."""
    read = COCO()
    read.dataset = json.loads(coco.document(labels, polygons_of(labels), form=form, **keywords))
    with contextlib.redirect_stdout(io.StringIO()):
        read.createIndex()
    return read


@OLD_ARRAYS
@pytest.mark.parametrize("form", ["polygon", "rle"])
def test_pycocotools_reads_the_masks_back(form: coco.Form) -> None:
    for labels in IMAGES:
        read = opened(labels, form)
        names = np.unique(labels[labels > 0])
        assert len(read.anns) == len(names)
        for label, annotation in zip(names, read.dataset["annotations"], strict=True):
            assert np.array_equal(read.annToMask(annotation), labels == label)
            runs = coco_mask.encode(np.asfortranarray(labels == label, np.uint8))
            assert annotation["bbox"] == coco_mask.toBbox(runs).tolist()
            assert annotation["area"] == coco_mask.area(runs)


def test_run_lengths_are_compressed_as_pycocotools_does() -> None:
    large = np.zeros((700, 900), np.uint32)
    large[3, 5], large[690:, 880:], large[100:400, 100:700] = 1, 2, 3
    for labels in (*IMAGES, large):
        for label, text in coco.run_lengths(labels).items():
            there = np.asfortranarray(labels == label, np.uint8)
            assert text == coco_mask.encode(there)["counts"].decode()


def test_an_object_with_a_hole_has_run_lengths_and_one_in_pieces_several_polygons() -> None:
    annotations = opened(SCENE, "polygon", confidences=np.full(5, 0.75, np.float32)).dataset["annotations"]

    assert [type(each["segmentation"]) for each in annotations] == [list] * 4 + [dict]
    assert [len(each["segmentation"]) for each in annotations[:4]] == [1, 1, 1, 2]
    assert {each["score"] for each in annotations} == {0.75}


def test_coco_names_the_image_and_the_category() -> None:
    dataset = opened(SCENE, "rle", name="nucleus", file_name="field.tif").dataset

    assert dataset["images"] == [{"id": 1, "file_name": "field.tif", "width": 7, "height": 7}]
    assert dataset["categories"] == [{"id": 1, "name": "nucleus", "supercategory": ""}]
    assert opened(np.zeros((3, 3), np.uint32), "rle").dataset["annotations"] == []


def test_label_images_are_read_back() -> None:
    for labels in IMAGES[:8]:
        for data in (label_image.png(labels), label_image.tiff(labels)):
            read = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
            assert read.dtype == np.uint16
            assert np.array_equal(read, labels)


def test_more_objects_than_16_bits_number_are_32_bits_in_a_tiff_and_refused_in_a_png() -> None:
    many = np.arange(300 * 301, dtype=np.uint32).reshape(300, 301)

    with TiffImageFile(io.BytesIO(label_image.tiff(many))) as read:
        assert np.array_equal(np.asarray(read), many)
        assert read.tag_v2[258] == (32,)
    with pytest.raises(TooManyObjects, match=re.escape("90299 objects, a PNG numbers 65535")) as refusal:
        label_image.png(many)
    assert refusal.value.details == {"objects": 90_299, "limit": 65_535}


def test_a_tiff_in_several_strips_says_how_large_a_pixel_is() -> None:
    labels = np.arange(1000, dtype=np.uint32)[:, np.newaxis].repeat(700, axis=1)

    with TiffImageFile(io.BytesIO(label_image.tiff(labels, pixel_size_um=(0.25, 0.5)))) as read:
        assert len(read.tag_v2[273]) > 1
        assert np.array_equal(np.asarray(read), labels)
        assert [float(read.tag_v2[tag]) for tag in (282, 283)] == [20_000, 40_000]
        assert read.tag_v2[296] == 3


def unpacked(image: Array, labels: Array) -> Array:
    read = np.asarray(cv2.imdecode(np.frombuffer(overlay.png(image, labels), np.uint8), cv2.IMREAD_UNCHANGED))
    return read[:, :, ::-1]


@pytest.mark.parametrize("level", [0, 40, 128, 230, 255])
def test_an_outline_stands_out_and_what_is_outside_stays(level: int) -> None:
    labels = np.zeros((24, 24), np.uint32)
    labels[4:12, 4:12], labels[4:12, 12:20] = 1, 2
    drawn_over = unpacked(np.full((24, 24), level, np.uint8), labels).astype(int)
    outline = drawn_over[4, 4:20]

    assert (drawn_over[labels == 0] == level).all()
    assert (np.abs(outline - level).max(axis=1) >= 64).all()
    assert (drawn_over[7, 11] != drawn_over[7, 12]).any(), "neighbours have colours of their own"
    tint = np.abs(drawn_over[7, 7] - level).max()
    assert 0 < tint < np.abs(outline - level).max()


def test_an_overlay_takes_gray_and_colour_and_nothing_else() -> None:
    labels = drawn("aa. aa. ...")
    gray = np.full((3, 3), 9, np.uint8)

    assert np.array_equal(unpacked(gray, labels), unpacked(np.stack([gray] * 3, axis=2), labels))
    for other in (gray.astype(np.uint16), np.zeros((4, 3), np.uint8), np.zeros((3, 3, 4), np.uint8)):
        with pytest.raises(ValueError, match="an overlay is of"):
            overlay.png(other, labels)
