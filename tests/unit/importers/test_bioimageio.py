"""A bioimage.io package gives what it has published, through the version that was made of it, or is refused by name."""

import contextlib
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bioimageio_packages import LABELS, RAW, SIDE, convolved, digest, npy, package, sigmoid, standardised, zipped
from isocenter import SyncService
from isocenter.core.errors import DigestMismatch, GoldenMismatch, ImportRefused, IsocenterError
from isocenter.core.tensor import Array
from isocenter.imaging.postprocess.activation import probabilities_of
from isocenter.imaging.volume import Volume
from isocenter.importers.bioimageio import read
from isocenter.importers.bioimageio_steps import steps_of
from isocenter.importers.folder import write_folder
from isocenter.repository.golden import pipeline_of
from isocenter.repository.layout import ModelFolder
from isocenter.repository.sessions import open_one
from patience import PATIENCE_S


def answer(folder: ModelFolder, raw: Array) -> Array:
    """Preprocessing, runtime and activation of a version, for one item."""
    manifest = folder.manifest
    session = open_one(folder)
    item = pipeline_of(manifest)(Volume.of(raw)).tensor  # type: ignore[arg-type]
    scores = session.run({manifest.input.tensor: item[None]})[manifest.output.tensor][0]
    return probabilities_of(scores, manifest.output.activation)


def described(folder: Path, change: Any) -> Path:
    """The package with its description changed in place."""
    said = yaml.safe_load((folder / "rdf.yaml").read_text())
    change(said)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said))
    return folder


@pytest.mark.parametrize("form", ["0.5.4", "0.4.10"])
@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
def test_a_package_gives_what_it_has_published(tmp_path: Path, form: str, batch: int | str, as_zip: bool) -> None:
    path = package(tmp_path / "cells", form=form, batch=batch)

    written = write_folder(tmp_path / "models", read(zipped(path) if as_zip else path))

    published = np.load(path / "test_output.npy")[0]
    np.testing.assert_allclose(answer(written, RAW[0]), published, rtol=1e-3, atol=1e-3)
    assert written.manifest.name == "cells-two-stains"
    assert (written.manifest.title, written.manifest.description) == ("Cells, two stains", "Finds cells.")


def test_what_the_package_says_stands_in_the_manifest(tmp_path: Path) -> None:
    made = read(package(tmp_path / "cells"), name="cells", version=4)

    assert made.manifest["input"] == {"kind": "image2d", "tensor": "in", "channels": ["dapi", "actin"]}
    assert made.manifest["output"] == {"tensor": "out", "activation": "sigmoid", "labels": ["cell", "edge", "dust"]}
    assert made.manifest["steps"] == [{"kind": "standardize", "per_channel": True, "eps": 1e-6}]
    # A halo of 4 on both sides is a third of 24: no window may overlap by less.
    assert made.manifest["sliding"] == {"roi": [SIDE, SIDE], "overlap": 0.34, "mode": "gaussian"}
    assert (made.manifest["name"], made.manifest["version"]) == ("cells", 4)
    assert any("0.5 is taken" in note for note in made.notes)


def test_the_published_tensors_are_kept(tmp_path: Path) -> None:
    path = package(tmp_path / "cells")
    written = write_folder(tmp_path / "models", read(path))

    np.testing.assert_array_equal(np.load(written.path / "published" / "test_input.npy"), RAW[0].astype(np.float32))
    np.testing.assert_allclose(np.load(written.golden / "published.input.npy"), standardised(RAW)[0], atol=1e-5)
    np.testing.assert_allclose(
        np.load(written.golden / "published.output.npy"), convolved(standardised(RAW))[0], atol=1e-4
    )


def test_a_package_that_does_not_give_what_it_published_is_refused(tmp_path: Path) -> None:
    path = package(tmp_path / "cells")
    (path / "test_output.npy").write_bytes(npy(sigmoid(convolved(standardised(RAW)) + 0.1)))
    described(path, lambda said: said["outputs"][0]["test_tensor"].update(sha256=digest(path / "test_output.npy")))

    with pytest.raises(GoldenMismatch, match="the published output is missed"):
        write_folder(tmp_path / "models", read(path))
    assert list((tmp_path / "models").rglob("*")) == []


@pytest.mark.parametrize("name", ["weights.onnx", "test_input.npy", "test_output.npy"])
def test_a_lying_digest_is_refused(tmp_path: Path, name: str) -> None:
    path = package(tmp_path / "cells")
    with (path / name).open("ab") as stream:
        stream.write(b"\0")

    with pytest.raises(DigestMismatch, match=name):
        read(path)


