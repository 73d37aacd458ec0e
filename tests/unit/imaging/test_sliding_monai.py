"""Windows, weights and merging against MONAI's `sliding_window_inference` itself."""

import importlib
import warnings
from typing import Any

import numpy as np
import pytest

from isocenter.core.tensor import FloatArray
from isocenter.imaging.sliding.merge import Merge, Whole
from isocenter.imaging.sliding.plan import Sliding, plan
from isocenter.imaging.sliding.weights import importance
from monai_there import array, monai

CASES = [
    ((61, 40, 33), (32, 32, 16), 0.25),
    ((64, 64, 64), (64, 64, 64), 0.5),
    ((20, 50, 9), (32, 24, 16), 0.5),
    ((45, 37), (16, 20), 0.6),
    ((10, 37), (16, 20), 0.0),
    ((33, 34), (7, 11), 0.75),
]


def seen(window: FloatArray) -> FloatArray:
    """An answer that depends on where in its window a voxel lies, and on what stands at the border."""
    ramp = np.linspace(-1, 1, window.shape[-1], dtype=np.float32)
    mean = window.mean(axis=tuple(range(1, window.ndim)), keepdims=True)
    return np.concatenate([window * ramp, window - mean, np.abs(window) + ramp])


def theirs(source: FloatArray, **arguments: Any) -> FloatArray:
    torch = importlib.import_module("torch")

    def network(batch: Any) -> Any:
        return torch.stack([torch.as_tensor(seen(array(each))) for each in batch])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = monai("inferers").sliding_window_inference(
            torch.as_tensor(source[np.newaxis]), sw_batch_size=3, predictor=network, **arguments
        )
    found: FloatArray = array(out)[0]
    return found


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(("shape", "roi", "overlap"), CASES)
def test_the_same_windows_give_the_same_array(
    shape: tuple[int, ...], roi: tuple[int, ...], overlap: float, mode: str
) -> None:
    source = np.random.default_rng(3).standard_normal((1, *shape)).astype(np.float32)
    wanted = theirs(source, roi_size=roi, overlap=overlap, mode=mode)

    windows = plan(shape, roi, overlap=overlap)
    whole = Whole(shape)
    merge = Merge(windows, importance(Sliding(roi=roi, overlap=overlap, mode=mode)), whole)
    for at in windows:
        merge.add(seen(windows.cut(source, at)))
    merge.finish()

    assert np.abs(whole.array - wanted).max() <= 1e-5


@pytest.mark.parametrize("sigma_scale", [0.125, 0.3])
@pytest.mark.parametrize("roi", [(96, 96, 96), (33, 64), (5, 6, 7)])
def test_the_weights_are_the_same(roi: tuple[int, ...], sigma_scale: float) -> None:
    utils = monai("data.utils")
    wanted = array(utils.compute_importance_map(roi, mode="gaussian", sigma_scale=sigma_scale))

    found = importance(Sliding(roi=roi, mode="gaussian", sigma_scale=sigma_scale))

    assert np.abs(found - wanted).max() <= 1e-6
    assert found.min() == pytest.approx(float(wanted.min()), rel=1e-5)
