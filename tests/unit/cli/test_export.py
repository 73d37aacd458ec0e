"""`isocenter export`: a network, a checkpoint or a model, as a folder that is proven before it is there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from conftest import MODELS
from isocenter.cli import main
from isocenter.cli.export import sides_of, split_labels
from isocenter.core.errors import DigestMismatch
from isocenter.networks.registry import NETWORKS
from isocenter.repository.golden import golden_cases
from isocenter.repository.integrity import check_digest, sha256_of
from isocenter.repository.layout import find
from isocenter.repository.load import prove
from isocenter.runtimes import registry
from isocenter.runtimes.registry import installed

RUN = CliRunner()
NEEDS_TORCH = pytest.mark.skipif(
    not (installed("torch") and installed("onnx")), reason="the extra torch is not installed"
)
NEEDS_OPENVINO = pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")
SMALL = ("--size", "64x64")

pytestmark = pytest.mark.slow


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = RUN.invoke(main.app, ["export", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More would only wait for each other where tests run side by side."""
    with pytest.MonkeyPatch.context() as patch:
        if installed("torch") and installed("onnx"):
            patch.setattr("isocenter.importers.network.usable_cores", lambda: 1)
        yield


def manifest_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("classifiers")
    code, stdout, stderr = invoke("slice-resnet", *SMALL, "--models", models, "--seed", 3, "--max-batch-size", 4)
    assert code == 0, stderr
    assert "weights: random, seed 3" in stdout
    return models


@NEEDS_TORCH
def test_a_network_becomes_a_whole_model_folder(classifiers: Path) -> None:
    folder = find(classifiers, "slice-resnet", 1)
    names = {str(file.relative_to(folder.path)) for file in folder.path.rglob("*") if file.is_file()}
    pairs = {f"golden/case-{number}.{end}" for number in range(1, 5) for end in ("png", "json")}
    assert names == {"model.yaml", "model.onnx", "cost.json", *pairs}
    assert prove(folder) == sha256_of(folder.weights)
    assert "random, seed 3" in folder.manifest.description
    assert len({str(case.expected) for case in golden_cases(folder)}) == 4


@NEEDS_TORCH
def test_what_an_item_costs_stands_beside_it(classifiers: Path) -> None:
    cost = json.loads((find(classifiers, "slice-resnet", 1).path / "cost.json").read_text(encoding="utf-8"))
    assert list(cost["seconds_per_item"]) == ["1", "2", "4"]
    assert all(seconds > 0 for seconds in cost["seconds_per_item"].values())
    assert (cost["runtime"], cost["precision"], cost["parameters"]) == ("onnxruntime", "fp32", 452_568)
    assert cost["machine"]
    assert cost["threads"] >= 1


@NEEDS_TORCH
def test_the_next_version_is_taken_and_none_is_written_twice(classifiers: Path) -> None:
    same = ("slice-resnet", *SMALL, "--models", classifiers, "--max-batch-size", 1, "--labels", "a,b")
    assert invoke(*same)[0] == 0
    assert find(classifiers, "slice-resnet", 2).manifest.output.labels == ["a", "b"]
    code, _, stderr = invoke(*same, "--version", 2)
    assert code == 2
    assert "slice-resnet 2 is there already" in stderr
    assert "--version 3" in stderr


@NEEDS_TORCH
@NEEDS_OPENVINO
def test_both_files_of_openvino_are_held_against_their_digests(tmp_path: Path) -> None:
    code, _, stderr = invoke("unet3d", "--size", "32x32x32", "--to", "openvino", "--models", tmp_path)
    assert code == 0, stderr
    folder = find(tmp_path, "unet3d")
    assert [part.file for part in folder.manifest.runtime.beside] == ["model.bin"]
    weights = folder.path / "model.bin"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DigestMismatch, match=r"model\.bin"):
        check_digest(folder)


@NEEDS_TORCH
def test_a_segmentation_network_has_tensors_as_golden_case(tmp_path: Path) -> None:
    code, _, stderr = invoke(
        "unet3d",
        "--size",
        "32x32x32",
        "--to",
        "torchscript",
        "--models",
        tmp_path,
        "--name",
        "liver",
        "--labels",
        "0,1",
    )
    assert code == 0, stderr
    folder = find(tmp_path, "liver", 1)
    manifest = folder.manifest
    assert (manifest.task, manifest.input.kind, manifest.runtime.kind) == ("segmentation", "volume3d", "torch")
    assert manifest.output.labels == [0, 1]
    assert manifest.sliding is not None
    assert manifest.sliding.roi == (32, 32, 32)
    assert np.load(folder.golden / "case-1.input.npy").shape == (1, 32, 32, 32)
    assert np.load(folder.golden / "case-1.output.npy").shape == (2, 32, 32, 32)


@NEEDS_TORCH
def test_a_checkpoint_is_recognised_by_its_tensors(tmp_path: Path) -> None:
    import torch

    torch.save({"state_dict": NETWORKS["slice-resnet"].build(3).state_dict()}, tmp_path / "best.pth")
    code, stdout, stderr = invoke(
        tmp_path / "best.pth", *SMALL, "--models", tmp_path / "models", "--name", "lungs", "--max-batch-size", 1
    )
    assert code == 0, stderr
    assert "weights: best.pth, sha256 " in stdout
    folder = find(tmp_path / "models", "lungs")
    assert folder.manifest.output.labels == [0, 1, 2]
    assert "SliceResNet" not in str(manifest_in(folder.path))


