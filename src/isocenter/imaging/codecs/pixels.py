"""Arithmetic on decoded pixels, exact in integers: alpha, ink, orientation, and the two refusals that need pixels."""

import numpy as np

from isocenter.core.errors import BadImage, EmptyInput, NonFinitePixels
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.header import Decoded
from isocenter.imaging.image import Note

_FAR = float(np.finfo(np.float32).max) / 2
_UPRIGHT = {
    2: "mirrored left to right",
    3: "rotated by 180 degrees",
    4: "mirrored top to bottom",
    5: "transposed",
    6: "rotated by 90 degrees clockwise",
    7: "transversed",
    8: "rotated by 90 degrees counter-clockwise",
}


def times_over_full(value: Array, part: Array) -> Array:
    """round(value * part / full) for uint8 (full 255) or uint16 (full 65535), halves up, without floats.

    >>> times_over_full(np.uint8([255, 100, 1]), np.uint8([255, 128, 127])).tolist()
    [255, 50, 0]
    """
    if value.dtype == np.uint8:
        wide = np.multiply(value, part, dtype=np.uint16)
        wide += 128
        wide += wide >> 8
        return (wide >> 8).astype(np.uint8)
    product = np.multiply(value, part, dtype=np.uint32)
    product += 32768
    product += product >> 16  # cannot wrap: 65535 * 65535 + 32768 + 65535 < 2**32
    return (product >> 16).astype(np.uint16)


def over_black(colour: Array, alpha: Array) -> Decoded:
    """Composite HxW or HxWx3 samples over black; noted only if some pixel is not opaque.

    >>> over_black(np.uint8([[200, 200]]), np.uint8([[255, 0]])).pixels.tolist()
    [[200, 0]]
    """
    full = np.iinfo(alpha.dtype).max
    transparent = int(np.count_nonzero(alpha != full))
    if not transparent:
        return Decoded(np.ascontiguousarray(colour))
    pixels = times_over_full(colour, alpha if colour.ndim == 2 else alpha[..., None])
    note = Note("alpha_composited", f"{transparent} pixels that are not opaque were composited over black")
    return Decoded(pixels, (note,))


def rgb_from_cmyk(cmyk: Array) -> Array:
    """Ink (255 is full) to light: each of R, G, B is what its ink and black let through.

    >>> rgb_from_cmyk(np.uint8([[[0, 128, 255, 51]]])).tolist()
    [[[204, 102, 0]]]
    """
    light = np.uint8(255) - cmyk[..., 3:4]
    return np.subtract(light, times_over_full(cmyk[..., :3], light))


def upright(pixels: Array, orientation: int) -> tuple[Array, tuple[Note, ...]]:
    """Apply an EXIF orientation (1 to 8).

    >>> upright(np.array([[1, 2], [3, 4]]), 6)[0].tolist()
    [[3, 1], [4, 2]]
    """
    if orientation == 1:
        return pixels, ()
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    note = Note("orientation_applied", f"EXIF orientation {orientation}: {_UPRIGHT[orientation]}")
    return np.ascontiguousarray(pixels), (note,)


def refuse_non_finite(pixels: Array) -> None:
    """Raise NonFinitePixels with how many there are and where the first one is (row, column).

    Raises:
        BadImage: see `refuse_far`.
    """
    if pixels.dtype.kind != "f":
        return
    finite = np.isfinite(pixels)
    if finite.all():
        refuse_far(pixels)
        return
    count = int(np.count_nonzero(~finite))
    row, column, *_ = (int(i) for i in np.unravel_index(int(np.argmin(finite)), pixels.shape))
    raise NonFinitePixels(
        f"{count} samples are NaN or infinite, the first in row {row}, column {column}",
        details={"count": count, "row": row, "column": column},
    )


def refuse_far(pixels: Array) -> None:
    """See that the difference of any two finite samples has a float32 value: steps subtract them.

    Raises:
        BadImage: it need not have one.
    """
    if pixels.dtype.kind == "f" and pixels.size and (far := max(-float(pixels.min()), float(pixels.max()))) > _FAR:
        raise BadImage(
            f"samples reach {far:.6g} from zero; up to {_FAR:.6g} are taken, as steps subtract them in float32",
            details={"reach": far, "limit": _FAR},
        )


def refuse_constant(pixels: Array) -> None:
    """Raise EmptyInput if every pixel equals the first one."""
    middle, channels = pixels[len(pixels) // 2].reshape(-1), pixels[0, 0].size
    # Neighbours in one row nearly always say it, at a hundredth of the cost of looking everywhere.
    if (middle[channels:] != middle[:-channels]).any():
        return
    first = pixels[0, 0]
    if (pixels != first).any():
        return
    values = [float(value) for value in np.atleast_1d(first)]
    shown = values[0] if len(values) == 1 else values
    raise EmptyInput(f"every pixel has the same value, {shown}", details={"value": [*values]})