def test_a_threshold_comes_from_the_package_or_from_a_person(tmp_path: Path) -> None:
    def no_activation(said: Any) -> None:
        said["outputs"][0]["postprocessing"] = []
        said["outputs"][0]["test_tensor"] = {"source": "raw.npy"}

    path = described(package(tmp_path / "cells"), no_activation)
    (path / "raw.npy").write_bytes(npy(convolved(standardised(RAW)).astype(np.float32)))

    with pytest.raises(ImportRefused, match="--threshold"):
        read(path)
    written = write_folder(tmp_path / "models", read(path, threshold=0.25))
    assert (written.manifest.output.activation, written.manifest.output.threshold) == ("none", 0.25)


def test_binarize_is_a_threshold(tmp_path: Path) -> None:
    def binary(said: Any) -> None:
        binarize = {"id": "binarize", "kwargs": {"threshold": 0.3}}
        said["outputs"][0]["postprocessing"] += [binarize, {"id": "ensure_dtype", "kwargs": {"dtype": "uint8"}}]
        said["outputs"][0]["test_tensor"] = {"source": "mask.npy"}

    path = described(package(tmp_path / "cells"), binary)
    (path / "mask.npy").write_bytes(npy((sigmoid(convolved(standardised(RAW))) > 0.3).astype(np.uint8)))

    assert write_folder(tmp_path / "models", read(path)).manifest.output.threshold == 0.3


def test_softmax_is_an_activation(tmp_path: Path) -> None:
    scores = convolved(standardised(RAW))
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))

    def softmax(said: Any) -> None:
        said["outputs"][0]["postprocessing"] = [{"id": "softmax"}]
        said["outputs"][0]["test_tensor"] = {"source": "soft.npy"}

    path = described(package(tmp_path / "cells"), softmax)
    (path / "soft.npy").write_bytes(npy((raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)))

    assert write_folder(tmp_path / "models", read(path)).manifest.output.activation == "softmax"


AXES = {"axes": ["y", "x"]}
JOINT = {"axes": ["channel", "y", "x"]}
EPS = 1e-6
WIDE = RAW[0].astype(np.float64)


@pytest.mark.parametrize(
    ("op", "kwargs", "expected"),
    [
        ("zero_mean_unit_variance", JOINT, (WIDE - WIDE.mean()) / (WIDE.std() + EPS)),
        ("zero_mean_unit_variance", {}, (WIDE - WIDE.mean()) / (WIDE.std() + EPS)),
        ("fixed_zero_mean_unit_variance", {"mean": 9, "std": 4}, (WIDE - 9) / 4),
        (
            "fixed_zero_mean_unit_variance",
            {"mean": [9, 5], "std": [4, 2], "axis": "channel"},
            (WIDE - np.array([9, 5])[:, None, None]) / np.array([4, 2])[:, None, None],
        ),
        ("scale_linear", {"gain": 0.5, "offset": -3}, WIDE * 0.5 - 3),
        ("scale_linear", {"gain": [2, 3], "offset": [0, 1], "axis": "channel"}, WIDE * [[[2]], [[3]]] + [[[0]], [[1]]]),
        (
            "scale_range",
            {"min_percentile": 1, "max_percentile": 99.8, **JOINT},
            (WIDE - np.percentile(WIDE, 1)) / (np.percentile(WIDE, 99.8) - np.percentile(WIDE, 1) + EPS),
        ),
        (
            "scale_range",
            AXES,
            (WIDE - WIDE.min((1, 2), keepdims=True)) / (np.ptp(WIDE, (1, 2), keepdims=True) + EPS),
        ),
        ("clip", {"min": 100, "max": 2000}, WIDE.clip(100, 2000)),
        ("clip", {"max": 2000}, WIDE.clip(None, 2000)),
        ("ensure_dtype", {"dtype": "float32"}, WIDE),
    ],
)
def test_each_step_is_its_published_formula(op: str, kwargs: dict[str, Any], expected: Array) -> None:
    from pydantic import TypeAdapter

    from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline
    from isocenter.imaging.transforms.arrays.steps import ArraySteps
    from isocenter.importers.bioimageio_axes import axes_of

    axes = axes_of({"axes": "bcyx"}, "the input")
    said = steps_of({"preprocessing": [{"id": op, "kwargs": kwargs}]}, axes)

    found = ArrayPipeline(TypeAdapter(ArraySteps).validate_python(said))(Volume.of(RAW[0])).tensor

    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def preprocessing(op: str, **kwargs: Any) -> Any:
    return lambda said: said["inputs"][0].update(preprocessing=[{"id": op, "kwargs": kwargs}])


