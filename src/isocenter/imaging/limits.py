"""What an image may announce before any of it is decoded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isocenter.core.errors import BadImage, TooManyBytes, TooManyPixels


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

    def check_bytes(self, size: int) -> None:
        """Refuse a file that is too large.

        Raises:
            TooManyBytes: it is.
        """
        if size > self.max_bytes:
            raise TooManyBytes(
                f"the image has {size} bytes, at most {self.max_bytes} are read",
                details={"bytes": size, "limit": self.max_bytes},
            )

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


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLimits:
    """Bounds on one scan, be it a file, a folder or an archive, checked before voxels are decoded.

    Above `expansion_from_bytes`, more than `max_expansion` unpacked bytes per packed byte is a bomb or a lie.
    """

    max_bytes: int = 2**30
    """Of all files together, as they are sent."""
    max_unpacked_bytes: int = 2 * 2**30
    """Of all entries of an archive together, or of a compressed file."""
    max_files: int = 5_000
    """In a folder or an archive, entries of every kind counted."""
    max_voxels: int = 256_000_000
    """Of one volume, all channels."""
    max_side: int = 8_192
    max_expansion: int = 500
    expansion_from_bytes: int = 64 * 2**20

    def check_bytes(self, found: int) -> None:
        """Refuse what is too large to be read.

        Raises:
            TooManyBytes: above `max_bytes`.
        """
        if found > self.max_bytes:
            raise TooManyBytes(
                f"the scan has {found} bytes, at most {self.max_bytes} are read",
                details={"bytes": found, "limit": self.max_bytes},
            )

    def check_unpacked(self, unpacked: int, packed: int) -> None:
        """Refuse what unpacks to too much.

        Raises:
            TooManyBytes: above `max_unpacked_bytes`, or out of proportion.
        """
        found = {"unpacked_bytes": unpacked, "bytes": packed}
        if unpacked > self.max_unpacked_bytes:
            raise TooManyBytes(
                f"the scan unpacks to {unpacked} bytes, at most {self.max_unpacked_bytes} are unpacked",
                details={**found, "limit_unpacked_bytes": self.max_unpacked_bytes},
            )
        if unpacked > self.expansion_from_bytes and unpacked > self.max_expansion * packed:
            raise TooManyBytes(
                f"{packed} bytes unpack to {unpacked}: more than {self.max_expansion} to one is a bomb or a lie",
                details={**found, "limit_expansion": self.max_expansion},
            )

    def check_grid(self, shape: Sequence[int]) -> None:
        """Refuse a grid that is too large or empty.

        Raises:
            BadImage: a side is not positive.
            TooManyPixels: a side or the whole is above its limit.
        """
        said = " x ".join(map(str, shape))
        if min(shape) < 1:
            raise BadImage(f"the header announces {said} voxels", details={"shape": [*shape]})
        if max(shape) > self.max_side:
            raise TooManyPixels(
                f"the header announces {said} voxels, a side may have {self.max_side}",
                details={"shape": [*shape], "limit_side": self.max_side},
            )
        if (voxels := math.prod(shape)) > self.max_voxels:
            raise TooManyPixels(
                f"the header announces {voxels} voxels, at most {self.max_voxels} are read",
                details={"shape": [*shape], "voxels": voxels, "limit_voxels": self.max_voxels},
            )
