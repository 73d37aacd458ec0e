"""Cell images as microscopes write them: every channel untouched, by name; what cannot be right is refused."""

import contextlib
import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from image_writers import pattern, tiff_bytes, tiff_file
from isocenter.core.errors import (
    BadImage,
    BadInput,
    EmptyInput,
    InputNotAccepted,
    MultiFrameImage,
    NonFinitePixels,
    TooManyBytes,
    TooManyPixels,
    TruncatedImage,
    UnsupportedMedia,
)
from isocenter.imaging.codecs.microscopy import PixelsAsked, as_channels, pixel_size_um, read_image
from isocenter.imaging.codecs.ome import distinct
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.postprocess.objects import ObjectRule, objects_of
from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline
from isocenter.imaging.transforms.arrays.steps import Scale
from isocenter.imaging.volume import Volume
from large_images import nuclei

Pixels = npt.NDArray[Any]
LIMITS = ImageLimits()


def field(dtype: str, *shape: int) -> Pixels:
    """A picture over the whole range of its type."""
    height, width, channels = (*shape, 1)[:3]
    return pattern(np.random.default_rng(7), height, width, channels, dtype=dtype)


def tiff(pixels: Pixels, **how: Any) -> bytes:
    """A TIFF that tifffile wrote."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **({"photometric": "minisblack"} | how))
    return file.getvalue()


def pillow_tiff(pixels: Pixels, compression: str) -> bytes:
    """A TIFF that libtiff wrote."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "tiff", compression=compression)
    return file.getvalue()


def read(data: bytes, **asked: Any) -> Volume:
    """With the limits of a server."""
    return read_image(data, limits=LIMITS, asked=PixelsAsked(**asked))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"rowsperstrip": 7},
        {"tile": (32, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"bigtiff": True, "byteorder": ">", "rowsperstrip": 5},
        {"compression": "zlib", "tile": (64, 64)},
        {"compression": "zlib", "rowsperstrip": 9},
    ],
    ids=str,
)
def test_samples_come_out_as_they_were_stored(dtype: str, how: dict[str, Any]) -> None:
    pixels = field(dtype, 75, 53)
    volume = read(tiff(pixels, **how))
    assert volume.voxels.dtype == np.dtype(dtype)
    assert volume.channels == ("gray",)
    np.testing.assert_array_equal(volume.voxels[0], pixels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "zstd", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_what_libtiff_compressed_is_read(compression: str, dtype: str) -> None:
    pixels = field(dtype, 75, 53)
    np.testing.assert_array_equal(read(pillow_tiff(pixels, compression)).voxels[0], pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_in_tiff_is_what_libtiff_makes_of_it(channels: int) -> None:
    data = pillow_tiff(field("uint8", 128, 96, channels), "jpeg")
    with Image.open(io.BytesIO(data)) as image:
        expected = np.array(image)
    found = read(data).voxels
    assert found.dtype == np.uint8
    difference = np.abs(np.moveaxis(found, 0, -1).reshape(expected.shape).astype(int) - expected)
    assert difference.max() <= 2  # libjpeg's two ways of widening chroma


def test_jpeg_in_tiff_with_fewer_samples_of_two_colours_is_not_red_green_and_blue() -> None:
    stream = io.BytesIO()
    Image.fromarray(field("uint8", 128, 96, 3)).save(stream, "jpeg", subsampling="4:2:0")
    tags: dict[int, Sequence[int]] = {256: [96], 257: [128], 258: [8] * 3, 259: [7], 262: [2], 277: [3], 278: [128]}
    with pytest.raises(BadImage, match="fewer samples of some"):
        read(tiff_file("<", tags, [stream.getvalue()]))


def test_twelve_packed_bits_are_twelve_bits() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (9, 7), dtype=np.uint16)
    spread = (values[..., None] >> np.arange(11, -1, -1)) & 1
    rows = np.packbits(spread.reshape(9, -1).astype(np.uint8), axis=1)
    tags: dict[int, Sequence[int]] = {256: [7], 257: [9], 258: [12], 259: [1], 262: [1], 277: [1], 278: [9]}
    np.testing.assert_array_equal(read(tiff_file("<", tags, [rows.tobytes()])).voxels[0], values)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (32, 48)])
