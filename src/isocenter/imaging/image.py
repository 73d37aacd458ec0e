"""An image as the rest of the program sees it: upright pixels, where they came from, what was done to them."""

from dataclasses import dataclass

from isocenter.core.tensor import Array


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What the file's header says. Sizes are as stored, before EXIF orientation.

    `format` is one of jpeg, png, tiff, bmp, webp; `mode` says the kind of samples in Pillow's words ("L", "RGB",
    "I;16", "1", "P", "RGBA", "CMYK", "F", ...); `bits` is per sample (per index for palettes).
    """

    format: str
    mode: str
    width_px: int
    height_px: int
    bits: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was handled and is recorded in the answer. Never holds a file name."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class RasterImage:
    """Decoded pixels: HxW (gray) or HxWx3 (RGB), C-contiguous, uint8, uint16 or float32, upright."""

    pixels: Array
    source: SourceInfo
    notes: tuple[Note, ...] = ()
