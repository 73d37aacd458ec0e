# mypy: ignore-errors
"""Run by nnunetv2's own Python: writes a results folder with random weights, and what its predictor says of an image.

python write_nnunet.py FOLDER CONFIGURATION KIND: KIND is thick (slices), even (voxels), sideways (thick along x, and
labels that are regions), crossed (thick along x where the plans have slices), pictures (of three colours), residual or
folds. Writes FOLDER/results/{plans,dataset}.json and fold_*/checkpoint_final.pth; image.npy [C, z, y, x] and
spacing.json; and what nnUNetPredictor makes of it: prepared.npy, logits.npy (on the prepared grid), mask.npy (on the
image's); logits_fp32.npy and mask_fp32.npy with sums in float32 instead of half precision.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

folder, configuration, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    (folder / name).mkdir(parents=True, exist_ok=True)  # its workers read this file again
    os.environ[name] = str(folder / name)
os.environ["nnUNet_compile"] = "false"  # noqa: SIM112 - that is how it is spelt

import nibabel  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor  # noqa: E402
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner  # noqa: E402
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E402
    ResEncUNetPlanner,
)
from nnunetv2.inference import predict_from_raw_data  # noqa: E402
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402
from skimage.io import imsave  # noqa: E402

PICTURES, REGIONS = kind == "pictures", kind == "sideways"
CHANNELS = dict(enumerate(["rgb_to_0_1"] * 3)) if PICTURES else {"0": "CT", "1": "T1"}
LABELS = {"background": 0, "organ": [1, 2] if REGIONS else 1, "tumour": 2}
SPACING_ZYX, SHAPE_ZYX, ASKED_SPACING_ZYX = {
    "crossed": ((3.6, 0.9, 0.8), (14, 58, 52), (0.9, 1.1, 4.5)),
    "even": ((1.2, 0.9, 0.8), (26, 34, 30), (1.05, 1.1, 0.7)),
    "sideways": ((0.9, 0.8, 3.6), (58, 52, 14), (0.75, 1.1, 4.5)),
    "pictures": ((999.0, 1.0, 1.0), (1, 76, 90), (999.0, 1.0, 1.0)),
}.get(kind, ((3.6, 0.9, 0.8), (14, 58, 52), (4.5, 0.75, 1.1)))


def image(seed: int) -> Any:
    """Channels in a ball with a hole, zeros around it: float32 [C, z, y, x]; a picture is one slice."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) if size > 1 else [0.0] for size in SHAPE_ZYX), indexing="ij")
    inside = (z**2 * 0.8 + y**2 + x**2 < 0.7) & ~((z**2 + y**2 + x**2) < 0.02)
    ct = 80 * np.sin(3 * x + seed) * np.cos(4 * y) + 60 + 15 * rng.standard_normal(SHAPE_ZYX)
    t1 = 300 * np.exp(-(y**2) - x**2) + 20 * rng.standard_normal(SHAPE_ZYX) + 50
    if PICTURES:
        return (np.stack([ct, t1, ct + t1]).clip(1, 255).round() * inside).astype(np.float32)
    return (np.stack([ct, t1]) * inside).astype(np.float32)


def write_nifti(file: Path, voxels_zyx: Any) -> None:
    affine = np.diag([*SPACING_ZYX[::-1], 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels_zyx.transpose(2, 1, 0), affine), file)


def write_raw() -> None:
    dataset = folder / "nnUNet_raw" / "Dataset999_Organs"
    (dataset / "imagesTr").mkdir(parents=True)
    (dataset / "labelsTr").mkdir()
    for number in range(2):
        voxels = image(number)
        labels = (voxels[0] > 60).astype(np.uint8) + (voxels[0] > 110).astype(np.uint8)
        if PICTURES:
            imsave(dataset / "imagesTr" / f"case_{number}_0000.png", voxels[:, 0].transpose(1, 2, 0).astype(np.uint8))
            imsave(dataset / "labelsTr" / f"case_{number}.png", labels[0], check_contrast=False)
            continue
        for channel, each in enumerate(voxels):
            write_nifti(dataset / "imagesTr" / f"case_{number}_{channel:04d}.nii.gz", each)
        write_nifti(dataset / "labelsTr" / f"case_{number}.nii.gz", labels)
    about = {"channel_names": CHANNELS, "labels": LABELS, "numTraining": 2, "description": "Made by a test.",
             "file_ending": ".png" if PICTURES else ".nii.gz", "regions_class_order": [1, 2]}  # fmt: skip
    (dataset / "dataset.json").write_text(json.dumps(about))


