"""`isocenter import` of a bioimage.io package: a folder or zip with `rdf.yaml` or `bioimageio.yaml`, format 0.4 or 0.5.

https://bioimage-io.github.io/spec-bioimage-io. The package publishes an input and the output that belongs to it: the
version is written only if it gives this output, within the tolerance of the format. Nothing of a package is run or
unpickled, and nothing is fetched.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from isocenter.core.errors import BadInput, BadManifest, GoldenMismatch, ImportRefused
from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.postprocess.activation import masks_of, probabilities_of
from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline
from isocenter.imaging.transforms.arrays.steps import ArraySteps
from isocenter.imaging.volume import Volume
from isocenter.importers.bioimageio_axes import Axis, axes_of
from isocenter.importers.bioimageio_steps import Answer, Step, answer_of, steps_of
from isocenter.importers.folder import Imported, TensorCase, check_named_digest, sha256_of_bytes
from isocenter.importers.kinds import BIOIMAGEIO_FILES
from isocenter.importers.onnx_file import FILE as ONNX_FILE
from isocenter.importers.onnx_file import has_fixed_batch, runtime_part, with_open_batch
from isocenter.importers.package import WEIGHTS_LIMIT_BYTES, Package, open_package
from isocenter.importers.torchscript_file import FILE as TORCHSCRIPT_FILE
from isocenter.importers.torchscript_file import runtime_part as torch_part
from isocenter.repository.golden import UNREADABLE
from isocenter.repository.integrity import deviation
from isocenter.repository.manifest import MODEL_NAME, GoldenPart
from isocenter.repository.plain_yaml import load_plain
from isocenter.runtimes.onnx_file import OnnxFile, parse_onnx
from isocenter.runtimes.registry import RUNTIMES, installed

_TENSOR_LIMIT_BYTES: Final = 2 * 2**30
_TOLERANCE: Final = GoldenPart()
"""Of the format: |out - ref| <= 1e-3 + 1e-3 |ref|, and at most 100 in a million may miss it."""
_LEAST_OVERLAP, _MOST_OVERLAP = 0.25, 0.75
_BATCH: Final = 4
_LINE: Final = 500
_READ: Final = {"onnx": "onnxruntime", "torchscript": "torch"}
"""Formats of weights in the order of preference, and the runtime of each."""


@dataclass(frozen=True, slots=True)
class _Weights:
    runtime: dict[str, Any]
    files: dict[str, bytes]
    input_name: str
    output_name: str
    opened: bool
    notes: list[str]


def read(
    path: Path,
    *,
    name: str | None = None,
    version: int = 1,
    labels: Sequence[str] = (),
    threshold: float | None = None,
) -> Imported:
    """Read a package.

    Args:
        path: a folder or zip with `rdf.yaml`, `bioimageio.yaml` or `model.yaml`.
        name: of the model; the package's own if left out.
        version: of the model.
        labels: one a channel of the output, in place of the names that the package has for them.
        threshold: from which value on a voxel has a label, where the package does not say.

    Raises:
        ImportRefused: it is no package of one input and one output, or asks for something that is not known here.
        DigestMismatch: a file is not the one that the package names.
    """
    for file in BIOIMAGEIO_FILES:
        try:
            with open_package(path, holds=file) as package:
                return _read(package, _described(package, file), name, version, list(labels), threshold)
        except ImportRefused as error:
            if f"no {file} in it" not in error.message:
                raise
    raise ImportRefused(f"{path.name} holds none of {', '.join(BIOIMAGEIO_FILES)}")


def _read(
    package: Package,
    said: dict[str, Any],
    name: str | None,
    version: int,
    labels: list[str],
    threshold: float | None,
) -> Imported:
    taken, given = _only(said, "inputs"), _only(said, "outputs")
    axes, output_axes = axes_of(taken, "the input"), axes_of(given, "the output")
    if [axis.id for axis in axes] != [axis.id for axis in output_axes]:
        raise ImportRefused("the output has other axes than the input")
    published = _tensor(package, said, taken, "input"), _tensor(package, said, given, "output")
    if any(array.ndim != len(axes) or not len(array) for array in published):
        raise ImportRefused(f"the test tensors have {published[0].ndim} and {published[1].ndim} axes, not {len(axes)}")
    one, expected = (np.asarray(array[0], np.float32) for array in published)
    if one.shape[1:] != expected.shape[1:]:
        raise ImportRefused(f"the output is {list(expected.shape[1:])} voxels for {list(one.shape[1:])} of the input")
    steps, answer = steps_of(taken, axes), answer_of(given, output_axes)
    if threshold is None:
        threshold = answer.threshold
    if answer.activation == "none" and threshold is None:
        raise ImportRefused(
            "the package does not say from which value on a voxel has a label: --threshold",
            details={"flag": "--threshold"},
        )
    weights = _weights(package, said, taken, given, one.shape, expected.shape)
    prepared = _prepared(one, steps)
    manifest = {
        "schema": 1,
        "name": name or _slug(str(said.get("name") or package.name)),
        "version": version,
        "title": _line(said.get("name")),
        "description": _line(said.get("description")),
        "license": _line(said.get("license")),
        "task": "segmentation",
        "runtime": weights.runtime,
        "input": {
            "kind": "image2d" if one.ndim == 3 else "volume3d",
            "tensor": weights.input_name,
            "channels": _names(axes, len(one)),
        },
        # A volume comes in the order of its own axes; the package's are z, y, x.
        "steps": [*([{"kind": "orient", "axcodes": "SPL"}] if one.ndim == 4 else []), *steps],
        "sliding": _sliding(output_axes, one.shape[1:]),
        "output": {
            "tensor": weights.output_name,
            "activation": answer.activation,
            "labels": _labels(labels, output_axes, len(expected)),
            **({"threshold": threshold} if threshold is not None else {}),
        },
        "batching": {"max_batch_size": _BATCH},
        "golden": _TOLERANCE.model_dump(),
    }
    case = TensorCase("published", prepared, None, lambda output: _check(output, expected, answer))
    notes = [*weights.notes, *_notes(said, answer, threshold, one.shape[1:])]
    kept = {"published/test_input.npy": _npy(one), "published/test_output.npy": _npy(expected)}
    return Imported(manifest, {**weights.files, **kept}, [case], notes, batch_axis_opened=weights.opened)


def _described(package: Package, file: str) -> dict[str, Any]:
    try:
        said = load_plain(package.read(file).decode())
    except ValueError as error:
        raise ImportRefused(f"{file} is not YAML: {_line(error)[:200]}") from error
    if not isinstance(said, dict) or said.get("type", "model") != "model":
        raise ImportRefused(f"{file} does not describe a model")
    found = str(said.get("format_version", ""))
    if not re.fullmatch(r"0\.[45]\.\d+", found):
        raise ImportRefused(f"{file} is of format {found or 'unknown'}; 0.4 and 0.5 are read")
    return said


def _only(said: Mapping[str, Any], side: str) -> dict[str, Any]:
    there = said.get(side)
    if not isinstance(there, list) or len(there) != 1 or not isinstance(there[0], dict):
        count = len(there) if isinstance(there, list) else 0
        raise ImportRefused(f"the package has {count} {side}; a model of one input and one output is imported")
    return there[0]


def _tensor(package: Package, said: Mapping[str, Any], tensor: Mapping[str, Any], side: str) -> Array:
    """The published test tensor, with its batch axis."""
    source = tensor.get("test_tensor")
    if source is None and isinstance(listed := said.get(f"test_{side}s"), list) and listed:
        source = listed[0]
    file, content = _file(package, source, f"test {side}", _TENSOR_LIMIT_BYTES)
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except UNREADABLE as error:
        raise ImportRefused(f"{file} is not an array: {type(error).__name__}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uifb":
        raise ImportRefused(f"{file} is not an array of numbers")
    return array


def _file(package: Package, source: object, what: str, limit_bytes: int) -> tuple[str, bytes]:
    """A file of the package: its name and content, of the digest that the package names for it."""
    named = source.get("sha256") if isinstance(source, Mapping) else None
    file = source.get("source") if isinstance(source, Mapping) else source
    if not isinstance(file, str) or not file:
        raise ImportRefused(f"the package names no {what}")
    file = _inside(file, what)
    content = package.read(file, limit_bytes=limit_bytes)
    check_named_digest(file, sha256_of_bytes(content), named)
    return file, content


def _inside(file: str, what: str) -> str:
    path = PurePosixPath(file)
    if "://" in file or path.is_absolute() or ".." in path.parts or "\\" in file:
        raise ImportRefused(f"the {what} is {file!r}, which is not in the package; nothing is fetched")
    return str(path)


def _weights(
    package: Package,
    said: Mapping[str, Any],
    taken: Mapping[str, Any],
    given: Mapping[str, Any],
    taken_shape: tuple[int, ...],
    given_shape: tuple[int, ...],
) -> _Weights:
    there = said.get("weights")
    if not isinstance(there, dict):
        raise ImportRefused("the package has no weights")
    reasons = [f"{kind}: not read" for kind in there if kind not in _READ]
    for kind, runtime in _READ.items():
        entry = there.get(kind)
        if not isinstance(entry, dict):
            continue
        if not installed(RUNTIMES[runtime].needs):
            reasons.append(f'{kind}: pip install "isocenter[{RUNTIMES[runtime].extra}]"')
        elif (file := str(entry.get("source"))) and ("://" in file or file not in package):
            reasons.append(f"{kind}: {file} is not in the package")
        elif kind == "onnx":
            return _onnx(package, entry)
        else:
            _, content = _file(package, entry, "torchscript", WEIGHTS_LIMIT_BYTES)
            names = _port(taken, "input"), _port(given, "output")
            specs = (_spec(names[0], taken_shape), _spec(names[1], given_shape))
            return _Weights(torch_part(*specs), {TORCHSCRIPT_FILE: content}, *names, False, [])
    raise ImportRefused(f"no weights that can be used: {'; '.join(reasons)}")


def _onnx(package: Package, entry: Mapping[str, Any]) -> _Weights:
    file, content = _file(package, entry, "onnx", WEIGHTS_LIMIT_BYTES)
    try:
        found = parse_onnx(file, memoryview(content))
    except BadManifest as error:
        raise ImportRefused(error.message) from error
    if len(found.inputs) != 1 or len(found.outputs) != 1:
        raise ImportRefused(f"{file} has {len(found.inputs)} inputs and {len(found.outputs)} outputs, one each is read")
    notes = []
    files = _beside(package, PurePosixPath(file).parent, entry, found)
    runtime = runtime_part(files)
    if opened := has_fixed_batch(found):
        content, note = with_open_batch(content)
        notes.append(note)
    return _Weights(
        runtime, {ONNX_FILE: content, **files}, found.inputs[0].name, found.outputs[0].name, opened, notes
    )  # fmt: skip


def _beside(package: Package, folder: PurePosixPath, entry: Mapping[str, Any], found: OnnxFile) -> dict[str, bytes]:
    """External data, by the name that the graph has for it."""
    external = entry.get("external_data")
    said = external if isinstance(external, dict) else {}
    files: dict[str, bytes] = {}
    for location in found.external:
        source = str(folder / _inside(location, "external data"))
        named = said.get("sha256") if said.get("source") == source else None
        files[location] = _file(package, {"source": source, "sha256": named}, "external data", WEIGHTS_LIMIT_BYTES)[1]
    return files


def _port(tensor: Mapping[str, Any], otherwise: str) -> str:
    return re.sub(r"[^\w.\-]", "_", str(tensor.get("id", tensor.get("name", otherwise)))) or otherwise


def _spec(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}: float32[{', '.join(map(str, shape))}]"


def _prepared(one: FloatArray, steps: list[Step]) -> FloatArray:
    """The published input as the model takes it; in the package's own order of axes."""
    try:
        checked = TypeAdapter[ArraySteps](ArraySteps).validate_python(steps)
        return ArrayPipeline(checked)(Volume.of(one)).tensor
    except ValidationError as error:
        raise ImportRefused(f"preprocessing: {error.errors()[0]['msg']}") from error
    except BadInput as error:
        raise ImportRefused(f"preprocessing refuses the published input: {error.message}") from error


