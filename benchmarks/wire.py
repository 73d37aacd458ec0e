"""What both load generators share: whole HTTP requests as bytes, and one keep-alive connection that sends them."""

import select
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

BOUNDARY = "c0nsult"
BROKEN = 0
"""What stands for the status where no whole answer came, or a 200 that holds no prediction."""
REFUSED = frozenset((429, 503))


def build_request(
    body: bytes, *, path: str, form_field: str | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """A whole HTTP/1.1 request for one image, as a form if a field is named, else raw."""
    kind = "application/octet-stream"
    if form_field:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{form_field}"; filename="i.jpg"\r\n'
        body = f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + body + f"\r\n--{BOUNDARY}--\r\n".encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}Content-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def write_requests(folder: Path, requests: Iterable[bytes]) -> Path:
    """Leave whole requests in a folder, for a generator to read."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, request in enumerate(requests):
        (folder / f"{number:06d}.http").write_bytes(request)
    return folder


def read_requests(folder: Path) -> list[bytes]:
    """The whole requests of a folder, in order.

    Raises:
        ValueError: there is none.
    """
    requests = [file.read_bytes() for file in sorted(folder.glob("*.http"))]
    if not requests:
        raise ValueError(f"no requests in {folder}")
    return requests


class Connection:
    """One caller's keep-alive connection to a port of this machine. Nothing here waits."""

    __slots__ = ("_answer", "_length", "_poll", "_sock", "_to_send", "busy", "closing", "number", "used")

    def __init__(self, port: int, poll: select.epoll) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        self._sock.setblocking(False)
        self._sock.connect_ex(("127.0.0.1", port))
        self._poll = poll
        poll.register(self._sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
        self._to_send = memoryview(b"")
        self._answer = bytearray()
        self._length: int | None = None
        self.number = -1
        """Which of the caller's requests it carries."""
        self.busy = False
        self.closing = False
        self.used = False

    @property
    def descriptor(self) -> int:
        """What `epoll` calls it."""
        return self._sock.fileno()

    @property
    def untouched(self) -> bool:
        """Nothing of an answer has come."""
        return not self._answer

    def begin(self, request: bytes, number: int) -> None:
        """Send the next request, as far as the socket takes it."""
        # A refusal may come before the whole request is out; the rest of it goes first.
        self._to_send = memoryview(bytes(self._to_send) + request) if self._to_send else memoryview(request)
        self._answer, self._length, self.number, self.busy = bytearray(), None, number, True
        self.push()

    def push(self) -> None:
        """Send what is left."""
        while self._to_send:
            try:
                self._to_send = self._to_send[self._sock.send(self._to_send) :]
            except BlockingIOError:
                return
            except OSError:
                # Not connected yet, or broken: the poll says which, and what has come is still to be read.
                return

    def pull(self) -> int | None:
        """Take in all that came: the status of a whole answer, `BROKEN` once the connection is over, else None."""
        over = False
        while True:
            try:
                chunk = self._sock.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                over = True
                break
            if not chunk:
                over = True
                break
            self._answer += chunk
        status = self._whole(over)
        if over:
            self.closing = True
        if status is None and over:
            return BROKEN
        return status

    def finish(self) -> None:
        """The answer was taken; the connection is free for the next request."""
        self.busy, self.used, self._answer, self._length = False, True, bytearray(), None

    def close(self) -> None:
        """Hang up."""
        self._poll.unregister(self._sock)
        self._sock.close()

    def _whole(self, over: bool) -> int | None:
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            return None
        status = int(self._answer[9:12])
        if self._length is None:
            head = bytes(self._answer[:end]).lower()
            self.closing = self.closing or b"connection: close" in head
            at = head.find(b"content-length:")
            self._length = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -1
            if at < 0 and b"chunked" not in head:
                self.closing = True
        if self._length >= 0:
            complete = len(self._answer) >= self._length
        else:
            complete = self._answer.endswith(b"0\r\n\r\n") or over
        if not complete:
            return None
        if status == 200 and b"prediction" not in self._answer[end:]:
            return BROKEN
        return status
