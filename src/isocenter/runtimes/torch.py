"""torch behind the runtime seam: TorchScript, exported programs, and networks of ours with weights from a file."""

import os
import re
from pathlib import Path
from typing import Any, Final

import numpy as np

# Read once, when torch is loaded. Left alone, threads of its pool that wait for work turn on the spot for milliseconds
# after each run: on a core that others want, runs take several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from isocenter.core.errors import BadManifest, ImportRefused, MissingExtra
from isocenter.core.tensor import TensorSpec
from isocenter.runtimes import checks
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.checks import Option
from isocenter.runtimes.devices import CPU, Device, choose, cpu_has_bf16
from isocenter.runtimes.torch_archive import Ports, load_program, load_script
from isocenter.runtimes.torch_session import NAME, How, TorchSession

_OPTIONS: Final = {
    "network": Option(""),
    "classes": Option(0),
    "inputs": Option(""),
    "outputs": Option(""),
    "channels_last": Option(False),
    "compile": Option(False),
    "cuda_graphs": Option(False),
    "cudnn_benchmark": Option(True),
}
_PORT: Final = re.compile(r"\s*(?P<name>[\w.\-/:]+?)\s*:\s*(?P<dtype>\w+)\s*\[(?P<shape>[\d\s,\-]*)\]\s*")


class Torch:
    """Opens `.pt` (TorchScript), `.pt2` (exported programs), and with option `network` any file of weights.

    Options: `network` (one of `isocenter.networks`; the file holds its weights) and `classes` (0: as many as it has of
    its own); `inputs` and `outputs` (`image: float32[3, 224, 224]`, several with `;`, -1 for an open axis: what a file
    does not say itself); `channels_last`; `compile` (by torch.compile: needs a C++ compiler, and minutes at the start);
    `cuda_graphs` (one a batch size, on a GPU); `cudnn_benchmark` (true: convolutions are tried out at each new size).
    """

    name = NAME

    def devices(self) -> tuple[Device, ...]:
        """Devices that a session can be opened on."""
        return (CPU, *(Device("cuda", index) for index in range(torch.cuda.device_count())))

    def open(self, file: Path, options: SessionOptions) -> Session:
        """Load one session. Nothing in a file is unpickled or run while it is loaded.

        Raises:
            BadManifest: unreadable or refused file, unknown option, a precision that the device does not have; or the
                network computes in another one than stated.
            MissingExtra: `network`, and the networks are not installed; `.safetensors`, and its library is not.
        """
        chosen = checks.chosen(NAME, options, _OPTIONS)
        device = choose(NAME, options.device, self.devices())
        _refuse_precision(options, device)
        if chosen["cuda_graphs"] and device.kind != "cuda":
            raise BadManifest(f"option cuda_graphs of runtime {NAME} needs a GPU, the device is {device}")
        module, known = _load(file, str(chosen["network"]), int(chosen["classes"]))
        if chosen["compile"] and isinstance(module, torch.jit.ScriptModule):
            raise BadManifest(f"option compile of runtime {NAME} does not go with TorchScript: {file.name}")
        inputs, outputs = _ports(file, known, str(chosen["inputs"]), str(chosen["outputs"]))
        module = _placed(module, device, channels_last=bool(chosen["channels_last"]), axes=len(inputs[0].shape) + 1)
        how = How(
            precision=options.precision,
            device=device,
            threads=options.threads,
            channels_last=bool(chosen["channels_last"]),
            compile=bool(chosen["compile"]),
            cuda_graphs=bool(chosen["cuda_graphs"]),
        )
        if device.kind == "cpu":
            return TorchSession(module, inputs, outputs, how)
        from isocenter.runtimes.torch_cuda import CudaSession

        torch.backends.cudnn.benchmark = bool(chosen["cudnn_benchmark"])
        return CudaSession(module, inputs, outputs, how)


def tensor_specs(text: str) -> tuple[TensorSpec, ...]:
    """What options `inputs` and `outputs` say.

    >>> tensor_specs("image: float32[3, -1, -1]; age: int64[]")[0].shape
    (3, -1, -1)

    Raises:
        BadManifest: it is not of that form.
    """
    specs = []
    for part in text.split(";"):
        found = _PORT.fullmatch(part)
        try:
            if found is None:
                raise ValueError("expected name: dtype[sizes]")
            shape = tuple(int(size) for size in found["shape"].split(",") if size.strip())
            specs.append(TensorSpec(found["name"], np.dtype(found["dtype"]), shape))
        except (ValueError, TypeError) as error:
            raise BadManifest(
                f"{part.strip()!r} is not a tensor like 'image: float32[3, 224, 224]': {error}"
            ) from error
    return tuple(specs)


def _refuse_precision(options: SessionOptions, device: Device) -> None:
    able = ["fp32"]
    if device.kind == "cuda":
        newer = torch.cuda.get_device_capability(device.index) >= (8, 0)
        able += ["fp16", *(["tf32", "bf16"] if newer else [])]
    elif cpu_has_bf16():
        able.append("bf16")
    if options.precision not in able:
        raise BadManifest(
            f"runtime {NAME} on {device} has no {options.precision}; it has {', '.join(able)}",
            details={"precision": options.precision, "there": able},
        )


def _load(file: Path, network: str, classes: int) -> tuple[Any, Ports | None]:
    if network:
        return _network(file, network, classes)
    if not file.is_file():
        raise BadManifest(f"no file {file.name}")
    if file.suffix == ".pt2":
        return load_program(file)
    if file.suffix in (".pt", ".ts"):
        return load_script(file)
    raise BadManifest(f"runtime {NAME} reads .pt and .pt2 files, and weights for option network; not {file.name}")


def _network(file: Path, name: str, classes: int) -> tuple[Any, Ports]:
    try:
        from isocenter.networks.registry import NETWORKS
        from isocenter.networks.weights import load_state, read_state
    except ImportError as error:
        raise MissingExtra(f'network {name} needs more than is installed: pip install "isocenter[torch]"') from error
    entry = NETWORKS.get(name)
    if entry is None:
        raise BadManifest(f"no network is called {name!r}; there are {', '.join(NETWORKS)}")
    module = entry.build(classes or None)
    try:
        load_state(module, entry.own_names(read_state(file)))
    except ImportRefused as error:
        raise BadManifest(error.message, details=error.details) from error
    channels, *sides = entry.input_shape
    count = classes or len(entry.labels)
    open_sides = (-1,) * len(sides) if entry.fully_convolutional else tuple(sides)
    given = (count, *open_sides) if entry.fully_convolutional else (count,)
    float32 = np.dtype(np.float32)
    return module.eval(), (
        (TensorSpec(entry.input_name, float32, (channels, *open_sides)),),
        (TensorSpec("logits", float32, given),),
    )


def _ports(file: Path, known: Ports | None, inputs: str, outputs: str) -> Ports:
    if known is None and not (inputs and outputs):
        raise BadManifest(
            f"{file.name} does not say which tensors it has: options inputs and outputs of runtime {NAME} must, "
            "such as 'image: float32[3, 224, 224]'"
        )
    there = known or ((), ())
    return (tensor_specs(inputs) if inputs else there[0]), (tensor_specs(outputs) if outputs else there[1])


def _placed(module: Any, device: Device, *, channels_last: bool, axes: int) -> Any:
    module = module.to(torch.device(device.kind, device.index) if device.kind == "cuda" else "cpu")
    if channels_last and axes in (4, 5):
        module = module.to(memory_format=torch.channels_last if axes == 4 else torch.channels_last_3d)
    return module
