"""What an image may announce before any of it is decoded."""

from dataclasses import dataclass

from isocenter.core.errors import TooManyPixels


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

    def check_size(self, width_px: int, height_px: int, decoded_bytes: int, *, said: str, done: str) -> None:
        """Refuse a picture that is too large; `said` begins the message, `done` is what happens to one that is not.

        Raises:
            TooManyPixels: a side, the pixels, or the bytes of all samples are above their limit.
        """
        found = {"width_px": width_px, "height_px": height_px}
        if max(width_px, height_px) > self.max_side_px:
            raise TooManyPixels(
                f"{said} {width_px} x {height_px} pixels, a side may have {self.max_side_px}",
                details={**found, "limit_side_px": self.max_side_px},
            )
        if width_px * height_px > self.max_pixels:
            raise TooManyPixels(
                f"{said} {width_px * height_px} pixels, at most {self.max_pixels} are {done}",
                details={**found, "pixels": width_px * height_px, "limit_pixels": self.max_pixels},
            )
        if decoded_bytes > self.max_decoded_bytes:
            raise TooManyPixels(
                f"{said} {decoded_bytes} bytes of samples, at most {self.max_decoded_bytes} are {done}",
                details={**found, "decoded_bytes": decoded_bytes, "limit_decoded_bytes": self.max_decoded_bytes},
            )
