"""What an importer has read, and how it becomes a version of a model: whole and proven, or not at all."""

import hashlib
import math
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import yaml

from isocenter.core.errors import (
    BadManifest,
    BatchVariance,
    DigestMismatch,
    ImportRefused,
    NumericFailure,
    RuntimeFault,
)
from isocenter.core.tensor import FloatArray
from isocenter.repository.integrity import check_digest, sha256_of
from isocenter.repository.layout import ModelFolder, find
from isocenter.repository.load import prove
from isocenter.repository.manifest import MODEL_NAME, read_manifest
from isocenter.repository.sessions import open_one
from isocenter.runtimes.registry import AUTO

_MOST_VALUES: Final = 2**28
_SEED: Final = 20_001
_CASE_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class TensorCase:
    """A golden case: one item as the model takes it and its raw output, float32, both without a batch axis."""

    name: str
    input: FloatArray
    output: FloatArray | None
    """None: what the model gives when it is written becomes the golden output."""
    accepts: Callable[[FloatArray], None] | None = None
    """Called with that, so that an importer can hold it against what was published; raises GoldenMismatch."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A model as an importer has read it; nothing is written yet."""

    manifest: dict[str, Any]
    """`model.yaml`. A `sha256` that is left out is filled in; one that is there must be that of the file."""
    files: dict[str, bytes | Path]
    """Weights and whatever else belongs beside `model.yaml`, by name inside the folder: bytes, or a file to copy."""
    golden: list[TensorCase]
    notes: list[str] = field(default_factory=list)
    """What a person should know of the import, a sentence each."""
    batch_axis_opened: bool = False
    """The file had a fixed batch axis. If it does not answer alike in a batch, its largest batch becomes 1."""


