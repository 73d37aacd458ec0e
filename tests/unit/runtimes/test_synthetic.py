"""The fake that the engine's tests stand on."""

import threading
from pathlib import Path

import numpy as np
import pytest

from isocenter.core.errors import BadManifest
from isocenter.core.tensor import Array
from isocenter.runtimes.base import Runtime, Session, SessionOptions
from isocenter.runtimes.synthetic import (
    INPUT,
    OUTPUT,
    Cost,
    Faults,
    Gate,
    SyntheticError,
    SyntheticRuntime,
    SyntheticSession,
    checksum,
    item,
)


def batch(*markers: float) -> dict[str, Array]:
    return {INPUT: np.stack([item(marker)[INPUT] for marker in markers])}


def test_each_item_has_its_own_answer_whatever_its_company() -> None:
    session = SyntheticSession()
    together = session.run(batch(1, 2, 3))[OUTPUT].tolist()
    assert together == [session.run(batch(n))[OUTPUT][0] for n in (1, 2, 3)]
    assert together == [checksum(item(n)[INPUT]) for n in (1, 2, 3)]
    assert len(set(together)) == 3


def test_its_memory_is_used_again() -> None:
    session = SyntheticSession()
    assert np.shares_memory(session.run(batch(1, 2))[OUTPUT], session.run(batch(3))[OUTPUT])


def test_it_lists_its_runs() -> None:
    session = SyntheticSession()
    session.run(batch(1, 2))
    session.run(batch(3))
    assert session.runs == [(1, 2), (3,)]


def test_faults_come_as_asked() -> None:
    session = SyntheticSession(
        faults=Faults(raise_on_runs=frozenset({2}), raise_markers={7.0}, nan_markers={8.0}, wrong_axis_above=2)
    )
    assert np.isnan(session.run(batch(1, 8))[OUTPUT]).tolist() == [False, True]
    for bad in (batch(1), batch(1, 7)):
        with pytest.raises(SyntheticError):
            session.run(bad)
    assert len(session.run(batch(1, 2, 3))[OUTPUT]) == 2


def test_a_gate_holds_runs_back() -> None:
    gate = Gate()
    passed: list[int] = []

    def run(n: int) -> None:
        gate.wait()
        passed.append(n)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    assert passed == []
    gate.let_through()
    gate.open()
    for thread in threads:
        thread.join(timeout=30.0)
    assert sorted(passed) == [0, 1, 2, 3]
    gate.wait()


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "asleep"])
def test_a_run_takes_its_time(busy: bool) -> None:
    cost = Cost(base_s=0.001, per_item_s=0.002, busy=busy)
    assert cost.service_s(3) == pytest.approx(0.007)
    cost.spend(1)


def test_the_runtime_opens_sessions() -> None:
    runtime: Runtime = SyntheticRuntime()
    session: Session = runtime.open(Path("any"), SessionOptions(options={"elements": 3, "base_ms": 0.5}))
    assert session.inputs[0].shape == (3,)
    session.close()
    session.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (SessionOptions(options={"elemnts": 3}), "unknown options .*: elemnts"),
        (SessionOptions(precision="int8"), "int8"),
    ],
    ids=["typo", "precision"],
)
def test_what_it_cannot_do_is_refused(options: SessionOptions, says: str) -> None:
    with pytest.raises(BadManifest, match=says):
        SyntheticRuntime().open(Path("any"), options)
