"""OpenVINO behind the runtime seam."""

import functools
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np

from isocenter.core.errors import BadManifest, RuntimeFault
from isocenter.core.precision import Precision
from isocenter.core.tensor import Tensors, TensorSpec
from isocenter.runtimes import checks, onnx_graph
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.devices import Device, choose
from isocenter.runtimes.proof import proven

_NAME: Final = "openvino"
_HINTS: Final[dict[Precision, str]] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""What layers compute in that the file does not say otherwise of: a quantised layer is quantised whatever the hint."""
_CAPABILITIES: Final[dict[Precision, str]] = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
_WORDS: Final = {
    "f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8", "float32": "fp32", "bfloat16": "bf16",
    "float16": "fp16", "int8_t": "int8", "uint8_t": "int8",
}  # fmt: skip
_PRODUCTS: Final = frozenset(
    {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "RNNCell", "RNNSeq", "convolution",
     "deconvolution", "fully_connected", "gemm"}
)  # fmt: skip
"""Layers with products, as the plugins for CPU and GPU call them."""
_DTYPES: Final = {
    "f32": np.float32, "f16": np.float16, "f64": np.float64, "u8": np.uint8, "i8": np.int8, "i32": np.int32,
    "i64": np.int64, "boolean": np.bool_,
}  # fmt: skip
_SUFFIXES: Final = (".xml", ".onnx")


def openvino_without_telemetry() -> Any:
    """The module `openvino`, imported so that it tells nobody: it sends an event unless a certain package is missing.

    Raises:
        ImportError: it is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@functools.cache
def _core() -> Any:
    core = openvino_without_telemetry().Core()
    # It would compute from the pages of the file: who writes over that, as for the next version, would change the
    # answers of one that was proven.
    core.set_property({"ENABLE_MMAP": False})
    return core


class OpenVino:
    """Opens OpenVINO's own files (`.xml` with `.bin`) and ONNX files. It has no options.

    Precision, threads and latency are always passed, never left to OpenVINO: one stream a session, `threads` threads
    that are pinned nowhere (niceness and neighbours decide where they run).
    """

    name = _NAME

    def devices(self) -> tuple[Device, ...]:
        """Devices that a session can be opened on. `gpu` is one of Intel's."""
        return tuple(_device(name) for name in _core().available_devices if name.startswith(("CPU", "GPU")))

    def open(self, file: Path, options: SessionOptions) -> Session:
        """Load one session. Its batch axis must be open; any size can then be run without compiling again.

        Raises:
            BadManifest: unreadable file, an option, a precision that the device does not have; or the compiled model
                computes in another one than stated.
        """
        checks.chosen(_NAME, options, {})
        device = choose(_NAME, options.device, self.devices())
        plugin = "CPU" if device.kind == "cpu" else f"GPU.{device.index}"
        _refuse_precision(options.precision, device, plugin)
        model = _read(file)
        if options.precision == "fp32":
            _refuse_halves(file, model)
        try:
            compiled = _core().compile_model(model, plugin, _config(options, device))
        except Exception as error:
            raise BadManifest(f"{_NAME} cannot load {file.name}: {_first_line(error)}") from error
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if hint != _HINTS[options.precision]:
            raise BadManifest(f"precision is {options.precision}, but {device} computes in {_WORDS.get(hint, hint)}")
        return _OpenVinoSession(compiled, proven(options.precision, _layers(compiled), "read from the compiled model"))