def write_folder(models: Path, made: Imported, *, proven: bool = True) -> ModelFolder:
    """Write `<models>/<name>/<version>`: built under another name, proven as `serve` does, then renamed.

    With `proven=False` it is written whether or not it can become ready, which `serve` decides for itself. What is
    worth knowing of how it went is appended to `made.notes`.

    Raises:
        ImportRefused: the version is there already, or a name is not one that a model folder may hold.
        BadManifest: what was read is no manifest, or names a file that does not come with it.
        DigestMismatch: a file has not the digest that the manifest names.
        SetupError, ModelFault: it does not open, misses its golden outputs, or answers otherwise in a batch.
            Nothing is left of it.
    """
    name, version = made.manifest.get("name"), made.manifest.get("version")
    if not isinstance(name, str) or not MODEL_NAME.fullmatch(name):
        raise ImportRefused(f"name {name!r}: lower-case letters, digits, '.', '_' and '-' only")
    if type(version) is not int or version < 1:
        raise ImportRefused(f"version {version!r} must be a whole number from 1")
    target = models / name / str(version)
    _refuse_existing(target)
    made_for_it = not target.parent.exists()
    building = target.parent / f".{version}.{secrets.token_hex(4)}"
    building.mkdir(parents=True)
    try:
        _write(building, made)
        if proven:
            _prove(building, made)
        _refuse_existing(target)
        building.rename(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        if made_for_it:
            _remove_if_empty(target.parent)
        raise
    return find(models, name, version)


def noise(shape: tuple[int, ...]) -> FloatArray:
    """One item of a golden case, for a model that publishes none.

    Raises:
        ImportRefused: it would be larger than any item that is served.
    """
    if (values := math.prod(shape)) > _MOST_VALUES:
        raise ImportRefused(
            f"one item of {' x '.join(map(str, shape))} has {values} values, the limit is {_MOST_VALUES}",
            details={"values": values, "limit": _MOST_VALUES},
        )
    return np.random.default_rng(_SEED).standard_normal(shape, dtype=np.float32)


def next_version(models: Path, name: str) -> int:
    """One more than the highest version of a model; 1 if there is none.

    >>> next_version(Path("no such folder"), "lungs")
    1
    """
    folder = models / name
    taken = [int(path.name) for path in folder.iterdir() if _is_version(path)] if folder.is_dir() else []
    return max(taken, default=0) + 1


def _prove(folder: Path, made: Imported) -> None:
    opened = _opened(folder)
    _fill_in_golden(opened, made.golden)
    try:
        prove(opened)
    except (BatchVariance, RuntimeFault) as error:
        size = opened.manifest.batching.max_batch_size
        if not made.batch_axis_opened or size == 1:
            raise
        batching = {**made.manifest.get("batching", {}), "max_batch_size": 1}
        batching.pop("preferred_batch_sizes", None)
        _write_manifest(folder, {**made.manifest, "batching": batching})
        prove(_opened(folder))
        made.notes.append(f"one item a batch: in a batch of {size} it fails or answers otherwise ({error.message})")


def _opened(folder: Path) -> ModelFolder:
    return ModelFolder(folder, read_manifest(folder / "model.yaml"))


def _fill_in_golden(folder: ModelFolder, cases: list[TensorCase]) -> None:
    """Compute the golden outputs that are left out."""
    missing = [case for case in cases if case.output is None]
    if not missing:
        return
    check_digest(folder)
    session = open_one(folder)
    try:
        taken = folder.manifest.input.tensor or session.inputs[0].name
        given = folder.manifest.output.tensor or session.outputs[0].name
        for case in missing:
            output = np.array(session.run({taken: case.input[None]})[given][0], dtype=np.float32)
            if not np.isfinite(output).all():
                raise NumericFailure(f"golden case {case.name}: the model gives NaN or infinity")
            if case.accepts is not None:
                case.accepts(output)
            _save(folder.golden / f"{case.name}.output.npy", output)
    finally:
        session.close()


def _is_version(path: Path) -> bool:
    return path.name.isascii() and path.name.isdecimal()


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise ImportRefused(
            f"{target.parent.name} {target.name} is there already: a version is never overwritten; "
            f"--version {next_version(target.parent.parent, target.parent.name)} is free",
            details={"name": target.parent.name, "version": target.name},
        )


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # someone else has put something there meanwhile
        return


def _write(folder: Path, made: Imported) -> None:
    for name, content in made.files.items():
        file = folder / _checked(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            shutil.copyfile(content, file)
    _write_golden(folder / "golden", made.golden)
    _write_manifest(folder, made.manifest)


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = yaml.safe_dump(
        _with_digests(folder, _with_runtime(manifest)), sort_keys=False, allow_unicode=True, width=118
    )
    (folder / "model.yaml").write_text(text, encoding="utf-8")


def _with_runtime(manifest: dict[str, Any]) -> dict[str, Any]:
    """An ONNX file of a model of volumes is run by what is quickest where it is served.

    Not one whose windows are summed in half precision, as another program does: there a last bit that differs may
    round a sum the other way, and a label with it. That one keeps the runtime whose answers are nearest to torch's.
    """
    runtime = manifest.get("runtime", {})
    plain = runtime.get("kind") == "onnxruntime" and runtime.get("precision", "fp32") == "fp32"
    on_cpu = manifest.get("instances", {}).get("device", "cpu") == "cpu"
    volumes = manifest.get("input", {}).get("kind") == "volume3d"
    if not (plain and on_cpu and volumes and str(runtime.get("file", "")).endswith(".onnx")) or runtime.get("options"):
        return manifest
    if manifest.get("sliding", {}).get("sums") == "fp16":
        return manifest
    return {**manifest, "runtime": {**runtime, "kind": AUTO}}


def _checked(name: str) -> PurePosixPath:
    """A name inside of the folder that is not one of the folder's own."""
    path = PurePosixPath(name)
    plain = bool(path.parts) and not path.is_absolute() and "\\" not in name and "\0" not in name
    if not plain or any(part == ".." or part.startswith(".") for part in path.parts):
        raise ImportRefused(f"file name {name!r} does not lie inside the version's folder")
    if path.parts[0] == "model.yaml":
        raise ImportRefused(f"file name {name!r} is the folder's own")
    return path


def _write_golden(folder: Path, cases: list[TensorCase]) -> None:
    if not cases:
        return
    folder.mkdir(exist_ok=True)
    for case in cases:
        if not _CASE_NAME.fullmatch(case.name):
            raise ImportRefused(f"golden case {case.name!r}: letters, digits, '.', '_' and '-' only")
        for kind, values in (("input", case.input), ("output", case.output)):
            if values is None:
                continue
            if values.dtype != np.float32:
                raise ImportRefused(f"golden case {case.name}: its {kind} is {values.dtype}, not float32")
            _save(folder / f"{case.name}.{kind}.npy", values)


def _save(file: Path, values: FloatArray) -> None:
    if file.exists():
        raise ImportRefused(f"golden file {file.name} comes twice")
    np.save(file, np.ascontiguousarray(values), allow_pickle=False)


def _with_digests(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the digest of every file that it names.

    Raises:
        BadManifest: such a file does not come with the model.
        DigestMismatch: it has another digest than the manifest says.
    """
    copied: dict[str, Any] = _copy(manifest)
    for part in _parts_with_files(copied):
        file = folder / _checked(str(part["file"]))
        if not file.is_file():
            raise BadManifest(f"the manifest names {part['file']!r}, which does not come with the model")
        found = sha256_of(file)
        check_named_digest(str(part["file"]), found, part.get("sha256"))
        part["sha256"] = found
    return copied


def check_named_digest(name: str, found: str, named: object) -> None:
    """Hold a digest against the one that a package names for the file; None if it names none.

    Raises:
        DigestMismatch: it is another one.
    """
    if named is not None and str(named).lower() != found:
        raise DigestMismatch(
            f"{name} has sha256 {found[:12]}…, the package names {str(named)[:12]}…",
            details={"file": name, "found": found, "named": str(named)},
        )


def sha256_of_bytes(content: bytes) -> str:
    """The digest of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _parts_with_files(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`runtime`, `fallback`, the files beside them, and the members of an ensemble: what has a file and a digest."""
    ensemble = manifest.get("ensemble") or {}
    for part in (manifest.get("runtime"), manifest.get("fallback"), *ensemble.get("members", ())):
        if isinstance(part, dict):
            if part.get("file") is not None:
                yield part
            yield from part.get("beside", ())


def _copy(value: Any) -> Any:
    """A deep copy without what YAML cannot write: tuples become lists."""
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list | tuple) else value
