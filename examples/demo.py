"""The demonstration behind `make demo`: draw slices, serve the model, classify them, load the server, stop it.

Run from the repository root: `python examples/demo.py`. Everything it writes is in demo-out/.
"""

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from csv import DictReader
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from isocenter.cli.console import out, table
from isocenter.measure.percentiles import Percentiles

OUT = Path("demo-out")
SLICES = OUT / "slices"
SHEET = OUT / "contact-sheet.png"
CSV = OUT / "predictions.csv"
LOG = OUT / "server.log"
ISOCENTER = (sys.executable, "-m", "isocenter")
FIRST_SEED = 3_000_000
PARTS = (("png", 12), ("jpg", 10), ("png16", 1))
TRUNCATED = "truncated.jpg"
REQUESTS = 200
AT_ONCE = 16
# Bounds are for what hangs: on a machine that others keep busy, all of this takes ten times as long and is right.
START_BOUND_S = 300.0
ANSWER_BOUND_S = 120.0
STOP_BOUND_S = 120.0
SAY_EVERY_S = 10.0


class DemoFailed(Exception):
    """Something did not go as it must; the sentence says what."""


@dataclass(frozen=True, slots=True)
class Server:
    """The running server and where it listens."""

    process: subprocess.Popen[bytes]
    url: str
    ready_after_s: float

    def connect(self) -> HTTPConnection:
        """A new connection."""
        parts = urlsplit(self.url)
        return HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_BOUND_S)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        connection = self.connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def main() -> int:
    """Run the whole of it. The exit code is 0 only if every step did what it must."""
    began_s = time.monotonic()
    # Whoever ends this script must not leave the server behind: an exception runs every `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        draw_slices()
        with server() as running:
            classify(running)
            load(running)
            show_metrics(running)
            stop(running)
        say_what_next(time.monotonic() - began_s)
    except DemoFailed as failure:
        print(f"\nThe demonstration failed: {failure}", file=sys.stderr)
        if LOG.is_file():
            print(
                f"The end of {LOG}:", *LOG.read_text(errors="replace").splitlines()[-15:], sep="\n  ", file=sys.stderr
            )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def section(title: str) -> None:
    """A heading."""
    print(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}", flush=True)


def isocenter(*arguments: str, allowed: tuple[int, ...] = (0,)) -> None:
    """Run a command as a person would, showing it."""
    print("$ isocenter", *arguments, flush=True)
    code = subprocess.run((*ISOCENTER, *arguments), check=False).returncode
    if code not in allowed:
        raise DemoFailed(f"isocenter {arguments[0]} ended with exit code {code}")


def draw_slices() -> None:
    """Phantom slices of every class, in several formats, and one file that is broken."""
    section("1  Brain-MRI-like slices, drawn from seeds: nobody's head")
    shutil.rmtree(OUT, ignore_errors=True)
    seed = FIRST_SEED
    for form, count in PARTS:
        where = ("--out", str(SLICES), "--format", form)
        isocenter("phantoms", *where, "--count", str(count), "--seed", str(seed))
        seed += count
    whole = next(iter(sorted(SLICES.glob("*.jpg"))), None)
    if whole is None:
        raise DemoFailed(f"no slices in {SLICES}")
    (SLICES / TRUNCATED).write_bytes(whole.read_bytes()[:1500])
    print(f"and {TRUNCATED}, of which the larger part is missing: it must be refused, not guessed")


