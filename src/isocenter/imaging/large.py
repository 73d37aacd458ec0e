"""Images that do not fit into memory: a TIFF on disk, read where it is looked at."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from isocenter.core.errors import (
    EmptyInput,
    IsocenterError,
    MissingImage,
    NonFinitePixels,
    TooManyPixels,
    UnsupportedMedia,
)
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import raster, tiff
from isocenter.imaging.codecs.microscopy import PixelsAsked, number_of, placed, planes_of
from isocenter.imaging.codecs.pixels import refuse_far
from isocenter.imaging.codecs.sniff import sniff
from isocenter.imaging.codecs.tiff import TiffHeader
from isocenter.imaging.codecs.tiff_blocks import channels_of
from isocenter.imaging.codecs.tiff_pages import read_pages
from isocenter.imaging.codecs.tiff_samples import Stretch, samples_of
from isocenter.imaging.image import Note
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.volume import Volume

LARGE: Final = ImageLimits(
    max_bytes=2**40,
    max_pixels=40_000_000_000,
    max_side_px=400_000,
    max_decoded_bytes=2**40,
    expansion_from_bytes=2**30,
    max_expansion=1100,  # what deflate makes of zeros
)
"""Bounds on a file that is read by parts."""
_MAX_BLOCK_BYTES = 256 * 2**20
_ROWS = 256


class FileBytes:
    """A file that gives stretches of itself, from any thread; nothing of it is kept."""

    def __init__(self, file: Path) -> None:
        """Open it.

        Raises:
            MissingImage: it cannot be read.
        """
        try:
            self._handle = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise MissingImage(f"the image cannot be read: {error.strerror}") from error
        self._size = os.fstat(self._handle).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        pieces = []
        while start < stop:
            piece = os.pread(self._handle, stop - start, start)
            if not piece:
                break
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Close it. Twice is once."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


class TiledImage:
    """One picture of a TIFF on disk: its size and channels at once, its pixels where they are asked for.

    With `TiledImage.open(path)` as a context. Safe to read from many threads at once.
    """

    def __init__(self, data: FileBytes, asked: PixelsAsked, limits: ImageLimits) -> None:
        """Read and check the headers.

        Raises:
            BadInput: as `read_image`; also a strip or tile that is too large to be held.
        """
        self._data = data
        limits.check_bytes(len(data))
        if sniff(data[:512]) != "tiff":
            raise UnsupportedMedia("an image that is too large for memory is read from a TIFF only")
        planes = planes_of(read_pages(data), asked.page).only(asked.channel)
        for header in planes.headers:
            raster.check_header(header, len(data), limits)
            _check_large(header)
        self._headers = planes.headers
        self._pixel_size_um = planes.picture.pixel_size_um
        self._only = None
        if asked.channel is not None and len(planes.headers) == 1 and len(planes.names) > 1:
            self._only = number_of(asked.channel, planes.names)
        source = planes.headers[0].source
        self.channels = planes.names if self._only is None else (planes.names[self._only],)
        """Their names."""
        self.height_px, self.width_px = source.height_px, source.width_px

    @classmethod
    def open(cls, file: Path, *, asked: PixelsAsked | None = None, limits: ImageLimits = LARGE) -> Self:
        """Open a file.

        Raises:
            MissingImage: it cannot be read.
            BadInput: as `read_image`.
        """
        data = FileBytes(file)
        try:
            return cls(data, asked or PixelsAsked(), limits)
        except BaseException as error:
            data.close()
            if isinstance(error, IsocenterError) or not isinstance(error, Exception):
                raise
            raster.refuse("tiff", error, len(data))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return len(self.channels), self.height_px, self.width_px

    def read(self, rows: Stretch, columns: Stretch | None = None) -> Volume:
        """The picture between some rows and columns, as `read_image` would give them; not checked for emptiness.

        Raises:
            TruncatedImage, BadImage: a strip or tile is broken.
            NonFinitePixels: NaN or infinity.
        """
        columns = columns or Stretch(0, self.width_px)
        parts, notes = [], list[Note]()
        for header in self._headers:
            try:
                decoded = channels_of(samples_of(self._data, header, rows, columns), header)
            except IsocenterError:
                raise
            except Exception as error:
                raster.refuse("tiff", error, len(self._data))
            notes += [note for note in (*header.notes, *decoded.notes) if note not in notes]
            parts.append(decoded.pixels[np.newaxis] if decoded.pixels.ndim == 2 else np.moveaxis(decoded.pixels, -1, 0))
        voxels = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self._only is not None:
            voxels = voxels[self._only : self._only + 1]
        _refuse_non_finite(voxels, rows)
        return placed(np.ascontiguousarray(voxels), self.channels, self._pixel_size_um, notes)

    def bands(self, rows: int = _ROWS) -> Iterator[Volume]:
        """The whole picture, so many rows at a time."""
        for start in range(0, self.height_px, rows):
            yield self.read(Stretch(start, min(self.height_px, start + rows)))


def refuse_constant_bands(low: Array, high: Array, channels: tuple[str, ...]) -> None:
    """Refuse a picture of which every channel has one value, going by their extremes.

    Raises:
        EmptyInput: it has.
    """
    if (low == high).all():
        raise EmptyInput(
            f"every pixel of channel {channels[0]} has the value {float(low[0]):g}",
            details={"channel": channels[0], "value": float(low[0])},
        )


def _check_large(header: TiffHeader) -> None:
    if header.orientation != 1:
        raise UnsupportedMedia(
            f"a large TIFF of orientation {header.orientation}; only upright ones are read by parts",
            details={"orientation": header.orientation},
        )
    block_bytes = header.block_width * header.block_height * header.channels * header.dtype.itemsize
    if header.compression != tiff.PLAIN and block_bytes > _MAX_BLOCK_BYTES:
        raise TooManyPixels(
            f"a strip or tile of {block_bytes} bytes, at most {_MAX_BLOCK_BYTES} are held: write the file in tiles",
            details={"block_bytes": block_bytes, "limit": _MAX_BLOCK_BYTES},
        )


def _refuse_non_finite(voxels: Array, rows: Stretch) -> None:
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        count = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
        raise NonFinitePixels(
            f"{count} samples in rows {rows.start} to {rows.stop - 1} are NaN or infinite",
            details={"count": count, "first_row": rows.start, "last_row": rows.stop - 1},
        )
    refuse_far(voxels)
