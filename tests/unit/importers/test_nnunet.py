"""A results folder of nnU-Net 2 becomes a model; what is unsafe or unknown in one is refused by name."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import nnunet_folders as folders
from isocenter import SyncService
from isocenter.cli.main import app
from isocenter.core.errors import ImportRefused, IsocenterError
from isocenter.imaging.volume import Volume
from isocenter.importers.folder import write_folder
from isocenter.importers.nnunet import read
from isocenter.repository.manifest import Manifest
from isocenter.repository.sessions import open_one
from patience import PATIENCE_S

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = pytest.mark.may_block

CONFIGURATIONS = ("2d", "3d_fullres")


def results(path: Path, configuration: str = "3d_fullres", *, folds: int = 1, **changes: Any) -> tuple[Path, list[Any]]:
    """A folder, and the networks in it."""
    said = folders.plans()
    made = [folders.network(configuration, said, seed=fold) for fold in range(folds)]
    saved = [folders.checkpoint(each, configuration, **changes) for each in made]
    return folders.write(path / "results", *saved, plans=said), made


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_network_of_the_plans_has_the_weights_of_the_checkpoint(tmp_path: Path, configuration: str) -> None:
    folder, (network,) = results(tmp_path, configuration, inference_allowed_mirroring_axes=None)
    model = write_folder(tmp_path / "models", read(folder))
    item = np.load(model.golden / "noise.input.npy")

    picture = configuration == "2d"
    with torch.no_grad():
        expected = network(torch.from_numpy(item[None, :, 0] if picture else item[None]))[0].numpy()
    session = open_one(model)
    found = session.run({"image": item[None]})["logits"][0]
    session.close()

    assert item.shape == ((2, 1, 16, 16) if picture else (2, 4, 16, 16))
    assert np.abs((found[:, 0] if picture else found) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_folds_and_mirrored_windows_are_averaged(tmp_path: Path, configuration: str) -> None:
    folder, networks = results(tmp_path, configuration, folds=2)
    made = read(folder)
    item, output = made.golden[0].input, made.golden[0].output
    assert output is not None

    axes = (2, 3) if configuration == "2d" else (2, 3, 4)
    combinations = [[axis for bit, axis in enumerate(axes) if which >> bit & 1] for which in range(2 ** len(axes))]
    batch = torch.from_numpy(item[None, :, 0] if configuration == "2d" else item[None])
    with torch.no_grad():
        passes = [each(batch.flip(some)).flip(some) for each in networks for some in combinations]
    mean = torch.stack(passes).mean(dim=0)[0].numpy()
    write_folder(tmp_path / "models", made)  # holds what is served against the golden output

    assert np.abs((output[:, 0] if configuration == "2d" else output) - mean).max() <= 1e-5
    assert [each["file"] for each in made.manifest["ensemble"]["members"]] == ["model_1.onnx"]
    assert len(made.manifest["augmentation"]["flips"]) == len(combinations) - 1
    assert min(min(flip) for flip in made.manifest["augmentation"]["flips"]) == (1 if configuration == "2d" else 0)
    assert any("2 folds answer together" in note for note in made.notes)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_volume_is_segmented(tmp_path: Path, configuration: str) -> None:
    folder, _ = results(tmp_path, configuration)
    write_folder(tmp_path / "models", read(folder))
    voxels = np.zeros((2, 26, 30, 7), np.float32)
    voxels[:, 2:24, 3:25, 1:] = np.random.default_rng(0).standard_normal((2, 22, 22, 6)) * 60 + 50
    volume = Volume.of(voxels, spacing_mm=(0.9, 0.8, 4.0), channels=("CT", "T1"))

    with SyncService(tmp_path / "models") as service:
        found = service.segment(volume, timeout=PATIENCE_S)

    assert found.mask.shape == (26, 30, 7)
    assert found.mask[2:24, 3:25, 1:].any()
    assert not found.mask[..., 0].any(), "what was cropped away is background"


def test_plans_become_steps_and_windows(tmp_path: Path) -> None:
    manifest = read(results(tmp_path)[0], name="organs", version=3).manifest

    Manifest.model_validate(manifest | {"runtime": manifest["runtime"] | {"sha256": "0" * 64}})
    assert (manifest["name"], manifest["version"]) == ("organs", 3)
    assert manifest["input"] == {"kind": "volume3d", "tensor": "image", "channels": ["CT", "T1"]}
    assert manifest["steps"] == [
        {"kind": "transpose", "axes": [2, 1, 0]},
        {"kind": "crop_foreground", "nonzero": True},
        {
            "kind": "normalize_channels",
            "channels": [
                {"scheme": "training_window", "low": -50.0, "high": 150.0, "mean": 60.0, "std": 40.0},
                {"scheme": "z_score", "masked": True},
            ],
        },
        {"kind": "resample", "spacing_mm": [3.0, 1.0, 1.0], "filter": "cubic", "extent": "voxels", "coarse_above": 3.0},
    ]
    assert manifest["sliding"] == {
        "roi": [4, 16, 16], "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.125, "rule": "nnunet", "sums": "fp16",
    }  # fmt: skip
    assert manifest["output"] == {
        "tensor": "logits", "activation": "softmax", "back": "scores", "labels": ["background", "liver", "tumour"],
    }  # fmt: skip


def steps(tmp_path: Path, **changes: Any) -> list[dict[str, Any]]:
    said = folders.plans()
    saved = folders.checkpoint(folders.network("3d_fullres", said), "3d_fullres")
    found: list[dict[str, Any]] = read(folders.write(tmp_path / "r", saved, plans=said | changes)).manifest["steps"]
    return found


def test_axes_are_brought_into_the_order_of_the_plans(tmp_path: Path) -> None:
    turned = {"transpose_forward": [2, 0, 1], "image_reader_writer": "NibabelIOWithReorient"}

    assert steps(tmp_path, **turned)[:2] == [
        {"kind": "orient", "axcodes": "SAR"},
        {"kind": "transpose", "axes": [2, 0, 1]},
    ]


@pytest.mark.parametrize(
    ("reader", "axes"), [("SimpleITKIO", [0, 2, 1]), ("NibabelIO", [0, 2, 1]), ("Tiff3DIO", [2, 0, 1])]
)
def test_axes_come_in_the_order_of_the_file(tmp_path: Path, reader: str, axes: list[int]) -> None:
    """nnU-Net's own readers turn NIfTI around to z, y, x; the readers here leave it as x, y, z."""
    found = steps(tmp_path, transpose_forward=[2, 0, 1], image_reader_writer=reader)

    assert found[0] == {"kind": "transpose", "axes": axes}