def _check(output: FloatArray, published: FloatArray, answer: Answer) -> None:
    found = probabilities_of(output, answer.activation)
    given = found if answer.threshold is None else masks_of(found, answer.threshold)
    said = deviation(given, published, _TOLERANCE)
    if not said.within(_TOLERANCE):
        raise GoldenMismatch(
            f"the published output is missed: {said.misses} of {said.values} values are off by more than "
            f"{_TOLERANCE.absolute:g} + {_TOLERANCE.relative:g}|ref|, the worst by {said.worst:.3g}",
            details={"misses": said.misses, "values": said.values, "worst": said.worst},
        )


def _sliding(axes: Sequence[Axis], roi: Sequence[int]) -> dict[str, Any]:
    """Windows of the published size, which overlap so far that no border that is not to be trusted decides alone."""
    halos = [axis.halo_px for axis in axes if axis.kind == "space"]
    share = max(2 * halo / side for halo, side in zip(halos, roi, strict=True))
    if share > _MOST_OVERLAP:
        raise ImportRefused(
            f"a halo of {', '.join(map(str, halos))} leaves too little of a window of {' x '.join(map(str, roi))}, the "
            "size of the test tensor",
            details={"halo": halos, "window": list(roi)},
        )
    overlap = max(_LEAST_OVERLAP, math.ceil(share * 100) / 100)
    return {"roi": list(roi), "overlap": overlap, "mode": "gaussian"}


