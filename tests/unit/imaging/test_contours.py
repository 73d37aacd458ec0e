"""Polygons enclose exactly the pixels of their objects, and are what a geometry library calls valid."""

import numpy as np
import pytest
import shapely

from isocenter.core.tensor import Array
from isocenter.imaging.postprocess.contours import Polygon, Ring, agreement, polygons_of, rasterised
from label_images import by_chance, drawn


@pytest.fixture(scope="module", params=[60, pytest.param(300, marks=pytest.mark.slow)], ids="{} images".format)
def images(request: pytest.FixtureRequest) -> list[tuple[Array, list[Polygon]]]:
    return [(labels, polygons_of(labels)) for labels in by_chance(request.param)]


def shape_of(polygon: Polygon) -> shapely.Polygon:
    return shapely.Polygon(polygon.outer.points_px, [hole.points_px for hole in polygon.holes])


def test_polygons_rasterise_back_to_the_labels(images: list[tuple[Array, list[Polygon]]]) -> None:
    for labels, polygons in images:
        assert np.array_equal(rasterised(polygons, (labels.shape[0], labels.shape[1])), labels)


def test_rings_are_valid_and_holes_lie_inside(images: list[tuple[Array, list[Polygon]]]) -> None:
    for labels, polygons in images:
        pieces: dict[int, list[shapely.Polygon]] = {}
        for polygon in polygons:
            shape = shape_of(polygon)
            outer = shapely.Polygon(polygon.outer.points_px)
            assert shape.is_valid, shapely.is_valid_reason(shape)
            assert shape.area == polygon.area_px
            assert shape.exterior.is_ccw
            assert not any(ring.is_ccw for ring in shape.interiors)
            assert all(outer.covers(shapely.Polygon(hole.points_px)) for hole in polygon.holes)
            pieces.setdefault(polygon.label, []).append(shape)
        assert sorted(pieces) == np.unique(labels[labels > 0]).tolist()
        assert all(shapely.MultiPolygon(each).is_valid for each in pieces.values())


@pytest.mark.parametrize(
    ("picture", "rings"),
    [
        ("a", [[(0, 0), (1, 0), (1, 1), (0, 1)]]),
        ("... .aa ...", [[(1, 1), (3, 1), (3, 2), (1, 2)]]),
        ("a. .a", [[(0, 0), (1, 0), (1, 1), (0, 1)], [(1, 1), (2, 1), (2, 2), (1, 2)]]),
        ("aaa a.a aaa", [[(0, 0), (3, 0), (3, 3), (0, 3)], [(1, 1), (1, 2), (2, 2), (2, 1)]]),
        (
            "aaaa a.aa aa.a aaaa",
            [[(0, 0), (4, 0), (4, 4), (0, 4)], [(1, 1), (1, 2), (2, 2), (2, 1)], [(2, 2), (2, 3), (3, 3), (3, 2)]],
        ),
        ("aa. a.a aaa", [[(0, 0), (2, 0), (2, 1), (3, 1), (3, 3), (0, 3)], [(1, 1), (1, 2), (2, 2), (2, 1)]]),
    ],
    ids=["a pixel", "inside", "a corner in common", "a hole", "holes that touch", "a hole that touches the outline"],
)
def test_rings_follow_the_edges_of_pixels(picture: str, rings: list[list[tuple[int, int]]]) -> None:
    found = [ring for polygon in polygons_of(drawn(picture)) for ring in (polygon.outer, *polygon.holes)]

    assert sorted(sorted(map(tuple, ring.points_px.tolist())) for ring in found) == sorted(map(sorted, rings))
    assert len({len(found[0].points_px), len(rings[0])}) == 1


def test_a_hole_belongs_to_the_piece_that_has_it() -> None:
    target = polygons_of(drawn("aaaaaaa a.....a a.aaa.a a.a.a.a a.aaa.a a.....a aaaaaaa"))

    assert [(polygon.area_px, len(polygon.holes)) for polygon in target] == [(24, 1), (8, 1)]


def test_what_another_object_fills_is_a_hole_too() -> None:
    outer, inner = polygons_of(drawn("aaa aba aaa"))

    assert (len(outer.holes), outer.area_px, inner.area_px) == (1, 8, 1)


def test_an_image_without_objects_has_no_polygons() -> None:
    empty = np.zeros((4, 5), np.uint32)

    assert polygons_of(empty) == []
    assert agreement(empty, []) == 1


def test_agreement_is_that_of_the_worst_object() -> None:
    labels = np.zeros((10, 20), np.uint32)
    labels[:, :10], labels[:, 10:] = 1, 2
    short = Polygon(2, Ring(np.array([(10, 0), (20, 0), (20, 8), (10, 8)])), (), 80)

    assert agreement(labels, [polygons_of(labels)[0], short]) == pytest.approx(0.8)
    assert agreement(labels, []) == 0


def test_slanted_sides_take_the_pixels_whose_centres_they_enclose() -> None:
    triangle = Polygon(1, Ring(np.array([(0, 0), (4, 0), (0, 4)])), (), 8)

    assert rasterised([triangle], (4, 4)).tolist() == drawn("aaa. aa.. a... ....").tolist()


def test_what_lies_outside_of_the_image_is_left_out() -> None:
    square = Polygon(1, Ring(np.array([(-2, -2), (2, -2), (2, 2), (-2, 2)])), (), 16)

    assert rasterised([square], (3, 3)).tolist() == drawn("aa. aa. ...").tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint32, np.int64])
def test_labels_may_be_of_any_whole_type(dtype: type[np.integer]) -> None:
    labels: Array = drawn("ab ba").astype(dtype)

    assert [polygon.label for polygon in polygons_of(labels)] == [1, 1, 2, 2]
