"""A real process: it starts, says why it does not, and stops without losing anybody."""

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from conftest import MODELS
from isocenter.imaging.phantoms import brain_slice
from model_folders import write_model
from patience import PATIENCE_S
from serverproc import ServerProcess, command, running


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(brain_slice(seed).pixels).save(buffer, "png")
    return buffer.getvalue()


IMAGE = png(3_100_000)


ONE, TWO = (), ("--frontends", "2")
in_both_modes = pytest.mark.parametrize("mode", [ONE, TWO], ids=["one process", "front ends"])


class Clients:
    """Callers in a closed loop, each on connections of its own, until the server is gone."""

    def __init__(self, server: ServerProcess, count: int) -> None:
        self._server = server
        self._answered_each = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(count)]
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start them, and return once each has had an answer."""
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            assert self._answered_each.acquire(timeout=PATIENCE_S)

    def join(self) -> None:
        """Wait until all have seen the server go."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _call(self) -> None:
        connection = self._server.connect()
        first = True
        while True:
            sent = False
            try:
                connection.connect() if connection.sock is None else None
                connection.request("POST", "/predict", body=IMAGE)
                sent = True
                answer = connection.getresponse()
                body = json.loads(answer.read())
            except ConnectionRefusedError:
                return
            except (ConnectionError, http.client.HTTPException):
                # An idle connection that is closed under a caller is no answer lost; the caller asks again.
                self._count("closed" if sent else "not sent")
                connection.close()
                continue
            if answer.status == 200:
                self._count("answered")
                if body["model"] != "brain-mri-classifier":
                    self.wrong.append(str(body))
            elif answer.status == 503:
                self._count("refused")
                if "retry-after" not in answer.headers or body["error"]["code"] != "draining":
                    self.wrong.append(str(body))
            else:
                self.wrong.append(f"{answer.status} {body}")
            if first:
                first = False
                self._answered_each.release()

    def _count(self, what: str) -> None:
        with self._lock:
            self.outcomes[what] += 1


@in_both_modes
def test_sigterm_amid_64_callers_loses_none_and_tells_newcomers_to_come_back(mode: tuple[str, ...]) -> None:
    with running(MODELS, *mode, ISOCENTER_DRAIN__LINGER_S="5", ISOCENTER_LOG_LEVEL="debug") as server:
        clients = Clients(server, 64)
        clients.start()

        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(PATIENCE_S)
        clients.join()
        lines = [json.loads(line) for line in server.written().splitlines() if line.startswith("{")]

    assert code == 0
    assert clients.wrong == []
    assert clients.outcomes["refused"] > 0
    # Every answer that the server gave arrived: what callers counted is what the server counted.
    given = Counter(line["code"] for line in lines if line["event"] == "answered")
    assert clients.outcomes["answered"] == given["ok"]
    assert clients.outcomes["refused"] == given["draining"]
    assert set(given) == {"ok", "draining"}
    drained = next(line for line in lines if line["event"] == "drained")
    assert drained["left"] == 0


@in_both_modes
def test_readiness_goes_first_and_liveness_last(mode: tuple[str, ...]) -> None:
    with running(MODELS, *mode, ISOCENTER_DRAIN__LINGER_S=str(PATIENCE_S)) as server:
        assert server.get("/readyz") == (200, {"status": "ready"})
        server.process.send_signal(signal.SIGTERM)
        while server.get("/readyz")[0] == 200:
            pass
        assert server.get("/readyz") == (503, {"status": "not ready"})
        assert server.get("/livez") == (200, {"status": "alive"})
        status, health = server.get("/health")
        assert (status, health["status"]) == (503, "draining")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 1  # the second signal does not wait


def refused(models: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(models, *more), capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@in_both_modes
def test_a_port_that_is_taken_is_said_in_one_sentence(mode: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])

        ended = refused(MODELS, "--port", port, *mode)

    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


@in_both_modes
@pytest.mark.parametrize("closed", ["", "2>&-", "<&- >&- 2>&-"], ids=["nobody reads", "stderr", "all"])
def test_a_server_whose_standard_files_are_closed_answers(mode: tuple[str, ...], closed: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with socket.socket() as kept:  # nobody else gets the port that nobody could read from a log
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        line = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(MODELS, "--port", str(port), *mode)]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=write, env=buffered
        )
        os.close(write)
        try:
            assert predict_when_it_answers(process, port) == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()


