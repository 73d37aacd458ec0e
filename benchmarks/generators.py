"""The parent's side of both load generators: start one, weigh the server between its marks, sum up what it saw."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from isocenter.measure.percentiles import Percentiles
from open_loop import GAVE_UP, LEFT
from wire import BROKEN, REFUSED

HERE = Path(__file__).resolve().parent
SETTLE_S = 0.5
WARM_S = 1.5
GIVE_UP_S = 10.0
CONNECTIONS = 1024

Weigh = Callable[[], float]
"""CPU seconds that a server and all it started have used so far."""


class Row(NamedTuple):
    """One call of an open loop."""

    due_s: float
    latency_s: float
    outcome: int
    bad: bool


@dataclass(frozen=True)
class Closed:
    """What a closed loop saw in its window."""

    connections: int
    per_second: float
    latency_ms: Percentiles | None
    """None if nothing was answered."""
    longest_wait_ms: float
    statuses: dict[int, int]
    cpu_ms: float | None
    """CPU time of the server an answer."""

    @property
    def failed(self) -> int:
        """How many ended in anything but an answer."""
        return sum(count for status, count in self.statuses.items() if status != 200)


@dataclass(frozen=True)
class Open:
    """What an open loop saw."""

    seconds: float
    rows: list[Row]
    lag_p99_ms: float
    """How late the generator noticed that a call was due."""


@dataclass(frozen=True)
class Kept:
    """Promises kept and not kept in an open loop; callers who left on purpose and broken files are not counted.

    Everything that was not refused counts as admitted, and every admitted call without an answer by its deadline as
    missed: late, expired (504), given up, broken.
    """

    offered: int
    in_time: int
    late: int
    expired: int
    gave_up: int
    failed: int
    refused: int
    goodput_per_s: float
    latency_ms: Percentiles | None
    refusal_ms: Percentiles | None

    @property
    def admitted(self) -> int:
        """Calls that were not refused."""
        return self.offered - self.refused

    @property
    def missed_share(self) -> float:
        """The share of the admitted that had no answer by its deadline."""
        return 1.0 - self.in_time / self.admitted if self.admitted else 0.0


def closed_loop(
    port: int,
    requests: Path,
    connections: int,
    seconds: float,
    *,
    weigh: Weigh | None = None,
    settle_s: float = SETTLE_S,
    warm_s: float = WARM_S,
) -> Closed:
    """Load a port in a closed loop."""
    with closed_loop_beside(
        port, requests, connections, seconds, weigh=weigh, settle_s=settle_s, warm_s=warm_s
    ) as finish:
        return finish()


@contextmanager
def closed_loop_beside(
    port: int,
    requests: Path,
    connections: int,
    seconds: float,
    *,
    weigh: Weigh | None = None,
    settle_s: float = SETTLE_S,
    warm_s: float = WARM_S,
    linger_s: float = 0.0,
) -> Iterator[Callable[[], Closed]]:
    """A closed loop that runs meanwhile, and `linger_s` after its window; call what is yielded for the result."""
    job = {
        "port": port,
        "requests": str(requests),
        "connections": connections,
        "settle_s": settle_s,
        "warm_s": warm_s,
        "linger_s": linger_s,
        "seconds": seconds,
    }
    generator = Generator("closed_loop.py", job)

    def finish() -> Closed:
        generator.wait_for("begin")
        before_s = weigh() if weigh else 0.0
        generator.wait_for("end")
        cpu_s = weigh() - before_s if weigh else 0.0
        seen = generator.result()
        latencies_ms = [second * 1e3 for second in seen["latencies_s"]]
        return Closed(
            connections,
            len(latencies_ms) / seen["seconds"],
            percentiles(latencies_ms),
            seen["longest_wait_s"] * 1e3,
            {int(status): count for status, count in seen["statuses"].items()},
            cpu_s / len(latencies_ms) * 1e3 if latencies_ms and weigh else None,
        )

    try:
        yield finish
    finally:
        generator.stop()


def open_loop(
    port: int,
    requests: Path,
    per_second: float,
    seconds: float,
    *,
    seed: int,
    meanwhile: Callable[[], None] | None = None,
    **more: Any,
) -> Open:
    """Load a port in an open loop. `meanwhile` is called once it has begun; `more` are the other entries of the job."""
    job = {
        "port": port,
        "requests": str(requests),
        "per_second": per_second,
        "seconds": seconds,
        "seed": seed,
        "give_up_s": GIVE_UP_S,
        "connections": CONNECTIONS,
        **more,
    }
    generator = Generator("open_loop.py", job)
    try:
        generator.wait_for("begin")
        if meanwhile:
            meanwhile()
        generator.wait_for("end")
        seen = generator.result()
    finally:
        generator.stop()
    lag = percentiles([second * 1e3 for second in seen["lags_s"]])
    return Open(seconds, [Row(*row) for row in seen["rows"]], lag.p99 if lag else 0.0)


def judge(seen: Open, deadline_s: float) -> Kept:
    """Hold an open loop against a deadline."""
    rows = [row for row in seen.rows if not row.bad and row.outcome != LEFT]
    outcomes = Counter(row.outcome for row in rows)
    answered = [row.latency_s for row in rows if row.outcome == 200]
    in_time = sum(latency_s <= deadline_s for latency_s in answered)
    refusals = [row.latency_s for row in rows if row.outcome in REFUSED]
    known = len(answered) + len(refusals) + outcomes[504] + outcomes[GAVE_UP]
    return Kept(
        offered=len(rows),
        in_time=in_time,
        late=len(answered) - in_time,
        expired=outcomes[504],
        gave_up=outcomes[GAVE_UP],
        failed=len(rows) - known,
        refused=len(refusals),
        goodput_per_s=in_time / seen.seconds,
        latency_ms=percentiles([latency_s * 1e3 for latency_s in answered]),
        refusal_ms=percentiles([latency_s * 1e3 for latency_s in refusals]),
    )


def percentiles(samples: Sequence[float]) -> Percentiles | None:
    """Percentiles, or None of nothing."""
    return Percentiles.of(samples) if samples else None


def outcome_name(outcome: int) -> str:
    """An outcome in words."""
    return {BROKEN: "broken connection", GAVE_UP: "gave up", LEFT: "left on purpose"}.get(outcome, str(outcome))


class Generator:
    """A load generator in a process of its own."""

    def __init__(self, script: str, job: Mapping[str, Any]) -> None:
        self._script = script
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job))
        self._process.stdin.close()

    def wait_for(self, mark: str) -> None:
        """Wait for the begin or the end of its window.

        Raises:
            RuntimeError: the generator failed.
        """
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != mark:
            self._fail()

    def result(self) -> dict[str, Any]:
        """What it saw, after its end.

        Raises:
            RuntimeError: the generator failed.
        """
        assert self._process.stdout is not None
        written = self._process.stdout.read()
        self._process.stdout.close()
        if self._process.wait() or not written:
            self._fail()
        seen: dict[str, Any] = json.loads(written)
        return seen

    def stop(self) -> None:
        """End it if it still runs."""
        self._process.kill()
        self._process.wait()

    def _fail(self) -> NoReturn:
        self.stop()
        raise RuntimeError(f"the load generator {self._script} failed")
