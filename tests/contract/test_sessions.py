"""What every runtime owes the engine, whichever framework is behind it."""

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from isocenter.core.errors import BadManifest, InputNotAccepted, MissingExtra, RuntimeFault
from isocenter.core.tensor import Array, Tensors
from isocenter.runtimes.base import Runtime, Session, SessionOptions
from isocenter.runtimes.registry import RUNTIMES, open_runtime
from onnx_writer import Node, Port, write_classifier, write_onnx, write_picky, write_quantised
from v2_server import v2_server

SIZES = range(1, 8)
RELATIVE = 2e-4
"""Of the largest absolute output: as far as one runtime may be from another, or from itself in other company."""
UNLOADED_WITHIN = 0.05


@dataclass(frozen=True)
class Case:
    """One kind of file in one runtime."""

    kind: str
    write: Callable[[Path], Path]
    options: SessionOptions = field(default_factory=SessionOptions)
    lacks: Collection[str] = ()
    """What it owes nobody, or cannot be shown here: `files`, `devices`, `precisions`, `checks`, `ownership`."""
    fails: Callable[[Path], Path] | None = None
    """Writes a model that adds one to `x`, if that has four values; else the run fails inside of the framework."""
    failing_options: dict[str, str | int | float | bool] = field(default_factory=dict)

    def needs(self, *what: str) -> None:
        """Skip what is not for it."""
        if missing := [each for each in what if each in self.lacks]:
            pytest.skip(f"{self.kind} has no {missing[0]} of its own")

    def open(self, folder: Path, **changes: Any) -> Session:
        """A session of it."""
        return self.runtime().open(self.write(folder), replace(self.options, **changes))

    def runtime(self) -> Runtime:
        """Its runtime, or a skip that names what is not installed."""
        try:
            return open_runtime(self.kind)
        except MissingExtra as missing:
            pytest.skip(missing.message)


def _torch_files() -> Any:
    pytest.importorskip("torch")
    import torch_files

    return torch_files


