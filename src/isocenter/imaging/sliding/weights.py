"""Importance maps: how much each voxel of a window counts where windows overlap."""

from functools import lru_cache

import numpy as np

from isocenter.core.tensor import FloatArray
from isocenter.imaging.sliding.plan import Sliding

_LEAST = 1e-3
_NNUNET_PEAK = 10.0


@lru_cache(maxsize=2)
def importance(sliding: Sliding) -> FloatArray:
    """The weights of one window, float32 in the shape of its roi; all volumes in progress read the same array.

    `monai`: the product of exp(-d^2 / 2 sigma^2) along each axis, d from the middle of the window, at least 0.001
    (`compute_importance_map`). `nnunet`: d from voxel roi // 2, peak 10, in half precision, and what that makes zero
    takes the smallest other weight (`compute_gaussian`).

    >>> importance(Sliding(roi=(2, 2)))
    array([[1., 1.],
           [1., 1.]], dtype=float32)
    """
    if sliding.mode == "constant":
        weights = np.ones(sliding.roi, np.float32)
    elif sliding.rule == "nnunet":
        weights = _nnunet_gaussian(sliding.roi, sliding.sigma_scale)
    else:
        weights = _monai_gaussian(sliding.roi, sliding.sigma_scale)
    weights.flags.writeable = False
    return weights


def _monai_gaussian(roi: tuple[int, ...], sigma_scale: float) -> FloatArray:
    weights = np.ones((), np.float32)
    for side in roi:
        offsets = (np.arange(side) - (side - 1) / 2).astype(np.float32)
        line = np.exp(offsets**2 / np.float32(-2 * (side * sigma_scale) ** 2))
        weights = weights[..., np.newaxis] * line
    least = max(float(weights.min()), _LEAST)
    return np.maximum(weights, np.float32(least))


def _nnunet_gaussian(roi: tuple[int, ...], sigma_scale: float) -> FloatArray:
    weights = np.ones(())
    for side in roi:
        offsets = np.arange(side) - side // 2
        weights = weights[..., np.newaxis] * np.exp(offsets**2 / (-2 * (side * sigma_scale) ** 2))
    half = (_NNUNET_PEAK * weights).astype(np.float16)
    half[half == 0] = half[half != 0].min()
    return half.astype(np.float32)
