"""Broken files: 200 or a typed 4xx, never anything else, and nobody beside them notices."""

import http.client
import io
import json
import threading
from collections import Counter

import pytest
from PIL import Image

from conftest import MODELS
from isocenter.imaging.phantoms import brain_slice
from mutations import mutated_files
from serverproc import ServerProcess, running

COUNT = 5_000
CALLERS = 4
GROWTH_BOUND_MB = 50


def good_images() -> list[bytes]:
    images = []
    for seed in range(5_000_000, 5_000_008):
        buffer = io.BytesIO()
        Image.fromarray(brain_slice(seed).pixels).save(buffer, "png")
        images.append(buffer.getvalue())
    return images


def send_all(server: ServerProcess, files: list[tuple[str, bytes]]) -> tuple[Counter[str], list[str]]:
    """Send files from a few callers; outcomes by status and code, and everything that broke the rule."""
    outcomes: Counter[str] = Counter()
    broken: list[str] = []
    lock = threading.Lock()
    waiting = iter(files)

    def call() -> None:
        connection = server.connect()
        while True:
            with lock:
                name, data = next(waiting, ("", b""))
            if not name:
                connection.close()
                return
            try:
                status, body, _ = server.predict(data, connection)
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                with lock:
                    broken.append(f"{name}: {type(error).__name__} {error}")
                connection = server.connect()
                continue
            with lock:
                if status == 200:
                    outcomes["200"] += 1
                elif 400 <= status < 500 and {"code", "message", "details"} == set(body["error"]):
                    outcomes[f"{status} {body['error']['code']}"] += 1
                else:
                    broken.append(f"{name}: {status} {body}")

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes, broken


@pytest.mark.slow
def test_5000_broken_files_harm_nobody() -> None:
    images = good_images()
    with running(MODELS) as server:
        expected = [server.predict(image)[1]["probabilities"] for image in images]
        # Once through a few files of every kind, so that what libraries allocate only once is not called growth.
        send_all(server, list(mutated_files(300, seed=1)))
        before_mb = server.memory_mb()
        stop = threading.Event()
        wrong: list[str] = []

        def good_caller() -> None:
            connection = server.connect()
            number = 0
            while not stop.is_set():
                status, body, _ = server.predict(images[number % len(images)], connection)
                if status != 200 or body["probabilities"] != pytest.approx(expected[number % len(images)], abs=1e-5):
                    wrong.append(f"{status} {body}")
                number += 1
            connection.close()

        beside = threading.Thread(target=good_caller)
        beside.start()
        outcomes, broken = send_all(server, list(mutated_files(COUNT, seed=2)))
        stop.set()
        beside.join()
        after_mb = server.memory_mb()

        assert broken == []
        assert sum(outcomes.values()) == COUNT
        assert wrong == []
        assert server.process.poll() is None
        assert server.get("/readyz")[0] == 200
        assert after_mb - before_mb < GROWTH_BOUND_MB, f"{before_mb:.0f} MB -> {after_mb:.0f} MB; {outcomes}"
