"""Several processes as one server: what dies takes nobody else with it, and comes back."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from conftest import MODELS
from fault_table import Fault
from integration.test_process import IMAGE, TWO, in_both_modes, png
from patience import PATIENCE_S
from serverproc import ServerProcess, running


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(MODELS, *TWO) as server:
        yield server


def wait_for(server: ServerProcess, event: str, count: int = 1) -> None:
    """Return when something was logged so often."""
    until_s = time.monotonic() + PATIENCE_S
    while len(server.lines(event)) < count:
        assert time.monotonic() < until_s, server.written()
        assert server.process.poll() is None, server.written()
        time.sleep(0.02)


def test_answers_are_those_of_one_process(server: ServerProcess) -> None:
    with running(MODELS) as alone:
        for seed in range(3_300_000, 3_300_012):
            image = png(seed)
            _, found, _ = server.predict(image)
            _, meant, _ = alone.predict(image)
            assert found["prediction"] == meant["prediction"]
            assert found["probabilities"] == pytest.approx(meant["probabilities"], abs=1e-6)
            assert list(found) == list(meant)
            assert list(found["timings_ms"]) == list(meant["timings_ms"])
        for path in ("/v1/models", "/v1/models/brain-mri-classifier"):
            found, meant = (each.get(path)[1] for each in (server, alone))
            found.pop("service_ms", None), meant.pop("service_ms", None)
            assert found == meant
        assert server.predict(image[:-200])[1]["error"]["code"] == alone.predict(image[:-200])[1]["error"]["code"]


def test_metrics_and_statistics_are_those_of_all_processes(server: ServerProcess) -> None:
    def answered() -> int:
        counted = re.findall(r'^isocenter_requests_total{code="ok".*} (.+)$', metrics(), re.MULTILINE)
        return int(sum(map(float, counted)))

    def metrics() -> str:
        connection = server.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    before = answered()
    connections = [server.connect() for _ in range(4)]
    for connection in connections:
        for _ in range(3):
            assert server.predict(IMAGE, connection)[0] == 200
    until_s = time.monotonic() + PATIENCE_S
    while answered() != before + 12:
        assert time.monotonic() < until_s
    text = metrics()
    assert 'isocenter_model_state_info{model="brain-mri-classifier",state="ready",version="1"} 1.0' in text
    assert "isocenter_ready 1.0" in text
    assert server.get("/v1/models/brain-mri-classifier/stats")[1]["version"] == 1
    for each in connections:
        each.close()


def test_connections_of_one_burst_are_spread_evenly(server: ServerProcess) -> None:
    # One that stood still for a moment is given fewer; its next burst is spread evenly.
    until_s = time.monotonic() + PATIENCE_S
    while (found := spread(server)) != [4, 4]:
        assert time.monotonic() < until_s, found


def spread(server: ServerProcess) -> list[int]:
    """How many connections of a burst of 8 each front end has."""
    before = sockets(server)
    connections = [server.connect() for _ in range(8)]
    for connection in connections:
        connection.connect()
    for connection in connections:
        assert server.predict(IMAGE, connection)[0] == 200
    found = [now - then for now, then in zip(sockets(server), before, strict=True)]
    for connection in connections:
        connection.close()
    return found


def sockets(server: ServerProcess) -> list[int]:
    """Open sockets of each front end, once those of earlier callers are closed."""
    seen: list[int] = []
    while True:
        found = [descriptors(server.part("front_end", number)) for number in (0, 1)]
        if found == seen:
            return found
        seen = found
        time.sleep(0.1)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_of_a_thousand_connections_at_once_none_is_forgotten(server: ServerProcess) -> None:
    callers = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) for _ in range(1000)]
    try:
        for caller in callers:
            caller.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert all(caller.recv(64).startswith(b"HTTP/1.1 200") for caller in callers)
    finally:
        for caller in callers:
            caller.close()


def test_front_ends_load_no_model_runtime(server: ServerProcess) -> None:
    def mapped(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    assert "onnxruntime" in mapped(server.part("engine_process"))
    assert "onnxruntime" not in mapped(server.part("front_end"))
    assert "numpy" not in mapped(server.process.pid)


class Callers:
    """Callers in a closed loop, each on a connection of its own; they count how each request ended."""

    def __init__(self, server: ServerProcess, count: int) -> None:
        self._server = server
        self._stop = threading.Event()
        self._first = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(count)]
        self.outcomes: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.asked = 0

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            assert self._first.acquire(timeout=PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def figures(self) -> dict[str, int]:
        """What became of all requests; all were of one picture, so answers are wrong where they differ."""
        wrong = self.labels.total() - max(self.labels.values())
        answered, cut_off = self.outcomes["answered"], self.outcomes["closed"]
        told = self.outcomes.total() - answered - cut_off
        return {
            "asked": self.asked, "answered": answered - wrong, "told": told, "cut_off": cut_off, "wrong": wrong
        }  # fmt: skip

    def wait_for(self, outcome: str, more: int) -> None:
        """Return when so many more requests ended like that."""
        until_s = time.monotonic() + PATIENCE_S
        wanted = self.outcomes[outcome] + more
        while self.outcomes[outcome] < wanted:
            assert time.monotonic() < until_s, self.outcomes
            time.sleep(0.01)

    def _call(self) -> None:
        connection = self._server.connect()
        answered = False
        while not self._stop.is_set():
            with self._lock:
                self.asked += 1
            outcome = self._ask(connection)
            with self._lock:
                self.outcomes[outcome] += 1
            if not answered:
                answered = True
                self._first.release()
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> str:
        try:
            connection.request("POST", "/predict", body=IMAGE)
            answer = connection.getresponse()
            body = json.loads(answer.read())
        except (ConnectionError, http.client.HTTPException):
            connection.close()
            return "closed"
        if answer.status == 200:
            with self._lock:
                self.labels[body["prediction"]] += 1
            return "answered"
        assert answer.headers["retry-after"]
        return str(body["error"]["code"])


@pytest.mark.slow
@pytest.mark.fault
def test_a_front_end_that_is_killed_costs_only_its_own_callers_and_comes_back(fault: Fault) -> None:
    with running(MODELS, *TWO) as server, Callers(server, 16) as callers:
        victim, other = server.part("front_end", 0), server.part("front_end", 1)
        at_most = descriptors(victim)
        os.kill(victim, signal.SIGKILL)
        wait_for(server, "restarted")
        callers.wait_for("answered", 32)
        # Some of the callers were on it, each with at most one request.
        assert 1 <= callers.outcomes["closed"] <= min(16, at_most)
        assert set(callers.outcomes) == {"answered", "closed"}
        assert len(callers.labels) == 1
        assert server.part("front_end", 0) == other
        assert [(line["role"], line["status"]) for line in server.lines("frontend_lost")] == [("frontend 0", -9)]
        assert server.get("/readyz")[0] == 200
    fault("kill -9 of one of two front ends", **callers.figures())


@pytest.mark.slow
@pytest.mark.fault
def test_an_engine_process_that_is_killed_comes_back_and_meanwhile_callers_hear_when(fault: Fault) -> None:
    with running(MODELS, *TWO) as server, Callers(server, 16) as callers:
        os.kill(server.part("engine_process"), signal.SIGKILL)
        callers.wait_for("unavailable", 16)
        assert server.get("/readyz")[0] == 503
        assert server.get("/health")[1]["status"] == "unavailable"
        assert server.get("/livez")[0] == 200
        wait_for(server, "restarted")
        callers.wait_for("answered", 32)
        assert set(callers.outcomes) == {"answered", "unavailable"}
        assert len(callers.labels) == 1
        assert server.get("/readyz")[0] == 200
        assert [(line["role"], line["status"]) for line in server.lines("engine_lost")] == [("engine", -9)]
    fault("kill -9 of the engine process", **callers.figures())


@pytest.mark.slow
@pytest.mark.fault
def test_an_engine_process_that_hangs_is_replaced(fault: Fault) -> None:
    with running(MODELS, *TWO, ISOCENTER_HANG_AFTER_S="20") as server, Callers(server, 16) as callers:
        stopped = server.part("engine_process")
        os.kill(stopped, signal.SIGSTOP)
        wait_for(server, "restarted")
        callers.wait_for("answered", 32)
        assert server.get("/readyz")[0] == 200
        assert [(line["role"], line["pid"]) for line in server.lines("process_hung")] == [("engine", stopped)]
        assert len(callers.labels) == 1
    fault("the engine process hangs (SIGSTOP)", **callers.figures())


@pytest.mark.slow
@pytest.mark.fault
def test_a_front_end_that_hangs_is_replaced_and_costs_only_its_own_callers(fault: Fault) -> None:
    with running(MODELS, *TWO, ISOCENTER_HANG_AFTER_S="20") as server, Callers(server, 16) as callers:
        stopped = server.part("front_end", 0)
        os.kill(stopped, signal.SIGSTOP)
        wait_for(server, "restarted")
        callers.wait_for("answered", 32)
        assert 1 <= callers.outcomes["closed"] <= 16
        assert set(callers.outcomes) == {"answered", "closed"}
        assert [line["pid"] for line in server.lines("process_hung")] == [stopped]
    fault("one of two front ends hangs (SIGSTOP)", **callers.figures())


def test_when_the_supervisor_is_killed_nothing_is_left_behind() -> None:
    with running(MODELS, *TWO) as server:
        parts = [server.part("engine_process"), server.part("front_end", 0), server.part("front_end", 1)]
        os.kill(parts[0], signal.SIGSTOP)  # one that cannot even notice
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(PATIENCE_S)
        until_s = time.monotonic() + PATIENCE_S
        while any(alive(pid) for pid in parts):
            assert time.monotonic() < until_s
            time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_signals_that_reach_every_process_change_nothing() -> None:
    """A Ctrl-C goes to the whole group, and service managers signal every process."""
    with running(MODELS, *TWO, ISOCENTER_DRAIN__LINGER_S="0.2") as server:
        with Callers(server, 8) as callers:
            for pid in (server.part("engine_process"), server.part("front_end", 0), server.part("front_end", 1)):
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGTERM)
            callers.wait_for("answered", 32)
            assert set(callers.outcomes) == {"answered"}
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE_S) == 0
        assert server.lines("stopped")[-1]["left"] == 0


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(MODELS, tmp_path / "models", ignore=shutil.ignore_patterns("*.md"))
    return tmp_path / "models"


def retitle(models: Path, title: str) -> None:
    file = models / "brain-mri-classifier" / "1" / "model.yaml"
    manifest = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**manifest, "title": title}))


@pytest.mark.slow
@in_both_modes
def test_a_reload_under_load_loses_nobody(copy: Path, mode: tuple[str, ...]) -> None:
    with running(copy, *mode) as server, Callers(server, 8) as callers:
        for number in range(5):
            retitle(copy, f"title {number}")
            connection = server.connect()
            connection.request("POST", "/v1/models/brain-mri-classifier:reload")
            answer = connection.getresponse()
            report = json.loads(answer.read())
            connection.close()
            assert (answer.status, report["versions"]) == (200, [{"version": 1, "what": "replaced"}])
            assert server.get("/v1/models/brain-mri-classifier")[1]["title"] == f"title {number}"
        callers.wait_for("answered", 32)
        assert set(callers.outcomes) == {"answered"}
        assert server.get("/readyz")[0] == 200


@in_both_modes
def test_sighup_reloads_every_model_and_says_what_it_refused(copy: Path, mode: tuple[str, ...]) -> None:
    with running(copy, *mode) as server:
        retitle(copy, "another title")
        server.process.send_signal(signal.SIGHUP)
        wait_for(server, "reloaded")
        until_s = time.monotonic() + PATIENCE_S
        while server.get("/v1/models/brain-mri-classifier")[1]["title"] != "another title":
            assert time.monotonic() < until_s
        (copy / "brain-mri-classifier" / "1" / "model.onnx").write_bytes(b"no model")
        server.process.send_signal(signal.SIGHUP)
        wait_for(server, "reload_refused")
        assert server.lines("reload_refused")[0]["code"] == "digest_mismatch"
        assert server.predict(IMAGE)[0] == 200
