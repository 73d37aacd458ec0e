"""A session on another server: what it takes, how its tensors travel, and what it is when the server is not there."""

import asyncio
import importlib.util
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.clock import SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadManifest, InputNotAccepted, MissingExtra, OutOfMemory, RuntimeFault, RuntimeLost
from isocenter.core.events import NullObserver
from isocenter.core.precision import Precision
from isocenter.core.request import Request
from isocenter.core.tensor import FloatArray
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.engine import InlineEngine
from isocenter.runtimes import triton_grpc
from isocenter.runtimes.base import SessionOptions
from isocenter.runtimes.registry import open_runtime
from isocenter.runtimes.triton import TritonSession
from isocenter.runtimes.triton_memory import LEAST_BYTES, SharedTensors
from isocenter.runtimes.triton_parts import Asked, Received, Refusal, Room, Sent, Target, address_of, bytes_of
from v2_server import SERVERS, Behaviour, v2_server

HAS_GRPC = importlib.util.find_spec("grpc") is not None
WAYS = [
    pytest.param("http"),
    pytest.param("grpc", marks=pytest.mark.skipif(not HAS_GRPC, reason="grpcio is not installed")),
]


def opened(url: str, *, precision: Precision = "fp32", **options: Any) -> TritonSession:
    given = SessionOptions(url=url, precision=precision, options={"model": "lungs", **options})
    session = open_runtime("triton").open(Path(), given)
    assert isinstance(session, TritonSession)
    return session


def batch(items: int, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((items, *shape), dtype=np.float32)


def expected(x: FloatArray) -> FloatArray:
    means = x.reshape(len(x), -1).mean(axis=1, dtype=np.float64)
    return np.stack([means, 2 * means], axis=1).astype(np.float32)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def leftovers() -> list[Path]:
    """Regions of this process that still have a name."""
    return list(Path("/dev/shm").glob(f"isocenter-{os.getpid()}-*"))


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    yield
    assert leftovers() == []


@pytest.mark.parametrize("shared", [False, True], ids=["sent", "shared"])
def test_answers_are_the_servers_whatever_the_batch_and_the_way(way: str, shared: bool, no_leftovers: None) -> None:
    behaviour = Behaviour(shape=(3, 32, 32))
    with v2_server(way, behaviour) as server:
        session = opened(server.url, shared_memory=shared)
        for items in (1, 7, 2, 8):
            x = batch(items, (3, 32, 32), seed=items)
            np.testing.assert_array_equal(session.run({"x": x})["scores"], expected(x))
        assert behaviour.batches == [1, 7, 2, 8]
        assert behaviour.in_shared_memory == (4 if shared else 0)
        session.close()
        session.close()
        assert behaviour.regions == {}


def test_tensors_are_described_without_their_batch_axis(way: str) -> None:
    with v2_server(way) as server:
        session = opened(server.url, version=1)
        assert [(spec.name, spec.dtype, spec.shape) for spec in session.inputs] == [("x", np.dtype("f4"), (3, 8, 8))]
        assert [(spec.name, spec.dtype, spec.shape) for spec in session.outputs] == [("scores", np.dtype("f4"), (2,))]
        session.close()


def test_what_is_small_or_of_open_size_is_not_worth_shared_memory(no_leftovers: None) -> None:
    with v2_server("http") as server:
        session = opened(server.url, shared_memory=True)
        shared = SharedTensors(session._connection)
        small = (LEAST_BYTES // 4 // 192 - 1, 3, 8, 8)
        assert shared.of(session.inputs[0], small) is None
        assert shared.of(session.inputs[0], (64, 3, -1, -1)) is None
        region = shared.of(session.inputs[0], (64, 3, 8, 8))
        assert region is not None
        assert shared.of(session.inputs[0], (8, 3, 8, 8)) is region
        assert shared.of(session.inputs[0], (65, 3, 8, 8)) is not region
        shared.close()
        session.close()


def test_memory_that_the_server_does_not_take_is_done_without_unless_it_was_asked_for(way: str) -> None:
    behaviour = Behaviour(shape=(3, 32, 32), shared_memory=False)
    with v2_server(way, behaviour) as server:
        session = opened(server.url)
        assert not session.shares_memory
        np.testing.assert_array_equal(
            session.run({"x": batch(2, (3, 32, 32))})["scores"], expected(batch(2, (3, 32, 32)))
        )
        session.close()
        with pytest.raises(BadManifest, match="shared memory"):
            opened(server.url, shared_memory=True)
        assert leftovers() == []


def test_memory_that_the_server_still_uses_for_a_moment_is_let_go_of_a_moment_later(way: str) -> None:
    behaviour = Behaviour(shape=(3, 32, 32))
    with v2_server(way, behaviour) as server:
        session = opened(server.url, shared_memory=True)
        session.run({"x": batch(4, (3, 32, 32))})
        behaviour.still_in_use = 2
        session.close()
        assert behaviour.regions == {}


def test_a_run_does_not_fail_for_want_of_shared_memory(way: str, no_leftovers: None) -> None:
    behaviour = Behaviour(shape=(3, 32, 32))
    with v2_server(way, behaviour) as server:
        session = opened(server.url, shared_memory=True)
        behaviour.shared_memory = False  # its share is used up
        for items in (4, 8):
            x = batch(items, (3, 32, 32))
            np.testing.assert_array_equal(session.run({"x": x})["scores"], expected(x))
        assert behaviour.in_shared_memory == 0
        session.close()


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("grpc://localhost:8001", True),
        ("http://[::1]:8000", True),
        ("http://127.1.2.3:1", True),
        ("http://gpu-1:80", False),
    ],
)
def test_only_a_loopback_address_is_this_machine(url: str, local: bool) -> None:
    assert address_of(url).is_local is local


