"""TIFF samples to pictures: photometric sense, palette, ink, alpha, and channels beside the colours."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import TiffImagePlugin

from isocenter.core.errors import UnsupportedMedia
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import tiff
from isocenter.imaging.codecs.header import Decoded
from isocenter.imaging.codecs.pixels import over_black, rgb_from_cmyk
from isocenter.imaging.codecs.tiff import TiffHeader
from isocenter.imaging.codecs.tiff_samples import samples_of, write_tiff
from isocenter.imaging.image import Note


def decode(data: bytes, header: TiffHeader) -> Decoded:
    """Every combination the header reader lets through."""
    return meaning_of(samples_of(data, header), header)


def decode_reference(data: bytes, header: TiffHeader) -> Decoded:
    """Pillow's own reading of the modes that it reads whole; the others as `decode`."""
    mode, bits = header.source.mode, header.source.bits
    gray = header.channels == 1 and header.photometric in (tiff.MIN_IS_WHITE, tiff.MIN_IS_BLACK)
    little_or_plain = header.order == "<" or (bits == 16 and header.photometric == tiff.MIN_IS_BLACK)
    whole = header.compression not in (tiff.JPEG, tiff.ZSTD) and (
        (gray and bits <= 8 and header.sample_format == tiff.UNSIGNED)
        or (gray and mode == "I;16" and bits == 16 and little_or_plain)
        or (mode == "F" and bits == 32)
        or (mode in ("RGB", "P", "CMYK") and header.channels == header.colour_channels and bits <= 8)
    )
    # Pillow (13.0) swaps the bytes of big-endian floats twice when libtiff expands them.
    swapped_twice = mode == "F" and header.order == ">" and header.compression != tiff.PLAIN
    if not whole or swapped_twice or header.predictor == 3 or (header.planar and header.tiled):
        return decode(data, header)
    samples_of(data, header)  # refuses what is short or broken
    with TiffImagePlugin.TiffImageFile(io.BytesIO(_rewritten(data, header))) as image:
        if mode == "P":
            return Decoded(np.array(image.convert("RGB")), (_palette_note(),))
        if mode == "CMYK":
            return Decoded(np.array(image.convert("RGB")), (_ink_note(),))
        pixels = np.array(image.convert("L") if mode == "1" else image)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if mode == "I;16" and header.photometric == tiff.MIN_IS_WHITE:
        pixels = np.uint16(65535) - pixels
    return Decoded(pixels)


def has_channels(header: TiffHeader) -> bool:
    """Whether the samples are channels of their own: more than colours, and nothing says what the others are."""
    alpha = tiff.PREMULTIPLIED in header.extra or tiff.STRAIGHT in header.extra
    more = header.photometric == tiff.MIN_IS_BLACK and header.channels > 1
    return not alpha and (more or (header.photometric == tiff.RGB and header.channels > 4))


def channels_of(samples: Array, header: TiffHeader) -> Decoded:
    """As `meaning_of`, but samples that are channels of their own stay: HxWxS.

    Raises:
        UnsupportedMedia: a sample has no exact float32 value.
    """
    return Decoded(_in_three_types(samples)) if has_channels(header) else meaning_of(samples, header)


def meaning_of(samples: Array, header: TiffHeader) -> Decoded:
    """HxW or HxWx3: what the samples say of light.

    Raises:
        UnsupportedMedia: alpha of another type than the colours; a sample has no exact float32 value.
    """
    colour: Array = samples[..., : header.colour_channels]
    bits = header.source.bits
    notes: tuple[Note, ...] = ()
    if header.photometric == tiff.PALETTE:
        table = (np.array(header.colormap, np.uint16) >> 8).astype(np.uint8).reshape(3, -1).T
        colour, notes = table[colour[..., 0]], (_palette_note(),)
    elif header.photometric == tiff.INK:
        colour, notes = rgb_from_cmyk(colour), (_ink_note(),)
    elif bits < 8:
        colour = colour * np.uint8(255 // (2**bits - 1))
    if header.photometric == tiff.MIN_IS_WHITE:
        colour = np.invert(colour)
    if colour.shape[2] == 1:
        colour = colour[..., 0]
    if header.extra[:1] == (tiff.STRAIGHT,):
        alpha = samples[..., header.colour_channels]
        if alpha.dtype not in (np.uint8, np.uint16) or alpha.dtype != colour.dtype:
            raise UnsupportedMedia(f"a TIFF with alpha on samples of {bits} bits", details={"bits": bits})
        decoded = over_black(colour, alpha)
        return Decoded(decoded.pixels, notes + decoded.notes)
    if header.extra[:1] == (tiff.PREMULTIPLIED,):
        notes += (Note("alpha_composited", "samples already multiplied by alpha were taken as they are, over black"),)
    elif header.channels > header.colour_channels:
        notes += (Note("extra_samples_ignored", "samples beside the colour, of no declared meaning, were ignored"),)
    return Decoded(np.ascontiguousarray(_in_three_types(colour)), notes)


def _in_three_types(values: Array) -> Array:
    """uint8 and uint16 stay; everything else becomes float32 if each value survives."""
    if values.dtype in (np.uint8, np.uint16, np.float32):
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(np.float32)
        exact = narrow.astype(np.float64) == values.astype(np.float64)
    lost = ~exact & np.isfinite(values)
    if lost.any():
        worst = values[lost][0].item()
        raise UnsupportedMedia(
            f"{int(lost.sum())} samples of type {values.dtype} have no exact float32 value, the first is {worst}",
            details={"count": int(lost.sum()), "value": worst},
        )
    return narrow


def _rewritten(data: bytes, header: TiffHeader) -> bytes:
    tags: dict[int, Sequence[int]] = {
        tiff.WIDTH: [header.source.width_px],
        tiff.HEIGHT: [header.source.height_px],
        tiff.BITS: [header.source.bits] * header.channels,
        tiff.COMPRESSION: [header.compression],
        tiff.PHOTOMETRIC: [header.photometric],
        tiff.SAMPLES: [header.channels],
        tiff.PLANAR: [2 if header.planar else 1],
        tiff.SAMPLE_FORMAT: [header.sample_format] * header.channels,
    }
    if header.tiled:
        tags |= {tiff.TILE_WIDTH: [header.block_width], tiff.TILE_HEIGHT: [header.block_height]}
    else:
        tags |= {tiff.ROWS_PER_STRIP: [header.block_height]}
    if header.predictor != 1:
        tags |= {tiff.PREDICTOR: [header.predictor]}
    if header.colormap:
        tags |= {tiff.COLORMAP: header.colormap}
    blocks = [data[offset : offset + count] for offset, count in header.blocks]
    return write_tiff(header.order, tags, blocks, tiled=header.tiled)


def _palette_note() -> Note:
    return Note("palette_expanded", "palette indices were replaced by their colours")


def _ink_note() -> Note:
    return Note("ink_converted", "CMYK ink was converted to RGB without a colour profile")
