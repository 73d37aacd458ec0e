"""What a version costs is read off a meter; where the meter is silent, nothing is claimed."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from isocenter.core.errors import RuntimeFault
from isocenter.core.tensor import Tensors
from isocenter.engine.memory import Footprint
from isocenter.repository.footprint import Measuring, meter_for
from isocenter.runtimes.synthetic import INPUT, SyntheticSession, item

SIZES = (1, 2, 4)
ITEM = item(1.0)


class Machine:
    """Memory that is written into by hand: held now, the most held, and whether the peak can be reset."""

    def __init__(self, held: int | None = 1000, *, resets: bool = True, says_peak: bool = True) -> None:
        self.held = held
        self.peak = held or 0
        self.resets = resets
        self.says_peak = says_peak

    def take(self, count: int) -> None:
        assert self.held is not None
        self.held += count
        self.peak = max(self.peak, self.held)

    def held_bytes(self) -> int | None:
        return self.held

    def peak_bytes(self) -> int | None:
        return self.peak if self.says_peak and self.held is not None else None

    def reset_peak(self) -> bool:
        if self.resets:
            self.peak = self.held or 0
        return self.resets


class Arena(SyntheticSession):
    """Takes 10 an item and keeps what its largest batch took; for a moment of each run, 5 an item more."""

    def __init__(self, machine: Machine, *, fails: bool = False) -> None:
        super().__init__()
        self._machine = machine
        self._kept = 0
        self._fails = fails

    def run(self, batch: Tensors) -> Tensors:
        if self._fails:
            raise RuntimeFault("onnxruntime raised Fail")
        items = len(batch[INPUT])
        if self._machine.held is not None:
            self._machine.take(max(0, 10 * items - self._kept))
            self._machine.take(5 * items)
            self._machine.take(-5 * items)
            self._kept = max(self._kept, 10 * items)
        return super().run(batch)


def opened(machine: Machine, count: int = 1, *, cost: int = 200, fails: bool = False) -> tuple[Measuring, Arena]:
    measuring = Measuring(machine, free=lambda: None)
    sessions = [Arena(machine, fails=fails) for _ in range(count)]

    def open_sessions() -> Sequence[Arena]:
        if machine.held is not None:
            machine.take(cost * count)
        return sessions

    assert list(measuring.open(open_sessions)) == sessions
    return measuring, sessions[0]


@pytest.mark.parametrize("instances", [1, 3])
def test_a_session_costs_what_the_process_grew_by(instances: int) -> None:
    measuring, session = opened(Machine(), instances)
    found = measuring.run(session, ITEM, SIZES)
    assert found == Footprint(200, {1: 15, 2: 30, 4: 60})


def test_sizes_run_once_and_smallest_first() -> None:
    measuring, session = opened(Machine())
    measuring.run(session, ITEM, (4, 1, 2, 4))
    assert [len(run) for run in session.runs] == [1, 2, 4]


def test_without_leave_to_reset_the_peak_what_is_held_counts_and_any_new_record() -> None:
    machine = Machine(resets=False)
    measuring, session = opened(machine)
    assert measuring.run(session, ITEM, SIZES) == Footprint(200, {1: 15, 2: 30, 4: 60})
    machine.peak = 10**6  # something earlier took more than any run: the peak tells nothing
    measuring, session = opened(machine)
    assert measuring.run(session, ITEM, SIZES) == Footprint(200, {1: 10, 2: 20, 4: 40})


def test_a_system_without_peaks_is_measured_by_what_is_held() -> None:
    measuring, session = opened(Machine(says_peak=False))
    assert measuring.run(session, ITEM, SIZES) == Footprint(200, {1: 10, 2: 20, 4: 40})


def test_a_larger_batch_is_never_cheaper() -> None:
    machine = Machine()
    measuring, _ = opened(machine)

    class Shrinking(Arena):
        """The process gives back more than the next run takes."""

        def run(self, batch: Tensors) -> Tensors:
            outputs = super().run(batch)
            machine.take(-200)
            return outputs

    assert measuring.run(Shrinking(machine), ITEM, SIZES) == Footprint(200, {1: 15, 2: 15, 4: 15})


def test_growth_below_nothing_is_nothing() -> None:
    measuring, session = opened(Machine(), cost=-50)
    found = measuring.run(session, ITEM, SIZES)
    assert found is not None
    assert found.session_bytes == 0


@pytest.mark.parametrize("meter", [None, Machine(held=None)], ids=["no meter", "a silent one"])
def test_what_nobody_measures_is_not_claimed_and_nothing_is_run_for_it(meter: Machine | None) -> None:
    session = SyntheticSession()
    measuring = Measuring(meter, free=lambda: None)
    measuring.open(lambda: [session])
    assert measuring.run(session, ITEM, SIZES) is None
    assert session.runs == []


def test_a_version_that_fails_is_told_as_it_is() -> None:
    measuring, session = opened(Machine(), fails=True)
    with pytest.raises(RuntimeFault):
        measuring.run(session, ITEM, SIZES)


def test_memory_settles_before_it_is_read() -> None:
    machine = Machine()
    freed: list[int | None] = []
    measuring = Measuring(machine, free=lambda: freed.append(machine.held))
    session = Arena(machine)
    measuring.open(lambda: [session])
    measuring.run(session, ITEM, SIZES)
    assert len(freed) == 3  # before opening, after it, before the first run


def test_only_devices_that_somebody_can_read_are_measured() -> None:
    assert meter_for("cpu") is not None
    assert meter_for("cuda:0") is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_real_memory_is_seen() -> None:
    held = bytearray()

    class Large(SyntheticSession):
        def run(self, batch: Tensors) -> Tensors:
            held.extend(b"x" * (len(batch[INPUT]) * 32 * 2**20))
            return super().run(batch)

    measuring = Measuring(meter_for("cpu"))
    session = Large()
    measuring.open(lambda: [session])
    found = measuring.run(session, ITEM, (1, 2))
    assert found is not None
    assert found.peak_bytes_by_size[1] > 24 * 2**20
    assert found.peak_bytes_by_size[2] > found.peak_bytes_by_size[1] + 40 * 2**20
