"""What is measured of objects is what scikit-image measures."""

import numpy as np
import pytest

from isocenter.imaging.postprocess.quantities import Quantities, quantities_of
from label_images import drawn

LABELS = drawn(".aaa....d. aaaaabbb.. aaaa.bbbb. .aaa.bbb.. ......bb.. cccccc.... .....c.ee. .....c.ee.")
RAMP = np.arange(80).reshape(8, 10)
IMAGE = np.stack([RAMP, RAMP**2 % 97])

# regionprops of scikit-image 0.26: area, perimeter, eccentricity, mean of both channels, centroid (row, column).
REGIONPROPS = [
    (15, 11.656854, 0.476095, (16.533333, 35.4), (1.466667, 1.866667)),
    (12, 10.242641, 0.490719, (29.583333, 53.666667), (2.333333, 6.25)),
    (8, 6.0, 0.953249, (56.875, 63.25), (5.375, 3.125)),
    (1, 0.0, 0.0, (8.0, 64.0), (0.0, 8.0)),
    (4, 4.0, 0.0, (72.5, 43.5), (6.5, 7.5)),
]
# The same with spacing=(0.5, 0.25): area, eccentricity, centroid.
REGIONPROPS_SPACED = [
    (1.875, 0.829838, (0.733333, 0.466667)),
    (1.5, 0.894447, (1.166667, 1.5625)),
    (1.0, 0.863747, (2.6875, 0.78125)),
    (0.125, 0.0, (0.0, 2.0)),
    (0.5, 0.866025, (3.25, 1.875)),
]


def test_pixels_are_measured_as_regionprops_does() -> None:
    found = quantities_of(LABELS, IMAGE)

    assert [each.label for each in found] == [1, 2, 3, 4, 5]
    for each, (area, perimeter, eccentricity, means, (row, column)) in zip(found, REGIONPROPS, strict=True):
        assert each.area_px == area
        assert each.perimeter_px == pytest.approx(perimeter, abs=1e-5)
        assert each.eccentricity == pytest.approx(eccentricity, abs=1e-5)
        assert each.mean_intensity == pytest.approx(means, abs=1e-5)
        assert each.centroid_px == pytest.approx((column + 0.5, row + 0.5), abs=1e-5)
        assert (each.area_um2, each.perimeter_um, each.centroid_um) == (None, None, None)


def test_micrometres_count_where_they_are_known() -> None:
    found = quantities_of(LABELS, pixel_size_um=(0.5, 0.25))

    for each, (area, eccentricity, (down, right)) in zip(found, REGIONPROPS_SPACED, strict=True):
        assert each.area_um2 == pytest.approx(area)
        assert each.eccentricity == pytest.approx(eccentricity, abs=1e-5)
        assert each.centroid_um == pytest.approx((right + 0.125, down + 0.25), abs=1e-5)
        assert each.perimeter_um is None, "a perimeter counts steps of square pixels"
        assert each.mean_intensity == ()


def test_the_perimeter_of_square_pixels_is_in_micrometres() -> None:
    first = quantities_of(LABELS, pixel_size_um=(0.5, 0.5))[0]

    assert first.perimeter_um == pytest.approx(0.5 * first.perimeter_px)


def test_labels_may_leave_numbers_out() -> None:
    assert [each.label for each in quantities_of(drawn("a.z"))] == [1, 26]


def test_an_object_is_measured_as_if_it_were_alone() -> None:
    def alone(label: int) -> Quantities:
        return quantities_of(np.where(label == LABELS, label, 0), IMAGE)[0]

    assert quantities_of(LABELS, IMAGE) == [alone(label) for label in range(1, 6)]


def test_nothing_is_measured_of_nothing() -> None:
    assert quantities_of(np.zeros((3, 4), np.uint32), RAMP[:3, :4], pixel_size_um=(1, 1)) == []


def test_an_image_of_another_size_is_a_bug() -> None:
    with pytest.raises(ValueError, match="with labels of"):
        quantities_of(LABELS, IMAGE[:, :-1])
