"""A model folder as a Triton model repository: `<out>/<name>/config.pbtxt`, `<out>/<name>/<version>/` with the weights.

What Triton runs is what the file says, in the batches that the manifest says. Pixels, labels and proofs stay here:
point `runtime: {kind: triton, url: …}` at it, and golden cases are held against its answers.
"""

import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np

from isocenter.core.errors import BadManifest, SetupError
from isocenter.core.tensor import TensorSpec
from isocenter.importers.triton_python import MODEL_PY
from isocenter.repository.integrity import check_digest
from isocenter.repository.layout import ModelFolder
from isocenter.repository.load import warm_up_sizes
from isocenter.repository.manifest import Manifest
from isocenter.repository.sessions import open_one

Backend: TypeAlias = Literal["native", "python"]
"""The one made for the kind of file; or Triton's python backend, whose `model.py` runs ONNX Runtime."""

DATA_TYPES: Final = {
    np.dtype(np.bool_): "TYPE_BOOL",
    np.dtype(np.uint8): "TYPE_UINT8",
    np.dtype(np.uint16): "TYPE_UINT16",
    np.dtype(np.uint32): "TYPE_UINT32",
    np.dtype(np.uint64): "TYPE_UINT64",
    np.dtype(np.int8): "TYPE_INT8",
    np.dtype(np.int16): "TYPE_INT16",
    np.dtype(np.int32): "TYPE_INT32",
    np.dtype(np.int64): "TYPE_INT64",
    np.dtype(np.float16): "TYPE_FP16",
    np.dtype(np.float32): "TYPE_FP32",
    np.dtype(np.float64): "TYPE_FP64",
}


@dataclass(frozen=True, slots=True)
class _Native:
    """How Triton takes one kind of file."""

    line: str
    """What names the backend in the configuration."""
    file: str
    beside: str = ""
    """The name of the one file beside it; empty: files beside it keep their names."""


