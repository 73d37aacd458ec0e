"""Where a resampled grid lies, and what cannot be resampled axis by axis."""

import numpy as np
import pytest

from isocenter.core.errors import InputNotAccepted
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.transforms.arrays.centres import centred


def test_square_axes_keep_their_first_centre() -> None:
    first, second, third = centred(Geometry.of((31, 20, 8), (1.0, 0.5, 3.0)), (2.0, 2.0, 1.0))

    assert (first.target, first.scale, first.offset) == (16, 2.0, 0.0)
    assert (second.target, second.scale, second.offset) == (6, 4.0, 0.0)
    assert (third.target, third.offset) == (22, 0.0)


def test_axes_that_a_file_has_rounded_keep_their_middle() -> None:
    angle = np.deg2rad(-17)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (turn @ np.diag([0.7, 0.8, 2.0])).astype(np.float32)

    maps = centred(Geometry((40, 30, 10), affine), (1.5, 1.5, 2.0))

    for along in maps:
        assert along.scale * along.target / 2 + along.offset == pytest.approx(along.source / 2, abs=1e-5)


def test_axes_that_rounding_has_opened_keep_their_first_centre() -> None:
    affine = np.diag([0.7, 0.8, 2.0, 1.0])
    affine[0, 1] = 1e-8

    assert [along.offset for along in centred(Geometry((40, 30, 10), affine), (1.5, 1.5, 2.0))] == [0.0, 0.0, 0.0]


def test_sheared_axes_are_refused() -> None:
    tilted = np.diag([1.0, 1.0, 5.0, 1.0])
    tilted[1, 2] = 1.2

    with pytest.raises(InputNotAccepted, match="sheared by"):
        centred(Geometry((40, 30, 10), tilted), (1.5, 1.5, 2.0))