@NEEDS_TORCH
@pytest.mark.parametrize("name", ["hrnet-w32", "resnet50", "unet3d-cicek"])
def test_networks_are_told_apart(name: str, tmp_path: Path) -> None:
    import torch

    from isocenter.importers.network import recognised

    torch.save(NETWORKS[name].build(2).state_dict(), tmp_path / "weights.pt")
    assert recognised(tmp_path / "weights.pt").name == name


@NEEDS_TORCH
def test_a_checkpoint_of_no_network_is_refused_with_the_closest_one(tmp_path: Path) -> None:
    import torch

    state = NETWORKS["slice-resnet"].build(3).state_dict()
    state["more"] = torch.zeros(1)
    torch.save(state, tmp_path / "weights.pt")
    code, _, stderr = invoke(tmp_path / "weights.pt", "--models", tmp_path / "models")
    assert code == 2
    assert "the closest is slice-resnet, of which more is left over" in " ".join(stderr.split())


@NEEDS_TORCH
@pytest.mark.parametrize("how", ["argument", "option"])
def test_a_checkpoint_with_code_is_refused_and_nothing_of_it_runs(how: str, tmp_path: Path) -> None:
    import torch

    nest, file = tmp_path / "canary", tmp_path / "weights.pt"

    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (nest,))

    torch.save({"state_dict": Canary()}, file)
    given = (file,) if how == "argument" else ("slice-resnet", "--weights", file)
    code, _, stderr = invoke(*given, "--models", tmp_path / "models")
    assert code == 2
    assert "nothing of it was run" in " ".join(stderr.split())
    assert not nest.exists()
    assert not (tmp_path / "models").exists()


@NEEDS_TORCH
def test_labels_must_be_as_many_as_the_outputs_of_the_weights(tmp_path: Path) -> None:
    import torch

    torch.save(NETWORKS["slice-resnet"].build(3).state_dict(), tmp_path / "weights.pt")
    code, _, stderr = invoke(
        "slice-resnet", "--weights", tmp_path / "weights.pt", "--labels", "a,b", "--models", tmp_path
    )
    assert code == 2
    assert "has 3 outputs, and there are 2 labels" in stderr


@NEEDS_TORCH
def test_a_model_of_the_repository_becomes_a_triton_repository(tmp_path: Path) -> None:
    code, _, stderr = invoke("brain-mri-classifier", "--to", "triton", "--models", MODELS, "--out", tmp_path)
    assert code == 0, stderr
    assert (tmp_path / "brain-mri-classifier" / "config.pbtxt").is_file()
    assert (tmp_path / "brain-mri-classifier" / "1" / "model.onnx").is_file()


@NEEDS_TORCH
def test_a_network_becomes_a_triton_repository(tmp_path: Path) -> None:
    given = ("slice-resnet", *SMALL, "--to", "triton", "--out", tmp_path / "out", "--max-batch-size", 2)
    code, stdout, stderr = invoke(*given, "--models", tmp_path / "models", "--name", "slices")
    assert code == 0, stderr
    assert "random, seed 0" in stdout
    assert "max_batch_size: 2" in (tmp_path / "out" / "slices" / "config.pbtxt").read_text(encoding="utf-8")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("resnet5",), "no network is called 'resnet5'"),
        (("resnet50", "--size", "224"), "'224' is no size"),
        (("resnet50", "--labels", "a,,b"), "a label of 'a,,b' is empty"),
        (("resnet50", "--to", "triton"), "--to triton needs --out DIR"),
        (("resnet50", "--out", "there"), "--to triton needs --out DIR"),
    ],
    ids=["name", "size", "labels", "out missing", "out without triton"],
)
def test_what_cannot_begin_ends_with_2(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    code, _, stderr = invoke(*arguments, "--models", tmp_path)
    assert code == 2
    assert said in " ".join(stderr.split())


@NEEDS_TORCH
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("unet3d", "--size", "40x32x32"), "sides of unet3d are multiples of 16"),
        (("unet3d", "--size", "32x32"), "unet3d takes [1, 96, 96, 96], not [1, 32, 32]"),
        (("slice-resnet", "--free-sides"), "answers one picture of one size with one label"),
    ],
    ids=["multiple", "rank", "free sides"],
)
def test_what_a_network_cannot_take_is_said(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    code, _, stderr = invoke(*arguments, "--models", tmp_path)
    assert code == 2
    assert said in " ".join(stderr.split())


def test_without_torch_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed", lambda _: False)
    code, _, stderr = invoke("resnet50", "--models", tmp_path)
    assert code == 2
    assert 'pip install "isocenter[torch]"' in stderr


@pytest.mark.parametrize("text", ["", "x", "512", "512x", "0x4", "-1x4", "1x2x3x4", "1.5x2"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no size"):
        sides_of(text)


def test_labels_that_are_whole_numbers_are_numbers() -> None:
    assert split_labels("0, 1,No Tumor") == (0, 1, "No Tumor")


def test_the_help_lists_the_networks() -> None:
    code, stdout, _ = invoke("--help")
    assert code == 0
    assert [name for name in NETWORKS if name not in stdout] == []