@contextmanager
def server() -> Iterator[Server]:
    """A real server process on a free port; whatever happens, it is gone afterwards."""
    section("2  A server")
    command = ("serve", "--models", "models", "--host", "127.0.0.1", "--port", "0")
    print("$ isocenter", *command, flush=True)
    with LOG.open("wb") as log:
        started_s = time.monotonic()
        process = subprocess.Popen((*ISOCENTER, *command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        running = Server(process, announced_url(process, started_s + START_BOUND_S), time.monotonic() - started_s)
        if running.get("/readyz")[0] != 200:
            raise DemoFailed("the server announced itself and is not ready")
        print(f"{running.url} is ready, {running.ready_after_s:.1f} s after the start of its process")
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def announced_url(process: subprocess.Popen[bytes], until_s: float) -> str:
    """The address from the line that `isocenter serve` writes once it answers."""
    say_s = time.monotonic() + SAY_EVERY_S
    while time.monotonic() < until_s:
        log = LOG.read_text(errors="replace")
        found = re.search(r"^Serving .* at (http://\S+)", log, re.MULTILINE)
        if found:
            return found[1]
        if time.monotonic() >= say_s:
            say_s += SAY_EVERY_S
            ready = re.findall(r'"event":"model_state","model":"([^"]+)".*"state":"ready"', log)
            print(f"still starting; ready so far: {', '.join(ready) or 'no model'}", flush=True)
        if process.poll() is not None:
            raise DemoFailed(f"the server ended with exit code {process.returncode} before it was ready")
        time.sleep(0.02)
    raise DemoFailed(f"the server was not ready within {START_BOUND_S:.0f} s")


def classify(running: Server) -> None:
    """Every slice over HTTP; the classes that were drawn are in the names, so the answers can be held against them."""
    section("3  Every file, classified over HTTP")
    files = ("--contact-sheet", str(SHEET), "--csv", str(CSV))
    isocenter("predict", str(SLICES), "--url", running.url, *files, allowed=(1,))  # 1: a file was refused
    with CSV.open(newline="", encoding="utf-8") as stream:
        rows = {Path(row["file"]).name: row for row in DictReader(stream)}
    refused = [name for name, row in rows.items() if row["error"]]
    if refused != [TRUNCATED]:
        raise DemoFailed(f"refused were {refused}, and only {TRUNCATED} should have been")
    answers = {name: row["prediction"] for name, row in rows.items() if not row["error"]}
    right = sum(name.startswith(label.lower().replace(" ", "-")) for name, label in answers.items())
    print(f"{right} of {len(answers)} answers name the class that was drawn. The model has learnt from such drawings:")
    print("this shows that the server works, not how good the model is; that is in its MODEL_CARD.md.")


def load(running: Server) -> None:
    """A short burst from callers who each wait for their answer before they ask again (a closed loop)."""
    section(f"4  {REQUESTS} requests, {AT_ONCE} at a time")
    images = [file.read_bytes() for file in sorted(SLICES.iterdir()) if file.name != TRUNCATED]
    mine = threading.local()

    def ask(number: int) -> tuple[int, float]:
        if not hasattr(mine, "connection"):
            mine.connection = running.connect()
        began_s = time.monotonic()
        headers = {"Content-Type": "application/octet-stream"}
        mine.connection.request("POST", "/predict", images[number % len(images)], headers)
        answer = mine.connection.getresponse()
        answer.read()
        return answer.status, time.monotonic() - began_s

    began_s = time.monotonic()
    try:
        with ThreadPoolExecutor(AT_ONCE) as callers:
            outcomes = list(callers.map(ask, range(REQUESTS)))
    except OSError as error:
        raise DemoFailed(f"a connection broke under load: {error}") from error
    wall_s = time.monotonic() - began_s
    codes = Counter(status for status, _ in outcomes)
    if set(codes) != {200}:
        raise DemoFailed(f"under load the answers were {dict(codes)}, and not 200 only")
    latency_ms = Percentiles.of(seconds * 1e3 for _, seconds in outcomes)
    print(f"{len(outcomes) / wall_s:.0f} answers/s; latency at the caller p50 {latency_ms.p50:.1f} ms, ", end="")
    print(f"p95 {latency_ms.p95:.1f} ms (n={latency_ms.count}, closed loop, callers on this machine too)")


def show_metrics(running: Server) -> None:
    """What the server says of itself, from the endpoint that Prometheus reads."""
    section("5  What the server counted (GET /metrics)")
    status, text = running.get("/metrics")
    if status != 200:
        raise DemoFailed(f"/metrics answered {status}")
    samples = [each for family in text_string_to_metric_families(text.decode()) for each in family.samples]

    def total(name: str) -> float:
        return sum(each.value for each in samples if each.name == name)

    def mean(name: str) -> float:
        return total(f"{name}_sum") / max(1.0, total(f"{name}_count"))

    buckets = sorted(
        (float(each.labels["le"]), each.value)
        for each in samples
        if each.name == "isocenter_request_duration_seconds_bucket"
    )
    count = total("isocenter_request_duration_seconds_count")
    p95_s = next((bound for bound, below in buckets if below >= 0.95 * count), float("nan"))
    rows = table("metric", "value", right=("value",))
    for each in samples:
        if each.name == "isocenter_requests_total":
            rows.add_row(f"requests, code {each.labels['code']}", f"{each.value:.0f}")
    rows.add_row("request duration, p95 by histogram", f"up to {p95_s * 1e3:.0f} ms (n={count:.0f})")
    rows.add_row("items in a batch, mean", f"{mean('isocenter_batch_size_items'):.2f}")
    rows.add_row("session run, mean", f"{mean('isocenter_service_duration_seconds') * 1e3:.1f} ms")
    rows.add_row("wait of a batch's oldest item, mean", f"{mean('isocenter_queue_delay_seconds') * 1e3:.1f} ms")
    rows.add_row("in the queue now", f"{total('isocenter_queue_items'):.0f}")
    rows.add_row("memory", f"{total('process_resident_memory_bytes') / 1e6:.0f} MB")
    out().print(rows)


def stop(running: Server) -> None:
    """SIGTERM: the server finishes what is in, and ends with 0."""
    section("6  Stop")
    began_s = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    try:
        code = running.process.wait(STOP_BOUND_S)
    except subprocess.TimeoutExpired as error:
        raise DemoFailed(f"the server was still there {STOP_BOUND_S:.0f} s after SIGTERM") from error
    print(f"SIGTERM: exit code {code} after {time.monotonic() - began_s:.1f} s")
    if code != 0:
        raise DemoFailed(f"the server ended with exit code {code}, and a clean drain ends with 0")


def say_what_next(wall_s: float) -> None:
    """Where things are, and what one would type."""
    section(f"Done in {wall_s:.0f} s")
    example = min(file for file in SLICES.iterdir() if file.name != TRUNCATED)
    print(f"Look at  {SHEET}")
    print("Serve    .venv/bin/isocenter serve")
    print(f"Ask      curl -F image=@{example} http://127.0.0.1:8000/predict")


if __name__ == "__main__":
    sys.exit(main())