def planned() -> tuple[dict[str, Any], dict[str, Any]]:
    write_raw()
    DatasetFingerprintExtractor(999, num_processes=1).run()
    planner = (ResEncUNetPlanner if kind == "residual" else ExperimentPlanner)(999)
    planner.UNet_base_num_features = 4
    planner.plan_experiment()
    preprocessed = folder / "nnUNet_preprocessed" / "Dataset999_Organs"
    plans = json.loads((preprocessed / f"{planner.plans_identifier}.json").read_text())
    dataset = json.loads((folder / "nnUNet_raw" / "Dataset999_Organs" / "dataset.json").read_text())
    chosen = plans["configurations"][configuration]
    # Smaller windows than planned, so that there are many of them; the network still fits.
    small = [8, 32, 32][-len(chosen["patch_size"]) :]
    patch = [min(each) for each in zip(chosen["patch_size"], small, strict=True)]
    strides = chosen["architecture"]["arch_kwargs"]["strides"]
    chosen["patch_size"] = [
        max(size, int(np.prod([stride[axis] for stride in strides]))) for axis, size in enumerate(patch)
    ]
    return plans, dataset


def write_fold(plans: dict[str, Any], dataset: dict[str, Any], fold: int) -> Path:
    torch.manual_seed(fold)
    given = json.loads(json.dumps(plans)) | {"continue_training": False}  # the trainer takes this out again
    trainer = nnUNetTrainer(given, configuration, fold, dataset, device=torch.device("cpu"))
    data = Path(trainer.preprocessed_dataset_folder)
    data.mkdir(exist_ok=True)
    (data / "case.b2nd").touch()  # it looks at the names of prepared cases, of which none is needed here
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    with torch.no_grad():
        for name, parameter in trainer.network.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    trainer.logger.log("train_losses", np.float64(0.5), 0)
    trainer.logger.log("mean_fg_dice", np.float32(0.5), 0)
    trainer._best_ema = np.float64(0.25)
    target = folder / "results" / f"fold_{fold}"
    target.mkdir(parents=True)
    trainer.save_checkpoint(str(target / "checkpoint_final.pth"))
    return target


def main() -> None:
    plans, dataset = planned()
    for fold in range(2 if kind == "folds" else 1):
        write_fold(plans, dataset, fold)
    for name, said in (("plans", plans), ("dataset", dataset)):
        (folder / "results" / f"{name}.json").write_text(json.dumps(said))
    voxels = image(7)
    np.save(folder / "image.npy", voxels)
    (folder / "spacing.json").write_text(json.dumps(ASKED_SPACING_ZYX))

    predictor = predict_from_raw_data.nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder / "results"), None)
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case_npy(
        voxels,
        None,
        {"spacing": list(ASKED_SPACING_ZYX)},
        predictor.plans_manager,
        predictor.configuration_manager,
        dataset,
    )
    np.save(folder / "prepared.npy", data)
    for ending, half in (("", torch.half), ("_fp32", torch.float32)):
        summed = predict_from_raw_data.torch = _With(torch, half=half)
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        del summed
        mask = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, predictor.plans_manager, predictor.configuration_manager, predictor.label_manager, dict(properties)
        )
        np.save(folder / f"logits{ending}.npy", logits.float().numpy())
        np.save(folder / f"mask{ending}.npy", np.asarray(mask))


class _With:
    """A module with another value of a name: the sums of the predictor are of `torch.half`, written into its code."""

    def __init__(self, module: Any, **names: Any) -> None:
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


if __name__ == "__main__":
    main()
