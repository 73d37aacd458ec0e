"""ONNX Runtime behind the runtime seam."""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from isocenter.core.errors import BadManifest, RuntimeFault
from isocenter.core.tensor import Tensors, TensorSpec
from isocenter.runtimes import checks, onnx_graph, protobuf
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.checks import Option, Value
from isocenter.runtimes.devices import CPU, Device, choose, cuda_devices
from isocenter.runtimes.proof import proven

_NAME: Final = "onnxruntime"
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_LEVELS: Final = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_OPTIONS: Final = {
    "spinning": Option(False),
    "arena": Option(True),
    "graph": Option("all", tuple(_LEVELS)),
    "io_binding": Option("auto", ("auto", "on", "off")),
}


class OnnxRuntime:
    """Opens ONNX files. ONNX Runtime computes in the precision of the graph, so `fp32` means an fp32 graph.

    Options: `spinning` (false: threads that wait for work of a run sleep), `arena` (true: memory that a run has taken
    is kept for the next; false hands it back, for models that are seldom asked), `graph` (`all`, `extended`, `basic`,
    `off`: how far the graph is rewritten), `io_binding` (`auto`: on a GPU; inputs and outputs are placed by us).
    """

    name = _NAME

    def devices(self) -> tuple[Device, ...]:
        """Devices that a session can be opened on."""
        if _CUDA not in ort.get_available_providers():
            return (CPU,)
        return (CPU, *(Device("cuda", index) for index in range(len(cuda_devices()))))

    def open(self, file: Path, options: SessionOptions) -> Session:
        """Load one session.

        Raises:
            BadManifest: unreadable file, unknown option, unsupported device; or the graph computes in another precision
                than stated, or names weights outside of its folder.
        """
        chosen = checks.chosen(_NAME, options, _OPTIONS)
        device = choose(_NAME, options.device, self.devices())
        if options.precision == "tf32" and (device.kind != "cuda" or not cuda_devices()[device.index].has_tf32):
            raise BadManifest(f"device {device} has no tf32; GPUs of compute capability 8.0 and above have")
        beside = onnx_graph.vetted(file).external
        providers = _providers(device, options)
        proof = _proof(file, beside, options, chosen, providers)
        session = _open(file, beside, _config(options, chosen), providers)
        if device.kind == "cuda":
            proof = f"{proof}; use_tf32={session.get_provider_options()[_CUDA]['use_tf32']} read back from {_CUDA}"
        bound = {"auto": device.kind != "cpu", "on": True, "off": False}[str(chosen["io_binding"])]
        return _OnnxSession(session, proof, device if bound else None)


class _OnnxSession:
    """One loaded graph. Used by one thread at a time."""

    def __init__(self, session: ort.InferenceSession, proof: str, bound_to: Device | None) -> None:
        self._session: ort.InferenceSession | None = session
        self._bound_to = bound_to
        self.proof = proof
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, or_one=True) for node in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, batch: Tensors) -> Tensors:
        """Run one batch; the returned arrays belong to the caller; the arena grows while they live."""
        items = checks.check_batch(batch, self.inputs)
        session = self._session
        if session is None:
            raise RuntimeFault("the session is closed")
        try:
            if self._bound_to is None:
                arrays = session.run(self._output_names, dict(batch))
            else:
                arrays = self._run_bound(session, batch, self._bound_to)
        except Exception as error:
            raise checks.as_fault(_NAME, error) from error
        found = dict(zip(self._output_names, arrays, strict=True))
        checks.check_outputs(_NAME, found, self.outputs, items)
        return found

    def _run_bound(self, session: ort.InferenceSession, batch: Tensors, device: Device) -> Any:
        """Inputs go up once, before the run; outputs come down once, after it."""
        binding = session.io_binding()
        for name, array in batch.items():
            there = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device.kind, device.index)
            binding.bind_ortvalue_input(name, there)
        for name in self._output_names:
            binding.bind_output(name, device.kind, device.index)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    def trim(self, batch: Tensors) -> None:
        """Hold what a run of this batch takes, and not what larger ones have taken."""
        if self._session is not None and self._bound_to is None:
            self._session.run(self._output_names, dict(batch), _shrinking())
        self.run(batch)

    def close(self) -> None:
        """Free the graph, its weights and its arena."""
        self._session = None


