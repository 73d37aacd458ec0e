"""A closed loop of keep-alive connections, in one process of its own: each sends again when it has its answer.

Reads one JSON job on standard input (port, requests: a folder of whole requests, connections, settle_s, warm_s,
seconds, linger_s: how long it goes on after its window), writes `begin` and `end` around the window and then one JSON
result on standard output. Plain sockets and `epoll`, so that the generator costs little beside the servers that share
its cores.
"""

import json
import select
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from wire import Connection, read_requests

REST_S = 0.02
"""What a caller waits after anything but an answer, before it tries again."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load one server for `warm_s` and then `seconds`; only what ends inside the window counts."""
    requests = read_requests(Path(job["requests"]))
    poll = select.epoll()
    connections = [Connection(job["port"], poll) for _ in range(job["connections"])]
    by_descriptor = {one.descriptor: one for one in connections}
    time.sleep(job["settle_s"])
    sent_at_s: dict[int, float] = {}
    number = 0

    def send(connection: Connection) -> None:
        nonlocal number
        if connection.closing:
            del by_descriptor[connection.descriptor]
            connection.close()
            connection = Connection(job["port"], poll)
            by_descriptor[connection.descriptor] = connection
        sent_at_s[connection.descriptor] = time.perf_counter()
        connection.begin(requests[number % len(requests)], number)
        number += 1

    for connection in connections:
        send(connection)
    opens_at_s = time.perf_counter() + job["warm_s"]
    ends_at_s = opens_at_s + job["seconds"]
    stops_at_s = ends_at_s + job.get("linger_s", 0.0)
    open_said, end_said, cpu_s = False, False, 0.0
    latencies_s: list[float] = []
    statuses: Counter[int] = Counter()
    resting: deque[tuple[float, Connection]] = deque()
    seen: dict[str, Any] = {}
    while (now_s := time.perf_counter()) < stops_at_s or not end_said:
        if not open_said and now_s >= opens_at_s:
            open_said, cpu_s = True, time.process_time()
            print("begin", flush=True)
        if not end_said and now_s >= ends_at_s:
            end_said = True
            print("end", flush=True)
            waits_s = [now_s - sent_at_s[one.descriptor] for one in by_descriptor.values() if one.busy]
            seen = {
                "longest_wait_s": max([*waits_s, *latencies_s], default=0.0),
                "seconds": now_s - opens_at_s,
                "generator_cpu_s": time.process_time() - cpu_s,
            }
        while resting and resting[0][0] <= now_s:
            send(resting.popleft()[1])
        left_s = (stops_at_s if end_said else ends_at_s) - now_s
        for descriptor, _ in poll.poll(max(0.0, min(0.005 if resting else 0.05, left_s))):
            connection = by_descriptor[descriptor]
            connection.push()
            status = connection.pull()
            if status is None or not connection.busy:
                continue
            now_s = time.perf_counter()
            if opens_at_s <= now_s and not end_said:
                statuses[status] += 1
                if status == 200:
                    latencies_s.append(now_s - sent_at_s[descriptor])
            connection.finish()
            if status == 200:
                send(connection)
            else:
                resting.append((now_s + REST_S, connection))
    return {**seen, "latencies_s": latencies_s, "statuses": statuses}


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))), flush=True)
