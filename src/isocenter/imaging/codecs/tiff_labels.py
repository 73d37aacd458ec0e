"""A label image written to disk strip by strip: a BigTIFF of one page, uint32, deflate, never in memory as a whole."""

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Final, Self

import numpy as np

from isocenter.core.tensor import Array
from isocenter.imaging.codecs import tiff
from isocenter.imaging.codecs.tiff_directory import LONG, LONG8, SHORT, Values, directory, resolution

_STRIP_BYTES: Final = 4 * 2**20
_LEVEL = 1  # labels are long runs: more effort saves little


class LabelFile:
    """Rows of labels, first to last, into a file that is whole once the context ends without an exception."""

    def __init__(self, file: Path, width_px: int, height_px: int, *, pixel_size_um: tuple[float, float] | None) -> None:
        """Begin it. `pixel_size_um` is height and width, if they are known.

        Raises:
            OSError: it cannot be written.
        """
        self._width, self._height = width_px, height_px
        self._pixel_size_um = pixel_size_um
        self._rows_per_strip = max(1, min(height_px, _STRIP_BYTES // (4 * width_px)))
        self._waiting: Array = np.empty((0, width_px), np.uint32)
        self._strips: list[tuple[int, int]] = []
        self._written = 0
        self._file: BinaryIO = file.open("w+b")
        self._file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._file.close()

    def append(self, rows: Array) -> None:
        """Take the next rows [n, width], uint32."""
        self._waiting = np.concatenate([self._waiting, rows]) if len(self._waiting) else rows
        self._written += len(rows)
        last = self._written == self._height
        at, many = 0, self._rows_per_strip
        while len(self._waiting) - at >= many or (last and at < len(self._waiting)):
            body = zlib.compress(np.ascontiguousarray(self._waiting[at : at + many], "<u4").data, _LEVEL)
            self._strips.append((self._file.tell(), len(body)))
            self._file.write(body)
            at += many
        self._waiting = self._waiting[at:].copy()

    def _finish(self) -> None:
        if self._written != self._height:
            raise ValueError(f"{self._written} of {self._height} rows were written")
        at = self._file.seek(-(-self._file.tell() // 8) * 8)
        self._file.write(self._directory(at))
        self._file.seek(8)
        self._file.write(struct.pack("<Q", at))

    def _directory(self, at: int) -> bytes:
        offsets, counts = zip(*self._strips, strict=True)
        tags = {
            tiff.WIDTH: Values(LONG, [self._width]),
            tiff.HEIGHT: Values(LONG, [self._height]),
            tiff.BITS: Values(SHORT, [32]),
            tiff.COMPRESSION: Values(SHORT, [tiff.DEFLATE]),
            tiff.PHOTOMETRIC: Values(SHORT, [tiff.MIN_IS_BLACK]),
            tiff.STRIP_OFFSETS: Values(LONG8, offsets),
            tiff.SAMPLES: Values(SHORT, [1]),
            tiff.ROWS_PER_STRIP: Values(LONG, [self._rows_per_strip]),
            tiff.STRIP_COUNTS: Values(LONG8, counts),
            tiff.SAMPLE_FORMAT: Values(SHORT, [tiff.UNSIGNED]),
        }
        return directory(tags | resolution(self._pixel_size_um), at, big=True)


class Scratch:
    """Rows of labels in a nameless file, compressed, to be read once more from first to last."""

    def __init__(self, file: IO[bytes], width_px: int) -> None:
        self._width = width_px
        self._file = file
        self._parts: list[tuple[int, int]] = []
        """Rows and bytes of each."""

    def append(self, rows: Array) -> None:
        """Take the next rows [n, width], uint32."""
        body = zlib.compress(np.ascontiguousarray(rows, np.uint32).data, _LEVEL)
        self._parts.append((len(rows), len(body)))
        self._file.write(body)

    def again(self, change: Callable[[Array], Array]) -> Iterator[Array]:
        """All rows, changed, as many at a time as were taken."""
        self._file.seek(0)
        for rows, size in self._parts:
            labels = np.frombuffer(zlib.decompress(self._file.read(size)), np.uint32)
            yield change(labels.reshape(rows, self._width))
