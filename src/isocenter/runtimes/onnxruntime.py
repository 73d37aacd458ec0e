"""ONNX Runtime behind the runtime seam."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from isocenter.core.errors import BadManifest, OutOfMemory, RuntimeFault
from isocenter.core.tensor import Tensors, TensorSpec
from isocenter.runtimes.base import Session, SessionOptions

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_OPTIONS: dict[str, bool] = {"spinning": False, "arena": True}
# It has no exception of its own for this, only sentences: of its arenas, of C++ and of CUDA's libraries.
_NO_MEMORY = (
    "failed to allocate memory",
    "bad_alloc",
    "smaller than requested bytes",
    "out of memory",
    "memoryallocation",
    "alloc_failed",
)


class OnnxRuntime:
    """Opens ONNX files. ONNX Runtime computes in the precision of the graph, so `fp32` means an fp32 graph.

    Options, true or false: `spinning` (false: threads that wait for work of a run sleep), `arena` (true: memory that a
    run has taken is kept for the next; false hands it back, for models that are seldom asked).
    """

    name = "onnxruntime"

    def open(self, file: Path, options: SessionOptions) -> Session:
        """Load one session.

        Raises:
            BadManifest: unreadable file, unknown option, unsupported precision or device.
        """
        if options.precision != "fp32":
            raise BadManifest(f"runtime onnxruntime runs precision fp32, not {options.precision!r}")
        chosen = _chosen(options)
        kind = options.device.partition(":")[0]
        provider = _PROVIDERS.get(kind)
        if provider is None or provider not in ort.get_available_providers():
            raise BadManifest(
                f"device {options.device!r} is not available to onnxruntime here; "
                f"available: {sorted(k for k, p in _PROVIDERS.items() if p in ort.get_available_providers())}"
            )
        config = ort.SessionOptions()
        config.intra_op_num_threads = options.threads
        config.inter_op_num_threads = 1
        config.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # Fatal only: what it says of a run that failed is no line of our log, and may quote what was in it.
        config.log_severity_level = 4
        config.enable_cpu_mem_arena = chosen["arena"]
        # Spinning threads look idle to nobody: they starve decoding and the neighbours on a small machine.
        # Where they are asked for, they shall at least not go on between runs.
        spinning = "1" if chosen["spinning"] else "0"
        config.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        config.add_session_config_entry("session.force_spinning_stop", spinning)
        provider_options: dict[str, str] = {}
        if kind == "cuda":
            provider_options["device_id"] = options.device.partition(":")[2] or "0"
            # TF32 rounds inputs to 10 bits: that would not be the fp32 that the manifest states.
            provider_options["use_tf32"] = "0"
        try:
            session = ort.InferenceSession(str(file), config, providers=[(provider, provider_options)])
        except Exception as error:
            raise BadManifest(f"onnxruntime cannot load {file.name}: {error}") from error
        if provider not in session.get_providers():
            raise BadManifest(f"onnxruntime fell back from {provider} to {session.get_providers()}")
        return _OnnxSession(session)


class _OnnxSession:
    """One loaded graph. Used by one thread at a time."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, batch: Tensors) -> Tensors:
        """Run one batch; the returned arrays are fresh and belong to the caller."""
        try:
            arrays = self._session.run(self._output_names, dict(batch))
        except Exception as error:
            # The runtime's message may quote tensor contents, so only its kind goes on.
            raise as_fault(error) from error
        return dict(zip(self._output_names, arrays, strict=True))

    def close(self) -> None:
        """Nothing to do: the graph is freed with its last reference."""


def _chosen(options: SessionOptions) -> dict[str, bool]:
    unknown = sorted(set(options.options) - set(_OPTIONS))
    if unknown:
        raise BadManifest(f"runtime onnxruntime has no option {unknown[0]!r}; it has {sorted(_OPTIONS)}")
    wrong = {name: value for name, value in options.options.items() if not isinstance(value, bool)}
    if wrong:
        name, value = next(iter(wrong.items()))
        raise BadManifest(f"option {name} of runtime onnxruntime is {value!r}; it must be true or false")
    return _OPTIONS | {name: bool(value) for name, value in options.options.items()}


def as_fault(error: Exception) -> RuntimeFault:
    """What a run that raised is told as; without the runtime's message."""
    said = str(error).lower()
    if isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY):
        return OutOfMemory("onnxruntime had no memory for the run")
    return RuntimeFault(f"onnxruntime raised {type(error).__name__}")


def _spec(node: Any) -> TensorSpec:
    """Read one graph input or output, dropping its batch axis.

    Raises:
        BadManifest: no dynamic batch axis, or an element type that is not served.
    """
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise BadManifest(f"tensor {node.name!r} has element type {node.type}, which is not served")
    if not node.shape or isinstance(node.shape[0], int):
        raise BadManifest(f"tensor {node.name!r} has shape {node.shape}: axis 0 must be a dynamic batch axis")
    return TensorSpec(node.name, dtype, tuple(n if isinstance(n, int) else -1 for n in node.shape[1:]))
