"""Label images as files: the number of the object at every pixel."""

import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import cv2
import numpy as np

from isocenter.core.errors import TooManyObjects
from isocenter.core.tensor import Array

PNG_MEDIA_TYPE = "image/png"
TIFF_MEDIA_TYPE = "image/tiff"
_MOST_IN_16_BITS = 65_535
_STRIP_BYTES = 1 << 18
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_CENTIMETRE = 3
_UM_IN_A_CM = 10_000


def png(labels: Array) -> bytes:
    """A gray PNG of 16 bits from labels [H, W].

    Raises:
        TooManyObjects: more than 65,535, which a PNG cannot number.
    """
    most = int(labels.max(initial=0))
    if most > _MOST_IN_16_BITS:
        raise TooManyObjects(
            f"{most} objects, a PNG numbers {_MOST_IN_16_BITS}; a TIFF holds them all",
            details={"objects": most, "limit": _MOST_IN_16_BITS},
        )
    done, data = cv2.imencode(".png", labels.astype(np.uint16), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done
    return data.tobytes()


def tiff(labels: Array, *, pixel_size_um: tuple[float, float] | None = None) -> bytes:
    """A gray TIFF from labels [H, W], of 16 bits, or of 32 where there are more than 65,535 objects.

    Strips are deflated. `pixel_size_um` is height and width of a pixel, and is written as the resolution.
    """
    dtype = "<u2" if int(labels.max(initial=0)) <= _MOST_IN_16_BITS else "<u4"
    height, width = labels.shape
    samples = labels.astype(dtype)
    rows = max(1, _STRIP_BYTES // (width * samples.itemsize))
    strips = [zlib.compress(samples[top : top + rows].tobytes(), 1) for top in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    offsets = [*accumulate(sizes[:-1], initial=8)]
    tags: list[tuple[int, int, list[int]]] = [
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [samples.itemsize * 8]),
        (259, _SHORT, [8]),  # deflate
        (262, _SHORT, [1]),  # 0 is black
        (273, _LONG, offsets),
        (277, _SHORT, [1]),
        (278, _LONG, [rows]),
        (279, _LONG, sizes),
    ]
    if pixel_size_um is not None:
        height_um, width_um = pixel_size_um
        tags += [
            (282, _RATIONAL, _per_cm(width_um)),
            (283, _RATIONAL, _per_cm(height_um)),
            (296, _SHORT, [_CENTIMETRE]),
        ]
    tags.append((339, _SHORT, [1]))  # unsigned
    body = b"".join(strips)
    body += bytes(len(body) % 2)
    directory, beyond = _directory(tags, 8 + len(body))
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory + beyond


def _per_cm(side_um: float) -> list[int]:
    """Pixels in a centimetre, as a fraction."""
    found = Fraction(_UM_IN_A_CM / side_um).limit_denominator(10_000)
    return [found.numerator, found.denominator]


def _directory(tags: Sequence[tuple[int, int, Sequence[int]]], at: int) -> tuple[bytes, bytes]:
    """An image file directory that begins at an offset, and the values that have no room in it (TIFF 6.0, 2)."""
    entries, beyond = b"", b""
    after = at + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        data = struct.pack(f"<{len(values)}{'H' if kind == _SHORT else 'I'}", *values)
        count = len(values) // 2 if kind == _RATIONAL else len(values)
        if len(data) > 4:
            place = struct.pack("<I", after + len(beyond))
            beyond += data
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, count) + place
    return struct.pack("<H", len(tags)) + entries + bytes(4), beyond
