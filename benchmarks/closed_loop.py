"""A closed loop of keep-alive connections, in one process of its own: each sends again when it has its answer.

Reads one JSON job on standard input, writes one JSON result on standard output. Plain sockets and `epoll`, so that the
generator costs little beside the servers that share its cores.
"""

import json
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BOUNDARY = "c0nsult"


def build_request(image: bytes, *, host: str, path: str, form_field: str | None) -> bytes:
    """A whole HTTP/1.1 request for one image, as a form if a field is named, else raw."""
    body, kind = image, "application/octet-stream"
    if form_field:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{form_field}"; filename="i.jpg"\r\n'
        body = f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


@dataclass
class Connection:
    """One caller."""

    sock: socket.socket
    sent_at_s: float = 0.0
    to_send: memoryview = field(default_factory=lambda: memoryview(b""))
    received: bytearray = field(default_factory=bytearray)

    def begin(self, request: bytes, now_s: float) -> None:
        """Send the next request, as far as the socket takes it."""
        self.sent_at_s, self.received, self.to_send = now_s, bytearray(), memoryview(request)
        self.push()

    def push(self) -> None:
        """Send what is left."""
        while self.to_send:
            try:
                self.to_send = self.to_send[self.sock.send(self.to_send) :]
            except BlockingIOError:
                return

    def pull(self) -> int | None:
        """Take in all that came; the status once the answer is whole."""
        while True:
            try:
                chunk = self.sock.recv(1 << 16)
            except BlockingIOError:
                break
            if not chunk:
                raise ConnectionError("closed by the server")
            self.received += chunk
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self.received[:end]).lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        return int(head[9:12]) if len(self.received) >= end + 4 + length else None


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load one server for `warm_s` and then `seconds`; only answers inside the window count."""
    images = [path.read_bytes() for path in sorted(Path(job["images"]).iterdir())]
    requests = [
        build_request(image, host=f"127.0.0.1:{job['port']}", path=job["path"], form_field=job["field"])
        for image in images
    ]
    poll = select.epoll()
    connections: dict[int, Connection] = {}
    for _ in range(job["connections"]):
        sock = socket.create_connection(("127.0.0.1", job["port"]))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connections[sock.fileno()] = Connection(sock)
        poll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
    time.sleep(job["settle_s"])
    number, latencies_s, failed = 0, [], 0
    for connection in connections.values():
        connection.begin(requests[number % len(requests)], time.perf_counter())
        number += 1
    opens_at_s = time.perf_counter() + job["warm_s"]
    ends_at_s = opens_at_s + job["seconds"]
    open_said = False
    cpu_s = time.process_time()
    while (now_s := time.perf_counter()) < ends_at_s:
        if not open_said and now_s >= opens_at_s:
            open_said, cpu_s = True, time.process_time()
            print("begin", flush=True)
        for descriptor, _ in poll.poll(0.05):
            connection = connections[descriptor]
            connection.push()
            status = connection.pull()
            if status is None:
                continue
            now_s = time.perf_counter()
            if opens_at_s <= now_s < ends_at_s:
                if status == 200:
                    latencies_s.append(now_s - connection.sent_at_s)
                else:
                    failed += 1
            connection.begin(requests[number % len(requests)], now_s)
            number += 1
    print("end", flush=True)
    return {"latencies_s": latencies_s, "failed": failed, "generator_cpu_s": time.process_time() - cpu_s}


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))), flush=True)