def predict_when_it_answers(process: subprocess.Popen[bytes], port: int) -> int:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        try:
            connection.request("POST", "/predict", body=IMAGE)
            return connection.getresponse().status
        except ConnectionRefusedError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise AssertionError(f"nothing answered; the process ended with {process.poll()}")


@pytest.mark.parametrize("arena_mib", [100_000, 40_000], ids=["in a front end", "in the engine process"])
def test_shared_memory_that_cannot_be_had_is_said_in_one_sentence(arena_mib: int) -> None:
    # A front end sees its memory once, the engine process twice.
    line = ["sh", "-c", 'ulimit -v 70000000; exec "$@"', "sh", *command(MODELS, *TWO)]
    environment = {**os.environ, "ISOCENTER_LINK__ARENA_MIB": str(arena_mib)}
    ended = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment)

    assert ended.returncode == 2
    assert "ISOCENTER_LINK__ARENA_MIB" in ended.stderr
    assert "Traceback" not in ended.stderr


@in_both_modes
def test_a_reload_that_is_asked_for_while_models_are_loaded_comes_after(tmp_path: Path, mode: tuple[str, ...]) -> None:
    for name in "abcdefgh":
        write_model(tmp_path, name)
    process = subprocess.Popen(command(tmp_path, *mode), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, b"")
        assert any(b'"state":"ready"' in line for line in lines)
        write_model(tmp_path, "a", 2)
        process.send_signal(signal.SIGHUP)
        ready = next(line for line in lines if b'"event":"ready"' in line)
        server = ServerProcess(process, json.loads(ready)["port"], 0.0, process.stderr)
        until_s = time.monotonic() + PATIENCE_S
        while [each["version"] for each in server.get("/v1/models")[1]["models"] if each["name"] == "a"] != [1, 2]:
            assert time.monotonic() < until_s
    finally:
        process.kill()
        process.wait()
        process.stderr.close() if process.stderr else None


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(MODELS, tmp_path / "models", ignore=shutil.ignore_patterns("*.md"))
    return tmp_path / "models"


@in_both_modes
def test_weights_that_were_changed_are_not_served(copy: Path, mode: tuple[str, ...]) -> None:
    weights = copy / "brain-mri-classifier" / "1" / "model.onnx"
    weights.write_bytes(weights.read_bytes() + b"\0")

    ended = refused(copy, *mode)

    assert ended.returncode == 2
    assert "sha256" in ended.stderr
    assert "Traceback" not in ended.stderr


@in_both_modes
def test_a_golden_answer_that_is_not_reproduced_stops_the_start(copy: Path, mode: tuple[str, ...]) -> None:
    case = copy / "brain-mri-classifier" / "1" / "golden" / "case-1.json"
    data = json.loads(case.read_text())
    data["logits"][0] += 1.0
    case.write_text(json.dumps(data))

    ended = refused(copy, *mode)

    assert ended.returncode == 2
    assert "golden values are off" in " ".join(ended.stderr.split())


@in_both_modes
def test_a_folder_without_models_is_named(tmp_path: Path, mode: tuple[str, ...]) -> None:
    ended = refused(tmp_path, *mode)

    assert ended.returncode == 2
    assert "no model in" in " ".join(ended.stderr.split())


@in_both_modes
def test_log_lines_carry_no_file_name_and_no_pixel(mode: tuple[str, ...]) -> None:
    with running(MODELS, *mode, ISOCENTER_LOG_LEVEL="debug") as server:
        boundary = "b0undary"
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="Doe^John.png"\r\n\r\n'.encode()
            + IMAGE
            + f"\r\n--{boundary}--\r\n".encode()
        )
        connection = server.connect()
        connection.request("POST", "/predict", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
        assert connection.getresponse().read()
        connection.close()
        server.predict(b"Doe^John")

        assert '"event":"answered"' in server.written()
        assert "Doe" not in server.written()
