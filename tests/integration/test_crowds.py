"""More callers than there is room or time for, and callers who do not stay, over real sockets."""

import asyncio
import json
import random
import re
import socket
import struct
import time
from collections import Counter
from pathlib import Path

import pytest

from conftest import MODELS
from fault_table import Fault
from integration.test_process import IMAGE, in_both_modes
from patience import PATIENCE_S
from serverproc import ServerProcess, running

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.fault]

LEAVERS, CROWD = 10_000, 2_000
AT_ONCE = 64
HELD = ("queue_items", "decode_waiting_items", "requests_in_progress", "body_bytes")
"""What a request holds of a server while it is inside."""
HEAD = "POST /predict HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n"


def request(image: bytes, **headers: str) -> tuple[bytes, bytes]:
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return HEAD.format(length=len(image), more=more).encode(), image


async def leave(port: int, manner: int, patience_s: float) -> None:
    """Hang up: after the head, after half the picture, politely or rudely after the whole, or a little later."""
    head, image = request(IMAGE)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    del reader
    writer.write(head + image[: (0, len(image) // 2)[manner]] if manner < 2 else head + image)
    if manner == 4:
        await asyncio.sleep(patience_s)
    if manner != 2:  # a reset instead of a goodbye
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def all_leave(port: int, count: int) -> None:
    rng = random.Random(7)
    manners = [(rng.randrange(5), rng.uniform(0.0, 0.03)) for _ in range(count)]

    async def some() -> None:
        while manners:
            await leave(port, *manners.pop())

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def ask(port: int, head: bytes, body: bytes) -> tuple[int, dict[str, str], dict[str, object]]:
    """Status, headers and JSON."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + body)
    answer = await reader.read()
    writer.close()
    start, _, rest = answer.partition(b"\r\n\r\n")
    lines = start.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, json.loads(rest)


async def all_ask(port: int, count: int, **headers: str) -> list[tuple[int, dict[str, str], dict[str, object]]]:
    """All at once."""
    return await asyncio.gather(*(ask(port, *request(IMAGE, **headers)) for _ in range(count)))


def held(server: ServerProcess) -> dict[str, float]:
    """What is held of the server now, over all its processes."""
    connection = server.connect()
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = {name: re.findall(rf"^isocenter_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE) for name in HELD}
    assert all(found.values()), found
    return {name: sum(map(float, values)) for name, values in found.items()}


def wait_until_nothing_is_held(server: ServerProcess) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while any((last := held(server)).values()):
        assert time.monotonic() < until_s, last
        time.sleep(0.05)


def open_files(server: ServerProcess) -> int:
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in (pid, *children))


@in_both_modes
def test_ten_thousand_leavers_leave_nothing_behind(mode: tuple[str, ...], fault: Fault) -> None:
    with running(MODELS, *mode) as server:
        meant = server.predict(IMAGE)[1]["probabilities"]
        wait_until_nothing_is_held(server)
        files = open_files(server)
        asyncio.run(all_leave(server.port, LEAVERS))
        wait_until_nothing_is_held(server)
        # More than there are slots in shared memory: one that leaked would be missed here.
        found = [answer for _ in range(8) for answer in asyncio.run(all_ask(server.port, 32))]
        right = [body for status, _, body in found if status == 200 and body["probabilities"] == pytest.approx(meant)]
        assert len(right) == len(found)
        wait_until_nothing_is_held(server)
        assert open_files(server) <= files + 4
        fault(
            f"callers leave, over sockets, {(len(mode) and 'two front ends') or 'one process'}",
            asked=LEAVERS + len(found),
            answered=len(right),
            left=LEAVERS,
        )


@in_both_modes
def test_a_crowd_at_once_is_answered_in_time_or_told_when_to_come_back(mode: tuple[str, ...], fault: Fault) -> None:
    with running(MODELS, *mode) as server:
        meant = server.predict(IMAGE)[1]["probabilities"]
        found = asyncio.run(all_ask(server.port, CROWD, X_Timeout_Ms="1000"))
        statuses = Counter(status for status, _, _ in found)
        assert set(statuses) <= {200, 429, 503, 504}
        assert min(statuses[200], statuses[429]) > 0
        assert all(int(headers["retry-after"]) >= 1 for status, headers, _ in found if status in (429, 503))
        right = sum(status == 200 and body["probabilities"] == pytest.approx(meant) for status, _, body in found)
        fault(
            f"{CROWD} callers at once with 1 s each, {(len(mode) and 'two front ends') or 'one process'}",
            asked=len(found),
            answered=right,
            wrong=statuses[200] - right,
            told=len(found) - statuses[200],
        )
        wait_until_nothing_is_held(server)
        assert server.predict(IMAGE)[0] == 200
