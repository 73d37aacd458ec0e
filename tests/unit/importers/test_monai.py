"""A MONAI bundle, made with MONAI itself, answers here as it does there; what is unsafe in one is refused by name."""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import monai_bundles as bundles
from isocenter import SyncService
from isocenter.core.errors import BadManifest, DigestMismatch, ImportRefused, IsocenterError
from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.geometry import Geometry, swap_lps_ras
from isocenter.imaging.volume import Volume
from isocenter.importers.folder import write_folder
from isocenter.importers.monai import read
from patience import PATIENCE_S

pytest.importorskip("torch", reason="torch is not installed")
nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
if find_spec("monai") is None:
    pytest.skip("MONAI is not installed", allow_module_level=True)

pytestmark = [pytest.mark.may_block, pytest.mark.slow]

WITHIN = 1e-4


def turned(about_z_deg: float, about_x_deg: float) -> npt.NDArray[np.float64]:
    z, x = np.deg2rad(about_z_deg), np.deg2rad(about_x_deg)
    around_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    around_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    both: npt.NDArray[np.float64] = around_z @ around_x
    return both


def affine(axes: Any) -> npt.NDArray[np.float64]:
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = axes, (10, -20, 30)
    return found


AFFINES = {
    "oblique, x to the left, thick slices": affine(turned(12, 7) @ np.diag([-0.9, 1.1, 2.5])),
    "sagittal": affine([[0, 0, 3.0], [-0.8, 0, 0], [0, 0.8, 0]]),
    "sizes that lie halfway": affine(np.diag([0.75, 0.75, 1.0])),
}
SHAPE = (34, 26, 18)
NOTHING_HALFWAY = affine(turned(12, 7) @ np.diag([-0.87, 1.13, 2.23]))
"""No voxel lies exactly between two of the other grid, where the rounding of the file would decide which is nearest."""


def waves(shape: tuple[int, ...]) -> FloatArray:
    x, y, z = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    noise = np.random.default_rng(1).standard_normal(shape)
    return (120 * np.sin(x / 5) * np.cos(y / 4 + z / 3) + 40 * noise + 50).astype(np.float32)


def volume_of(file: Path) -> Volume:
    image = nibabel.load(file)
    voxels = np.asarray(image.dataobj, np.float32)
    return Volume.of(voxels[np.newaxis], geometry=Geometry(voxels.shape, swap_lps_ras(image.affine)))


def bundle(path: Path, config: dict[str, Any], *, weights: str = "ts", **about: Any) -> tuple[Path, Any]:
    """A bundle, and the network in it."""
    made = bundles.network(config["network_def"])
    content = {"ts": bundles.scripted, "pt": bundles.state, "onnx": bundles.exported}[weights](made, path)
    return bundles.write(path / "bundle", config, bundles.metadata(**about), **{weights: content}), made


