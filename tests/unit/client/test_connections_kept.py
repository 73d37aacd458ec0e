"""Connections are kept between calls, and given up with the call that is given up."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from isocenter.client import AsyncClient, Client, NoConnection
from isocenter.core.clock import ManualClock
from isocenter.core.errors import DeadlineExceeded
from patience import PATIENCE_S

MODELS = b'{"models": []}'


class Listener:
    """A server of one answer; it counts connections, and knows which of them were closed on the other side."""

    def __init__(self, *, answers: bool = True) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._answers = answers
        self._threads: list[threading.Thread] = []
        self.asked = threading.Event()
        self.left = threading.Event()
        self.connections = 0
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                self.asked.set()
                if self._answers:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(MODELS), MODELS))
        self.left.set()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@contextmanager
def listening(*, answers: bool = True) -> Iterator[Listener]:
    listener = Listener(answers=answers)
    thread = threading.Thread(target=listener.listen)
    thread.start()
    try:
        yield listener
    finally:
        listener.close()
        thread.join()
        listener.join()


def test_calls_one_after_another_share_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isocenter.client.asynchronous._IDLE_S", PATIENCE_S)
    with listening() as listener, Client(listener.url) as client:
        for _ in range(3):
            assert client.models() == []
    assert listener.connections == 1


async def test_a_call_that_is_given_up_takes_its_connection_with_it() -> None:
    clock = ManualClock()
    with listening(answers=False) as listener:
        async with AsyncClient(listener.url, timeout_s=5.0, clock=clock) as client:
            call = asyncio.create_task(client.models())
            assert await asyncio.to_thread(listener.asked.wait, PATIENCE_S)
            clock.advance(5.0)
            with pytest.raises(DeadlineExceeded):
                await call
            assert await asyncio.to_thread(listener.left.wait, PATIENCE_S)


def test_nobody_there_is_said() -> None:
    with listening() as listener:
        pass
    with Client(listener.url) as client, pytest.raises(NoConnection, match="connection to the server failed"):
        client.models()
