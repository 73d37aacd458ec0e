"""MONAI, where it is installed: what the steps and the windows are held against. Only tests know it."""

import importlib
import warnings
from typing import Any

import numpy as np
import pytest

from isocenter.core.tensor import Array
from isocenter.imaging.geometry import swap_lps_ras
from isocenter.imaging.volume import Volume


def monai(module: str) -> Any:
    """A module of MONAI, or a skip that names it; what it and torch deprecate is their business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(f"monai.{module}")
        except ImportError as error:
            return pytest.skip(f"MONAI is not installed: {error.name}")


def meta_tensor(volume: Volume) -> Any:
    """The volume as MONAI holds it: float32, RAS."""
    torch = importlib.import_module("torch")
    affine = torch.as_tensor(swap_lps_ras(volume.geometry.lps_from_voxel))
    return monai("data").MetaTensor(torch.as_tensor(np.array(volume.voxels, np.float32)), affine=affine)


def applied(name: str, volume: Volume, **arguments: Any) -> Any:
    """What a transform of MONAI makes of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(monai("transforms"), name)(**arguments)(meta_tensor(volume))


def array(tensor: Any) -> Array:
    """Its numbers."""
    return np.asarray(tensor.detach().cpu().numpy())
