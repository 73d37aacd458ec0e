"""What kind of model a file or folder is: by names and first bytes. Nothing of it is run, unpickled or unpacked."""

from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from isocenter.core.errors import BadManifest, ImportRefused
from isocenter.importers.package import open_zip
from isocenter.runtimes.onnx_file import read_onnx

Kind: TypeAlias = Literal["onnx", "torchscript", "monai", "bioimageio", "nnunet"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

BIOIMAGEIO_FILES: Final = ("rdf.yaml", "bioimageio.yaml", "model.yaml")
_MONAI_FILE: Final = "configs/metadata.json"
_NNUNET_FILES: Final = ("plans.json", "dataset.json")
_MOST_RECORDS: Final = 100_000
_HEAD_BYTES: Final = 16

_NOT_READ: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89HDF\r\n", "an HDF5 file, such as Keras writes: convert it to ONNX"),
    (4, b"TFL3", "a TensorFlow Lite file: convert it to ONNX"),
    (4, b"ORTM", "ONNX Runtime's own format: import the ONNX file that it was made from"),
    (8, b'{"', "safetensors: weights without a network; import the network exported with them"),
    (0, b"<?xml", "an XML file: OpenVINO's files are made from a model folder, see isocenter export"),
)
"""Where a mark stands, the mark, and what the file is then."""


def kind_of(path: Path) -> Kind:
    """The kind of a file or folder.

    Raises:
        ImportRefused: it is none of these kinds; the message says what it looks like.
    """
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.is_file():
        raise ImportRefused(f"no file or folder {path}")
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ImportRefused(
            f"{path.name} is a pickle, whatever its name says: it may hold code and is not opened; "
            "export the model to ONNX or TorchScript"
        )
    for at, mark, what in _NOT_READ:
        if head[at : at + len(mark)] == mark:
            raise ImportRefused(f"{path.name} is {what}")
    try:
        read_onnx(path)
    except BadManifest as error:
        raise ImportRefused(
            f"{path.name} is none of what is read ({', '.join(KINDS)}); as ONNX: {error.message}"
        ) from error
    return "onnx"


def _kind_of_folder(path: Path) -> Kind:
    if all((path / name).is_file() for name in _NNUNET_FILES):
        return "nnunet"
    if (path / _MONAI_FILE).is_file():
        return "monai"
    if any(_is_bioimageio(path / name) for name in BIOIMAGEIO_FILES):
        return "bioimageio"
    raise ImportRefused(
        f"{path} is no model package: no {_MONAI_FILE} (MONAI bundle), {' or '.join(BIOIMAGEIO_FILES[:2])} "
        f"(bioimage.io), {' and '.join(_NNUNET_FILES)} (nnU-Net) in it"
    )


def _is_bioimageio(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return file.name != "model.yaml" or b"format_version" in stream.read(2**20)


def _kind_of_zip(path: Path) -> Kind:
    with open_zip(path) as archive:
        names = archive.namelist()
    if len(names) > _MOST_RECORDS:
        raise ImportRefused(f"{path.name} holds {len(names)} files, the limit is {_MOST_RECORDS}")
    # What torch writes stands in one folder, and so do packages that were zipped with their folder.
    below = {name.partition("/")[2] for name in names} | set(names)
    if "data.pkl" in below:
        if any(name.startswith("code/") for name in below):
            return "torchscript"
        raise ImportRefused(
            f"{path.name} holds a pickle of weights without a network: it is not opened; "
            "export the model to ONNX or TorchScript"
        )
    if "models/model.json" in below or "serialized_exported_program.json" in below:
        raise ImportRefused(f"{path.name} is a program of torch.export: export it to ONNX or TorchScript")
    if _MONAI_FILE in below:
        return "monai"
    if below & set(BIOIMAGEIO_FILES):
        return "bioimageio"
    raise ImportRefused(f"{path.name} is a zip file that holds no model that is read: {', '.join(KINDS)}")