def test_five_channels_stay_five_and_one_can_be_asked_for(planar: str, tile: tuple[int, int] | None) -> None:
    pixels = np.stack([field("uint16", 40, 50) + number for number in range(5)])
    stored = pixels if planar == "separate" else np.moveaxis(pixels, 0, -1)
    data = tiff(stored, planarconfig=planar, tile=tile, metadata=None)
    volume = read(data)
    assert volume.channels == ("0", "1", "2", "3", "4")
    np.testing.assert_array_equal(volume.voxels, pixels)
    np.testing.assert_array_equal(read(data, channel="3").voxels, pixels[3:4])
    for wanted in (["gray"], ["red", "green", "blue"]):
        with pytest.raises(InputNotAccepted, match="0, 1, 2, 3, 4"):
            as_channels(volume, wanted)


def ome(stack: Pixels, axes: str, **metadata: Any) -> bytes:
    """An OME-TIFF."""
    return tiff(stack, ome=True, metadata={"axes": axes} | metadata)


STACK = np.stack([field("uint16", 30, 40) // (number + 1) for number in range(6)])


def test_ome_channels_have_names_and_pixels_a_size() -> None:
    data = ome(
        STACK[:3], "CYX", Channel={"Name": ["DAPI", "GFP", "mCherry"]},
        PhysicalSizeX=325, PhysicalSizeXUnit="nm", PhysicalSizeY=0.65, PhysicalSizeYUnit="µm",
    )  # fmt: skip
    volume = read(data)
    assert volume.channels == ("DAPI", "GFP", "mCherry")
    assert pixel_size_um(volume) == (0.65, 0.325)
    assert [note.code for note in volume.notes] == ["pixel_size"]
    np.testing.assert_array_equal(read(data, channel="gfp").voxels[0], STACK[1])
    np.testing.assert_array_equal(read(data, channel=2).voxels[0], STACK[2])
    with pytest.raises(InputNotAccepted, match="Cy5 is asked for, there are DAPI, GFP, mCherry"):
        read(data, channel="Cy5")


@pytest.mark.parametrize("channel", [1, "1"], ids=["a number", "text"])
def test_a_number_that_is_a_name_is_that_name_s_however_it_is_said(channel: str | int) -> None:
    data = ome(STACK[:3], "CYX", Channel={"Name": ["1", "2", "3"]})
    np.testing.assert_array_equal(read(data, channel=channel).voxels[0], STACK[0])


@pytest.mark.parametrize("names", [["a", "a", "b"], ["DAPI", "Dapi", "b"]])
def test_which_of_two_channels_of_one_name_is_meant_is_not_guessed(names: list[str]) -> None:
    data = ome(STACK[:3], "CYX", Channel={"Name": names})
    with pytest.raises(InputNotAccepted):
        read(data, channel=names[0].lower())
    np.testing.assert_array_equal(read(data, channel=1).voxels[0], STACK[1])
    np.testing.assert_array_equal(read(data, channel="b").voxels[0], STACK[2])


def test_names_that_collide_with_those_made_of_others_are_told_apart_at_once() -> None:
    chain = ["A", "A"]
    while len(chain) < 2_000:
        chain.append(f"{chain[-1]} ({len(chain) - 2})")
    found = distinct(chain, len(chain))
    assert len(set(found)) == len(chain)
    assert distinct(("a", "a", "a (0)"), 3) == ("a (0)'", "a (1)", "a (0)")


def test_forty_channels_in_one_page_are_forty() -> None:
    many = pattern(np.random.default_rng(8), 20, 30, 40, dtype="uint16")
    volume = read(tiff(many, planarconfig="contig"))
    np.testing.assert_array_equal(volume.voxels, np.moveaxis(many, -1, 0))
    with pytest.raises(UnsupportedMedia, match="65 samples per pixel, up to 64"):
        read(tiff(np.zeros((20, 30, 65), np.uint8), planarconfig="contig"))


@pytest.mark.parametrize("channel", ["GFP", 1, "\u0661", "0_0"], ids=["name", "number", "Arabic digits", "underscore"])
def test_a_channel_that_is_not_there_is_not_the_only_one(channel: str | int) -> None:
    data = ome(STACK[0], "YX", Channel={"Name": ["DAPI"]})
    np.testing.assert_array_equal(read(data, channel="DAPI").voxels[0], STACK[0])
    with pytest.raises(InputNotAccepted, match="there are DAPI"):
        read(data, channel=channel)


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX", "TCYX"])
def test_ome_sections_are_pages_with_all_their_channels(axes: str) -> None:
    stack = STACK.reshape(3, 2, 30, 40) if axes[1] == "C" else STACK.reshape(2, 3, 30, 40)
    data = ome(stack, axes, Channel={"Name": ["DAPI", "GFP"]})
    with pytest.raises(MultiFrameImage, match="3 pages"):
        read(data)
    volume = read(data, page=1)
    assert volume.channels == ("DAPI", "GFP")
    np.testing.assert_array_equal(volume.voxels, stack[1] if axes[1] == "C" else stack[:, 1])
    np.testing.assert_array_equal(read(data, page=2, channel="GFP").voxels[0], volume_of(stack, axes, 2)[1])
    with pytest.raises(InputNotAccepted, match="page 3 is asked for, there are 3"):
        read(data, page=3)


def volume_of(stack: Pixels, axes: str, page: int) -> Pixels:
    """The channels of one section."""
    return stack[page] if axes[1] == "C" else stack[:, page]


def test_colours_of_an_ome_tiff_are_colours() -> None:
    pixels = field("uint8", 30, 40, 3)
    volume = read(tiff(pixels, photometric="rgb", ome=True))
    assert volume.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(volume.voxels, np.moveaxis(pixels, -1, 0))


def test_imagej_stacks_know_their_channels_and_unit() -> None:
    file = io.BytesIO()
    stack = STACK.reshape(3, 2, 30, 40)
    tifffile.imwrite(file, stack, imagej=True, resolution=(4, 2), metadata={"axes": "ZCYX", "unit": "um"})
    volume = read(file.getvalue(), page=2)
    assert volume.channels == ("0", "1")
    assert pixel_size_um(volume) == (0.5, 0.25)
    np.testing.assert_array_equal(volume.voxels, stack[2])


def test_pages_of_a_plain_tiff_are_asked_for_by_number() -> None:
    data = tiff(STACK, metadata=None)
    with pytest.raises(MultiFrameImage, match="6 pages"):
        read(data)
    np.testing.assert_array_equal(read(data, page=4).voxels[0], STACK[4])
    with pytest.raises(InputNotAccepted, match="there are 6"):
        read(data, page=6)


def test_a_smaller_copy_of_the_picture_is_no_page() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(STACK[0], photometric="minisblack", metadata=None)
        writer.write(STACK[0][::2, ::2], photometric="minisblack", metadata=None, subfiletype=1)
    np.testing.assert_array_equal(read(file.getvalue()).voxels[0], STACK[0])


@pytest.mark.parametrize(("per_cm", "size"), [(20_000.0, (0.5, 0.5)), (118.11, None)], ids=["0.5 um", "300 dpi"])
def test_a_resolution_counts_if_it_is_a_microscope_s(per_cm: float, size: tuple[float, float] | None) -> None:
    data = tiff(STACK[0], resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", metadata=None)
    assert pixel_size_um(read(data)) == size


def test_ink_is_light_and_never_white() -> None:
    cmyk = field("uint8", 30, 40, 4) // 2
    volume = read(tiff(cmyk, photometric="separated"))
    assert volume.channels == ("red", "green", "blue")
    assert [note.code for note in volume.notes] == ["ink_converted"]
    black = 255 - cmyk[..., 3].astype(int)
    expected = np.round((255 - cmyk[..., 0].astype(int)) * black / 255)
    assert np.abs(volume.voxels[0] - expected).max() <= 1


def test_where_zero_is_white_light_is_inverted_once() -> None:
    volume = read(tiff(STACK[0], photometric="miniswhite"))
    np.testing.assert_array_equal(volume.voxels[0], np.uint16(65535) - STACK[0])
    assert [note.code for note in volume.notes] == ["inverted"]


@pytest.mark.parametrize("shape", [(3, 20_000), (20_000, 3)])
def test_any_aspect_ratio_is_read(shape: tuple[int, int]) -> None:
    pixels = np.arange(60_000, dtype=np.uint16).reshape(shape)
    np.testing.assert_array_equal(read(tiff(pixels)).voxels[0], pixels)


def one_nan() -> Pixels:
    """A float picture with one sample that is not a number."""
    pixels = field("float32", 30, 40)
    pixels[7, 9] = np.nan
    return pixels


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (tiff(np.full((40, 50), 1234, np.uint16)), EmptyInput),
        (tiff(np.zeros((1, 1), np.uint16)), EmptyInput),
        (tiff(np.dstack([np.full((40, 50), value, np.uint8) for value in (1, 2, 3)]), photometric="rgb"), EmptyInput),
        (tiff(one_nan()), NonFinitePixels),
        (tiff(field("uint16", 90, 90), rowsperstrip=10)[:-900], TruncatedImage),
        (tiff(field("uint16", 90, 90), bigtiff=True)[:-900], TruncatedImage),
        (tiff(np.arange(800, dtype=np.float64).reshape(20, 40) * np.pi), UnsupportedMedia),
        (tiff(STACK[0].astype(np.complex64)), UnsupportedMedia),
        (tiff_bytes(STACK[0], compression=32773, more={317: [2]}), UnsupportedMedia),
        (tiff(field("uint8", 20, 30, 2), photometric="miniswhite", planarconfig="contig"), UnsupportedMedia),
        (tiff(np.where(STACK[0] > 9, 3.4e38, -3.4e38).astype(np.float32)), BadImage),
    ],
    ids=[
        "constant",
        "1x1",
        "three flat colours",
        "NaN",
        "cut",
        "BigTIFF cut",
        "doubles",
        "complex",
        "PackBits with a predictor",
        "two samples of which 0 is white",
        "no difference in float32",
    ],
)
def test_what_cannot_be_right_is_refused(data: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        read(data)


def test_one_colour_may_be_all_there_is() -> None:
    blue = np.dstack([np.zeros((40, 50), np.uint8)] * 2 + [field("uint8", 40, 50)])
    np.testing.assert_array_equal(read(tiff(blue, photometric="rgb")).voxels[2], blue[..., 2])


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"max_bytes": 1000}, TooManyBytes),
        ({"max_pixels": 1000}, TooManyPixels),
        ({"max_decoded_bytes": 9000}, TooManyPixels),
    ],
    ids=str,
)
def test_limits_hold_for_all_channels_together(changes: dict[str, int], kind: type[Exception]) -> None:
    data = ome(STACK[:4], "CYX")
    assert read(data).voxels.nbytes == 9600
    with pytest.raises(kind):
        read_image(data, limits=ImageLimits(**changes))


