"""What a model version costs in memory: read off while it is opened and run for the first time."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from isocenter.core.tensor import Tensors
from isocenter.engine.memory import Footprint
from isocenter.measure.memory import MemoryMeter, ProcessMemory, free_memory
from isocenter.runtimes.base import Session

METERS: dict[str, Callable[[], MemoryMeter]] = {"cpu": ProcessMemory}
"""What reads the memory of a kind of device; a kind that is not here is not measured."""


def meter_for(device: str) -> MemoryMeter | None:
    """The meter of a manifest's `instances.device`, such as `cpu` or `cuda:0`; None: nobody can say."""
    make = METERS.get(device.partition(":")[0])
    return make() if make is not None else None


class Measuring:
    """One version on its way to ready: `open` its sessions, then `run` its sizes, before anything else runs.

    It is right while the process does nothing else. Import the runtime first, or the first version pays for it.
    """

    def __init__(self, meter: MemoryMeter | None, *, free: Callable[[], None] = free_memory) -> None:
        self._meter = meter
        self._free = free
        self._session_bytes: int | None = None

    def open(self, open_sessions: Callable[[], Sequence[Session]]) -> Sequence[Session]:
        """Open all sessions of the version, and note what each holds."""
        before = self._settled()
        sessions = open_sessions()
        after = self._settled()
        if before is not None and after is not None and sessions:
            self._session_bytes = max(0, after - before) // len(sessions)
        return sessions

    def run(self, session: Session, item: Tensors, sizes: Iterable[int]) -> Footprint | None:
        """Run every size once, smallest first: a runtime keeps what its largest batch has taken.

        None where the system does not say what is held; then nothing is run.

        Args:
            session: one of those opened, not yet run.
            item: without a batch axis.
            sizes: the batch sizes that will be warmed.

        Raises:
            RuntimeFault: a run failed.
        """
        before = self._settled()
        if self._meter is None or self._session_bytes is None or before is None:
            return None
        peaks: dict[int, int] = {}
        largest = 0
        for size in sorted(set(sizes)):
            peak = self._peak(self._meter, partial(_run, session, item, size))
            if peak is None:
                return None
            # Pages are counted a few late: what is measured a little below a smaller batch is no cheaper.
            largest = max(largest, peak - before)
            peaks[size] = largest
        return Footprint(self._session_bytes, peaks)

    def _peak(self, meter: MemoryMeter, run: Callable[[], Tensors]) -> int | None:
        """The most held during a run; where the peak cannot be reset, what is held at its end, or a new record."""
        resets = meter.reset_peak()
        earlier = meter.peak_bytes()
        outputs = run()
        held, peak = meter.held_bytes(), meter.peak_bytes()
        del outputs  # held until it was counted
        if held is None or peak is None or earlier is None:
            return held
        return max(held, peak) if resets or peak > earlier else held

    def _settled(self) -> int | None:
        if self._meter is None:
            return None
        self._free()
        return self._meter.held_bytes()


def _run(session: Session, item: Tensors, size: int) -> Tensors:
    return session.run({name: np.stack([array] * size) for name, array in item.items()})