def test_slices_are_windows_of_one_voxel(tmp_path: Path) -> None:
    manifest = read(results(tmp_path, "2d")[0]).manifest

    assert manifest["sliding"]["roi"] == [1, 16, 16]
    assert manifest["steps"][-1]["spacing_mm"] == [None, 1.0, 1.0]


def test_pictures_stay_pictures(tmp_path: Path) -> None:
    said = folders.plans() | {"image_reader_writer": "NaturalImage2DIO"}
    saved = folders.checkpoint(folders.network("2d", said), "2d")
    manifest = read(folders.write(tmp_path / "r", saved, plans=said)).manifest

    assert manifest["input"]["kind"] == "image2d"
    assert manifest["sliding"]["roi"] == [16, 16]
    assert manifest["augmentation"]["flips"] == [[0], [1], [0, 1]]


def test_regions_are_masks_of_their_own(tmp_path: Path) -> None:
    said = folders.plans()
    dataset = folders.DATASET | {
        "labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2],
    }  # fmt: skip
    saved = folders.checkpoint(folders.network("3d_fullres", said, classes=2), "3d_fullres")
    output = read(folders.write(tmp_path / "r", saved, plans=said, dataset=dataset)).manifest["output"]

    assert 0.5 < output.pop("threshold") < 0.5 + 1e-7, "above a half, as there"
    assert output == {
        "tensor": "logits", "activation": "sigmoid", "back": "scores", "labels": ["whole", "core"],
    }  # fmt: skip


def test_older_plans_are_read(tmp_path: Path) -> None:
    new = folders.plans()
    network = folders.network("3d_fullres", new)
    old = copy.deepcopy(new)
    full = old["configurations"]["3d_fullres"]
    said = full.pop("architecture")["arch_kwargs"]
    full |= {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 8,
        "conv_kernel_sizes": said["kernel_sizes"], "pool_op_kernel_sizes": said["strides"],
        "n_conv_per_stage_encoder": [1, 2, 2], "n_conv_per_stage_decoder": [2, 1],
    }  # fmt: skip
    saved = folders.checkpoint(network, "3d_fullres")

    again = read(folders.write(tmp_path / "old", saved, plans=old)).golden[0].output
    first = read(folders.write(tmp_path / "new", saved, plans=new)).golden[0].output

    assert again is not None
    assert first is not None
    assert np.array_equal(again, first)


