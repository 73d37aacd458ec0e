"""MONAI bundles as MONAI itself writes and runs them."""

import importlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isocenter.core.tensor import FloatArray
from monai_there import monai

NETWORK: dict[str, Any] = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8, 16],
    "strides": [2, 2],
    "num_res_units": 1,
    "norm": "batch",
}

LOADED: list[dict[str, Any]] = [
    {"_target_": "LoadImaged", "keys": "@image_key"},
    {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
    {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
]
PREPROCESSING: list[dict[str, Any]] = [
    *LOADED,
    {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
    {"_target_": "ScaleIntensityRanged", "keys": "@image_key", "a_min": -57, "a_max": 164, "b_min": 0.0, "b_max": 1.0,
     "clip": True},
    {"_target_": "EnsureTyped", "keys": "@image_key"},
]  # fmt: skip

SOFTMAX: dict[str, Any] = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID: dict[str, Any] = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
ARGMAX: dict[str, Any] = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
HALF: dict[str, Any] = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
SAVED: dict[str, Any] = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"}


def inverted(*, nearest: bool) -> dict[str, Any]:
    """The way back onto the source grid."""
    return {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@image_key",
            "nearest_interp": nearest, "to_tensor": True}  # fmt: skip


POSTPROCESSING = [SOFTMAX, inverted(nearest=False), ARGMAX, SAVED]


def config(**changes: Any) -> dict[str, Any]:
    """An inference configuration in the manner of the published ones, with the code that those have around it.

    A list of transforms is put into a Compose.
    """
    changes = {
        key: {"_target_": "Compose", "transforms": value} if isinstance(value, list) and value else value
        for key, value in changes.items()
    }
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "image_key": "image",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": dict(NETWORK),
        "network": "$@network_def.to(@device)",
        "datalist": "$list(sorted(glob.glob(@bundle_root + '/*.nii.gz')))",
        "preprocessing": {"_target_": "Compose", "transforms": [dict(each) for each in PREPROCESSING]},
        "inferer": {
            "_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": [dict(each) for each in POSTPROCESSING]},
        "run": ["$@evaluator.run()"],
    } | changes  # fmt: skip


def metadata(
    *, rank: int = 3, channels: int = 1, labels: tuple[str, ...] = ("background", "liver", "spleen")
) -> dict[str, Any]:
    """`metadata.json`."""
    sides = [16] * rank
    taken = {"type": "image", "modality": "CT", "num_channels": channels, "spatial_shape": sides, "dtype": "float32",
             "channel_def": {str(number): f"c{number}" for number in range(channels)}}  # fmt: skip
    given = {"type": "image", "format": "segmentation", "num_channels": len(labels), "spatial_shape": sides,
             "channel_def": {str(number): label for number, label in enumerate(labels)}}  # fmt: skip
    return {
        "version": "0.5.1",
        "name": "Two organs CT segmentation",
        "description": "Made by a test.",
        "network_data_format": {"inputs": {"image": taken}, "outputs": {"pred": given}},
    }


def write(folder: Path, config: dict[str, Any], metadata: dict[str, Any], **models: bytes) -> Path:
    """A bundle: its two configurations, and `models/model.<ending>` for each given."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    for ending, content in models.items():
        (folder / "models" / f"model.{ending}").write_bytes(content)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """MONAI and torch say that parts of them are old; that is theirs to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def network(definition: dict[str, Any], *, seed: int = 0) -> Any:
    """MONAI's own network with random weights whose scores are spread out, in evaluation mode."""
    with quiet():
        import torch

        torch.manual_seed(seed)
        made: Any = monai("bundle").ConfigParser(dict(definition)).get_parsed_content("")
        rng = torch.Generator().manual_seed(seed)
        for module in made.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=rng))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=rng))
        last = [module for module in made.modules() if isinstance(module, torch.nn.modules.conv._ConvNd)][-1]
        last.weight.data.mul_(20)
        last.bias.data.zero_()
    return made.eval()


def scripted(made: Any, folder: Path) -> bytes:
    """As TorchScript, as MONAI's `ckpt_export` writes it."""
    import torch

    with quiet():
        file = folder / "scripted.ts"
        torch.jit.save(torch.jit.script(made), str(file))
    return file.read_bytes()


def exported(made: Any, folder: Path, *, free: bool = False) -> bytes:
    """As ONNX; with all sizes fixed and a batch of 1, as torch makes it unless it is told otherwise, or all free."""
    import torch

    file = folder / "exported.onnx"
    names = {"input_names": ["image"], "output_names": ["scores"]}
    axes = {axis: f"side{axis}" for axis in (0, *range(2, 2 + made.dimensions))}
    with quiet():
        torch.onnx.export(
            made,
            (torch.zeros(1, made.in_channels, *[32] * made.dimensions),),
            str(file),
            dynamo=False,
            opset_version=17,
            dynamic_axes={"image": axes, "scores": axes} if free else None,
            **names,
        )
    return file.read_bytes()


def state(made: Any, folder: Path) -> bytes:
    """Its weights, as MONAI's CheckpointSaver writes them."""
    import torch

    file = folder / "state.pt"
    torch.save(made.state_dict(), file)
    return file.read_bytes()


def write_nifti(file: Path, voxels: npt.NDArray[Any], ras_from_voxel: npt.NDArray[np.float64]) -> Path:
    """A NIfTI file with an affine."""
    nibabel: Any = importlib.import_module("nibabel")
    image = nibabel.Nifti1Image(voxels, ras_from_voxel)
    image.set_sform(ras_from_voxel, code=1)
    image.set_qform(ras_from_voxel, code=1)
    nibabel.save(image, file)
    return file


def answer_of_monai(config: dict[str, Any], made: Any, image: Path) -> tuple[FloatArray, FloatArray]:
    """Scores before the last discretising, and what the whole of MONAI's pipeline gives, both [K, *spatial]."""
    with quiet():
        import torch

        compose = monai("transforms").Compose
        parser: Any = monai("bundle").ConfigParser(
            {key: config[key] for key in ("bundle_root", "image_key", "preprocessing", "inferer", "postprocessing")}
        )
        before, inferer, after = (
            parser.get_parsed_content(each) for each in ("preprocessing", "inferer", "postprocessing")
        )
        before, after = (compose(each) if isinstance(each, list) else each for each in (before, after))
        data = before({"image": str(image)})
        with torch.no_grad():
            data["pred"] = inferer(data["image"][None], made)[0]
        steps = [each for each in after.transforms if type(each).__name__ != "SaveImaged"]
        scores = compose([each for each in steps if type(each).__name__ != "AsDiscreted"])(dict(data))["pred"]
        masks = compose(steps)(dict(data))["pred"]
        return np.asarray(scores, np.float32), np.asarray(masks, np.float32)
