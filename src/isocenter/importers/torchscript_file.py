"""`isocenter import model.pt`: a TorchScript file has no names or sizes of its tensors, so a person says them."""

import json
import zipfile
from pathlib import Path
from typing import Any, Final

from isocenter.core.errors import BadManifest, ImportRefused
from isocenter.importers.answers import Answers, Question
from isocenter.importers.bare import Tensor, describe
from isocenter.importers.folder import Imported
from isocenter.importers.kinds import kind_of
from isocenter.importers.package import open_zip, read_member
from isocenter.runtimes.registry import open_runtime

FILE: Final = "model.pt"
INPUT: Final = Question("input", "Its input, such as image: float32[3, 224, 224] (no batch axis, -1 for an open one)")
OUTPUT: Final = Question("output", "Its output, such as logits: float32[4] (no batch axis, -1 for an open one)")
PORTS_FILE: Final = "isocenter.json"
_PORTS: Final = f"extra/{PORTS_FILE}"
_LARGEST_PORTS_BYTES: Final = 2**20
_LARGEST_BYTES: Final = 8 * 2**30
_LARGEST_DEFLATED_BYTES: Final = 64 * 2**20


def read(path: Path, answers: Answers, *, name: str, version: int = 1) -> Imported:
    """Read a bare TorchScript file. It is not loaded here; the runtime looks into it before it does.

    Raises:
        ImportRefused: it is no TorchScript file, or would unpack to more than the limit; or a question is not answered.
        MissingExtra: torch is not installed.
    """
    if kind_of(path) != "torchscript":
        raise ImportRefused(f"{path.name} is not a TorchScript file")
    refuse_bomb(path)
    open_runtime("torch")
    known = _said_by_itself(path)
    taken, given = known or (answers.get(INPUT, _checked), answers.get(OUTPUT, _checked))
    described = describe(_tensor(taken), _tensor(given), answers, name=name, version=version)
    manifest = {**described.manifest, "runtime": runtime_part(taken, given)}
    return Imported(manifest, {FILE: path}, [described.case], described.notes)


def runtime_part(taken: str, given: str) -> dict[str, Any]:
    """`runtime` of the manifest, with the tensors that the file does not name."""
    return {"kind": "torch", "file": FILE, "precision": "fp32", "options": {"inputs": taken, "outputs": given}}


def refuse_bomb(path: Path) -> None:
    """Torch stores weights as they are; what is deflated in its archives is text.

    Raises:
        ImportRefused: a record would unpack to more than the limit, or all of them.
    """
    with open_zip(path) as archive:
        records = archive.infolist()
    total = sum(record.file_size for record in records)
    deflated = max((each.file_size for each in records if each.compress_type != zipfile.ZIP_STORED), default=0)
    for found, limit in ((total, _LARGEST_BYTES), (deflated, _LARGEST_DEFLATED_BYTES)):
        if found > limit:
            raise ImportRefused(
                f"{path.name} would unpack to {found} bytes, the limit is {limit}",
                details={"bytes": found, "limit": limit},
            )


def _said_by_itself(path: Path) -> tuple[str, str] | None:
    """Input and output, where `isocenter export` has written the file, which notes them in it."""
    with open_zip(path) as archive:
        record = next((each for each in archive.namelist() if each.partition("/")[2] == _PORTS), None)
        if record is None or archive.getinfo(record).file_size > _LARGEST_PORTS_BYTES:
            return None
        text = read_member(archive, record, limit_bytes=_LARGEST_PORTS_BYTES, package=path.name)
    try:
        said = json.loads(text)
        (taken,), (given,) = said["inputs"], said["outputs"]
        return _checked(_as_text(taken)), _checked(_as_text(given))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ImportRefused(f"{path.name}: its {PORTS_FILE} names no single input and output") from error


def _as_text(port: dict[str, Any]) -> str:
    return f"{port['name']}: {port['dtype']}[{', '.join(str(int(size)) for size in port['shape'])}]"


def _checked(text: str) -> str:
    _tensor(text)
    return text


def _tensor(text: str) -> Tensor:
    from isocenter.runtimes.torch import tensor_specs

    try:
        found = tensor_specs(text)
    except BadManifest as error:
        raise ValueError(error.message) from error
    if len(found) != 1 or found[0].dtype != "float32":
        raise ValueError("one float32 tensor")
    return Tensor(found[0].name, tuple(None if size < 0 else size for size in found[0].shape))
