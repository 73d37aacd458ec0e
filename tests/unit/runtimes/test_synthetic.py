"""The fake that the engine's tests stand on."""

import threading
from pathlib import Path

import numpy as np
import pytest

from isocenter.core.errors import BadManifest, OutOfMemory
from isocenter.core.tensor import Array
from isocenter.runtimes.base import Runtime, Session, SessionOptions
from isocenter.runtimes.synthetic import (
    INPUT,
    OUTPUT,
    SCORES,
    Cost,
    Every,
    Faults,
    Gate,
    Switch,
    SyntheticError,
    SyntheticRuntime,
    SyntheticSession,
    checksum,
    item,
)
from patience import PATIENCE_S


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


def test_a_session_is_sick_while_the_switch_is_on() -> None:
    switch = Switch()
    session = SyntheticSession(faults=Faults(fail_always=switch))
    session.run(batch(1))
    switch.on = True
    for _ in range(2):
        with pytest.raises(SyntheticError):
            session.run(batch(1))
    switch.on = False
    session.run(batch(1))


def test_memory_runs_out_for_large_batches_and_on_certain_runs() -> None:
    session = SyntheticSession(faults=Faults(oom_above=2, oom_on_runs={3}))
    session.run(batch(1, 2))
    for size in (3, 1):
        with pytest.raises(OutOfMemory):
            session.run(batch(*range(size)))
    session.run(batch(1))


@pytest.mark.parametrize("ends_by", ["closing", "release"])
@pytest.mark.parametrize("where", ["marker", "run"])
def test_a_run_hangs_until_somebody_ends_it(where: str, ends_by: str) -> None:
    faults = Faults(hang_markers={7.0}) if where == "marker" else Faults(hang_on_runs={2})
    session = SyntheticSession(faults=faults)
    session.run(batch(1))
    answers: list[float] = []
    thread = threading.Thread(target=lambda: answers.append(session.run(batch(7))[OUTPUT][0]), daemon=True)
    thread.start()
    thread.join(timeout=0.1)
    assert thread.is_alive()
    if ends_by == "closing":
        session.close()
    else:
        faults.released.set()
    thread.join(timeout=PATIENCE_S)
    assert answers == [checksum(item(7)[INPUT])]


def test_the_first_runs_may_be_healthy_so_that_a_sick_model_can_be_proven() -> None:
    session = SyntheticSession(faults=Faults(healthy_runs=3, raise_on_runs=Every(2)))
    failed = []
    for run in range(1, 8):
        try:
            session.run(batch(1))
        except SyntheticError:
            failed.append(run)
    assert failed == [4, 6]


def test_scores_follow_the_mean_of_an_item() -> None:
    session = SyntheticSession(shape=(4,), labels=3)
    assert session.outputs[0].shape == (3,)
    assert session.run(batch(2, 5))[SCORES].tolist() == [[2, 4, 6], [5, 10, 15]]


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
        thread.join(timeout=PATIENCE_S)
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


def test_the_runtime_opens_sessions_as_sick_as_the_options_say() -> None:
    options: dict[str, str | int | float | bool] = {"healthy_runs": 1, "fail_every": 3, "oom_above": 1}
    session = SyntheticRuntime().open(Path("any"), SessionOptions(options=options))
    session.run(batch(1, 2))
    with pytest.raises(OutOfMemory):
        session.run(batch(1, 2))
    with pytest.raises(SyntheticError):
        session.run(batch(1))


def test_a_file_makes_sessions_of_other_processes_sick(tmp_path: Path) -> None:
    options = SessionOptions(options={"fails_while": "sick"})
    session = SyntheticRuntime().open(tmp_path / "weights", options)
    session.run(batch(1))
    (tmp_path / "sick").touch()
    with pytest.raises(SyntheticError):
        session.run(batch(1))
    with pytest.raises(BadManifest, match="asked to fail"):
        SyntheticRuntime().open(tmp_path / "weights", options)
    (tmp_path / "sick").unlink()
    session.run(batch(1))


def test_a_classifier_of_images_can_be_had() -> None:
    options = SessionOptions(options={"image": "3x8x6", "labels": 2})
    session = SyntheticRuntime().open(Path("any"), options)
    assert (session.inputs[0].shape, session.outputs[0].shape) == ((3, 8, 6), (2,))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (SessionOptions(options={"elemnts": 3}), "unknown options .*: elemnts"),
        (SessionOptions(options={"image": "8x8"}), "not of the form 3x8x8"),
        (SessionOptions(precision="int8"), "int8"),
    ],
    ids=["typo", "image", "precision"],
)
def test_what_it_cannot_do_is_refused(options: SessionOptions, says: str) -> None:
    with pytest.raises(BadManifest, match=says):
        SyntheticRuntime().open(Path("any"), options)