@pytest.mark.parametrize(
    "url", ["", "localhost:8001", "https://host:1", "grpc://host", "http://host:0", "http://host:65536", "http://a b:1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadManifest, match="grpc://host:port"):
        opened(url)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": ""}, "model"),
        ({"model": "../secrets"}, "model"),
        ({"version": "latest"}, "version"),
        ({"shared_memory": "maybe"}, "shared_memory"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"typo": 1}, "typo"),
    ],
)
def test_an_option_that_is_wrong_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadManifest, match=named):
        opened("http://127.0.0.1:9", **options)


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (Behaviour(batch_axis=False), "dynamic batch axis"),
        (Behaviour(batch_axis=False, max_batch_size=0), "max_batch_size 0"),
        (Behaviour(datatype="BYTES"), "BYTES"),
        (
            Behaviour(accelerators=[{"name": "tensorrt", "parameters": {"precision_mode": "FP16"}}]),
            "precision_mode fp16",
        ),
    ],
    ids=["no batch axis", "max_batch_size 0", "datatype", "accelerated"],
)
def test_a_model_that_cannot_be_served_is_refused(way: str, behaviour: Behaviour, why: str) -> None:
    with v2_server(way, behaviour) as server, pytest.raises(BadManifest, match=why):
        opened(server.url)


def test_a_server_without_triton_s_extensions_will_do(way: str) -> None:
    behaviour = Behaviour(max_batch_size=None, shared_memory=False)
    with v2_server(way, behaviour) as server:
        session = opened(server.url)
        assert len(session.run({"x": batch(100)})["scores"]) == 100
        session.close()


def test_the_proof_says_what_was_not_proven(way: str) -> None:
    with v2_server(way) as server:
        session = opened(server.url)
        assert session.proof.startswith("fp32: stated, and not provable from here; the golden cases decide")
        assert "onnxruntime_onnx" in session.proof
        session.close()
    half = [{"name": "tensorrt", "parameters": {"precision_mode": "FP16"}}]
    with v2_server(way, Behaviour(accelerators=half)) as server:
        session = opened(server.url, precision="fp16")
        assert "as configured" in session.proof
        session.close()


