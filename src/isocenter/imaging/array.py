"""Pixels that a Python caller already holds: the same limits and refusals as for a file, and nothing guessed."""

from typing import Final

import numpy as np
import numpy.typing as npt

from isocenter.core.errors import BadImage, MultiFrameImage, UnsupportedMedia
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.pixels import refuse_constant, refuse_non_finite
from isocenter.imaging.image import RasterImage, SourceInfo
from isocenter.imaging.limits import ImageLimits

_TAKEN: Final = {
    np.dtype(kind) for kind in (np.uint8, np.uint16, np.int16, np.float16, np.float32, np.float64)
}  # fmt: skip
_KEPT: Final = (np.uint8, np.uint16, np.float32)


def from_array(pixels: npt.NDArray[np.generic], *, limits: ImageLimits) -> RasterImage:
    """Take HxW (gray) or HxWx3 (RGB, in this order) samples as they are, upright, without a copy where none is needed.

    uint8 and uint16 stay; int16 and floats become float32, if each value survives that. As in a file, what is not 8
    bits wide needs the model's intensity window: floats are never taken for 0..1 or 0..255.

    >>> from_array(np.eye(3, dtype=np.uint8), limits=ImageLimits()).source
    SourceInfo(format='array', mode='L', width_px=3, height_px=3, bits=8)

    Raises:
        UnsupportedMedia: another shape or type of samples; the message says what was meant.
        MultiFrameImage: a stack of images.
        BadImage, TooManyPixels, EmptyInput, NonFinitePixels: as for a file.
    """
    if isinstance(pixels, np.ma.MaskedArray):
        raise UnsupportedMedia("a masked array: what the model should see in masked places is not guessed; fill them")
    _check_shape(pixels.shape)
    _check_type(pixels.dtype)
    height, width = pixels.shape[:2]
    limits.check_size(width, height, pixels.nbytes, said="the array has", done="taken")
    samples = _in_three_types(np.asarray(pixels))
    refuse_non_finite(samples)
    refuse_constant(samples)
    bits = 8 * pixels.dtype.itemsize
    mode = "RGB" if samples.ndim == 3 else {8: "L", 16: "I;16"}.get(8 * samples.dtype.itemsize, "F")
    return RasterImage(np.ascontiguousarray(samples), SourceInfo("array", mode, width, height, bits))


def _check_shape(shape: tuple[int, ...]) -> None:
    shown = " x ".join(map(str, shape)) or "a single number"
    if 0 in shape:
        raise BadImage(f"the array has no pixels: {shown}", details={"shape": [*shape]})
    if len(shape) == 2:
        return
    if len(shape) == 3 and shape[2] == 3:
        if shape[0] == 3:
            raise UnsupportedMedia(
                f"an array of {shown} may be height x width x RGB or RGB x height x width: which one is not guessed",
                details={"shape": [*shape]},
            )
        return
    if len(shape) >= 3 and not (len(shape) == 3 and (shape[2] in (1, 2, 4) or shape[0] in (1, 3, 4))):
        raise MultiFrameImage(
            f"an array of {shown} is several images: ask for one at a time", details={"shape": [*shape]}
        )
    raise UnsupportedMedia(
        f"an array of {shown}; an image is height x width (gray) or height x width x 3 (RGB)",
        details={"shape": [*shape]},
    )


def _check_type(kind: np.dtype[np.generic]) -> None:
    if kind.newbyteorder("=") not in _TAKEN:
        taken = ", ".join(sorted(str(each) for each in _TAKEN))
        raise UnsupportedMedia(f"an array of {kind}; samples are one of {taken}", details={"type": str(kind)})


def _in_three_types(samples: Array) -> Array:
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    if samples.dtype in _KEPT:
        return samples
    with np.errstate(over="ignore"):
        narrow = samples.astype(np.float32)
    lost = (narrow != samples) & np.isfinite(samples)
    if lost.any():
        first = samples[lost][0].item()
        raise UnsupportedMedia(
            f"{int(lost.sum())} samples of type {samples.dtype} have no exact float32 value, the first is {first!r};"
            " round them with .astype(numpy.float32) if that is meant",
            details={"count": int(lost.sum()), "value": first},
        )
    return narrow