def test_pages_that_go_round_in_a_circle_end() -> None:
    data = bytearray(tiff(STACK, metadata=None))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        first, last = file.pages[0].offset, file.pages[-1].offset
    (entries,) = struct.unpack_from("<H", data, last)
    struct.pack_into("<I", data, last + 2 + 12 * entries, first)
    with pytest.raises(BadImage, match="circle"):
        read(bytes(data), page=0)


@pytest.mark.parametrize("seed", range(60))
def test_a_broken_file_is_refused_or_read_and_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(FILES[seed % len(FILES)])
    for at in rng.integers(0, len(data), int(rng.integers(1, 12))):
        data[at] = rng.integers(0, 256)
    if seed % 3 == 0:
        del data[int(rng.integers(8, len(data))) :]
    with contextlib.suppress(BadInput):
        read(bytes(data), page=0)


FILES = [
    ome(STACK[:3], "CYX", Channel={"Name": ["a", "b", "c"]}),
    tiff(STACK, bigtiff=True, metadata=None),
    tiff(field("uint8", 64, 64, 3), photometric="rgb", tile=(32, 32), compression="zlib"),
    pillow_tiff(field("uint8", 64, 64, 3), "jpeg"),
    pillow_tiff(field("uint16", 64, 64), "zstd"),
]