def test_a_batch_that_is_not_the_model_s_is_not_sent(way: str) -> None:
    behaviour = Behaviour()
    with v2_server(way, behaviour) as server:
        session = opened(server.url)
        for wrong in ({"x": batch(1, (3, 8, 9))}, {"x": batch(1).astype(np.float64)}, {"y": batch(1)}):
            with pytest.raises(InputNotAccepted):
                session.run(wrong)
        with pytest.raises(RuntimeFault, match=r"a batch of 9, lungs on .* takes up to 8"):
            session.run({"x": batch(9)})
        assert behaviour.batches == []
        session.close()


def test_what_the_server_said_is_not_passed_on(way: str) -> None:
    behaviour = Behaviour(refuses=400, says="bad value 0.123 in patient 42")
    with v2_server(way, behaviour) as server:
        session = opened(server.url)
        with pytest.raises(RuntimeFault) as told:
            session.run({"x": batch(1)})
        assert type(told.value) is RuntimeFault
        assert "patient" not in str(told.value) + str(told.value.details)
        behaviour.says = "CUDA: out of memory"
        with pytest.raises(OutOfMemory):
            session.run({"x": batch(1)})
        session.close()


@pytest.mark.parametrize("behaviour", [Behaviour(rows_short=1), Behaviour(binary=False)], ids=["rows", "not binary"])
def test_an_answer_that_is_none_is_a_fault(way: str, behaviour: Behaviour) -> None:
    with v2_server(way, behaviour) as server:
        session = opened(server.url)
        with pytest.raises(RuntimeFault) as told:
            session.run({"x": batch(2)})
        assert not isinstance(told.value, RuntimeLost)
        session.close()


def test_a_server_that_is_not_there_is_lost_and_not_a_bad_manifest(way: str) -> None:
    with v2_server(way) as server:
        url = server.url
    with pytest.raises(RuntimeLost) as told:
        opened(url)
    assert told.value.details["server"] == url


def test_a_model_that_is_not_ready_is_lost(way: str) -> None:
    with (
        v2_server(way, Behaviour(ready=False)) as server,
        pytest.raises(RuntimeLost, match="does not have lungs ready"),
    ):
        opened(server.url)


def test_a_server_that_stops_is_lost_to_its_sessions(way: str) -> None:
    with v2_server(way) as server:
        session = opened(server.url)
        session.run({"x": batch(1)})
    with pytest.raises(RuntimeLost):
        session.run({"x": batch(1)})
    session.close()


def test_a_model_that_is_unloaded_is_lost_and_not_a_fault_of_the_batch(way: str) -> None:
    behaviour = Behaviour()
    with v2_server(way, behaviour) as server:
        session = opened(server.url)
        behaviour.refuses, behaviour.ready = 400, False
        with pytest.raises(RuntimeLost, match="no longer has lungs ready"):
            session.run({"x": batch(1)})
        session.close()


def test_a_kept_connection_that_was_closed_meanwhile_costs_nothing() -> None:
    behaviour = Behaviour()
    with v2_server("http", behaviour) as server:
        session = opened(server.url)
        behaviour.hangs_up = 1
        assert len(session.run({"x": batch(3)})["scores"]) == 3
        behaviour.hangs_up = 2
        with pytest.raises(RuntimeLost):
            session.run({"x": batch(3)})
        assert len(session.run({"x": batch(3)})["scores"]) == 3
        session.close()


def test_a_server_that_says_nothing_is_lost_when_its_time_is_over(way: str) -> None:
    behaviour = Behaviour(hangs=threading.Event())
    with v2_server(way, behaviour) as server:
        session = opened(server.url, timeout_s=0.05)
        with pytest.raises(RuntimeLost, match=r"no answer in 0\.05 s"):
            session.run({"x": batch(1)})
        assert behaviour.hangs is not None
        behaviour.hangs.set()
        session.close()


def test_without_grpcio_the_extra_is_named_and_http_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "grpc", None)
    with pytest.raises(MissingExtra, match=r"isocenter\[triton\]"):
        opened("grpc://127.0.0.1:9")
    with v2_server("http") as server:
        opened(server.url).close()


