"""The line between the supervisor and a process of its own: small messages, each with its descriptors."""

import array
import asyncio
import errno
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

MOST_BYTES: Final = 64 * 1024
MOST_FDS: Final = 4
# Not only a full line: Linux bounds the descriptors of a user that are on their way anywhere, by RLIMIT_NOFILE.
_NOT_NOW: Final = frozenset({errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})

OnMessage: TypeAlias = Callable[[dict[str, Any], list[int]], None]


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a line. Messages keep their bounds, and the end of a process is the end of its line."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors; None if the line is cut. Blocks if the socket does.

    Where this process may open no further files, a message comes without its descriptors: those are closed.
    """
    data, ancillary, flags, _ = sock.recvmsg(
        MOST_BYTES, socket.CMSG_LEN(MOST_FDS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if not data:
        return None
    if flags & socket.MSG_TRUNC:
        raise ValueError(f"a message of more than {MOST_BYTES} bytes")
    if flags & socket.MSG_CTRUNC:
        _close_all(fds)  # some of them are of no use without the others
        return json.loads(data), []
    return json.loads(data), list(fds)


class Control:
    """One end of a line on an event loop. Nothing is lost while the other end is slow."""

    def __init__(self, sock: socket.socket, on_message: OnMessage, on_cut: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._on_cut = on_cut
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._open = True
        self._broken = False
        self._loop.add_reader(sock, self._readable)

    @property
    def flows(self) -> bool:
        """Whether the other end is there and keeps up."""
        return self._open and not self._broken and not self._unsent

    def say(self, what: str, fds: Sequence[int] = (), **more: Any) -> None:
        """Send one message. The descriptors are duplicated on the way; they stay the caller's to close."""
        if not self._open or self._broken:
            return
        data = json.dumps({"say": what, **more}).encode()
        if not self._unsent and self._send(data, list(fds)):
            return
        if not self._unsent:
            self._loop.add_writer(self._sock, self._writable)
        self._unsent.append((data, [os.dup(fd) for fd in fds]))

    def drain(self) -> None:
        """Hand over what came before the other end was gone."""
        if self._open:
            self._readable()

    def close(self) -> None:
        """Cut the line."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            if self._unsent:
                self._loop.remove_writer(self._sock)
            for _, fds in self._unsent:
                _close_all(fds)
            self._unsent.clear()
            self._sock.close()

    def _send(self, data: bytes, fds: list[int]) -> bool:
        """True if it went out, or nobody is there to read it."""
        try:
            socket.send_fds(self._sock, [data], fds)
        except OSError as error:
            if error.errno in _NOT_NOW:
                return False
            self._broken = True  # the other end is gone; that is reported by whoever watches the process
        return True

    def _writable(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            if not self._send(data, fds):
                return
            _close_all(fds)
            self._unsent.popleft()
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        while self._open:
            try:
                came = receive(self._sock)
            except BlockingIOError:
                return
            except ConnectionError:
                came = None
            if came is None:
                self.close()
                self._on_cut()
                return
            self._on_message(*came)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
