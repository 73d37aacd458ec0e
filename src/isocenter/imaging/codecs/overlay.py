"""The image with its objects drawn over it, for the eye."""

import cv2
import numpy as np

from isocenter.core.tensor import Array

MEDIA_TYPE = "image/png"
_BRIGHT = 127
_LARGE_PX = 1500
_MOST_IN_16_BITS = 65_535
# The golden ratio of the circle: hues of neighbours in number lie far apart.
_TURN = 0.618034


def png(image: Array, labels: Array) -> bytes:
    """An RGB PNG of an image [H, W] or [H, W, 3] with the objects of labels [H, W]: outlined, and tinted inside.

    An outline is the outermost pixel of its object, and the next one where the image is large: light colours on a dark
    image, dark ones on a bright image.

    Raises:
        ValueError: the image is not uint8, or of another size.
    """
    if image.dtype != np.uint8 or image.shape not in (labels.shape, (*labels.shape, 3)):
        raise ValueError(f"an overlay is of uint8 [H, W] or [H, W, 3] and labels {labels.shape}, not {image.shape}")
    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image.copy()
    colours = _colours(int(labels.max(initial=0)), bright=bool(picture.mean() > _BRIGHT))
    inside = labels > 0
    picture[inside] = (3 * picture[inside].astype(np.uint16) + colours[labels[inside]] + 2) >> 2  # a quarter of colour
    outline = _outline(labels, 2 if min(labels.shape) >= _LARGE_PX else 1)
    picture[outline] = colours[labels[outline]]
    done, data = cv2.imencode(".png", picture[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return bytes(data.tobytes())


def _outline(labels: Array, width_px: int) -> Array:
    """The pixels of objects that are nearer than so many pixels to something else; not to the edge of the image."""
    few = int(labels.max(initial=0)) <= _MOST_IN_16_BITS
    narrow = labels.astype(np.uint16) if few else labels.astype(np.float32)
    kernel = np.ones((2 * width_px + 1,) * 2, np.uint8)
    edge = cv2.morphologyEx(narrow, cv2.MORPH_GRADIENT, kernel) > 0  # beyond the edge is nothing to be different from
    return np.asarray(edge & (labels > 0))


def _colours(count: int, *, bright: bool) -> Array:
    """[count + 1, 3] uint8: the colour of each object."""
    hues = (np.arange(count + 1) * _TURN % 1 * 180).astype(np.uint8)
    saturation, value = (255, 130) if bright else (200, 255)
    table = np.stack([hues, np.full_like(hues, saturation), np.full_like(hues, value)], axis=1)
    found: Array = cv2.cvtColor(table[np.newaxis], cv2.COLOR_HSV2RGB)[0]
    return found