def postprocessing(*ops: dict[str, Any]) -> Any:
    return lambda said: said["outputs"][0].update(postprocessing=list(ops))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (preprocessing("stardist_normalise"), r"preprocessing\[0\] stardist_normalise: there is no such step"),
        (preprocessing("binarize", threshold=3), "binarize: there is no such step"),
        (preprocessing("sigmoid"), "sigmoid: there is no such step"),
        (preprocessing("ensure_dtype", dtype="uint8"), "as uint8"),
        (preprocessing("zero_mean_unit_variance", axes=["y"]), "over the axes y"),
        (preprocessing("zero_mean_unit_variance", mode="per_dataset"), "whole data set"),
        (preprocessing("scale_range", reference_tensor="raw"), "another tensor"),
        (preprocessing("scale_range", gamma=2), "'gamma' is not known"),
        (preprocessing("clip", min="1 + 1"), "not a number"),
        (preprocessing("clip", min=3, max=2), "not above"),
        (preprocessing("clip", min=3, min_percentile=1), "both min and min_percentile"),
        (preprocessing("zero_mean_unit_variance", mode="fixed", mean=1, std=2, eps=9), "eps has no equal"),
        (lambda said: said["inputs"][0]["preprocessing"][1].update(axes=["y"]), r"\[1\] has axes, id, kwargs"),
        (lambda said: said["inputs"][0]["preprocessing"][1].update(name="clip"), r"\[1\] has id, kwargs, name"),
        (lambda said: said["outputs"][0]["axes"][2].update(halo="4"), "halo is 4, not a whole number"),
        (lambda said: said["outputs"][0]["axes"][2].update(halo=10), "a halo of 10, 4 leaves too little of a window"),
        (lambda said: said["outputs"][0]["axes"][1].update(channel_names="abc"), "channel_names is abc, not a list"),
        (lambda said: said["weights"]["onnx"].update(source="x" * 5000), "is not in the package"),
        (postprocessing({"id": "scale_linear"}), r"postprocessing\[0\] scale_linear"),
        (postprocessing({"id": "sigmoid"}, {"id": "softmax"}), "softmax"),
        (postprocessing({"id": "softmax", "kwargs": {"axis": "x"}}), "another axis"),
        (postprocessing({"id": "binarize", "kwargs": {"threshold": 40}}), "not between 0 and 1"),
        (lambda said: said.update(format_version="0.3.6"), "format 0.3.6"),
        (lambda said: said.update(type="dataset"), "does not describe a model"),
        (lambda said: said["inputs"].append(said["inputs"][0]), "2 inputs"),
        (lambda said: said["inputs"][0].update(axes="byxc"), "has the axes"),
        (lambda said: said["inputs"][0].update(axes="btcyx"), "an axis 't'"),
        (lambda said: said["inputs"][0]["axes"].append({"type": "time", "id": "t"}), "type 'time'"),
        (lambda said: said.update(weights={"pytorch_state_dict": {"source": "w.pt"}}), "pytorch_state_dict: not read"),
        (lambda said: said["weights"]["onnx"].update(source="http://x/w.onnx"), "is not in the package"),
        (lambda said: said["inputs"][0].update(test_tensor={"source": "../../secret.npy"}), "not in the package"),
        (lambda said: said["inputs"][0].update(test_tensor={"source": "/etc/passwd"}), "not in the package"),
        (lambda said: said["inputs"][0].update(test_tensor={"source": "https://x/a.npy"}), "nothing is fetched"),
    ],
)
def test_what_has_no_equal_here_is_refused_by_name(tmp_path: Path, change: Any, sentence: str) -> None:
    path = described(package(tmp_path / "cells"), change)

    with pytest.raises(ImportRefused, match=sentence):
        read(path)


@pytest.mark.parametrize(
    "text",
    ["timestamp: 2024-13-45", "a: " + "[" * 5000 + "]" * 5000, "a: &a [*a]", "type: model\ntype: model", "a: 1:30"],
    ids=["no month", "deep", "a circle", "a key twice", "a number of two meanings"],
)
def test_a_description_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    path = package(tmp_path / "cells")
    (path / "rdf.yaml").write_text(text)

    with pytest.raises(ImportRefused, match=r"rdf\.yaml is not YAML"):
        read(path)


@pytest.mark.parametrize(
    ("cite", "notes"),
    [({"text": "A\npaper"}, ["A paper"]), ("A paper", ["A paper"]), (["A paper"], ["A paper"]), (5, ["5"]), ([], [])],
)
def test_whatever_is_to_be_cited_is_no_obstacle(tmp_path: Path, cite: Any, notes: list[str]) -> None:
    path = described(package(tmp_path / "cells"), lambda said: said.update(cite=cite))

    said = [note for note in read(path).notes if note.startswith("to be cited: ")]

    assert said == [f"to be cited: {note}" for note in notes]


