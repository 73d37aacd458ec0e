"""From process start to ready, and what the first caller pays, against the median of the next hundred.

python benchmarks/startup.py --runs 5
"""

import argparse
import http.client
import io
import json
import statistics
import time
from pathlib import Path

from PIL import Image

from isocenter.imaging.phantoms import brain_slice
from server_process import isocenter, started, stop_when_told
from tables import Cell, conditions, table

HERE = Path(__file__).resolve().parent
FOLLOWING = 100


def one_run(models: Path, image: bytes, frontends: int) -> tuple[float, float, float]:
    """Seconds to ready, then milliseconds of the first request and the median of those after it."""
    with started(isocenter(models, frontends=frontends)) as running:
        probe = http.client.HTTPConnection("127.0.0.1", running.port)
        probe.request("GET", "/readyz")
        answer = probe.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"/readyz answered {answer.status}")
        asking = http.client.HTTPConnection("127.0.0.1", running.port)
        times_ms = []
        for _ in range(1 + FOLLOWING):
            sent_s = time.perf_counter()
            asking.request("POST", "/predict", body=image)
            answer = asking.getresponse()
            body = json.loads(answer.read())
            times_ms.append((time.perf_counter() - sent_s) * 1e3)
            if answer.status != 200:
                raise RuntimeError(str(body))
        return running.started_s, times_ms[0], statistics.median(times_ms[1:])


def main() -> None:
    """Measure a few starts."""
    stop_when_told()
    parser = argparse.ArgumentParser(description="time to ready, and the first request")
    parser.add_argument("--models", type=Path, default=HERE.parent / "models")
    parser.add_argument("--frontends", type=int, default=0)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    buffer = io.BytesIO()
    Image.fromarray(brain_slice(7_000_000).pixels).save(buffer, "png")
    one_run(given.models, buffer.getvalue(), given.frontends)  # warms the disk cache
    rows: list[list[Cell]] = []
    for number in range(1, given.runs + 1):
        ready_s, first_ms, median_ms = one_run(given.models, buffer.getvalue(), given.frontends)
        rows.append([number, ready_s, first_ms, median_ms, first_ms / median_ms])
    print(conditions(), "\n")
    print(table(("run", "ready s", "first request ms", f"median of the next {FOLLOWING} ms", "first / median"), rows))


if __name__ == "__main__":
    main()
