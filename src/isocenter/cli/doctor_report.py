"""What an installation consists of: facts are gathered in one place, and judged by functions that touch nothing."""

import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

CORE: Final = (
    "fastapi", "multipart", "numpy", "opencv-python-headless", "orjson", "pillow", "prometheus-client", "pydantic",
    "pydantic-settings", "pyyaml", "rich", "simplejpeg", "typer", "uvicorn",
)  # fmt: skip
STAND_INS: Final[Mapping[str, tuple[str, ...]]] = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "onnxruntime": ("onnxruntime-gpu",),
}
"""Packages that bring the same modules under another name."""
FASTER: Final = {"uvloop": "the standard event loop serves instead", "httptools": "h11 parses HTTP instead"}
EXTRAS: Final[Mapping[str, str]] = {
    "torch": "torch", "onnx": "torch", "openvino": "openvino", "grpcio": "triton",
    "httpx": "client",
    "pydicom": "dicom", "nibabel": "dicom", "highdicom": "dicom",
}  # fmt: skip
"""Optional packages, and the extra of Isocenter that brings each."""
_WORTH_KNOWING: Final[Mapping[str, str]] = {
    "avx2": "avx2", "avx512f": "avx512f", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16", "amx_int8": "amx_int8", "amx_bf16": "amx_bf16",
    "asimd": "neon", "sve": "sve", "bf16": "bf16", "i8mm": "i8mm",
}  # fmt: skip
_BF16: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_UNLIMITED_BYTES: Final = 1 << 60


class State(StrEnum):
    """How one line is to be read."""

    OK = "ok"
    ABSENT = "absent"
    """Not here, and not needed."""
    MISSING = "missing"
    """Not here, and nothing works without it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found, unjudged. Sizes in bytes; None where the system does not say."""

    python: str
    platform: str
    versions: Mapping[str, str]
    """Installed packages by name; those that are not installed are not in it."""
    providers: tuple[str, ...] | None
    """Execution providers of ONNX Runtime; None if it cannot be imported."""
    cpuinfo: str
    usable_cores: int
    memory_bytes: int | None
    cgroup_cores: float | None
    cgroup_bytes: int | None
    gpus: tuple[str, ...]
    cpu_fallback_name: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the report."""

    section: str
    name: str
    value: str
    state: State = State.OK


@dataclass(frozen=True, slots=True)
class Report:
    """The whole of it."""

    lines: tuple[Line, ...]
    hints: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing of the core is missing."""
        return all(line.state is not State.MISSING for line in self.lines)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"healthy": self.healthy, "lines": [asdict(line) for line in self.lines], "hints": list(self.hints)}


def report(facts: Facts) -> Report:
    """Judge the facts."""
    lines = (*_core(facts), *_runtimes(facts), *_machine(facts))
    return Report(lines, tuple(_hints(facts)))


def instruction_sets(cpuinfo: str) -> list[str]:
    """Those that decide how fast a model runs, of the first core that /proc/cpuinfo describes.

    >>> instruction_sets("flags : fpu avx avx2 avx512f")
    ['avx2', 'avx512f']
    """
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return [shown for flag, shown in _WORTH_KNOWING.items() if flag in flags]


def cgroup_cores(cpu_max: str) -> float | None:
    """Cores' worth of time that `cpu.max` allows; None if it does not limit.

    >>> cgroup_cores("150000 100000"), cgroup_cores("max 100000")
    (1.5, None)
    """
    words = cpu_max.split()
    if len(words) != 2 or not all(word.isdecimal() for word in words) or words[1] == "0":
        return None
    return int(words[0]) / int(words[1])


def _core(facts: Facts) -> list[Line]:
    lines = [Line("core", "python", facts.python)]
    for name in CORE:
        version = _version(facts, name)
        missing = f'missing - pip install "{name}"'
        lines.append(Line("core", name, version or missing, State.OK if version else State.MISSING))
    for name, instead in FASTER.items():
        version = facts.versions.get(name)
        lines.append(Line("core", name, version or f"missing - {instead}", State.OK if version else State.ABSENT))
    return lines


def _runtimes(facts: Facts) -> list[Line]:
    version = _version(facts, "onnxruntime")
    if not version:
        lines = [Line("runtimes", "onnxruntime", 'missing - pip install "onnxruntime"', State.MISSING)]
    elif facts.providers is None:
        lines = [Line("runtimes", "onnxruntime", f"{version}, but it cannot be imported", State.MISSING)]
    else:
        short = ", ".join(name.removesuffix("ExecutionProvider") for name in facts.providers)
        lines = [Line("runtimes", "onnxruntime", f"{version} ({short})")]
    for name, extra in EXTRAS.items():
        version = facts.versions.get(name)
        missing = f'missing - pip install "isocenter[{extra}]"'
        lines.append(Line("extras", name, version or missing, State.OK if version else State.ABSENT))
    return lines