PIPELINES: dict[str, dict[str, Any]] = {
    "probabilities-go-back": {},
    "labels-go-back": {"postprocessing": [bundles.SOFTMAX, bundles.ARGMAX, bundles.inverted(nearest=True)]},
    "scores-go-back": {"postprocessing": [bundles.inverted(nearest=False), bundles.ARGMAX]},
    "labels-for-themselves": {"postprocessing": [bundles.SIGMOID, bundles.inverted(nearest=False), bundles.HALF]},
    "cropped-padded-standardized": {
        "preprocessing": [
            *bundles.LOADED,
            {"_target_": "Spacingd", "keys": ["image"], "pixdim": [1.3, 1.3, -1]},
            {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
            {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "margin": 2, "k_divisible": 4},
            {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [48, 16, 24]},
        ],
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 24, 16], "overlap": 0.25},
    },
    "one-size-as-a-whole": {
        "preprocessing": [
            *bundles.LOADED,
            {"_target_": "Resized", "keys": "image", "spatial_size": [24, 32, 16], "mode": "trilinear"},
            {"_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": 1, "upper": 99, "b_min": -1,
             "b_max": 1},
        ],
        "inferer": {"_target_": "SimpleInferer"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Any:
    return bundles.network(bundles.NETWORK)


@pytest.fixture(scope="module")
def served(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncService]:
    """A bundle of each pipeline with one network, imported and served; the first as TorchScript, the others as ONNX."""
    path = tmp_path_factory.mktemp("served")
    graph = bundles.exported(network, path, free=True)
    for name, changes in PIPELINES.items():
        weights = {"onnx": graph} if changes else {"ts": bundles.scripted(network, path)}
        folder = bundles.write(path / name, bundles.config(**changes), bundles.metadata(), **weights)
        write_folder(path / "models", read(folder, name=name))
    with SyncService(path / "models") as service:
        yield service


def answered(service: SyncService, name: str, volume: Volume) -> tuple[FloatArray, Array]:
    found = service.segment(volume, model=name, probabilities=True, timeout=PATIENCE_S)
    assert found.probabilities is not None
    return found.probabilities, found.mask


@pytest.mark.parametrize("placed", AFFINES.values(), ids=AFFINES)
def test_a_bundle_answers_as_in_monai(
    served: SyncService, network: Any, tmp_path: Path, placed: npt.NDArray[np.float64]
) -> None:
    image = bundles.write_nifti(tmp_path / "image.nii", waves(SHAPE), placed)
    scores, masks = bundles.answer_of_monai(bundles.config(), network, image)

    found, mask = answered(served, "probabilities-go-back", volume_of(image))

    assert found.shape == scores.shape == (3, *SHAPE)
    assert np.abs(found - scores).max() <= WITHIN
    assert np.array_equal(mask, masks[0])
    assert set(np.unique(mask)) == {0, 1, 2}, "the test is to see every label"


@pytest.mark.parametrize("name", [name for name, changes in PIPELINES.items() if changes])
def test_other_pipelines_answer_as_in_monai(served: SyncService, network: Any, tmp_path: Path, name: str) -> None:
    image = bundles.write_nifti(tmp_path / "image.nii", waves(SHAPE), NOTHING_HALFWAY)
    scores, masks = bundles.answer_of_monai(bundles.config(**PIPELINES[name]), network, image)

    found, mask = answered(served, name, volume_of(image))

    if name not in ("labels-go-back", "scores-go-back"):
        assert np.abs(found - scores).max() <= WITHIN
    assert np.array_equal(mask, masks if name == "labels-for-themselves" else masks[0])
    assert len(np.unique(mask)) > 1


BASIC_UNET = {"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3,
              "features": [4, 4, 8, 8, 16, 4]}  # fmt: skip
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "TorchScript": ("ts", bundles.NETWORK),
    "ONNX": ("onnx", bundles.NETWORK),
    "weights of a UNet": ("pt", bundles.NETWORK),
    "weights of a plain UNet": ("pt", bundles.NETWORK | {
        "num_res_units": 0, "norm": ["instance", {"affine": True}], "act": "relu", "dropout": 0.1}),
    "weights of a UNet with units of two": ("pt", bundles.NETWORK | {
        "num_res_units": 2, "strides": [2, 1], "act": ["leakyrelu", {"negative_slope": 0.2}], "norm": "INSTANCE"}),
    "weights of a BasicUNet": ("pt", BASIC_UNET),
}  # fmt: skip


@pytest.mark.parametrize(("weights", "definition"), NETWORKS.values(), ids=NETWORKS)
def test_the_network_is_the_one_of_the_bundle(tmp_path: Path, weights: str, definition: dict[str, Any]) -> None:
    import torch

    config = bundles.config(network_def=definition)
    config["inferer"]["roi_size"] = [32, 32, 32]
    folder, network = bundle(tmp_path, config, weights=weights)
    golden = write_folder(tmp_path / "models", read(folder)).golden
    item, output = np.load(golden / "noise.input.npy"), np.load(golden / "noise.output.npy")

    with torch.no_grad():
        expected = network(torch.from_numpy(item[None]))[0].numpy()

    assert np.abs(output - expected).max() <= WITHIN * np.abs(expected).max()


def test_a_picture_answers_as_in_monai(tmp_path: Path) -> None:
    from PIL import Image

    config = bundles.config(
        network_def=bundles.NETWORK | {"spatial_dims": 2, "in_channels": 3},
        preprocessing=[
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {"_target_": "ScaleIntensityd", "keys": "image"},
        ],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": 32, "overlap": 0.25},
        postprocessing=[bundles.SOFTMAX, bundles.ARGMAX],
    )
    folder, network = bundle(tmp_path, config, rank=2, channels=3)
    pixels = np.random.default_rng(2).integers(0, 255, (41, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    _, masks = bundles.answer_of_monai(config, network, tmp_path / "image.png")

    names = ("c0", "c1", "c2")
    picture = Volume.of(np.ascontiguousarray(pixels.transpose(2, 0, 1)), channels=names)
    write_folder(tmp_path / "models", read(folder, name="picture"))
    with SyncService(tmp_path / "models") as service:
        _, mask = answered(service, "picture", picture)

    assert np.array_equal(mask, masks[0].T), "MONAI puts x first"
    assert len(np.unique(mask)) > 1


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A bundle that is right in everything; a test copies it and spoils one thing."""
    path = tmp_path_factory.mktemp("plain")
    config = bundles.config()
    return bundle(path, config)[0], config


def spoilt(plain: tuple[Path, dict[str, Any]], path: Path, **changes: Any) -> Path:
    weights = {"ts": (plain[0] / "models" / "model.ts").read_bytes()} | changes.pop("models", {})
    metadata = changes.pop("metadata", bundles.metadata())
    files = {name: content for name, content in weights.items() if content is not None}
    return bundles.write(path / "bundle", plain[1] | changes, metadata, **files)


def test_a_zip_is_a_bundle_too(tmp_path: Path, plain: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = plain
    with zipfile.ZipFile(tmp_path / "two_organs_v0.5.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, f"two_organs/{file.relative_to(folder)}")

    zipped = read(tmp_path / "two_organs_v0.5.zip", name="organs", version=7)

    assert zipped.manifest == read(folder).manifest | {"name": "organs", "version": 7}
    assert zipped.files == read(folder).files


def test_labels_stand_in_the_metadata_or_are_asked_for(tmp_path: Path, plain: tuple[Path, dict[str, Any]]) -> None:
    nameless = bundles.metadata()
    del nameless["network_data_format"]["outputs"]["pred"]["channel_def"]
    folder = spoilt(plain, tmp_path, metadata=nameless)

    with pytest.raises(ImportRefused, match="--labels says what they are"):
        read(folder)
    assert read(folder, labels=["nothing", "a", "b"]).manifest["output"]["labels"] == ["nothing", "a", "b"]
    assert read(plain[0]).manifest["output"]["labels"] == ["background", "liver", "spleen"]


def test_a_person_is_told_what_is_different(tmp_path: Path, plain: tuple[Path, dict[str, Any]]) -> None:
    bare = spoilt(plain, tmp_path, preprocessing=[], postprocessing=[])

    notes = " ".join(read(bare).notes)

    assert "the bundle ends with scores" in notes
    assert "axes are taken in the order in which they come" in notes
    assert "modality CT" in notes


class Canary:
    """Unpickled, it would leave a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def expression(file: Path) -> str:
    return f"$__import__('pathlib').Path({str(file)!r}).touch() or [1.5, 1.5, 2.0]"


def test_an_expression_that_matters_is_refused_and_not_evaluated(
    tmp_path: Path, plain: tuple[Path, dict[str, Any]]
) -> None:
    canary = tmp_path / "canary"
    spacing = {"_target_": "Spacingd", "keys": "image", "pixdim": expression(canary)}
    folder = spoilt(plain, tmp_path, preprocessing={"_target_": "Compose", "transforms": [spacing]})

    with pytest.raises(
        ImportRefused, match=r"configs/inference\.json: preprocessing::transforms::0::pixdim is an expr"
    ):
        read(folder)
    assert not canary.exists()


def test_an_expression_that_does_not_matter_is_passed_over_and_not_evaluated(
    tmp_path: Path, plain: tuple[Path, dict[str, Any]]
) -> None:
    canary = tmp_path / "canary"
    folder = spoilt(plain, tmp_path, imports=[expression(canary)], run=expression(canary), device=expression(canary))

    read(folder)

    assert not canary.exists()


def _pickled(file: Path) -> bytes:
    return pickle.dumps({"model": Canary(file)})


def _torch_pickled(file: Path) -> bytes:
    import torch

    saved = file.with_suffix(".saved")
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "hook": Canary(file)}, saved)
    return saved.read_bytes()


@pytest.mark.parametrize("pickled", [_pickled, _torch_pickled], ids=["a pickle", "torch.save"])
@pytest.mark.parametrize("ending", ["ts", "pt"])
def test_a_pickle_with_code_is_refused_and_not_loaded(
    tmp_path: Path, plain: tuple[Path, dict[str, Any]], ending: str, pickled: Any
) -> None:
    canary = tmp_path / "canary"
    folder = spoilt(plain, tmp_path, models={"ts": None, ending: pickled(canary)})

    with pytest.raises((BadManifest, ImportRefused)) as refusal:
        write_folder(tmp_path / "models", read(folder))
    assert isinstance(refusal.value, IsocenterError)
    assert not canary.exists()
    assert not list((tmp_path / "models").rglob("*"))


def test_weights_are_those_that_the_bundle_names(tmp_path: Path, plain: tuple[Path, dict[str, Any]]) -> None:
    folder = spoilt(plain, tmp_path)
    digest = hashlib.md5((folder / "models" / "model.ts").read_bytes(), usedforsecurity=False).hexdigest()

    def listed(value: str, kind: str = "md5") -> None:
        entry = {"path": "models/model.ts", "url": "none", "hash_type": kind, "hash_val": value}
        (folder / "large_files.yml").write_text(json.dumps({"large_files": [entry]}), encoding="utf-8")

    listed(digest)
    read(folder)
    listed("0" * 32)
    with pytest.raises(DigestMismatch, match=r"large_files\.yml names 000000000000"):
        read(folder)
    listed("0", "crc")
    with pytest.raises(ImportRefused, match="'crc'"):
        read(folder)


def test_external_data_is_not_read(tmp_path: Path, plain: tuple[Path, dict[str, Any]]) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    model = onnx.load_from_string(bundles.exported(bundles.network(bundles.NETWORK), tmp_path))
    (tmp_path / "secret").write_bytes(b"0" * 4096)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    folder = spoilt(plain, tmp_path, models={"ts": None, "onnx": model.SerializeToString()})

    with pytest.raises(ImportRefused, match=r"\.\./\.\./secret"):
        read(folder)


def test_a_link_out_of_the_bundle_is_not_followed(tmp_path: Path, plain: tuple[Path, dict[str, Any]]) -> None:
    folder = spoilt(plain, tmp_path)
    weights = folder / "models" / "model.ts"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ImportRefused, match=r"models/model\.ts leads out of the package"):
        read(folder)


NO_BUNDLES: dict[str, tuple[dict[str, Any], str]] = {
    "no weights": ({"models": {"ts": None}}, r"none of models/model\.onnx, models/model\.ts and models/model\.pt"),
    "another network": (
        {"models": {"ts": None, "pt": b""}, "network_def": {"_target_": "SegResNet"}},
        "network_def is SegResNet, a network that is not known here",
    ),
    "a network in code": (
        {"models": {"ts": None, "pt": b"0"}, "network_def": "$monai.networks.nets.UNet()"},
        "network_def is an expression",
    ),
    "two inputs": (
        {"metadata": bundles.metadata() | {"network_data_format": {"inputs": {"a": {}, "b": {}}, "outputs": {}}}},
        "network_data_format::inputs names a, b",
    ),
    "no metadata": ({"metadata": {}}, "network_data_format::inputs"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), NO_BUNDLES.values(), ids=NO_BUNDLES)
def test_what_is_no_bundle_is_refused(
    tmp_path: Path, plain: tuple[Path, dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ImportRefused, BadManifest), match=message):
        read(spoilt(plain, tmp_path, **changes))


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match=r"no configs/metadata\.json in it"):
        read(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ImportRefused, match="neither a folder nor a zip"):
        read(tmp_path / "file")
