"""Pixels are the stored bits and nothing else, however they are packed; what is cut, or lies, is refused."""

import struct
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicom_files import ROWS, SLICES, coded, enhanced, every, files, slices, voxels
from isocenter.core.errors import BadInput
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.dicom import read_planes
from isocenter.imaging.codecs.dicom_pixels import stored_frames
from isocenter.imaging.codecs.volume_files import describe, read_volume
from isocenter.imaging.codecs.volume_parts import parts_of
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume

LIMITS = VolumeLimits()
SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"


def read(made: list[Dataset]) -> Volume:
    return read_volume(files(made), limits=LIMITS)


def stored(data: bytes | Path) -> Array:
    (part,) = parts_of(data, limits=LIMITS)
    return np.stack([*stored_frames(read_planes(part, limits=LIMITS)[0].file, limits=LIMITS)])


def large() -> Array:
    """Large enough for the levels of a JPEG 2000."""
    return np.random.default_rng(8).integers(0, 4096, (SLICES, 64, 48)).astype(np.int16)


def compressed(made: Dataset, syntax: UID) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.compress(syntax)
    return made


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=lambda each: each.name)
def test_every_way_to_write_it_plainly_gives_the_same_volume(syntax: UID) -> None:
    source = {str(at): coded(each, syntax) for at, each in enumerate(slices())}
    np.testing.assert_array_equal(
        read_volume(source, limits=LIMITS).voxels[0].transpose(2, 1, 0), voxels().astype(np.float32)
    )


@pytest.mark.parametrize("multi", [False, True], ids=["classic", "enhanced"])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda each: each.name)
def test_every_lossless_compression_gives_the_same_volume(syntax: UID, multi: bool) -> None:
    made = [enhanced(large())] if multi else slices(large())
    source = {str(at): coded(compressed(each, syntax), syntax) for at, each in enumerate(made)}
    volume = read_volume(source, limits=LIMITS)
    np.testing.assert_array_equal(volume.voxels[0].transpose(2, 1, 0), large())
    assert not volume.notes
    assert describe(source, limits=LIMITS)[0].encodings != ("not compressed",)


def test_jpeg_lossless_gives_the_stored_values() -> None:
    plane = voxels(high=4096)[0].astype(np.uint16)
    made = every(unsigned, slices())[0]
    made.PixelData = encapsulate([jpeg_lossless(plane)])
    made["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(stored(coded(made, JPEGLosslessSV1))[0], plane)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE",
        "MR_small_implicit",
        "MR_small_bigendian",
        "MR_small_expb",
        "MR_small_jp2klossless",
        "MR_small_jpeg_ls_lossless",
    ],
)
def test_files_that_pydicom_ships_hold_one_slice_in_many_ways(name: str) -> None:
    expected = pydicom.dcmread(SHIPPED / "MR_small.dcm").pixel_array
    np.testing.assert_array_equal(stored(SHIPPED / f"{name}.dcm")[0], expected)


def test_a_jpeg_2000_whose_sign_is_not_that_of_the_header_is_read_as_the_header_says() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pydicom.dcmread(SHIPPED / "J2K_pixelrep_mismatch.dcm").pixel_array
    np.testing.assert_array_equal(stored(SHIPPED / "J2K_pixelrep_mismatch.dcm")[0], expected)


def unsigned(each: Dataset) -> None:
    each.PixelRepresentation, each.BitsStored, each.HighBit = 0, 12, 11


def test_bits_that_are_not_stored_are_not_read() -> None:
    junk = np.random.default_rng(2).integers(0, 16, voxels().shape) << 12
    made = every(unsigned, slices((voxels() | junk).astype(np.uint16).view(np.int16)))
    np.testing.assert_array_equal(read(made).voxels[0].transpose(2, 1, 0), voxels())


def test_twelve_signed_bits_keep_their_sign() -> None:
    signed = voxels(low=-2048, high=2048)
    made = slices(signed & 0x0FFF)
    for each in made:
        each.BitsStored, each.HighBit = 12, 11
    np.testing.assert_array_equal(read(made).voxels[0].transpose(2, 1, 0), signed)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "run lengths"])