_LIBTORCH: Final = 'platform: "pytorch_libtorch"'
_NATIVE: Final = {
    ("onnxruntime", ".onnx"): _Native('platform: "onnxruntime_onnx"', "model.onnx"),
    ("openvino", ".onnx"): _Native('platform: "onnxruntime_onnx"', "model.onnx"),
    ("openvino", ".xml"): _Native('backend: "openvino"', "model.xml", "model.bin"),
    ("torch", ".pt"): _Native(_LIBTORCH, "model.pt"),
    ("torch", ".ts"): _Native(_LIBTORCH, "model.pt"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonConfig:
    """What a `config.pbtxt` says. Shapes are without a batch axis."""

    name: str
    backend_line: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    max_batch_size: int
    preferred_batch_sizes: Sequence[int]
    max_queue_delay_us: int
    max_queue_size: int
    instances: int
    gpu: int | None
    """The number of the GPU; None: the CPU."""
    warm_up_sizes: Sequence[int]
    parameters: Sequence[tuple[str, str]] = ()

    def text(self) -> str:
        """In protobuf's text format."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"name: {_quoted(self.name)}"
        yield self.backend_line
        yield f"max_batch_size: {self.max_batch_size}"
        yield from _listed("input", [_tensor(spec) for spec in self.inputs])
        yield from _listed("output", [_tensor(spec) for spec in self.outputs])
        yield "dynamic_batching {"
        if self.preferred_batch_sizes:
            yield f"  preferred_batch_size: [{', '.join(map(str, self.preferred_batch_sizes))}]"
        yield f"  max_queue_delay_microseconds: {self.max_queue_delay_us}"
        yield f"  default_queue_policy {{ max_queue_size: {self.max_queue_size} }}"
        yield "}"
        where = ["kind: KIND_CPU"] if self.gpu is None else ["kind: KIND_GPU", f"gpus: [{self.gpu}]"]
        yield from _listed("instance_group", [[f"count: {self.instances}", *where]])
        if all(-1 not in spec.shape for spec in self.inputs):  # what runs first there must have a shape
            yield from _listed("model_warmup", [self._warm_up(size) for size in self.warm_up_sizes])
        for key, value in self.parameters:
            yield f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'

    def _warm_up(self, size: int) -> list[str]:
        inputs = [
            f"inputs {{ key: {_quoted(spec.name)} value: {{ data_type: {DATA_TYPES[spec.dtype]} "
            f"dims: {list(spec.shape)} zero_data: true }} }}"
            for spec in self.inputs
        ]
        return [f'name: "batch of {size}"', f"batch_size: {size}", *inputs]


def write_triton_repository(
    folder: ModelFolder,
    out: Path,
    *,
    backend: Backend = "native",
    max_queue_delay_us: int | None = None,
    instances: int | None = None,
) -> Path:
    """Write one version into a repository, whole or not at all; gives the model's folder there.

    Args:
        folder: a version whose weights are a file. It is opened, for its tensors.
        out: the repository; made if it is not there. Other models and versions in it stay.
        backend: `python` also serves where a server was built without the native one.
        max_queue_delay_us: how long Triton lets a request wait for company; as the manifest says if None. 0 where
            Isocenter is in front of it, which has formed the batch already.
        instances: how many sessions Triton opens; as the manifest says if None.

    Raises:
        BadManifest: the repository could not carry it: an ensemble, an augmentation, a precision that is the runtime's
            and not the file's, a kind of file that Triton does not run.
        SetupError: the version is there already, or another version with another configuration.
    """
    manifest = folder.manifest
    native = _checked(manifest, backend)
    check_digest(folder)
    session = open_one(folder)
    try:
        config = _config(manifest, native, session.inputs, session.outputs, backend, max_queue_delay_us, instances)
    finally:
        session.close()
    return _written(folder, out / manifest.name, config.text(), native, backend)


def _checked(manifest: Manifest, backend: Backend) -> _Native:
    runtime, name = manifest.runtime, f"{manifest.name} {manifest.version}"
    if runtime.file is None:
        raise BadManifest(f"{name} has no file: it is served by {runtime.url}")
    if manifest.ensemble is not None or manifest.augmentation is not None:
        what = "an ensemble" if manifest.ensemble is not None else "an augmentation"
        raise BadManifest(f"{name} is {what} of several runs, and Triton would answer with one of them")
    native = _NATIVE.get((manifest.runtime_kind, Path(runtime.file).suffix))
    if native is None or runtime.options.get("network"):
        raise BadManifest(f"Triton does not run {runtime.file} of runtime {runtime.kind}; export it to ONNX first")
    if backend == "python" and native.file != "model.onnx":
        raise BadManifest(f"the python backend runs ONNX files here, not {runtime.file}")
    if manifest.runtime_kind != "onnxruntime" and runtime.precision not in ("fp32", "int8"):
        raise BadManifest(
            f"{name} computes in {runtime.precision} by its runtime's doing; its file alone would compute in another"
        )
    if len(runtime.beside) > 1 and native.beside:
        raise BadManifest(f"{runtime.file} has {len(runtime.beside)} files beside it, Triton takes one")
    return native


def _config(
    manifest: Manifest,
    native: _Native,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    backend: Backend,
    max_queue_delay_us: int | None,
    instances: int | None,
) -> TritonConfig:
    batching, threads = manifest.batching, manifest.instances.threads
    kind, _, index = manifest.instances.device.partition(":")
    delay_us = round(1e3 * batching.max_queue_delay_ms) if max_queue_delay_us is None else max_queue_delay_us
    parameters = []
    if native.line == _LIBTORCH:
        inputs, outputs = _by_place(inputs), _by_place(outputs)
    if threads != "auto" and native.file == "model.onnx":
        parameters.append(("intra_op_thread_count", str(threads)))
    return TritonConfig(
        name=manifest.name,
        backend_line='backend: "python"' if backend == "python" else native.line,
        inputs=inputs,
        outputs=outputs,
        max_batch_size=batching.max_batch_size,
        preferred_batch_sizes=batching.preferred_batch_sizes,
        max_queue_delay_us=delay_us,
        max_queue_size=batching.max_queue_size,
        instances=manifest.instances.count if instances is None else instances,
        gpu=int(index or 0) if kind == "cuda" else None,
        warm_up_sizes=warm_up_sizes(manifest),
        parameters=parameters,
    )


def _written(folder: ModelFolder, model: Path, config: str, native: _Native, backend: Backend) -> Path:
    version = model / str(folder.manifest.version)
    if version.exists():
        raise SetupError(f"{version} is there already, and is not overwritten")
    there = model / "config.pbtxt"
    if there.exists() and there.read_text(encoding="utf-8") != config:
        raise SetupError(
            f"{there} is another configuration, and Triton has one for all versions of a model; write to another folder"
        )
    model.mkdir(parents=True, exist_ok=True)
    building = model / f".{version.name}.{secrets.token_hex(4)}"
    building.mkdir()
    try:
        shutil.copyfile(folder.weights, building / native.file)
        for part in folder.manifest.runtime.beside:
            # External data of an ONNX file is found by its name, from where that file lies.
            name = native.beside or str(Path(part.file).relative_to(Path(folder.manifest.runtime.file or "").parent))
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.path / part.file, building / name)
        if backend == "python":
            (building / "model.py").write_text(MODEL_PY, encoding="utf-8")
        # The configuration last: a server that polls shall not find it without its weights.
        building.rename(version)
        there.write_text(config, encoding="utf-8")
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return model


def _listed(field: str, entries: Sequence[Sequence[str]]) -> Iterator[str]:
    for entry in entries:
        yield f"{field} {{"
        yield from (f"  {line}" for line in entry)
        yield "}"


def _tensor(spec: TensorSpec) -> list[str]:
    data_type = DATA_TYPES.get(spec.dtype)
    if data_type is None:
        raise BadManifest(f"tensor {spec.name!r} is {spec.dtype}, for which Triton has no name")
    if not spec.shape:
        # A value an item: Triton has no dims [], so it is shaped for the backend (docs, model configuration, reshape).
        return [f"name: {_quoted(spec.name)}", f"data_type: {data_type}", "dims: [1]", "reshape { shape: [] }"]
    return [f"name: {_quoted(spec.name)}", f"data_type: {data_type}", f"dims: {list(spec.shape)}"]


def _quoted(text: str) -> str:
    r"""A string of protobuf's text format: names of tensors may hold anything.

    >>> _quoted('a"b'), _quoted("é")
    ('"a\\042b"', '"\\303\\251"')
    """
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def _by_place(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Named as Triton's backend for TorchScript asks, whose files have no names: `<name>__<place>`."""
    return [
        TensorSpec(spec.name if spec.name.endswith(f"__{place}") else f"{spec.name}__{place}", spec.dtype, spec.shape)
        for place, spec in enumerate(specs)
    ]
