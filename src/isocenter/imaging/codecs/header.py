"""What every format's header comes down to, and what its decoder gives back."""

import math
from dataclasses import dataclass
from typing import Final

from isocenter.core.tensor import Array
from isocenter.imaging.image import Note, SourceInfo

FEW_PIECES: Final = 64
"""A file of so many segments or chunks is walked through in less than 0.1 ms. Writers of small ones stay below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Everything that is known before decoding; each format adds what its decoder needs."""

    source: SourceInfo
    channels: int
    orientation: int = 1
    notes: tuple[Note, ...] = ()

    @property
    def announced_bytes(self) -> int:
        """The samples as they lie in an uncompressed file, bits still packed."""
        row_bytes = (self.source.width_px * self.channels * self.source.bits + 7) // 8
        return row_bytes * self.source.height_px

    @property
    def decoded_bytes(self) -> int:
        """The samples in memory: at least a byte each, three for a palette's colours."""
        samples = 3 if self.source.mode.startswith("P") else self.channels
        return self.source.width_px * self.source.height_px * samples * max(8, self.source.bits) // 8

    @property
    def effort_pixels(self) -> float:
        """So many pixels of a sequential JPEG take about as long to decode; infinite where the header does not say."""
        return math.inf


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels as stored (not yet upright): HxW or HxWx3, alpha and palette already resolved."""

    pixels: Array
    notes: tuple[Note, ...] = ()
