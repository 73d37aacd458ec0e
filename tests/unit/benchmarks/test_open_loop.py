"""The open loop: its schedule, and what becomes of each call."""

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from open_loop import GAVE_UP, LEFT, Call, OpenLoop, draw
from patience import PATIENCE_S
from wire import BROKEN, build_request, write_requests

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{"prediction":1}'
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
NONSENSE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

pytestmark = pytest.mark.may_block


def test_the_same_seed_draws_the_same_schedule() -> None:
    assert draw(100, 2, 3, leave_share=0.2, leave_within_s=0.1, bad_share=0.1) == draw(
        100, 2, 3, leave_share=0.2, leave_within_s=0.1, bad_share=0.1
    )
    assert draw(100, 2, 3) != draw(100, 2, 4)


def test_a_schedule_has_the_rate_and_the_shares_it_was_asked_for() -> None:
    calls = draw(1000, 30, 1, leave_share=0.05, leave_within_s=0.2, bad_share=0.1)

    assert len(calls) == pytest.approx(30_000, rel=0.03)
    assert all(early.due_s <= late.due_s for early, late in itertools.pairwise(calls))
    assert sum(call.bad for call in calls) / len(calls) == pytest.approx(0.1, rel=0.1)
    leavers = [call for call in calls if call.leaves_at_s is not None]
    assert len(leavers) / len(calls) == pytest.approx(0.05, rel=0.1)
    assert all(0 <= (call.leaves_at_s or 0) - call.due_s <= 0.2 for call in leavers)


Behaviour = Callable[[int], bytes | None]
"""The answer to the n-th request; None is silence."""


@contextmanager
def answering(behaviour: Behaviour) -> Iterator[int]:
    """A server in threads that reads whole requests and answers as told; yields its port."""
    door = socket.create_server(("127.0.0.1", 0))
    lock, count, over = threading.Lock(), 0, threading.Event()

    def serve(sock: socket.socket) -> None:
        nonlocal count
        with sock:
            while not over.is_set():
                received = b""
                while not received.endswith(b"END"):
                    try:
                        chunk = sock.recv(1 << 16)
                    except OSError:
                        return
                    if not chunk:
                        return
                    received += chunk
                with lock:
                    number, count = count, count + 1
                answer = behaviour(number)
                if answer is not None:
                    sock.sendall(answer)
                    if b"connection: close" in answer:
                        return
                    if answer == b"":
                        return

    def accept() -> None:
        while True:
            try:
                sock, _ = door.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield door.getsockname()[1]
    finally:
        over.set()
        door.shutdown(socket.SHUT_RDWR)
        door.close()
        thread.join(PATIENCE_S)


def outcomes(
    behaviour: Behaviour,
    calls: list[Call],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    connections: int = 4,
    give_up_s: float = PATIENCE_S,
) -> list[tuple[float, float, int, bool]]:
    """The rows of a short loop against such a server."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    write_requests(folder, [build_request(b"x END", path="/predict")])
    with answering(behaviour) as port:
        job = {"port": port, "requests": str(folder), "give_up_s": give_up_s, "connections": connections}
        return OpenLoop(job, calls).run()


def burst(count: int) -> list[Call]:
    return [Call(0.001 * number, False, None) for number in range(count)]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(ANSWER, 200), (REFUSAL, 429), (NONSENSE, BROKEN), (None, GAVE_UP), (b"", BROKEN)],
    ids=["answered", "refused and closed", "no prediction in it", "silence", "hung up"],
)
def test_every_call_ends_once_in_what_happened_to_it(
    answer: bytes | None, outcome: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_s = 0.3 if answer is None else PATIENCE_S

    rows = outcomes(lambda _: answer, burst(12), tmp_path, monkeypatch, give_up_s=give_up_s)

    assert Counter(row[2] for row in rows) == {outcome: 12}


def test_who_leaves_is_told_from_who_gave_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [Call(0.0, False, 0.02), Call(0.0, False, None)]

    rows = outcomes(lambda _: None, calls, tmp_path, monkeypatch, give_up_s=0.3)

    assert [row[2] for row in rows] == [LEFT, GAVE_UP]


def test_the_wait_for_a_connection_counts_from_the_due_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()

    def behaviour(number: int) -> bytes:
        if number == 0:
            slow.wait(0.1)
        return ANSWER

    rows = outcomes(behaviour, burst(2), tmp_path, monkeypatch, connections=1)

    assert [row[2] for row in rows] == [200, 200]
    assert rows[1][1] >= 0.09


def test_a_kept_connection_that_was_just_closed_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [Call(0.0, False, None), Call(0.05, False, None)]

    rows = outcomes(lambda number: b"" if number == 1 else ANSWER, calls, tmp_path, monkeypatch, connections=1)

    assert [row[2] for row in rows] == [200, 200]
