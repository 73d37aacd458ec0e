"""Which devices there are: `cpu`, `cuda:0`, `gpu:0`; and which one a manifest means."""

import ctypes
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from isocenter.core.errors import BadManifest

_NAMES: Final = re.compile(r"(?P<kind>[a-z]+)(:(?P<index>\d{1,3}))?")
_AMPERE: Final = (8, 0)
# Of CUDA's driver interface: CUdevice_attribute.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True, slots=True)
class Device:
    """One device, as frameworks count them."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


CPU: Final = Device("cpu")


def choose(runtime: str, asked: str, there: Sequence[Device]) -> Device:
    """The device that a manifest asks for. `cuda` means `cuda:0`.

    >>> str(choose("torch", "cuda", [CPU, Device("cuda", 0), Device("cuda", 1)]))
    'cuda:0'

    Raises:
        BadManifest: it is not there; the message names those that are.
    """
    found = _NAMES.fullmatch(asked)
    wanted = Device(found["kind"], int(found["index"] or 0)) if found else None
    if wanted is None or wanted not in there:
        raise BadManifest(
            f"device {asked!r} is not there for runtime {runtime}; there are {', '.join(map(str, there))}",
            details={"asked": asked, "there": [str(device) for device in there]},
        )
    return wanted


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """What the driver says of one."""

    name: str
    capability: tuple[int, int]

    @property
    def has_tf32(self) -> bool:
        """Whether its tensor cores round fp32 products; bf16 came with the same generation."""
        return self.capability >= _AMPERE

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bf16."""
        return self.capability >= _AMPERE


@functools.cache
def cuda_devices() -> tuple[CudaDevice, ...]:
    """Devices that the CUDA driver shows to this process, in its order; none where there is no driver."""
    try:
        return tuple(_listed(ctypes.CDLL("libcuda.so.1")))
    except (OSError, AttributeError):
        return ()


def _listed(driver: Any) -> list[CudaDevice]:
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for index in range(count.value):
        handle, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
        major, minor = ctypes.c_int(0), ctypes.c_int(0)
        driver.cuDeviceGet(ctypes.byref(handle), index)
        driver.cuDeviceGetName(name, len(name), handle)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle)
        found.append(CudaDevice(name.value.decode(errors="replace"), (major.value, minor.value)))
    return found


@functools.cache
def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bf16; what it lacks is emulated, at many times the cost."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags[1].split())