@pytest.mark.parametrize("content", [b"PK\3\4" + bytes(99), b"\x93NUMPY\1\0\x28\x23" + b"[" * 9000])
def test_a_test_tensor_that_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    path = package(tmp_path / "cells")
    (path / "test_input.npy").write_bytes(content)
    described(path, lambda said: said["inputs"][0].update(test_tensor="test_input.npy"))

    with pytest.raises(ImportRefused, match="is not an array"):
        read(path)


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    file = zipped(package(tmp_path / "cells"))
    content = bytearray(file.read_bytes())
    at = content.find(b"weights.onnx") + 40
    content[at : at + 20] = b"\xff" * 20
    file.write_bytes(content)

    with pytest.raises(ImportRefused, match=r"weights\.onnx cannot be read out of the zip"):
        read(file)


def test_a_file_that_stands_twice_in_a_zip_is_refused(tmp_path: Path) -> None:
    file = zipped(package(tmp_path / "cells"))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("test_output.npy", b"another")

    with pytest.raises(ImportRefused, match=r"test_output\.npy stands in it 2 times"):
        read(file)


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path("canary"),)


def test_a_pickle_in_a_test_tensor_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = package(tmp_path / "cells")
    for content in (npy(np.array([Bomb()], dtype=object)), pickle.dumps(Bomb())):
        (path / "test_input.npy").write_bytes(content)
        described(path, lambda said: said["inputs"][0].update(test_tensor={"source": "test_input.npy"}))
        with pytest.raises(ImportRefused, match="is not an array"):
            read(path)
    assert not Path("canary").exists()


def test_a_tag_that_makes_python_objects_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = package(tmp_path / "cells")
    (path / "rdf.yaml").write_text("type: !!python/object/apply:os.system ['touch canary']\n")

    with pytest.raises(ImportRefused, match="is not YAML"):
        read(path)
    assert not Path("canary").exists()


def test_a_link_out_of_the_package_is_not_followed(tmp_path: Path) -> None:
    path = package(tmp_path / "cells")
    (path / "weights.onnx").rename(tmp_path / "weights.onnx")
    (path / "weights.onnx").symlink_to(tmp_path / "weights.onnx")

    with pytest.raises(ImportRefused, match="leads out of the package"):
        read(path)


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = package(tmp_path / "cells")
    with (path / "rdf.yaml").open("a") as stream:
        stream.write("#" * 2**23)

    with pytest.raises(ImportRefused, match=r"rdf\.yaml has \d+ bytes or more, the limit is"):
        read(zipped(path))


def test_labels_may_be_given(tmp_path: Path) -> None:
    path = package(tmp_path / "cells")
    assert read(path, labels=["a", "b", "c"]).manifest["output"]["labels"] == ["a", "b", "c"]
    with pytest.raises(ImportRefused, match=f"has {LABELS} channels"):
        read(path, labels=["a"])


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


@pytest.mark.parametrize("form", ["0.5.4", "0.4.10"])
def test_what_does_not_belong_there_is_read_or_refused(tmp_path: Path, form: str) -> None:
    path = package(tmp_path / "cells", form=form)
    good = yaml.safe_load((path / "rdf.yaml").read_text())

    for place in places(good):
        odd: Any
        for odd in (None, "x", -1, [[]]):
            part = said = json.loads(json.dumps(good))
            for key in place[:-1]:
                part = part[key]
            part[place[-1]] = odd
            (path / "rdf.yaml").write_text(json.dumps(said))
            with contextlib.suppress(IsocenterError):
                read(path)


@pytest.mark.slow
@pytest.mark.may_block
def test_the_published_nuclei_network_gives_its_published_output(tmp_path: Path, test_data: Path) -> None:
    path = test_data / "nuclei_unet"
    if not path.is_dir():
        pytest.skip("no nuclei_unet in the test data")

    written = write_folder(tmp_path / "models", read(path, name="nuclei"))

    raw, published = np.load(path / "test_input.npy")[0], np.load(path / "test_output.npy")[0]
    with SyncService(tmp_path / "models") as service:
        served = service.segment(Volume.of(raw), probabilities=True, timeout=PATIENCE_S)
    for found in (answer(written, raw), served.probabilities):
        assert found is not None
        assert found.shape == published.shape == (1, 512, 512)
        assert np.abs(found - published).max() <= 1e-3
    np.testing.assert_array_equal(served.mask, published >= 0.5)
    assert written.manifest.batching.max_batch_size == 4