def test_one_channel_is_taken_for_one_channel_and_gray_is_shown_as_colours() -> None:
    volume = read(tiff(STACK[0]))
    assert as_channels(volume, ["nuclei"]).channels == ("nuclei",)
    colours = as_channels(volume, ["red", "green", "blue"])
    np.testing.assert_array_equal(colours.voxels, np.stack([STACK[0]] * 3))
    assert [note.code for note in colours.notes] == ["gray_repeated"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_colours_become_their_luminance(dtype: str) -> None:
    pixels = field(dtype, 30, 40, 3)
    volume = read(tiff(pixels, photometric="rgb"))
    gray = as_channels(volume, ["gray"])
    expected = pixels.astype(np.float64) @ (0.299, 0.587, 0.114)
    np.testing.assert_allclose(gray.voxels[0], expected, atol=1.0 if dtype != "float32" else 1e-5)
    assert gray.voxels.dtype == np.dtype(dtype)
    assert [note.code for note in gray.notes] == ["luminance"]


def test_ome_names_in_another_order_are_put_in_order() -> None:
    volume = read(ome(STACK[:3], "CYX", Channel={"Name": ["DAPI", "GFP", "mCherry"]}))
    np.testing.assert_array_equal(as_channels(volume, ["GFP", "DAPI"]).voxels, STACK[[1, 0]])


def objects_in(data: bytes) -> Pixels:
    """What lies above half of the picture's own range."""
    steps = (Scale(kind="scale", low={"percentile": 1}, high={"percentile": 99.5}, clip=True),)
    prepared = ArrayPipeline(steps)(as_channels(read(data), ["nuclei"]))
    assert [note.code for note in prepared.notes] == ["intensity_window"]
    return objects_of(prepared.tensor, ObjectRule(min_area_px=10), ["nucleus"]).labels


def test_twelve_bits_in_sixteen_give_the_objects_of_their_windowed_eight() -> None:
    pixels = nuclei(400, 400)
    assert 255 < pixels.max() < 4096
    low, high = np.percentile(pixels, [0.1, 99.9])
    eight = np.clip(np.round((pixels - low) / (high - low) * 255), 0, 255).astype(np.uint8)
    deep, windowed = objects_in(tiff(pixels)), objects_in(tiff(eight))

    assert deep.max() > 50
    pairs, overlap = np.unique(np.stack([deep.ravel(), windowed.ravel()]), axis=1, return_counts=True)
    areas, other_areas = np.bincount(deep.ravel()), np.bincount(windowed.ravel())
    unions = areas[pairs[0]] + other_areas[pairs[1]] - overlap
    same = np.count_nonzero((overlap / unions > 0.5) & (pairs[0] > 0) & (pairs[1] > 0))
    assert 2 * same / (int(deep.max()) + int(windowed.max())) >= 0.95
