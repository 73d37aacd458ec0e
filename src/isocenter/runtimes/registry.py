"""Which runtimes there are, by the word that a manifest uses. A framework is imported when it is first asked for."""

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Final

from isocenter.core.errors import BadManifest, MissingExtra
from isocenter.runtimes.base import Runtime


@dataclass(frozen=True, slots=True)
class RuntimeEntry:
    """Where a runtime's code is and what must be installed for it."""

    kind: str
    module: str
    """Our module."""
    class_name: str
    needs: str
    """The import name of the framework; empty if none."""
    distribution: str
    """The name of its package in the index."""
    extra: str
    """The extra of Isocenter that installs it; empty for the core installation."""


RUNTIMES: dict[str, RuntimeEntry] = {
    entry.kind: entry
    for entry in (
        RuntimeEntry("onnxruntime", "isocenter.runtimes.onnxruntime", "OnnxRuntime", "onnxruntime", "onnxruntime", ""),
        RuntimeEntry("triton", "isocenter.runtimes.triton", "TritonRuntime", "", "grpcio", "triton"),
        RuntimeEntry("torch", "isocenter.runtimes.torch", "Torch", "torch", "torch", "torch"),
        RuntimeEntry("openvino", "isocenter.runtimes.openvino", "OpenVino", "openvino", "openvino", "openvino"),
        RuntimeEntry("synthetic", "isocenter.runtimes.synthetic", "SyntheticRuntime", "", "", ""),
    )
}


AUTO: Final = "auto"
"""`runtime.kind` of an ONNX file that leaves the choice to the machine that serves it."""


def chosen(kind: str, *, volumes: bool, device: str) -> str:
    """What a manifest's `runtime.kind` is on this machine: itself; `auto` is OpenVINO for volumes on a CPU, where it is
    installed, and ONNX Runtime else.

    >>> chosen("torch", volumes=True, device="cpu"), chosen("auto", volumes=False, device="cpu")
    ('torch', 'onnxruntime')
    """
    if kind != AUTO:
        return kind
    return "openvino" if volumes and device == "cpu" and installed(RUNTIMES["openvino"].needs) else "onnxruntime"


def open_runtime(kind: str) -> Runtime:
    """The runtime for a manifest's `runtime.kind`.

    Raises:
        BadManifest: no runtime has that name.
        MissingExtra: it has, but its framework is not installed.
    """
    entry = RUNTIMES.get(kind)
    if entry is None:
        raise BadManifest(f"no runtime is called {kind!r}; there are {sorted(RUNTIMES)}")
    if entry.needs and not installed(entry.needs):
        raise MissingExtra(
            f"runtime {kind} needs {entry.distribution}, which is not installed: "
            f'pip install "isocenter{f"[{entry.extra}]" if entry.extra else ""}"'
        )
    runtime: Runtime = getattr(importlib.import_module(entry.module), entry.class_name)()
    return runtime


def installed(module: str) -> bool:
    """Whether a module could be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def installed_version(distribution: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