def test_numbered_folds_come_before_all(tmp_path: Path) -> None:
    said = folders.plans()
    saved = folders.checkpoint(folders.network("2d", said), "2d")
    folder = folders.write(tmp_path / "r", saved, saved, saved, plans=said, names=("10", "2", "all"))

    assert len(read(folder).files) == 2
    assert len(read(folder, folds=["all"]).files) == 1
    with pytest.raises(ImportRefused, match="no fold_7/checkpoint_final"):
        read(folder, folds=["7"])


class Canary:
    """Unpickled, it would leave a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("how", ["inside of a checkpoint", "a plain pickle", "as a numpy scalar's type"])
def test_a_checkpoint_with_code_is_refused_and_not_loaded(tmp_path: Path, how: str) -> None:
    canary = tmp_path / "canary"
    said = folders.plans()
    saved: Any = folders.checkpoint(folders.network("2d", said), "2d")
    if how == "a plain pickle":
        saved = pickle.dumps({"network_weights": Canary(canary)})
    elif how == "inside of a checkpoint":
        saved["logging"] = Canary(canary)
    else:
        saved["_best_ema"] = np.array([Canary(canary)], dtype=object)
    folder = folders.write(tmp_path / "r", saved, plans=said)

    with pytest.raises(ImportRefused, match=r"checkpoint_final\.pth") as refusal:
        read(folder)
    assert isinstance(refusal.value, IsocenterError)
    assert not canary.exists()


def test_a_parameter_that_is_listed_twice_has_one_value(tmp_path: Path) -> None:
    said = folders.plans()
    saved = folders.checkpoint(folders.network("2d", said), "2d")
    name = next(each for each in saved["network_weights"] if "all_modules" in each)
    saved["network_weights"][name] = saved["network_weights"][name] + 1

    with pytest.raises(ImportRefused, match="has another value than"):
        read(folders.write(tmp_path / "r", saved, plans=said))


def test_a_checkpoint_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder, _ = results(tmp_path)
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.rename(tmp_path / "elsewhere.pth")
    file.symlink_to(tmp_path / "elsewhere.pth")

    with pytest.raises(ImportRefused, match="leads out of the package"):
        read(folder)


def change(said: Any, place: str, value: Any) -> Any:
    *owners, last = place.split("/")
    for owner in owners:
        said = said[owner]
    said[last] = value
    return said


FULL = "configurations/3d_fullres"
REFUSED: dict[str, tuple[str, Any, str]] = {
    "a cascade": (f"{FULL}/previous_stage", "3d_lowres", "cascades are not read"),
    "another preprocessor": (f"{FULL}/preprocessor_name", "Mine", "preprocessor_name is 'Mine'"),
    "another label manager": ("label_manager", "Mine", "label_manager is 'Mine'"),
    "another reader": ("image_reader_writer", "Mine", "image_reader_writer is 'Mine'"),
    "another network": (f"{FULL}/architecture/network_class_name", "os.system", "the network 'system' is not known"),
    "another norm": (f"{FULL}/architecture/arch_kwargs/norm_op", "torch.nn.GroupNorm", "cannot be built"),
    "another nonlinearity": (f"{FULL}/architecture/arch_kwargs/nonlin", "builtins.eval", "cannot be built"),
    "no number of stages": (f"{FULL}/architecture/arch_kwargs/n_stages", "many", "n_stages is 'many'"),
    "another resampling": (f"{FULL}/resampling_fn_data", "resample_torch_fornnunet", "'resample_torch_fornnunet'"),
    "splines along z": (f"{FULL}/resampling_fn_data_kwargs/order_z", 1, "resampling_fn_data_kwargs"),
    "scores by splines": (f"{FULL}/resampling_fn_probabilities_kwargs/order", 3, "another rule than linearly"),
    "another normalisation": (f"{FULL}/normalization_schemes", ["Mine", "NoNormalization"], "normalization 'Mine'"),
    "too few schemes": (f"{FULL}/use_mask_for_norm", [True], "not of 2 channels"),
    "no training intensities": ("foreground_intensity_properties_per_channel", {}, "no intensities of the training"),
    "a size in words": (f"{FULL}/patch_size", "big", "patch_size"),
    "windows beyond memory": (f"{FULL}/patch_size", [4096, 4096, 4096], "the limit is"),
    "windows that strides do not fit": (f"{FULL}/patch_size", [4, 15, 16], "does not take windows of"),
    "layers beyond memory": (f"{FULL}/architecture/arch_kwargs/features_per_stage", 10**7, "features_per_stage"),
    "a kernel below nothing": (f"{FULL}/architecture/arch_kwargs/kernel_sizes", -1, "kernel_sizes"),
    "arguments that are none": (f"{FULL}/resampling_fn_data_kwargs", [1], "not a mapping"),
    "no order of axes": ("transpose_forward", [0, 0, 2], "transpose_forward"),
    "an heir of itself": ("configurations/3d_fullres/inherits_from", "3d_fullres", "inherits from itself"),
}


@pytest.mark.parametrize(("place", "value", "message"), REFUSED.values(), ids=REFUSED)
def test_plans_that_are_not_understood_are_refused_by_name(
    tmp_path: Path, place: str, value: Any, message: str
) -> None:
    said = folders.plans()
    saved = folders.checkpoint(folders.network("3d_fullres", said), "3d_fullres")
    change(said, place, value)

    with pytest.raises(ImportRefused, match=message):
        read(folders.write(tmp_path / "r", saved, plans=said))


DATASETS: dict[str, tuple[dict[str, Any], str]] = {
    "numbers left out": ({"labels": {"background": 0, "a": 1, "b": 3}}, "labels are"),
    "no background": ({"labels": {"a": 0, "b": 1, "c": 2}}, "labels are"),
    "no order of regions": ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, "regions_class_order"),
    "no channels": ({"channel_names": {}}, "channel_names"),
    "other classes": ({"labels": {"background": 0, "a": 1}}, "do not fit"),
}


@pytest.mark.parametrize(("changes", "message"), DATASETS.values(), ids=DATASETS)
def test_datasets_that_are_not_understood_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    said = folders.plans()
    saved = folders.checkpoint(folders.network("3d_fullres", said), "3d_fullres")

    with pytest.raises(ImportRefused, match=message):
        read(folders.write(tmp_path / "r", saved, plans=said, dataset=folders.DATASET | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_args": {"configuration": "3d_cascade_fullres"}}, "takes masks of '3d_lowres': cascades are not read"),
        ({"init_args": {"configuration": "2.5d"}}, "no configuration '2.5d'"),
        ({"init_args": None}, "no configuration"),
        ({"network_weights": None}, "no weights by name"),
        ({"network_weights": {}}, "no weights by name"),
        ({"network_weights": {"encoder": 1}}, "no weights by name"),
        ({"inference_allowed_mirroring_axes": (5,)}, "mirroring_axes"),
    ],
)
def test_checkpoints_that_are_not_understood_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        read(results(tmp_path, "3d_fullres", **changes)[0])


def test_a_folder_without_folds_is_refused(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "r", plans=folders.plans())

    with pytest.raises(ImportRefused, match=r"no fold_\*/checkpoint_final\.pth"):
        read(folder)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="is no folder"):
        read(tmp_path / "plans.json")


@pytest.mark.parametrize("file", ["plans.json", "dataset.json"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    folder, _ = results(tmp_path)
    (folder / file).unlink()

    with pytest.raises(ImportRefused, match=f"no {file} in it"):
        read(folder)


def test_the_command_line_makes_a_version(tmp_path: Path) -> None:
    folder, _ = results(tmp_path, "2d", folds=2)

    done = CliRunner().invoke(
        app, ["import", str(folder), "--models", str(tmp_path / "models"), "--folds", "1", "--yes", "--json"]
    )

    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["kind"], said["name"], said["version"]) == ("nnunet", "dataset999_organs-2d", 1)
    assert sorted(each.name for each in Path(said["path"]).iterdir()) == ["golden", "model.onnx", "model.yaml"]


def test_files_that_are_not_json_are_refused(tmp_path: Path) -> None:
    folder, _ = results(tmp_path)
    (folder / "dataset.json").write_text(json.dumps([1]))

    with pytest.raises(ImportRefused, match=r"dataset\.json holds list"):
        read(folder)
