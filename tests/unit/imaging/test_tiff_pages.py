"""A file of several planes is never answered for one of them: which is meant is asked for, or the file is refused."""

import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from image_writers import tiff_file
from isocenter.core.errors import BadImage, InputNotAccepted, MultiFrameImage, UnsupportedMedia
from isocenter.imaging.codecs import raster
from isocenter.imaging.codecs.microscopy import PixelsAsked, pixel_size_um, read_image
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.volume import Volume

LIMITS = ImageLimits()
STACK = np.random.default_rng(7).integers(0, 4096, (6, 24, 32)).astype(np.uint16)
UIC2 = 33629
OME = """<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0"
 DimensionOrder="XYCZT" Type="uint16" SizeX="32" SizeY="24" SizeC="1" SizeZ="{planes}" SizeT="1" {more}>{where}
 </Pixels></Image></OME>"""
Page = dict[str, Any]


def written(*pages: tuple[npt.NDArray[Any], Page]) -> bytes:
    """A TIFF of pages with whatever their writer says of them."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for pixels, how in pages:
            said: Page = {"photometric": "minisblack", "metadata": None} | how
            writer.write(pixels, **said)
    return file.getvalue()


def described(text: str, count: int = len(STACK), **how: Any) -> bytes:
    return written((STACK[0], {"description": text, **how}), *((plane, {}) for plane in STACK[1:count]))


def read(data: bytes, **asked: Any) -> Volume:
    return read_image(data, limits=LIMITS, asked=PixelsAsked(**asked))


def assert_asks(data: bytes, pages: int, order: list[int]) -> None:
    """Which page is meant has to be said, and each is what it is."""
    with pytest.raises(MultiFrameImage, match=f"{pages} pages"):
        read(data)
    for page, plane in enumerate(order):
        np.testing.assert_array_equal(read(data, page=page).voxels[0], STACK[plane])
    with pytest.raises(InputNotAccepted):
        read(data, page=pages)


@pytest.mark.parametrize("text", ["ImageJ=1.53t\nunit=micron\n", "ImageJ=1.53t\nimages=1\n"], ids=["none", "one"])
def test_imagej_that_counts_fewer_images_than_there_are_pages_is_asked_which(text: str) -> None:
    assert_asks(described(text), 6, [0, 1, 2, 3, 4, 5])


def test_channels_of_imagej_without_a_count_of_images_are_those_of_all_pages() -> None:
    data = described("ImageJ=1.53t\nchannels=3\n")
    with pytest.raises(MultiFrameImage, match="2 pages"):
        read(data)
    np.testing.assert_array_equal(read(data, page=1).voxels, STACK[3:])


@pytest.mark.parametrize(
    ("planes", "where", "order"),
    [(1, "", [0, 1, 2, 3, 4, 5]), (2, "", [0, 1, 2, 3, 4, 5]), (1, '<TiffData IFD="4"/>', [4, 0, 1, 2, 3, 5])],
    ids=["one", "two", "another"],
)
def test_pages_that_ome_does_not_place_come_after_those_that_it_does(planes: int, where: str, order: list[int]) -> None:
    assert_asks(described(OME.format(planes=planes, where=where, more="")), 6, order)


@pytest.mark.parametrize(
    ("other", "kind"), [(STACK[1][::2, ::2], 1), (STACK[1] > 2000, 4)], ids=["smaller copy", "mask"]
)
def test_a_copy_or_mask_that_ome_does_not_place_is_no_page(other: npt.NDArray[Any], kind: int) -> None:
    text = OME.format(planes=1, where="", more="")
    data = written((STACK[0], {"description": text}), (other, {"subfiletype": kind}))
    np.testing.assert_array_equal(read(data).voxels[0], STACK[0])


def test_a_copy_as_large_as_what_it_is_a_copy_of_is_a_page() -> None:
    assert_asks(written(*((plane, {"subfiletype": 1}) for plane in STACK)), 6, [0, 1, 2, 3, 4, 5])


def test_the_large_one_is_meant_where_the_copy_comes_first() -> None:
    data = written((STACK[1][::2, ::2], {"subfiletype": 1}), (STACK[0], {}))
    np.testing.assert_array_equal(read(data).voxels[0], STACK[0])


HIDDEN = {
    "the large one below the copy": written((STACK[0][::2, ::2], {"subfiletype": 1, "subifds": 1}), (STACK[0], {})),
    "planes without pages by tifffile": written((STACK, {"metadata": {"axes": "ZYX"}, "truncate": True})),
    "planes in one page": written((STACK, {"volumetric": True, "tile": (16, 16, 16)})),
    "MetaMorph": written((STACK[0], {"extratags": [(UIC2, 5, 6, (1, 1) * 6, True)]})),
    "ImageJ's larger than 4 GiB": written((STACK[0], {"description": "ImageJ=1.53t\nimages=6\n"})),
}


@pytest.mark.parametrize("data", HIDDEN.values(), ids=[*HIDDEN])
def test_planes_that_have_no_pages_are_not_left_out_in_silence(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        read(data)
    with pytest.raises(UnsupportedMedia):
        raster.read_header(data, limits=LIMITS)


def test_smaller_copies_below_the_picture_are_no_pages() -> None:
    data = written((STACK[0], {"subifds": 1}), (STACK[0][::2, ::2], {"subfiletype": 1}))
    np.testing.assert_array_equal(read(data).voxels[0], STACK[0])
    assert raster.read_header(data, limits=LIMITS).source.width_px == STACK.shape[2]


def test_a_picture_of_colours_is_one_page_for_whoever_describes_it() -> None:
    text = "ImageJ=1.53t\nunit=micron\n"
    data = written((np.stack([STACK[0] >> 4] * 3, -1).astype(np.uint8), {"photometric": "rgb", "description": text}))
    assert read(data).channels == ("red", "green", "blue")
    assert raster.read_header(data, limits=LIMITS).source.mode == "RGB"


def test_a_page_of_another_size_than_ome_describes_has_no_known_pixel_size() -> None:
    """A picture that was scaled keeps the description of the one that it was made of."""
    text = OME.format(planes=1, where="", more='PhysicalSizeX="0.5" PhysicalSizeY="0.5"')
    with pytest.raises(BadImage, match="32 x 24 pixels, the page has 16 x 12"):
        read(written((STACK[0][::2, ::2], {"description": text})))


def test_ome_describes_pages_as_they_are_stored() -> None:
    text = OME.format(planes=1, where="", more='PhysicalSizeX="0.5" PhysicalSizeY="0.25"')
    found = read(written((STACK[0], {"description": text, "extratags": [(274, 3, 1, 6, True)]})))
    assert found.voxels.shape[1:] == (32, 24)
    assert pixel_size_um(found) == (0.5, 0.25)


@pytest.mark.parametrize("size", ["1e-300", "1e300", "nan", "-1", "0"])
def test_a_pixel_smaller_than_an_atom_or_larger_than_a_hand_is_of_no_known_size(size: str) -> None:
    more = f'PhysicalSizeX="{size}" PhysicalSizeY="{size}"'
    assert pixel_size_um(read(described(OME.format(planes=6, where="", more=more)), page=0)) is None


@pytest.mark.parametrize(
    ("unit", "per_unit", "size_um"),
    [("inch", 72.0, None), ("inch", 25400.0, 1.0), ("micron", 0.01, 100.0), ("micrometer", 2.0, 0.5)],
)
def test_dots_per_inch_of_a_screen_are_no_size_of_a_pixel(unit: str, per_unit: float, size_um: float | None) -> None:
    data = described(f"ImageJ=1.53t\nunit={unit}\n", count=1, resolution=(per_unit, per_unit))
    assert pixel_size_um(read(data)) == (None if size_um is None else pytest.approx((size_um, size_um)))


def test_imagej_s_second_unit_is_that_of_a_pixel_s_height() -> None:
    text = "ImageJ=1.53t\nunit=micron\nyunit={}\n"
    two = {"resolution": (2.0, 0.004)}
    assert pixel_size_um(read(described(text.format("nm"), count=1, **two))) == pytest.approx((0.25, 0.5))
    assert pixel_size_um(read(described(text.format("pixel"), count=1, **two))) is None


def test_a_resolution_finer_than_an_atom_is_no_size_of_a_pixel() -> None:
    fine = written((STACK[0], {"resolution": (4e9, 20_000), "resolutionunit": "CENTIMETER"}))
    assert pixel_size_um(read(fine)) is None


@pytest.mark.parametrize("checksum", ["wrong", "cut off"])
def test_a_deflated_strip_that_goes_on_beyond_its_rows_is_broken(checksum: str) -> None:
    stream = zlib.compress(STACK[:2].tobytes())
    body = stream[: len(stream) * 3 // 4] if checksum == "cut off" else stream[:-4] + bytes(4)
    tags: dict[int, Sequence[int]] = {256: [32], 257: [24], 258: [16], 259: [8], 262: [1], 277: [1], 278: [24]}
    with pytest.raises(BadImage):
        read(tiff_file("<", tags, [body]))


def test_a_deflated_last_strip_may_be_filled_up_with_rows() -> None:
    rows = [STACK[0][:16], np.concatenate([STACK[0][16:], np.zeros((8, 32), np.uint16)])]
    tags: dict[int, Sequence[int]] = {256: [32], 257: [24], 258: [16], 259: [8], 262: [1], 277: [1], 278: [16]}
    data = tiff_file("<", tags, [zlib.compress(part.tobytes()) for part in rows])
    assert np.array_equal(read(data).voxels[0], STACK[0])


def test_planes_of_luminance_and_chroma_are_not_taken_for_red_green_and_blue() -> None:
    gray = io.BytesIO()
    Image.fromarray((STACK[0] >> 4).astype(np.uint8)).save(gray, "jpeg")
    tags: dict[int, Sequence[int]] = {256: [32], 257: [24], 258: [8] * 3, 259: [7], 262: [6], 277: [3], 284: [2]}
    with pytest.raises(UnsupportedMedia, match="a plane for each"):
        read(tiff_file("<", tags | {278: [24]}, [gray.getvalue()] * 3))
