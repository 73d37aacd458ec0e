"""How much memory this process holds, how much is left to it, and giving back what it does not need.

Linux says so under /proc and /sys; elsewhere the answer is None or nothing, never a guess.
"""

import contextlib
import ctypes
import gc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_UNLIMITED_BYTES = 1 << 60
_RESET_PEAK = "5"


class MemoryMeter(Protocol):
    """Tells what is held of one kind of memory: the process's own, or a device's."""

    def held_bytes(self) -> int | None:
        """Held now; None where the system does not say."""
        ...

    def peak_bytes(self) -> int | None:
        """The most held since the last reset, or ever; None where the system does not say."""
        ...

    def reset_peak(self) -> bool:
        """Begin a new peak at what is held now; False where that is not permitted."""
        ...


class ProcessMemory:
    """Resident memory of this process."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._status = root / "proc/self/status"
        self._clear = root / "proc/self/clear_refs"

    def held_bytes(self) -> int | None:
        """VmRSS."""
        return _kib(_text(self._status), "VmRSS")

    def peak_bytes(self) -> int | None:
        """VmHWM."""
        return _kib(_text(self._status), "VmHWM")

    def reset_peak(self) -> bool:
        """Begin a new VmHWM. Containers may mount /proc read-only."""
        try:
            self._clear.write_text(_RESET_PEAK)
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class MemoryLeft:
    """What may still be taken below one bound."""

    available_bytes: int
    total_bytes: int


def memory_left(root: Path = Path("/")) -> list[MemoryLeft]:
    """Every bound that holds for this process: the machine, and each control group from its own up to the root.

    Blocks for a few small reads; not for an event loop.
    """
    return [*_machine(root), *_groups(root)]


def free_memory() -> None:
    """Collect garbage, and hand unused pages of the C heap back to the system. Takes milliseconds; any thread may."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _machine(root: Path) -> Iterator[MemoryLeft]:
    text = _text(root / "proc/meminfo")
    available, total = _kib(text, "MemAvailable"), _kib(text, "MemTotal")
    if available is not None and total:
        yield MemoryLeft(available, total)


@dataclass(frozen=True, slots=True)
class _Files:
    """Where one version of control groups keeps its figures."""

    limits: tuple[str, ...]
    usage: str
    inactive: str


_V1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
# Above `high` a group is slowed down until it has given back: as good as a limit.
_V2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")


def _groups(root: Path) -> Iterator[MemoryLeft]:
    paths = dict(_own_groups(_text(root / "proc/self/cgroup")))
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        fields, sort = mount.split(), kind.split()
        if len(fields) < 5 or len(sort) < 3:
            continue
        files = _V2 if sort[0] == "cgroup2" else _V1 if "memory" in sort[2].split(",") else None
        if files is None or files not in paths:
            continue
        top = root / fields[4].lstrip("/")
        # With a root of its own, a mount shows the group from there on; a container may see no more of the path.
        inside = Path(paths[files])
        below = inside.relative_to(fields[3]) if inside.is_relative_to(fields[3]) else Path()
        for folder in (top / below, *(top / part for part in below.parents)):
            left = _left(folder, files)
            if left is not None:
                yield left


def _own_groups(text: str) -> Iterator[tuple[_Files, str]]:
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            yield _V1, path
        elif number == "0" and not controllers:
            yield _V2, path


def _left(folder: Path, files: _Files) -> MemoryLeft | None:
    limits = [limit for name in files.limits if (limit := _count(folder / name)) is not None]
    used = _count(folder / files.usage)
    if used is None or not limits or min(limits) >= _UNLIMITED_BYTES:
        return None
    # Pages of files that nobody has used lately are given up before anybody is killed.
    inactive = re.search(rf"^{files.inactive} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    held = max(0, used - (int(inactive[1]) if inactive else 0))
    return MemoryLeft(max(0, min(limits) - held), min(limits))


def _count(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _kib(text: str, name: str) -> int | None:
    found = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