def _shrinking() -> ort.RunOptions:
    """Of a run after which the arena gives back what it can."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _config(options: SessionOptions, chosen: Mapping[str, Value]) -> ort.SessionOptions:
    config = ort.SessionOptions()
    config.intra_op_num_threads = options.threads
    config.inter_op_num_threads = 1
    config.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    config.graph_optimization_level = _LEVELS[str(chosen["graph"])]
    # Fatal only: what it says of a run that failed is no line of our log, and may quote what was in it.
    config.log_severity_level = 4
    config.enable_cpu_mem_arena = chosen["arena"]
    # Spinning threads look idle to nobody: they starve decoding and the neighbours on a small machine.
    # Where they are asked for, they shall at least not go on between runs.
    spinning = "1" if chosen["spinning"] else "0"
    config.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    config.add_session_config_entry("session.force_spinning_stop", spinning)
    # Left to itself it goes by the file's name, and its own format is not one that was looked into.
    config.add_session_config_entry("session.load_model_format", "ONNX")
    return config


def _providers(device: Device, options: SessionOptions) -> list[tuple[str, dict[str, str]]]:
    if device.kind == "cpu":
        return [(_CPU, {})]
    # Its default is on; TF32 rounds products to 10 bits, which would not be the fp32 that a manifest states.
    tf32 = "1" if options.precision == "tf32" else "0"
    return [(_CUDA, {"device_id": str(device.index), "use_tf32": tf32})]


def _open(
    file: Path, beside: Sequence[str], config: ort.SessionOptions, providers: list[tuple[str, dict[str, str]]]
) -> ort.InferenceSession:
    try:
        with contextlib.ExitStack() as mapped:
            if beside:
                _hand_over(config, {name: mapped.enter_context(protobuf.mapped(file.parent / name)) for name in beside})
            session = ort.InferenceSession(str(file), config, providers=providers)
    except BadManifest:
        raise
    except Exception as error:
        raise BadManifest(f"{_NAME} cannot load {file.name}: {error}") from error
    asked = providers[0][0]
    if asked not in session.get_providers():
        raise BadManifest(f"{_NAME} fell back from {asked} to {session.get_providers()}")
    return session


def _hand_over(config: ort.SessionOptions, contents: Mapping[str, protobuf.Buffer]) -> None:
    """Have weights beside the file copied. Left to itself it computes from the file's pages, for as long as the session
    lives: who writes over the file, as for the next version, would change the answers of one that was proven.

    Raises:
        BadManifest: this ONNX Runtime cannot.
    """
    give = getattr(config, "add_external_initializers_from_files_in_memory", None)
    if give is None:
        raise BadManifest(
            f"{_NAME} {ort.__version__} cannot copy weights that lie beside the file: a newer one can, "
            "or keep them in the file"
        )
    give([*contents], [*contents.values()], [len(content) for content in contents.values()])


def _proof(
    file: Path,
    beside: Sequence[str],
    options: SessionOptions,
    chosen: Mapping[str, Value],
    providers: list[tuple[str, dict[str, str]]],
) -> str:
    """That the model computes as stated.

    ONNX Runtime never computes in fewer bits than the graph has, so an fp32 graph proves itself. It does compute in
    more: what it has no kernel for is cast or dequantised to fp32. So below fp32 the graph is read as rewritten.

    Raises:
        BadManifest: it does not.
    """
    if options.precision in ("fp32", "tf32"):
        layers = onnx_graph.stated_layers(file)
        if options.precision == "tf32":
            layers["tf32"] = layers.pop("fp32", 0)
        return proven(options.precision, layers, "read from the graph")
    with tempfile.TemporaryDirectory(prefix="isocenter-") as folder:
        rewritten = Path(folder) / "rewritten.onnx"
        config = _config(options, chosen)
        # A session of its own: one that writes its graph keeps a second copy of the weights.
        config.optimized_model_filepath = str(rewritten)
        _open(file, beside, config, providers)
        return proven(
            options.precision, onnx_graph.computed_layers(rewritten), "read from the graph as rewritten to run"
        )


def _spec(node: Any, *, or_one: bool = False) -> TensorSpec:
    """Read one graph input or output, dropping its batch axis.

    Args:
        node: of the session.
        or_one: an axis of length 1 will do: a graph that reshapes to one item fails for more, and is served alone.

    Raises:
        BadManifest: no dynamic batch axis, or an element type that is not served.
    """
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise BadManifest(f"tensor {node.name!r} has element type {node.type}, which is not served")
    if not node.shape or (isinstance(node.shape[0], int) and not (or_one and node.shape[0] == 1)):
        raise BadManifest(f"tensor {node.name!r} has shape {node.shape}: axis 0 must be a dynamic batch axis")
    return TensorSpec(node.name, dtype, tuple(n if isinstance(n, int) else -1 for n in node.shape[1:]))