def test_a_high_bit_above_the_stored_ones_shifts_them_down(packed: bool) -> None:
    made = slices((voxels() << 4).astype(np.uint16).view(np.int16))
    syntax = RLELossless if packed else ImplicitVRLittleEndian
    source = {}
    for at, each in enumerate(made):
        ready = compressed(each, syntax) if packed else each
        ready.PixelRepresentation, ready.BitsStored, ready.HighBit = 0, 12, 15
        source[str(at)] = coded(ready, syntax)
    np.testing.assert_array_equal(read_volume(source, limits=LIMITS).voxels[0].transpose(2, 1, 0), voxels())


@pytest.mark.parametrize(("bits", "dtype"), [(8, "u1"), (32, "<u4")])
def test_eight_and_thirty_two_bits(bits: int, dtype: str) -> None:
    values = voxels(high=200)
    made = slices()
    for each, plane in zip(made, values, strict=True):
        each.BitsAllocated, each.BitsStored, each.HighBit, each.PixelRepresentation = bits, bits, bits - 1, 0
        each.PixelData = plane.astype(dtype).tobytes()
        each["PixelData"].VR = "OW"
    np.testing.assert_array_equal(read(made).voxels[0].transpose(2, 1, 0), values)


def test_each_slice_has_its_own_slope_and_intercept() -> None:
    made = slices()
    for at, each in enumerate(made):
        each.RescaleSlope, each.RescaleIntercept = 0.5 + at / 8, -1024 + at
    volume = read(made)
    for at, plane in enumerate(voxels()):
        np.testing.assert_array_equal(
            volume.voxels[0, :, :, at].T, (plane * (0.5 + at / 8) - 1024 + at).astype(np.float32)
        )
    assert [note.code for note in volume.notes] == ["rescaled_per_slice"]


def test_monochrome1_is_inverted_once_after_slope_and_intercept_and_recorded() -> None:
    def inverse(each: Dataset) -> None:
        unsigned(each)
        each.PhotometricInterpretation, each.RescaleSlope, each.RescaleIntercept = "MONOCHROME1", 2, -100

    volume = read(every(inverse, slices()))
    np.testing.assert_array_equal(volume.voxels[0].transpose(2, 1, 0), (4095 - voxels()) * 2.0 - 100)
    assert [note.code for note in volume.notes] == ["inverted"]


def test_loss_is_recorded() -> None:
    made = slices()
    made[2].LossyImageCompression = "01"
    assert [note.code for note in read(made).notes] == ["lossy_compression"]


def cut(data: bytes, count: int) -> bytes:
    return data[: len(data) - count]


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "a byte": lambda data: cut(data, 1),
    "half the pixels": lambda data: cut(data, ROWS * 5),
    "all pixels": lambda data: cut(data, ROWS * 5 * 2),
    "the header too": lambda data: cut(data, ROWS * 5 * 2 + 60),
    "most of the header": lambda data: data[:500],
    "the meta information too": lambda data: data[:200],
}


@pytest.mark.parametrize("name", CUTS)
def test_a_file_that_is_cut_is_refused(name: str) -> None:
    source = files(slices())
    source["0003.dcm"] = CUTS[name](source["0003.dcm"])
    refused(source, "truncated_image")