class _OpenVinoSession:
    """One compiled model and its one request. Used by one thread at a time."""

    fresh: Final = True

    def __init__(self, compiled: Any, proof: str) -> None:
        self.proof = proof
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self._compiled, self._request = compiled, compiled.create_infer_request()

    def run(self, batch: Tensors) -> Tensors:
        """Run one batch; the returned arrays are fresh and belong to the caller."""
        items = checks.check_batch(batch, self.inputs)
        if self._request is None:
            raise RuntimeFault("the session is closed")
        given = [np.ascontiguousarray(batch[spec.name]) for spec in self.inputs]
        try:
            # Inputs are read where they lie, for the length of the run; outputs are copied.
            found = self._request.infer(given, share_inputs=True, share_outputs=False)
            arrays = [found[index] for index in range(len(self.outputs))]
        except Exception as error:
            raise checks.as_fault(_NAME, error) from error
        answer = {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}
        # Of items that do not fit together inside of the model, it makes empty answers rather than an error.
        checks.check_outputs(_NAME, answer, self.outputs, items)
        return answer

    def trim(self, batch: Tensors) -> None:
        """Hold what a run of this batch takes, and not what larger ones have taken."""
        self._compiled.release_memory()
        self.run(batch)

    def close(self) -> None:
        """Free the compiled model, its weights and its threads."""
        self._compiled = self._request = None


def _config(options: SessionOptions, device: Device) -> dict[str, Any]:
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[options.precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        # Otherwise matrix products of large layers are quantised on the way, where the processor is quicker at it.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    if device.kind == "cpu":
        config |= {
            "INFERENCE_NUM_THREADS": options.threads,
            "ENABLE_CPU_PINNING": False,
            # Left off, fewer threads than asked for are started where cores have two.
            "ENABLE_HYPER_THREADING": True,
        }
    return config


def _refuse_precision(precision: Precision, device: Device, plugin: str) -> None:
    wanted = _CAPABILITIES.get(precision)
    able = _core().get_property(plugin, "OPTIMIZATION_CAPABILITIES")
    if wanted in able:
        return
    there = [word for word, capability in _CAPABILITIES.items() if capability in able]
    raise BadManifest(
        f"{_NAME} on {device} has no {precision}; it has {', '.join(there)}",
        details={"precision": precision, "there": list(there)},
    )


def _read(file: Path) -> Any:
    if file.suffix not in _SUFFIXES:
        raise BadManifest(f"runtime {_NAME} reads {' and '.join(_SUFFIXES)} files, not {file.name}")
    if file.suffix == ".onnx":
        onnx_graph.vetted(file)
    elif not file.with_suffix(".bin").is_file():
        raise BadManifest(f"no weights beside {file.name}: expected {file.with_suffix('.bin').name}")
    try:
        return _core().read_model(str(file))
    except Exception as error:
        raise BadManifest(f"{_NAME} cannot read {file.name}: {_first_line(error)}") from error


def _refuse_halves(file: Path, model: Any) -> None:
    """Weights that were saved in 16 bits are not those of the reference, whatever they compute in."""
    halves = sum(
        1
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in ("f16", "bf16")
    )
    if halves:
        raise BadManifest(
            f"precision is fp32, but {halves} constants of {file.name} are stored in 16 bits; "
            "save it with compress_to_fp16=False"
        )


def _layers(compiled: Any) -> Counter[str]:
    """Layers with products by what they compute in, as the plugin says."""
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        about = node.get_rt_info()
        if "layerType" in about and str(about["layerType"].astype(str)) in _PRODUCTS:
            word = str(about["runtimePrecision"].astype(str)) if "runtimePrecision" in about else "an unknown type"
            found[_WORDS.get(word, word)] += 1
    return found


def _spec(port: Any) -> TensorSpec:
    """Read one input or output, dropping its batch axis.

    Raises:
        BadManifest: no name, no open batch axis, or an element type that is not served.
    """
    if not port.get_names():
        raise BadManifest("the model has a tensor without a name")
    name, word = port.get_any_name(), port.get_element_type().get_type_name()
    if word not in _DTYPES:
        raise BadManifest(f"tensor {name!r} has element type {word}, which is not served")
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic or not len(shape) or shape[0].is_static:
        raise BadManifest(f"tensor {name!r} has shape {shape}: axis 0 must be a dynamic batch axis")
    return TensorSpec(
        name, np.dtype(_DTYPES[word]), tuple(-1 if axis.is_dynamic else axis.get_length() for axis in list(shape)[1:])
    )


def _device(name: str) -> Device:
    kind, _, index = name.partition(".")
    return Device(kind.lower(), int(index or 0))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO's messages begin with places in its own source.
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or [type(error).__name__])[0]
