"""How long a thread may compute until another one gets the processor: Linux' time slices."""

import ctypes
import os
import platform
import struct
from typing import Final

SHORT_MS: Final = 1.0
_CALLS: Final = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Numbers of sched_setattr(2) and sched_getattr(2), which the C library does not wrap."""
_FORM: Final = "=IIQiIQQQ"
"""size, policy, flags, nice, priority, runtime, deadline, period; times in nanoseconds."""
_NORMAL: Final = 0


def ask_for_short_turns(turn_ms: float = SHORT_MS) -> bool:
    """Ask for turns of so many milliseconds, for this thread and those it begins; whether the system knows of it.

    From Linux 6.12 on, an ordinary thread may say how long its turns shall be, and comes to its turn the sooner the
    shorter they are. Its share of the processor stays the same. Without it turns take about 3 ms: behind three other
    busy processes, a refusal that costs a tenth of a millisecond waits for ten. Systems that are older take no notice.
    """
    if platform.machine() not in _CALLS:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    size = struct.calcsize(_FORM)
    wish = struct.pack(_FORM, size, _NORMAL, 0, nice, 0, int(turn_ms * 1e6), 0, 0)
    set_attributes, _ = _CALLS[platform.machine()]
    return int(ctypes.CDLL(None).syscall(set_attributes, 0, wish, 0)) == 0


def nice_and_turn_ms() -> tuple[int, float] | None:
    """What this thread has: its niceness, and the turns that it asked for, 0 for the system's own; None if unknown."""
    if platform.machine() not in _CALLS:
        return None
    found = ctypes.create_string_buffer(struct.calcsize(_FORM))
    _, get_attributes = _CALLS[platform.machine()]
    if ctypes.CDLL(None).syscall(get_attributes, 0, found, len(found), 0) != 0:
        return None
    _, _, _, nice, _, runtime_ns, _, _ = struct.unpack(_FORM, found.raw)
    return nice, runtime_ns / 1e6
