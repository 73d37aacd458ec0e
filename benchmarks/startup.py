"""From process start to ready, and what the first caller pays, against the median of the next hundred.

python benchmarks/startup.py --runs 5
"""

import argparse
import http.client
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from isocenter.imaging.phantoms import brain_slice

HERE = Path(__file__).resolve().parent
FOLLOWING = 100


def one_run(models: Path, image: bytes) -> tuple[float, float, float]:
    """Seconds to ready, then milliseconds of the first request and the median of those after it."""
    argv = [sys.executable, "-m", "isocenter", "serve", "--models", str(models), "--port", "0"]
    with tempfile.NamedTemporaryFile() as log:
        began_s = time.perf_counter()
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=log, env=dict(os.environ))
        try:
            while not (found := re.search(r'"port":(\d+)', Path(log.name).read_text(errors="replace"))):
                if process.poll() is not None:
                    raise RuntimeError(Path(log.name).read_text())
                time.sleep(0.002)
            port = int(found.group(1))
            probe = http.client.HTTPConnection("127.0.0.1", port)
            probe.request("GET", "/readyz")
            answer = probe.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"/readyz answered {answer.status}")
            ready_s = time.perf_counter() - began_s
            asking = http.client.HTTPConnection("127.0.0.1", port)
            times_ms = []
            for _ in range(1 + FOLLOWING):
                sent_s = time.perf_counter()
                asking.request("POST", "/predict", body=image)
                answer = asking.getresponse()
                body = json.loads(answer.read())
                times_ms.append((time.perf_counter() - sent_s) * 1e3)
                if answer.status != 200:
                    raise RuntimeError(str(body))
        finally:
            process.terminate()
            process.wait(30)
    return ready_s, times_ms[0], statistics.median(times_ms[1:])


def main() -> None:
    """Measure a few starts."""
    parser = argparse.ArgumentParser(description="time to ready, and the first request")
    parser.add_argument("--models", type=Path, default=HERE.parent / "models")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    buffer = io.BytesIO()
    Image.fromarray(brain_slice(7_000_000).pixels).save(buffer, "png")
    one_run(given.models, buffer.getvalue())  # warms the disk cache
    print("| run | ready s | first request ms | median of the next 100 ms | first / median |\n|---|---|---|---|---|")
    for number in range(1, given.runs + 1):
        ready_s, first_ms, median_ms = one_run(given.models, buffer.getvalue())
        print(f"| {number} | {ready_s:.2f} | {first_ms:.2f} | {median_ms:.2f} | {first_ms / median_ms:.2f} |")


if __name__ == "__main__":
    main()
