"""Millimetres mean the same on every way through."""

from itertools import permutations, product

import numpy as np
import pytest

from isocenter.core.errors import BadImage, EmptyInput, InputNotAccepted, NonFinitePixels
from isocenter.core.tensor import Array
from isocenter.imaging.geometry import Geometry, swap_lps_ras
from isocenter.imaging.transforms.arrays.grid import oriented
from isocenter.imaging.transforms.arrays.steps import Orient
from isocenter.imaging.volume import Volume

SHAPE = (3, 4, 5)
ALL_48 = [
    "".join(codes)
    for pairs in permutations([("L", "R"), ("P", "A"), ("I", "S")])
    for codes in product(*pairs)
]  # fmt: skip


def pointing(axcodes: str, spacing: tuple[float, float, float] = (1.5, 0.7, 2.0)) -> Geometry:
    """A grid whose axes point as the codes say."""
    affine = np.zeros((4, 4))
    affine[:, 3] = (12, -30, 7, 1)
    for column, (code, length) in enumerate(zip(axcodes, spacing, strict=True)):
        axis = next(number for number, both in enumerate(("LR", "PA", "SI")) if code in both)
        affine[axis, column] = length if code in "LPS" else -length
    return Geometry(SHAPE, affine)


@pytest.mark.parametrize("axcodes", ALL_48)
def test_axes_are_read_off_and_turned_as_asked(axcodes: str) -> None:
    source = pointing(axcodes)
    array = np.arange(60, dtype=np.float32).reshape(1, *SHAPE)

    turned, geometry, undo = oriented(array, source, Orient(kind="orient", axcodes="RAS"))

    assert (source.axcodes, geometry.axcodes) == (axcodes, "RAS")
    for index in ((0, 0, 0), (1, 2, 1), tuple(size - 1 for size in geometry.shape)):
        place = np.linalg.solve(source.lps_from_voxel, [*geometry.position_lps_mm(index), 1.0])
        assert turned[0][index] == array[0][tuple(np.rint(place[:3]).astype(int))]
    if undo is not None:
        assert np.array_equal(undo(turned, labels=True, fill=np.zeros(1)), array)
    assert (undo is None) == (axcodes == "RAS")


def test_lps_and_ras_are_one_flip_apart_and_two_flips_are_none() -> None:
    affine = pointing("PIR").lps_from_voxel

    flipped = swap_lps_ras(affine)

    assert np.array_equal(flipped[:2], -affine[:2])
    assert np.array_equal(flipped[2:], affine[2:])
    assert np.array_equal(swap_lps_ras(flipped), affine)


def test_spacing_is_along_the_axes_of_the_array() -> None:
    assert pointing("SLP", (2.0, 0.5, 0.75)).spacing_mm == (2.0, 0.5, 0.75)
    assert Geometry.of((4, 5), (0.3, 0.2)).spacing_mm == (0.3, 0.2)
    assert Geometry.of((4, 5)).axcodes == "LP"


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((4,), np.eye(4)),
        ((4, 0, 2), np.eye(4)),
        ((4, 4, 2), np.eye(3)),
        ((4, 4, 2), np.diag([1.0, 1.0, 0.0, 1.0])),
        ((4, 4, 2), np.diag([1.0, np.nan, 1.0, 1.0])),
        ((4, 4, 2), np.diag([1.0, 1.0, 1.0, 2.0])),
    ],
    ids=["one axis", "no voxels", "3 x 3", "flat", "NaN", "last row"],
)
def test_what_is_no_grid_is_refused(shape: tuple[int, ...], affine: Array) -> None:
    with pytest.raises(ValueError, match=r"grid|affine"):
        Geometry(shape, affine)


def test_grids_are_the_same_if_their_corners_are() -> None:
    one = pointing("LPS")
    near, far = one.lps_from_voxel.copy(), one.lps_from_voxel.copy()
    near[0, 3] += 5e-4
    far[0, 0] += 1e-3

    assert one.same_place(Geometry(SHAPE, near))
    assert not one.same_place(Geometry(SHAPE, far))
    assert not one.same_place(Geometry((3, 4, 6), one.lps_from_voxel))


def test_a_grid_does_not_change_with_the_array_that_it_was_made_of() -> None:
    affine = np.eye(4)
    geometry = Geometry(SHAPE, affine)
    affine[0, 0] = 9

    assert geometry.spacing_mm == (1.0, 1.0, 1.0)


def named(*channels: str) -> Volume:
    return Volume.of(np.arange(60 * len(channels)).reshape(-1, *SHAPE), channels=channels)


def test_channels_are_chosen_by_name_and_in_the_order_of_the_model() -> None:
    chosen = named("flair", "t2", "t1").select(["t1", "flair"])

    assert chosen.channels == ("t1", "flair")
    assert chosen.voxels[:, 0, 0, 0].tolist() == [120, 0]


def test_a_lone_channel_without_a_name_takes_the_one_that_is_asked_for() -> None:
    volume = Volume.of(np.zeros((1, *SHAPE)))

    assert volume.select(["t1"]).channels == ("t1",)
    assert volume.select([]) is volume


@pytest.mark.parametrize(
    ("volume", "missing"),
    [(named("t1", "t2"), ["flair"]), (Volume.of(np.zeros((2, *SHAPE))), ["t1", "flair"])],
    ids=["another", "no names"],
)
def test_channels_are_never_guessed(volume: Volume, missing: list[str]) -> None:
    with pytest.raises(InputNotAccepted) as caught:
        volume.select(["t1", "flair"])

    assert caught.value.details["missing"] == missing


@pytest.mark.parametrize(
    ("voxels", "channels"),
    [((1, 3, 4, 6), ()), ((0, 3, 4, 5), ()), ((2, 3, 4, 5), ("t1",)), ((2, 3, 4, 5), ("t1", "t1"))],
    ids=["another grid", "no channel", "a name too few", "one name twice"],
)
def test_voxels_that_do_not_fit_are_refused(voxels: tuple[int, ...], channels: tuple[str, ...]) -> None:
    with pytest.raises(BadImage):
        Volume(np.zeros(voxels), Geometry.of(SHAPE), channels)


def test_nothing_to_see_is_said_and_where() -> None:
    voxels = np.random.default_rng(0).standard_normal((2, *SHAPE))
    voxels[1] = 7
    with pytest.raises(EmptyInput, match="channel t2 has the value 7"):
        Volume.of(voxels, channels=("t1", "t2")).refuse_unusable()
    voxels[1, 0, 0, :2] = (np.inf, np.nan)
    with pytest.raises(NonFinitePixels, match="2 of 60 voxels of channel 1"):
        Volume.of(voxels).refuse_unusable()


def test_what_float32_cannot_tell_from_nothing_is_nothing_to_see() -> None:
    voxels = np.full((1, *SHAPE), 2**60, np.int64)
    voxels[0, 0, 0, 0] += 1
    with pytest.raises(EmptyInput):
        Volume.of(voxels).refuse_unusable()


def test_a_voxel_beyond_float32_is_refused_before_it_becomes_infinite() -> None:
    voxels = np.random.default_rng(0).standard_normal((1, *SHAPE))
    voxels[0, 1, 1, 1] = -1e39
    with pytest.raises(NonFinitePixels, match="-1e\\+39"):
        Volume.of(voxels).refuse_unusable()