async def test_while_the_server_computes_the_event_loop_turns(way: str) -> None:
    behaviour = Behaviour(hangs=threading.Event())
    assert behaviour.hangs is not None
    server = await asyncio.to_thread(SERVERS[way], behaviour)
    session = await asyncio.to_thread(opened, server.url)
    engine = InlineEngine(
        model="lungs",
        version=1,
        sessions=[session],
        rules=BatchRules(max_batch_size=4),
        max_queue_size=10,
        clock=SystemClock(),
        observer=NullObserver(),
    )
    await engine.start()
    engine.open()
    try:
        asked = asyncio.create_task(engine.infer(Request("r", {"x": batch(1)[0]}, Deadline.never())))
        for _ in range(1000):  # the loop turns, and nothing on it waits for the server
            await asyncio.sleep(0)
        assert not asked.done()
        behaviour.hangs.set()
        found = await asked
        np.testing.assert_array_equal(found.outputs["scores"], expected(batch(1))[0])
    finally:
        behaviour.hangs.set()
        await engine.drain(1.0)
        await engine.stop()
        await asyncio.to_thread(server.stop)


@pytest.mark.skipif(not HAS_GRPC, reason="grpcio is not installed")
def test_a_request_over_grpc_is_these_bytes() -> None:
    sent: list[bytes] = []

    class Stub(triton_grpc.GrpcConnection):
        def _called(self, method: str, request: bytes, timeout_s: float) -> Any:
            sent.append(request)
            return triton_grpc._class("ModelInferResponse")()

    connection = Stub(address_of("grpc://127.0.0.1:9"), Target("m", "3"), timeout_s=1.0)
    x = np.array([[1.0]], np.float32)
    connection.infer(
        [Sent("x", "FP32", (1, 1), x), Sent("y", "FP32", (2,), Room("r", 8))], [Asked("s"), Asked("t", Room("q", 4))]
    )
    connection.close()
    # By hand, from grpc_service.proto: model_name 1, model_version 2, inputs 5 (name 1, datatype 2, shape 3, parameters
    # 4), outputs 6 (name 1, parameters 2), raw_input_contents 7; InferParameter has int64 as 2 and string as 3.
    region, size = b"shared_memory_region", b"shared_memory_byte_size"

    def text(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def room(number: int, name: bytes, size_bytes: int) -> set[bytes]:
        return {
            text(number, text(1, region) + text(2, text(3, name))),
            text(number, text(1, size) + text(2, bytes([2 << 3, size_bytes]))),
        }

    (found,) = sent
    assert found.startswith(
        text(1, b"m") + text(2, b"3") + text(5, text(1, b"x") + text(2, b"FP32") + text(3, b"\1\1"))
    )
    assert found.endswith(text(7, x.tobytes()))
    assert all(part in found for part in (*room(4, b"r", 8), *room(2, b"q", 4)))
    expected_bytes = len(text(1, b"m") + text(2, b"3")) + len(text(7, x.tobytes()))
    y = text(1, b"y") + text(2, b"FP32") + text(3, b"\2") + b"".join(room(4, b"r", 8))
    t = text(1, b"t") + b"".join(room(2, b"q", 4))
    rest = (
        text(5, text(1, b"x") + text(2, b"FP32") + text(3, b"\1\1")),
        text(5, y),
        text(6, text(1, b"s")),
        text(6, t),
    )
    assert len(found) == expected_bytes + sum(map(len, rest))


def test_bytes_are_those_of_c_order() -> None:
    x = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert bytes(bytes_of(x.T)) == x.T.tobytes()
    assert np.shares_memory(np.frombuffer(bytes_of(x), np.int16), x)


def test_a_refusal_shows_its_kind_and_keeps_its_text_to_itself() -> None:
    assert str(Refusal("HTTP 400", "patient 42")) == "HTTP 400"
    assert Received("x", "FP32", (1,), None).content is None
