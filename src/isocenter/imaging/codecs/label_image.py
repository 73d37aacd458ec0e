"""Label images as files: the number of the object at every pixel."""

import struct
import zlib
from itertools import accumulate

import cv2
import numpy as np

from isocenter.core.errors import TooManyObjects
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import tiff as tiff_tags
from isocenter.imaging.codecs.tiff_directory import LONG, SHORT, Values, directory, resolution

PNG_MEDIA_TYPE = "image/png"
TIFF_MEDIA_TYPE = "image/tiff"
_MOST_IN_16_BITS = 65_535
_STRIP_BYTES = 1 << 18
_HEAD_BYTES = 8


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
    offsets = [*accumulate(sizes[:-1], initial=_HEAD_BYTES)]
    tags = {
        tiff_tags.WIDTH: Values(LONG, [width]),
        tiff_tags.HEIGHT: Values(LONG, [height]),
        tiff_tags.BITS: Values(SHORT, [samples.itemsize * 8]),
        tiff_tags.COMPRESSION: Values(SHORT, [tiff_tags.DEFLATE]),
        tiff_tags.PHOTOMETRIC: Values(SHORT, [tiff_tags.MIN_IS_BLACK]),
        tiff_tags.STRIP_OFFSETS: Values(LONG, offsets),
        tiff_tags.SAMPLES: Values(SHORT, [1]),
        tiff_tags.ROWS_PER_STRIP: Values(LONG, [rows]),
        tiff_tags.STRIP_COUNTS: Values(LONG, sizes),
        tiff_tags.SAMPLE_FORMAT: Values(SHORT, [tiff_tags.UNSIGNED]),
    } | resolution(pixel_size_um)
    body = b"".join(strips)
    body += bytes(len(body) % 2)
    at = _HEAD_BYTES + len(body)
    return struct.pack("<2sHI", b"II", 42, at) + body + directory(tags, at)