def _machine(facts: Facts) -> list[Line]:
    model = re.search(r"^model name\s*:\s*(.*)$", facts.cpuinfo, re.MULTILINE)
    name = model[1].strip() if model else facts.cpu_fallback_name or "unknown"
    sets = ", ".join(instruction_sets(facts.cpuinfo)) or "none that is looked for"
    memory = f"{facts.memory_bytes / 2**30:.1f} GiB" if facts.memory_bytes else "unknown"
    cores = f"{facts.cgroup_cores:g}" if facts.cgroup_cores is not None else "no limit"
    limit = f"{facts.cgroup_bytes / 2**30:.1f} GiB" if facts.cgroup_bytes is not None else "no limit"
    lines = [
        Line("machine", "platform", facts.platform),
        Line("machine", "cpu", f"{name}, {facts.usable_cores} usable core{'s' if facts.usable_cores != 1 else ''}"),
        Line("machine", "instructions", sets),
        Line("machine", "memory", memory),
        Line("machine", "cgroup", f"cores: {cores}, memory: {limit}"),
    ]
    gpus = [Line("machine", f"gpu {number}", gpu) for number, gpu in enumerate(facts.gpus)]
    return lines + (gpus or [Line("machine", "gpu", "none seen", State.ABSENT)])


def _hints(facts: Facts) -> list[str]:
    hints = []
    if _BF16 & set(instruction_sets(facts.cpuinfo)):
        hints.append(
            "this CPU computes in bf16; precision is always stated in model.yaml, and nothing uses bf16 unasked"
        )
    if facts.cgroup_cores is not None and facts.cgroup_cores < facts.usable_cores:
        hints.append(
            f"the cgroup allows {facts.cgroup_cores:g} cores' worth of time, and `threads: auto` counts the "
            f"{facts.usable_cores} that are visible: set ISOCENTER_DECODE__THREADS and instances.threads to "
            f"{max(1, int(facts.cgroup_cores))}"
        )
    if facts.gpus and "CUDAExecutionProvider" not in (facts.providers or ()):
        hints.append(
            "there is a GPU that onnxruntime cannot use: install onnxruntime-gpu in place of onnxruntime to serve on it"
        )
    return hints


def _version(facts: Facts, name: str) -> str | None:
    if name in facts.versions:
        return facts.versions[name]
    for other in STAND_INS.get(name, ()):
        if other in facts.versions:
            return f"{facts.versions[other]} ({other})"
    return None


def gather(root: Path = Path("/"), *, version_of: Callable[[str], str | None], usable_cores: int) -> Facts:
    """Ask this machine. The only function here that touches anything."""
    names = {*CORE, *FASTER, *EXTRAS, "onnxruntime", *(other for others in STAND_INS.values() for other in others)}
    found = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    cgroup = root / "sys/fs/cgroup"
    quota = _text(cgroup / "cpu.max") or " ".join(
        _text(cgroup / "cpu" / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    )
    limit = (_text(cgroup / "memory.max") or _text(cgroup / "memory/memory.limit_in_bytes")).strip()
    bounded = limit.isdecimal() and int(limit) < _UNLIMITED_BYTES
    return Facts(
        python=platform.python_version(),
        platform=platform.platform(),
        versions={name: version for name in sorted(names) if (version := version_of(name)) is not None},
        providers=_providers(),
        cpuinfo=_text(root / "proc/cpuinfo"),
        usable_cores=usable_cores,
        memory_bytes=int(found[1]) * 1024 if found else None,
        cgroup_cores=cgroup_cores(quota),
        cgroup_bytes=int(limit) if bounded else None,
        gpus=_gpus(root),
        cpu_fallback_name=platform.processor() or os.uname().machine,
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _providers() -> tuple[str, ...] | None:
    try:
        import onnxruntime

        return tuple(onnxruntime.get_available_providers())
    except Exception:  # a broken library may raise anything, and that is what this command is there to say
        return None


def _gpus(root: Path) -> tuple[str, ...]:
    """NVIDIA devices, as the driver lists them; asking it costs nothing, importing torch would cost seconds."""
    listed = [_text(file) for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))]
    named = [found[1].strip() for text in listed if (found := re.search(r"^Model:\s*(.*)$", text, re.MULTILINE))]
    if named:
        return tuple(named)
    try:
        asked = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, errors="replace", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.split(" (UUID")[0].split(": ", 1)[-1] for line in asked.stdout.splitlines() if line.strip())
