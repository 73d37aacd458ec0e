"""What an image may announce before any of it is decoded."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Bounds on one image file, checked against its header.

    Decoding needs up to three times `max_decoded_bytes` of memory for a moment, per decoding thread. Above
    `expansion_from_bytes`, more than `max_expansion` announced bytes per byte of file is a bomb or a lie.

    >>> ImageLimits(max_pixels=4_000_000).max_side_px
    30000
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    max_side_px: int = 30_000
    max_decoded_bytes: int = 256 * 2**20
    max_expansion: int = 500
    expansion_from_bytes: int = 32 * 2**20
