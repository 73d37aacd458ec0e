"""An open loop: calls are due at instants drawn beforehand, whatever the server does; in one process of its own.

Latency runs from the instant at which a call was due, so that waiting for a connection, in a backlog or for this
process counts against the server. Some callers may hang up after a drawn time, some may send a broken file.

Reads one JSON job on standard input, writes `begin` and `end` around the window and then one JSON result:

    port, requests (a folder of whole requests), bad (another one, or null), per_second, seconds, seed,
    arrivals ("poisson" or "constant"), give_up_s, connections (the most that are open at a time),
    leave_share, leave_within_s, bad_share

The result holds one row for each call: due_s, latency_s, outcome, bad. An outcome is the HTTP status, or 0 for a
broken connection, -1 for a caller who gave up, -2 for one who left as drawn.
"""

import heapq
import json
import random
import select
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wire import BROKEN, Connection, read_requests

GAVE_UP, LEFT = -1, -2
ACCEPT_S = 1.0
"""How long the server has to accept the connections before the first call is due."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the schedule: when it is due, whether its file is broken, when its caller hangs up if he does."""

    due_s: float
    bad: bool
    leaves_at_s: float | None


def draw(
    per_second: float,
    seconds: float,
    seed: int,
    *,
    arrivals: str = "poisson",
    leave_share: float = 0.0,
    leave_within_s: float = 0.0,
    bad_share: float = 0.0,
) -> list[Call]:
    """The schedule: the same one for the same arguments.

    >>> [call.due_s for call in draw(2.0, 2.0, seed=1, arrivals="constant")]
    [0.5, 1.0, 1.5]
    """
    rng = random.Random(seed)
    calls: list[Call] = []
    due_s = 0.0
    while True:
        due_s += rng.expovariate(per_second) if arrivals == "poisson" else 1.0 / per_second
        if due_s >= seconds:
            return calls
        bad = rng.random() < bad_share
        leaves = rng.random() < leave_share
        calls.append(Call(due_s, bad, due_s + rng.uniform(0.0, leave_within_s) if leaves else None))


class OpenLoop:
    """The calls of one schedule, sent to one port."""

    def __init__(self, job: Mapping[str, Any], calls: list[Call]) -> None:
        self._port: int = job["port"]
        self._good = read_requests(Path(job["requests"]))
        self._bad = read_requests(Path(job["bad"])) if job.get("bad") else []
        self._calls = calls
        self._give_up_s: float = job["give_up_s"]
        self._most: int = job["connections"]
        self._poll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._free: deque[Connection] = deque()
        self._waiting: deque[int] = deque()
        self._ends: list[tuple[float, int]] = []
        self._carried: dict[int, Connection] = {}
        self._rows: list[tuple[float, float, int, bool] | None] = [None] * len(calls)
        self._repeated: set[int] = set()
        self._began_s = 0.0
        self._kept = 0
        self.lags_s: list[float] = []
        """How long after its due instant each call was noticed: what this process itself adds to a latency."""

    def run(self) -> list[tuple[float, float, int, bool]]:
        """Send every call, and wait for each to end; one row a call, in the order of the schedule."""
        rate_per_s = len(self._calls) / max(self._calls[-1].due_s, 1.0) if self._calls else 0.0
        self._kept = min(self._most, int(rate_per_s * self._give_up_s) + 1)
        self._fill_up()
        time.sleep(ACCEPT_S)
        self._began_s = time.perf_counter()
        print("begin", flush=True)
        coming = 0
        while coming < len(self._calls) or self._waiting or self._carried:
            now_s = self._now_s()
            while coming < len(self._calls) and self._calls[coming].due_s <= now_s:
                call = self._calls[coming]
                ends_s = call.due_s + self._give_up_s
                heapq.heappush(self._ends, (min(ends_s, call.leaves_at_s or ends_s), coming))
                self._waiting.append(coming)
                self.lags_s.append(now_s - call.due_s)
                coming += 1
            self._end_those_who_go(now_s)
            self._send_waiting()
            until_s = self._calls[coming].due_s - now_s if coming < len(self._calls) else 0.05
            if self._ends:
                until_s = min(until_s, self._ends[0][0] - now_s)
            for descriptor, _ in self._poll.poll(min(max(0.0, until_s), 0.05)):
                if connection := self._open.get(descriptor):
                    self._take(connection)
        print("end", flush=True)
        for connection in list(self._open.values()):
            self._drop(connection)
        return [row for row in self._rows if row is not None]

    def _now_s(self) -> float:
        return time.perf_counter() - self._began_s

    def _connect(self) -> Connection:
        connection = Connection(self._port, self._poll)
        self._open[connection.descriptor] = connection
        return connection

    def _fill_up(self) -> None:
        # As many stay connected throughout: a server's open files are comparable from the first minute to the last.
        while len(self._open) < self._kept:
            self._free.append(self._connect())

    def _drop(self, connection: Connection) -> None:
        del self._open[connection.descriptor]
        connection.close()

    def _settle(self, number: int, outcome: int) -> None:
        call = self._calls[number]
        self._rows[number] = (call.due_s, self._now_s() - call.due_s, outcome, call.bad)

    def _end_those_who_go(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            _, number = heapq.heappop(self._ends)
            if self._rows[number] is not None:
                continue
            self._settle(number, LEFT if self._calls[number].leaves_at_s is not None else GAVE_UP)
            if connection := self._carried.pop(number, None):
                self._drop(connection)
                self._fill_up()

    def _send_waiting(self) -> None:
        while self._waiting:
            if self._rows[self._waiting[0]] is not None:
                self._waiting.popleft()
                continue
            if self._free:
                connection = self._free.popleft()
                if connection.closing:
                    self._drop(connection)
                    self._fill_up()
                    continue
            elif len(self._open) < self._most:
                connection = self._connect()
            else:
                return
            number = self._waiting.popleft()
            call = self._calls[number]
            requests = self._bad if call.bad and self._bad else self._good
            self._carried[number] = connection
            connection.begin(requests[number % len(requests)], number)

    def _take(self, connection: Connection) -> None:
        connection.push()
        status = connection.pull()
        if status is None or not connection.busy:
            return
        number = connection.number
        del self._carried[number]
        if status == BROKEN and connection.used and connection.untouched and number not in self._repeated:
            # A kept connection that was just being closed: sent once more, as HTTP clients do.
            self._repeated.add(number)
            self._waiting.appendleft(number)
        else:
            self._settle(number, status)
        connection.finish()
        if connection.closing:
            self._drop(connection)
            self._fill_up()
        else:
            self._free.append(connection)


def main() -> None:
    """Read the job, do it, write the result."""
    job = json.load(sys.stdin)
    calls = draw(
        job["per_second"],
        job["seconds"],
        job["seed"],
        arrivals=job.get("arrivals", "poisson"),
        leave_share=job.get("leave_share", 0.0),
        leave_within_s=job.get("leave_within_s", 0.0),
        bad_share=job.get("bad_share", 0.0),
    )
    cpu_s = time.process_time()
    loop = OpenLoop(job, calls)
    rows = loop.run()
    result = {"rows": rows, "lags_s": loop.lags_s, "generator_cpu_s": time.process_time() - cpu_s}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