def _state(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    from isocenter.networks.registry import NETWORKS
    from isocenter.networks.weights import seeded

    with seeded(3):
        torch.save(NETWORKS["slice-resnet"].build().state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def _ir(folder: Path) -> Path:
    pytest.importorskip("openvino")
    from isocenter.runtimes.openvino import openvino_without_telemetry

    openvino = openvino_without_telemetry()
    model = openvino.Core().read_model(str(write_classifier(folder / "classifier.onnx")))
    openvino.save_model(model, str(folder / "classifier.xml"), compress_to_fp16=False)
    return folder / "classifier.xml"


CASES = {
    "onnxruntime": Case(
        "onnxruntime",
        lambda folder: write_classifier(folder / "classifier.onnx"),
        fails=lambda folder: write_picky(folder / "picky.onnx"),
    ),
    "onnxruntime int8": Case(
        "onnxruntime", lambda folder: write_quantised(folder / "quantised.onnx"), SessionOptions(precision="int8")
    ),
    "onnxruntime bound": Case(
        "onnxruntime",
        lambda folder: write_classifier(folder / "classifier.onnx"),
        SessionOptions(options={"io_binding": "on"}),
    ),
    "torch script": Case(
        "torch",
        lambda folder: _torch_files().write_script(folder / "m.pt", _torch_files().classifier()),
        fails=lambda folder: _torch_files().write_picky(folder / "picky.pt"),
        failing_options={"inputs": "x: float32[-1]", "outputs": "y: float32[-1]"},
    ),
    "torch program": Case(
        "torch", lambda folder: _torch_files().write_program(folder / "m.pt2", _torch_files().classifier())
    ),
    "torch eager": Case("torch", _state, SessionOptions(options={"network": "slice-resnet"})),
    "torch channels last": Case(
        "torch",
        lambda folder: _torch_files().write_script(folder / "m.pt", _torch_files().classifier()),
        SessionOptions(options={"channels_last": True}),
    ),
    "openvino onnx": Case(
        "openvino",
        lambda folder: write_classifier(folder / "classifier.onnx"),
        fails=lambda folder: write_picky(folder / "picky.onnx"),
    ),
    "openvino ir": Case("openvino", _ir),
    "openvino int8": Case(
        "openvino", lambda folder: write_quantised(folder / "quantised.onnx"), SessionOptions(precision="int8")
    ),
    "triton http": Case("triton", lambda folder: folder, lacks=("files", "devices", "precisions")),
    "triton grpc": Case("triton", lambda folder: folder, lacks=("files", "devices", "precisions")),
    "synthetic": Case("synthetic", lambda folder: folder / "none", lacks=("files", "devices", "checks", "ownership")),
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    found = CASES[str(request.param)]
    if found.kind != "triton":
        yield found
        return
    scheme = str(request.param).split()[1]
    if scheme == "grpc":
        pytest.importorskip("grpc")
    with v2_server(scheme) as server:
        yield replace(found, options=replace(found.options, url=server.url, options={"model": "lungs"}))


@pytest.fixture(scope="module")
def session(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    opened = case.open(tmp_path_factory.mktemp("model"))
    yield opened
    opened.close()


def items(session: Session, count: int, *, seed: int = 0) -> dict[str, Array]:
    """Noise as the session takes it."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.standard_normal((count, *(32 if n == -1 else n for n in spec.shape))).astype(spec.dtype)
        for spec in session.inputs
    }


def test_any_batch_size_gives_each_item_its_lone_answer(session: Session) -> None:
    whole = items(session, max(SIZES))
    alone = [_copied(session.run({name: array[n : n + 1] for name, array in whole.items()})) for n in range(max(SIZES))]
    for size in (*SIZES, 1, 3):  # back to smaller ones as well
        together = _copied(session.run({name: array[:size] for name, array in whole.items()}))
        for spec in session.outputs:
            expected = np.concatenate([answer[spec.name] for answer in alone[:size]])
            assert together[spec.name].shape == expected.shape
            assert together[spec.name].dtype == spec.dtype
            assert np.abs(together[spec.name] - expected).max() <= RELATIVE * np.abs(expected).max()


def test_answers_belong_to_whoever_asked(case: Case, session: Session) -> None:
    case.needs("ownership")
    given = items(session, 2)
    first = session.run(given)
    kept = _copied(first)
    second = session.run(items(session, 2, seed=1))
    for name, array in first.items():
        assert np.array_equal(array, kept[name])
        assert not np.shares_memory(array, second[name])
        assert not any(np.shares_memory(array, taken) for taken in given.values())


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_computed(case: Case, session: Session) -> None:
    case.needs("checks")
    spec, good = session.inputs[0], items(session, 2)
    wrong: dict[str, dict[str, Array]] = {
        "axis missing": {spec.name: good[spec.name][0]},
        "element type": {spec.name: good[spec.name].astype(np.float64)},
        "channels": {spec.name: np.concatenate([good[spec.name]] * 2, axis=1)},
        "empty": {spec.name: good[spec.name][:0]},
        "missing": {},
        "unknown": {**good, "other": good[spec.name]},
    }
    taken = [what for what, batch in wrong.items() if not _refused(session, batch)]
    assert taken == []
    session.run(good)


def test_read_only_and_strided_arrays_are_taken(session: Session) -> None:
    given = items(session, 4)
    expected = _copied(session.run({name: array[::2].copy() for name, array in given.items()}))
    for array in given.values():
        array.flags.writeable = False
    answer = session.run({name: array[::2] for name, array in given.items()})
    for name, array in answer.items():
        assert np.abs(array - expected[name]).max() <= RELATIVE * np.abs(expected[name]).max()


def test_nan_goes_in_and_nothing_breaks(session: Session) -> None:
    poisoned = items(session, 2)
    for array in poisoned.values():
        array[0] = np.nan
    session.run(poisoned)
    clean = session.run(items(session, 2))
    assert all(np.isfinite(array).all() for array in clean.values())


def test_two_sessions_run_on_two_threads_at_once(case: Case, tmp_path: Path) -> None:
    sessions = [case.open(tmp_path), case.open(tmp_path)]
    batches = [items(sessions[0], 3, seed=seed) for seed in (1, 2)]
    expected = [_copied(session.run(batch)) for session, batch in zip(sessions, batches, strict=True)]
    failed: list[str] = []

    def work(mine: int) -> None:
        for _ in range(20):
            answer = sessions[mine].run(batches[mine])
            failed.extend(
                name
                for name, array in answer.items()
                if not np.abs(array - expected[mine][name]).max() <= RELATIVE * np.abs(expected[mine][name]).max()
            )

    threads = [threading.Thread(target=work, args=(mine,)) for mine in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in sessions:
        session.close()
    assert failed == []


def test_it_says_in_which_precision_it_was_seen_to_compute(case: Case, session: Session) -> None:
    session.run(items(session, 1))
    assert session.proof.startswith(f"{case.options.precision}: ")


def test_closing_twice_is_harmless_and_ends_it(case: Case, tmp_path: Path) -> None:
    session = case.open(tmp_path)
    batch = items(session, 1)
    session.close()
    session.close()
    if "files" not in case.lacks:
        with pytest.raises(RuntimeFault, match="closed"):
            session.run(batch)


def _beside(folder: Path) -> Path:
    """A sum with a table of weights that is large enough to be mapped, and that nobody lays out anew."""
    table = np.ones(262_144, np.float32)
    (folder / "w.bin").write_bytes(table.tobytes())
    ports = [Port("x", ("batch", len(table)))], [Port("y", ("batch", len(table)))]
    nodes = [Node("Add", ["x", "w"], ["y"])]
    return write_onnx(folder / "m.onnx", nodes, *ports, {"w": table}, external={"w": "w.bin"})


@pytest.mark.parametrize(
    ("kind", "write", "weights"),
    [
        pytest.param("onnxruntime", _beside, "w.bin", id="onnxruntime"),
        pytest.param("openvino", _beside, "w.bin", id="openvino onnx"),
        pytest.param("openvino", _ir, "classifier.bin", id="openvino ir"),
    ],
)
def test_what_is_written_over_the_weights_does_not_reach_an_open_session(
    kind: str, write: Callable[[Path], Path], weights: str, tmp_path: Path
) -> None:
    opened = Case(kind, write).open(tmp_path)
    batch = {
        spec.name: np.ones((2, *(512 if axis == -1 else axis for axis in spec.shape)), spec.dtype)
        for spec in opened.inputs
    }
    with (tmp_path / weights).open("r+b") as file:
        file.write(bytes((tmp_path / weights).stat().st_size))
    found = opened.run(batch)
    fresh = Case(kind, write).open(tmp_path)  # of the weights that were there before
    assert all((found[name] == expected).all() for name, expected in fresh.run(batch).items())
    fresh.close()
    opened.close()


def test_an_unknown_option_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="trheads"):
        case.open(tmp_path, options={**case.options.options, "trheads": 3})


def test_a_precision_that_the_device_has_not_is_refused(case: Case, tmp_path: Path) -> None:
    case.needs("precisions")
    with pytest.raises(BadManifest, match="tf32"):
        case.open(tmp_path, precision="tf32")


def test_a_file_that_computes_in_another_precision_is_refused(case: Case, tmp_path: Path) -> None:
    case.needs("precisions")
    other = "fp32" if case.options.precision == "int8" else "int8"
    with pytest.raises(BadManifest, match=r"int8|fp32"):
        case.open(tmp_path, precision=other)


@pytest.mark.parametrize("device", ["cuda:7", "npu", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused_by_the_names_of_those_that_are(
    case: Case, device: str, tmp_path: Path
) -> None:
    case.needs("devices")
    with pytest.raises(BadManifest, match=r"there are cpu"):
        case.open(tmp_path, device=device)


def test_a_broken_file_is_refused(case: Case, tmp_path: Path) -> None:
    case.needs("files")
    runtime = case.runtime()
    file = case.write(tmp_path)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BadManifest):
        runtime.open(file, case.options)
    with pytest.raises(BadManifest):
        runtime.open(tmp_path / f"none{file.suffix}", case.options)


def test_a_run_that_fails_is_told_in_our_words_and_the_next_one_goes_well(case: Case, tmp_path: Path) -> None:
    if case.fails is None:
        pytest.skip("this kind of file is covered by its runtime's other one")
    session = case.runtime().open(case.fails(tmp_path), SessionOptions(options=case.failing_options))
    fitting, other = (np.full((1, length), 17.25, np.float32) for length in (4, 3))
    with pytest.raises(RuntimeFault) as raised:
        session.run({"x": other})
    assert raised.value.message.startswith((f"{case.kind} raised ", f"{case.kind} gave "))
    assert "17.25" not in raised.value.message
    assert session.run({"x": fitting})["y"].tolist() == [[18.25] * 4]
    session.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
@pytest.mark.parametrize("kind", ["onnxruntime", "openvino", "torch script", "torch program"])
def test_unloading_frees_the_memory(kind: str, tmp_path: Path) -> None:
    runtime = kind.partition(" ")[0]
    if RUNTIMES[runtime].needs:
        pytest.importorskip(RUNTIMES[runtime].needs)
    script = textwrap.dedent(f"""
        import re, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import numpy as np
        from isocenter.measure.memory import free_memory
        from isocenter.runtimes.base import SessionOptions
        from isocenter.runtimes.registry import open_runtime

        folder, kind = Path({str(tmp_path)!r}), {kind!r}
        if kind.startswith("torch"):
            import torch_files
            ports = {{"inputs": [{{"name": "x", "dtype": "float32", "shape": [64]}}],
                      "outputs": [{{"name": "y", "dtype": "float32", "shape": [1]}}]}}
            if kind == "torch script":
                file = torch_files.write_script(folder / "m.pt", torch_files.large(100), (64,), ports)
            else:
                file = torch_files.write_program(folder / "m.pt2", torch_files.large(100), (64,))
        else:
            from onnx_writer import write_large
            file = write_large(folder / "m.onnx", 100)
        runtime = open_runtime({runtime!r})

        def resident():
            free_memory()
            return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

        def load_and_close():
            session = runtime.open(file, SessionOptions())
            session.run({{spec.name: np.zeros((2, *spec.shape), spec.dtype) for spec in session.inputs}})
            held = resident()
            session.close()
            return held

        load_and_close()
        before = resident()
        held = [load_and_close() for _ in range(4)]
        print(before, max(held), resident())
    """)
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    before, held, after = map(float, ended.stdout.split())
    assert held - before > 80  # the weights were there
    assert after <= before * (1 + UNLOADED_WITHIN)


def _refused(session: Session, batch: Tensors) -> bool:
    try:
        session.run(batch)
    except InputNotAccepted:
        return True
    return False


def _copied(answer: Tensors) -> dict[str, Array]:
    return {name: array.copy() for name, array in answer.items()}
