"""What a file is, is looked at; what could run is named and left alone."""

import pickle
import zipfile
from pathlib import Path

import pytest

from isocenter.core.errors import ImportRefused
from isocenter.importers.kinds import kind_of
from isocenter.importers.torchscript_file import refuse_bomb
from onnx_writer import write_classifier

CANARY = "canary"


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path(CANARY),)


def archive(file: Path, *names: str) -> Path:
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(name, pickle.dumps(Bomb()) if name.endswith(".pkl") else b"x")
    return file


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"], "torchscript"),
        (["configs/metadata.json", "models/model.ts"], "monai"),
        (["bundle/configs/metadata.json"], "monai"),
        (["rdf.yaml", "weights.onnx"], "bioimageio"),
        (["nuclei/bioimageio.yaml"], "bioimageio"),
    ],
)
def test_a_zip_is_what_its_names_say(tmp_path: Path, names: list[str], kind: str) -> None:
    assert kind_of(archive(tmp_path / "model.bin", *names)) == kind


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["plans.json", "dataset.json"], "nnunet"),
        (["configs/metadata.json", "configs/inference.json"], "monai"),
        (["rdf.yaml"], "bioimageio"),
    ],
)
def test_a_folder_is_what_its_files_say(tmp_path: Path, files: list[str], kind: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert kind_of(tmp_path) == kind


def test_an_onnx_file_may_have_any_name(tmp_path: Path) -> None:
    assert kind_of(write_classifier(tmp_path / "model.pt")) == "onnx"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps(Bomb()), "is a pickle"),
        (pickle.dumps(Bomb(), protocol=2), "is a pickle"),
        (pickle.dumps(Bomb(), protocol=0), "none of what is read"),
        (b"\x89HDF\r\n\x1a\n0000", "Keras"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (b"\0\0\0\0ORTM", "ONNX Runtime's own"),
        (b'\x10\0\0\0\0\0\0\0{"a": 1}', "safetensors"),
        (b"<?xml version='1.0'?><net/>", "XML"),
        (b"hello, world", "none of what is read"),
        (b"", "none of what is read"),
        (b"PK\x03\x04damaged", "damaged"),
    ],
)
def test_what_is_not_read_is_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.onnx"
    file.write_bytes(content)

    with pytest.raises(ImportRefused, match=sentence):
        kind_of(file)
    assert not Path(CANARY).exists()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["m/data.pkl", "m/version"], "pickle of weights"),
        (["m/models/model.json", "m/data/weights/weight_0"], "program of torch.export"),
        (["readme.txt"], "no model"),
    ],
)
def test_a_zip_that_is_not_read_is_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportRefused, match=sentence):
        kind_of(archive(tmp_path / "model.pt", *names))
    assert not Path(CANARY).exists()


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match=r"rdf\.yaml.*plans\.json"):
        kind_of(tmp_path)
    with pytest.raises(ImportRefused, match="no file or folder"):
        kind_of(tmp_path / "absent")


def test_an_archive_that_would_unpack_to_too_much_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("m/code/__torch__.py", b"\0" * (65 * 2**20))

    with pytest.raises(ImportRefused, match="would unpack to 68157440 bytes"):
        refuse_bomb(file)