def refused(source: Any, *codes: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_volume(source, limits=LIMITS)
    assert caught.value.code in codes, caught.value


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda each: each.name)
def test_compressed_pixels_that_are_cut_are_refused(syntax: UID) -> None:
    source = {str(at): coded(compressed(each, syntax), syntax) for at, each in enumerate(slices(large()))}
    whole = source["3"]
    for count in (8, 30, 40):
        refused(source | {"3": cut(whole, count)}, "truncated_image", "bad_image")
    (frame,) = generate_frames(pydicom.dcmread(BytesIO(whole)).PixelData, number_of_frames=1)
    made = slices(large())[3]
    made.PixelData = encapsulate([frame[: len(frame) // 2]])
    made["PixelData"].is_undefined_length = True
    refused(source | {"3": coded(made, syntax)}, "truncated_image", "bad_image")


def test_a_codestream_of_another_size_than_the_header_says_is_never_decoded() -> None:
    frames = {}
    for syntax in (JPEG2000Lossless, JPEGLSLossless):
        made = compressed(slices(large())[0], syntax)
        made.Rows = 60
        frames[syntax.name] = coded(made, syntax)
    for each in frames.values():
        with pytest.raises(BadInput, match="a frame of file 1 says 64 x 48 pixels, the header 60 x 48"):
            stored(each)


def test_a_deflated_file_is_a_bomb_like_any_other() -> None:
    made = slices()[0]
    made.Rows = made.Columns = 2048
    made.PixelData = bytes(2 * 2048 * 2048)
    made["PixelData"].VR = "OW"
    data = coded(made, DeflatedExplicitVRLittleEndian)
    with pytest.raises(BadInput) as caught:
        read_volume(data, limits=VolumeLimits(expansion_from_bytes=2**20))
    assert caught.value.code == "too_many_bytes"


def test_mutated_files_read_or_are_refused() -> None:
    rng = np.random.default_rng(11)
    source = files(slices())
    for _ in range(60):
        name = str(rng.choice([*source]))
        mutated = bytearray(source[name])
        for at in rng.integers(132, len(mutated), rng.integers(1, 6)):
            mutated[at] = rng.integers(0, 256)
        try:
            volume = read_volume(source | {name: bytes(mutated)}, limits=LIMITS)
        except BadInput:
            continue
        assert volume.voxels.shape[-1] == SLICES


def test_a_big_endian_series_is_read() -> None:
    made = slices()
    for each, plane in zip(made, voxels(), strict=True):
        each.PixelData = plane.astype(">i2").tobytes()
    source = {str(at): coded(each, ExplicitVRBigEndian) for at, each in enumerate(made)}
    np.testing.assert_array_equal(read_volume(source, limits=LIMITS).voxels[0].transpose(2, 1, 0), voxels())


def jpeg_lossless(plane: Array) -> bytes:
    """ITU-T T.81 annex H, first-order prediction, one flat Huffman table of 16 codes of 5 bits: small, not good."""
    rows, columns = plane.shape
    table = bytes([0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    bits = []
    for row in range(rows):
        for column in range(columns):
            first = int(plane[row - 1, 0]) if row else 1 << 11
            guess = int(plane[row, column - 1]) if column else first
            difference = int(plane[row, column]) - guess
            size = abs(difference).bit_length()
            bits.append(f"{size:05b}")
            if size:
                bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    said = "".join(bits)
    said += "1" * (-len(said) % 8)
    data = bytes(int(said[at : at + 8], 2) for at in range(0, len(said), 8)).replace(b"\xff", b"\xff\x00")
    return b"".join(
        (
            b"\xff\xd8",
            b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, 12, rows, columns, 1, 1, 0x11, 0),
            b"\xff\xc4" + struct.pack(">HB", 3 + len(table), 0) + table,
            b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0),
            data,
            b"\xff\xd9",
        )
    )


@pytest.mark.parametrize("vr", ["OW", "OB"])
def test_big_endian_samples_of_a_byte_are_turned_in_words_and_not_in_bytes(vr: str) -> None:
    samples = (voxels()[0] % 256).astype(np.uint8)
    made = slices()[0]
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    as_words = np.frombuffer(samples.tobytes(), "<u2").astype(">u2").tobytes()
    made.PixelData = as_words if vr == "OW" else samples.tobytes()
    made["PixelData"].VR = vr
    np.testing.assert_array_equal(stored(coded(made, ExplicitVRBigEndian))[0], samples)


def in_16_bits(stored_: Array, syntax: UID, *, bits_stored: int, signed: bool) -> bytes:
    """A slice whose codestream has 16 bits, whatever its header says."""
    made = slices(large())[0]
    made.PixelRepresentation = 0
    made.PixelData = stored_.astype("<u2").tobytes()
    made.compress(
        syntax, encoding_plugin="pylibjpeg" if syntax == JPEG2000Lossless else "", generate_instance_uid=False
    )
    made.BitsStored, made.HighBit, made.PixelRepresentation = bits_stored, bits_stored - 1, int(signed)
    return coded(made, syntax)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless], ids=lambda each: each.name)
def test_a_codestream_with_more_bits_than_the_header_is_not_cut_to_it(syntax: UID) -> None:
    values = np.abs(large()[0].astype(np.int64)) % 4096
    with pytest.raises(BadInput, match="beyond the 12 bits"):
        stored(in_16_bits(values * 14, syntax, bits_stored=12, signed=False))
    np.testing.assert_array_equal(stored(in_16_bits(values, syntax, bits_stored=12, signed=False))[0], values)
    # A negative sample of 12 bits, in the 16 of the stream.
    below = values - 2048
    np.testing.assert_array_equal(stored(in_16_bits(below, syntax, bits_stored=12, signed=True))[0], below)
