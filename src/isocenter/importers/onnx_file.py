"""`isocenter import model.onnx`: the graph says names and sizes, a person says what they mean."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from isocenter.core.errors import BadManifest, ImportRefused
from isocenter.importers.answers import Answers, Question
from isocenter.importers.bare import Tensor, describe
from isocenter.importers.batch_axis import open_batch_axis
from isocenter.importers.folder import Imported
from isocenter.repository.accuracy import DIFFERENCE, FALLBACK_DIFFERENCE
from isocenter.runtimes.onnx_file import OnnxFile, Port
from isocenter.runtimes.onnx_graph import vetted

FILE: Final = "model.onnx"
_TAKEN: Final = (FILE, "model.yaml", "golden", "published", DIFFERENCE, FALLBACK_DIFFERENCE)


def read(path: Path, answers: Answers, *, name: str, version: int = 1) -> Imported:
    """Read a bare ONNX file.

    External data comes along if it lies in the file's own folder. A batch axis that is fixed at 1 is opened.

    Raises:
        ImportRefused: it is no ONNX file, reads files elsewhere, is not a model of one float32 input, or a question is
            not answered.
    """
    try:
        found = vetted(path)
    except BadManifest as error:
        raise ImportRefused(error.message, details=error.details) from error
    beside = {location: path.parent / location for location in found.external}
    for location, file in beside.items():
        if not file.is_file() or file.samefile(path):
            raise ImportRefused(f"{path.name} has weights in {location!r}, which is not there")
    port = _output(found, answers)
    content: bytes | Path = path
    notes: list[str] = []
    opened = has_fixed_batch(found)
    if opened:
        content, note = with_open_batch(path.read_bytes())
        notes.append(note)
    described = describe(input_of(path.name, found), tensor(port), answers, name=name, version=version)
    manifest = {**described.manifest, "runtime": runtime_part(beside)}
    if len(found.outputs) > 1:
        manifest.setdefault("output", {"tensor": port.name})
    files = {FILE: content, **{str(PurePosixPath(location)): file for location, file in beside.items()}}
    return Imported(manifest, files, [described.case], [*notes, *described.notes], batch_axis_opened=opened)


def runtime_part(beside: Mapping[str, object]) -> dict[str, Any]:
    """`runtime` of the manifest; digests are filled in when it is written.

    Raises:
        ImportRefused: a file beside it would take the place of one of the folder's own.
    """
    for location in beside:
        if PurePosixPath(location).parts[0] in _TAKEN:
            raise ImportRefused(
                f"it has weights in {location!r}, a name that a version's folder has for something else"
            )
    part: dict[str, Any] = {"kind": "onnxruntime", "file": FILE, "precision": "fp32"}
    if beside:
        part["beside"] = [{"file": str(PurePosixPath(location))} for location in beside]
    return part


def with_open_batch(content: bytes) -> tuple[bytes, str]:
    """A graph with an open batch axis, and what to say of it.

    Raises:
        ImportRefused: the axis is fixed at more than 1.
    """
    note = "the batch axis was fixed at 1 and is open now: the digest is no longer that of the file that was imported"
    return open_batch_axis(content), note


def has_fixed_batch(found: OnnxFile) -> bool:
    """Whether axis 0 of a tensor has a size."""
    return any(port.shape and isinstance(port.shape[0], int) for port in (*found.inputs, *found.outputs))


def input_of(name: str, found: OnnxFile) -> Tensor:
    """The one input of the graph.

    Raises:
        ImportRefused: there are several, or it is not float32.
    """
    if len(found.inputs) != 1:
        there = ", ".join(port.name for port in found.inputs) or "none"
        raise ImportRefused(f"{name} has the inputs {there}; a model of one input is imported")
    return tensor(found.inputs[0])


def tensor(port: Port) -> Tensor:
    """A float32 tensor without its batch axis.

    Raises:
        ImportRefused: it is of another type, or of a shape that the file does not say.
    """
    if port.dtype != "float32":
        raise ImportRefused(f"tensor {port.name!r} is {port.dtype}; float32 is imported", details={"tensor": port.name})
    if not port.shape:
        raise ImportRefused(f"the file does not say how many axes tensor {port.name!r} has: export it with its shapes")
    return Tensor(port.name, tuple(size if isinstance(size, int) and size > 0 else None for size in port.shape[1:]))


def _output(found: OnnxFile, answers: Answers) -> Port:
    names = tuple(port.name for port in found.outputs)
    if len(names) == 1:
        return found.outputs[0]
    chosen = answers.get(Question("output", "Which of its outputs is the answer?", names), str)
    return found.outputs[names.index(chosen)]
