"""Results folders in the format of nnU-Net 2, as its trainer writes them, with random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np

PLAINEST: dict[str, Any] = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage": [1, 2, 2],
    "n_conv_per_stage_decoder": [2, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
DATASET: dict[str, Any] = {
    "channel_names": {"0": "CT", "1": "T1"},
    "labels": {"background": 0, "liver": 1, "tumour": 2},
    "file_ending": ".nii.gz",
    "description": "Made by a test.",
}
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def plans(**configuration: Any) -> dict[str, Any]:
    """`plans.json` with a configuration of each kind; changes concern both."""
    full: dict[str, Any] = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [4, 16, 16],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, True],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": dict(RESAMPLING),
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": RESAMPLING | {"order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": dict(PLAINEST),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    } | configuration
    flat = full | {"patch_size": [16, 16], "spacing": [1.0, 1.0], "architecture": flattened(full["architecture"])}
    seen = {"percentile_00_5": -50.0, "percentile_99_5": 150.0, "mean": 60.0, "std": 40.0}
    return {
        "dataset_name": "Dataset999_Organs",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": seen, "1": seen},
        "configurations": {
            "2d": flat,
            "3d_fullres": full,
            "3d_lowres": {"inherits_from": "3d_fullres"},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def flattened(architecture: dict[str, Any]) -> dict[str, Any]:
    """The same network for pictures."""
    said = json.loads(json.dumps(architecture).replace("3d", "2d"))
    for key in ("kernel_sizes", "strides"):
        said["arch_kwargs"][key] = [size[1:] for size in said["arch_kwargs"][key]]
    found: dict[str, Any] = said
    return found


def as_there(state: dict[str, Any]) -> dict[str, Any]:
    """Parameters as nnU-Net's checkpoints list them: layers again by number, the encoder again in the decoder."""
    listed: dict[str, Any] = {}
    for name, tensor in state.items():
        listed[name] = tensor
        for part, number in ((".conv.", 0), (".norm.", 1)):
            if part in name:
                listed[name.replace(part, f".all_modules.{number}.")] = tensor
    again = {f"decoder.{name}": tensor for name, tensor in listed.items() if name.startswith("encoder.")}
    return listed | again


def network(configuration: str, said: dict[str, Any], *, classes: int = 3, seed: int = 0) -> Any:
    """The network of some plans with random weights, in evaluation mode; of pictures for 2d."""
    import torch

    from isocenter.importers.nnunet_plans import Plans, build

    torch.manual_seed(seed)
    made = build(Plans(said, DATASET, configuration), classes=classes)
    return getattr(made, "network", made).eval()


def checkpoint(made: Any, configuration: str, **changes: Any) -> dict[str, Any]:
    """What the trainer saves of a fold."""
    import torch

    return {
        "network_weights": as_there(made.state_dict()),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float32(0.5)], "train_losses": [np.float64(-0.25)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {"configuration": configuration, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1) if configuration == "2d" else (0, 1, 2),
    } | changes


def write(
    folder: Path, *folds: Any, plans: dict[str, Any], dataset: dict[str, Any] | None = None, names: tuple[str, ...] = ()
) -> Path:
    """A results folder: what each fold's file holds, or its bytes."""
    import torch

    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset or DATASET), encoding="utf-8")
    for number, said in enumerate(folds):
        file = folder / f"fold_{names[number] if names else number}" / "checkpoint_final.pth"
        file.parent.mkdir()
        if isinstance(said, bytes):
            file.write_bytes(said)
        else:
            torch.save(said, file)
    return folder