def _names(axes: Sequence[Axis], channels: int) -> list[str]:
    found = next(axis.channels for axis in axes if axis.kind == "channel")
    return list(found) if len(found) == channels else [f"channel-{index}" for index in range(channels)]


def _labels(given: list[str], axes: Sequence[Axis], channels: int) -> list[str]:
    labels = given or _names(axes, channels)
    if len(labels) != channels:
        raise ImportRefused(f"{len(labels)} labels, the output has {channels} channels", details={"labels": labels})
    return labels


def _notes(said: Mapping[str, Any], answer: Answer, threshold: float | None, sides: tuple[int, ...]) -> list[str]:
    notes = [
        f"the published output was reproduced within {_TOLERANCE.absolute:g} + {_TOLERANCE.relative:g}|ref|; "
        "both published tensors are kept in published/",
        f"run in windows of the published size, {' x '.join(map(str, sides))}",
    ]
    if answer.activation == "sigmoid" and threshold is None:
        notes.append("the package does not say from which probability on a voxel has a label: 0.5 is taken")
    cited = said.get("cite")
    first = next(iter(cited), None) if isinstance(cited, list) else cited
    if text := _line(first.get("text") if isinstance(first, dict) else first):
        notes.append(f"to be cited: {text}")
    return notes


def _npy(values: FloatArray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _slug(text: str) -> str:
    found = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64].rstrip("-._")
    if not MODEL_NAME.fullmatch(found):
        raise ImportRefused(f"{text!r} gives no name for a model: --name", details={"flag": "--name"})
    return found


def _line(value: object) -> str:
    return " ".join(str(value).split())[:_LINE] if value is not None else ""
