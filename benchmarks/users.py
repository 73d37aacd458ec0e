"""Several users at once, each with one image after the other: does it help to share, and in which way?

    python benchmarks/users.py                                  # about a quarter of an hour on two cores
    python benchmarks/users.py --quick                          # does it run? small pictures, short windows
    python benchmarks/users.py --models build/cell-models --side 1024 --seconds 60
    python benchmarks/users.py --gpu                            # where there is a CUDA device

HRNet, CBAM-ResUNet, U-Net (random weights) and all three mixed, from 1, 2, 4 and 8 users. Three ways to share: one
queue with batches; sessions side by side, one image each; and a lock around every model, as the existing service has.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from asked_process import AskedProcess
from cell_networks import CELL_MODELS, make
from isocenter.measure.percentiles import Percentiles
from isocenter.repository.load import usable_cores
from isocenter.runtimes.devices import cuda_devices
from tables import RESULTS, Cell, command_line, conditions, rounds, table, write
from users_process import Sharing, Way, sharing

WAYS: Final[dict[Way, str]] = {
    "queue": "one queue, batches",
    "streams": "side by side",
    "lock": "lock",
}
MIXED: Final = "mixed"
HELPS: Final = 1.10
"""Differences below a tenth are noise on a small shared machine."""
EXPECTED: Final = {4: 4.0}
"""What was expected, and never measured, of doing without the locks: so many times the throughput by so many users."""


@dataclass
class Seen:
    """One load in one way, over all rounds."""

    load: str
    users: int
    way: Way
    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    runs: float = 0.0
    peak_bytes: int = 0

    @property
    def per_second(self) -> float:
        """Images a second."""
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    @property
    def times(self) -> Percentiles:
        """What the users waited, in seconds."""
        return Percentiles.of(self.latencies_s)


@dataclass(frozen=True)
class Fair:
    """One single image that came while a batch call ran."""

    waited_s: float
    run_s: float
    """The longest run of the call."""
    left: int
    """Images of the call that were still to come when the single one was done."""


HEADS = ("users", "way", "images/s", "of the lock", "P50 s", "P95 s", "images", "mean batch", "memory MB")


def rows(load: str, seen: Sequence[Seen]) -> list[list[Cell]]:
    """One row a number of users and way."""
    made: list[list[Cell]] = []
    for one in (each for each in seen if each.load == load):
        times, lock = one.times, _of(seen, load, one.users, "lock")
        made.append(
            [
                one.users,
                WAYS[one.way],
                one.per_second,
                f"{one.per_second / lock.per_second:.2f}x",
                times.p50,
                times.p95,
                len(one.latencies_s),
                len(one.latencies_s) / one.runs,
                one.peak_bytes / 1e6,
            ]
        )
    return made


def verdict(load: str, seen: Sequence[Seen]) -> str:
    """Whether sharing helped, from the figures of the largest number of users; and what became of an expectation."""
    users = max(one.users for one in seen if one.load == load)
    lock = _of(seen, load, users, "lock")
    gains: dict[Way, float] = {
        way: _of(seen, load, users, way).per_second / lock.per_second for way in WAYS if way != "lock"
    }
    best = max(gains, key=lambda way: gains[way])
    word = "helped" if gains[best] >= HELPS else "made no difference" if gains[best] > 1 / HELPS else "cost throughput"
    p95 = _of(seen, load, users, best).times.p95
    said = (
        f"**{load}**: sharing {word}. {users} users got {gains['queue']:.2f} times the images of the lock from one "
        f"queue with batches and {gains['streams']:.2f} times from sessions side by side; the P95 of the better one "
        f"was {p95:.3g} s against {lock.times.p95:.3g} s."
    )
    for count, expected in EXPECTED.items():
        if any(one.users == count and one.load == load for one in seen):
            base = _of(seen, load, count, "lock").per_second
            found = max(_of(seen, load, count, way).per_second for way in gains) / base
            said += f" Of the {expected:g}-fold that was expected for {count} users, {found:.2f}-fold was found."
    return said


def _of(seen: Sequence[Seen], load: str, users: int, way: Way) -> Seen:
    return next(one for one in seen if (one.load, one.users, one.way) == (load, users, way))


def fair_sentence(found: Sequence[Fair], images: int) -> str:
    """Whether nobody waited for more than one batch of another's call."""
    waits = [one.waited_s / one.run_s for one in found]
    holds = "as promised" if max(waits) <= 1.0 else "**more than the promised one**"
    return (
        f"A single image that came while a call of {images} images ran waited "
        f"{max(one.waited_s for one in found):.3g} s at most, {max(waits):.2f} of the call's longest run, {holds}; "
        f"{min(one.left for one in found)} or more images of the call came after it ({len(found)} tries)."
    )


def measure(load: str, processes: dict[Way, AskedProcess], given: argparse.Namespace) -> list[Seen]:
    """All numbers of users and ways; the ways take turns, so that their ratios are those of neighbours in time."""
    seen = {(users, way): Seen(load, users, way) for users in given.users for way in processes}
    for turn in range(given.rounds):
        for users in given.users:
            order = list(processes)[turn % 3 :] + list(processes)[: turn % 3]
            for way in order:
                found = processes[way].ask("users", count=users, seconds=given.seconds, rounds=1)
                one = seen[users, way]
                one.latencies_s += found["latencies_s"]
                one.seconds += found["seconds"]
                one.runs += found["runs"]
                one.peak_bytes = max(one.peak_bytes, found["peak_bytes"])
                print(f"{load}: {users} users, {WAYS[way]}: {one.per_second:.3g}/s", flush=True)
    return list(seen.values())


def page(seen: Sequence[Seen], fair: Sequence[Fair], calls: tuple[float, float], given: argparse.Namespace) -> str:
    """The whole page."""
    loads = list(dict.fromkeys(one.load for one in seen))
    together_s, apart_s = calls
    return "\n\n".join(
        [
            "# Many users on one machine",
            f"{conditions(threads=given.threads)}\nRepeat: {command_line()}.",
            f"Finished tensors of {given.side} x {given.side} pixels, RGB; random weights. Every user asks again when "
            f"answered, for {given.seconds:g} s and at least once; {rounds(given.rounds)}. *One queue, batches*: one "
            f"session with {given.threads} threads. *Side by side*: {given.streams} sessions of "
            f"{max(1, given.threads // given.streams)} thread(s) each, one image each. *Lock*: one session with "
            f"{given.threads} threads, one image at a time, two workers. *Memory*: the most that the process and its "
            "models held (PSS). Mixed: every user asks the three models in turn. Decoding and masks are not in it.",
            "\n".join(f"- {verdict(load, seen)}" for load in loads),
            *(f"## {load}\n\n{table(HEADS, rows(load, seen))}" for load in loads),
            f"## Fairness\n\n{fair_sentence(fair, given.call)} Eight images took {together_s:.3g} s in one call and "
            f"{apart_s:.3g} s in eight calls at once (medians of {len(fair)}).",
        ]
    )


def _fair(process: AskedProcess, name: str, given: argparse.Namespace) -> tuple[list[Fair], tuple[float, float]]:
    fair: list[Fair] = []
    together: list[float] = []
    apart: list[float] = []
    for _ in range(given.tries):
        found = process.ask("single", name=name, images=given.call)
        fair.append(Fair(found["waited_s"], found["run_s"], found["left"]))
        together.append(process.ask("call", name=name, images=8, together=True)["seconds"])
        apart.append(process.ask("call", name=name, images=8, together=False)["seconds"])
    return fair, (statistics.median(together), statistics.median(apart))


def _read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="several users at once: does it help to share?")
    parser.add_argument(
        "--models", type=Path, help="a repository of cell_networks.py with pictures of --side; else made"
    )
    parser.add_argument("--side", type=int, default=512, metavar="PX")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a window; the last images are waited for")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--users", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--streams", type=int, help="sessions side by side; else one a core, four on a GPU")
    parser.add_argument("--call", type=int, default=40, metavar="N", help="images of the batch call")
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="256 x 256, one second a window")
    parser.add_argument("--gpu", action="store_true", help="on the first CUDA device")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.gpu and not cuda_devices():
        parser.error("--gpu: no CUDA device is here")
    if given.quick:
        given.side, given.seconds = 256, 1.0
    given.streams = given.streams or (4 if given.gpu else usable_cores())
    name = "users-gpu.md" if given.gpu else "users-quick.md" if given.quick else "users.md"
    given.out = given.out or (Path(tempfile.gettempdir()) if given.quick else RESULTS) / name
    return given


def main() -> None:
    """Read the command line, measure, write."""
    given = _read()
    names = [model.name for model in CELL_MODELS]
    seen: list[Seen] = []
    with tempfile.TemporaryDirectory() as scratch:
        models = given.models or Path(scratch)
        for model in CELL_MODELS:
            print(make(model, models, side_px=given.side, max_batch_size=max(given.users)), flush=True)
        for load, asked in [*((name, (name,)) for name in names), (MIXED, tuple(names))]:
            with ExitStack() as stack:
                processes: dict[Way, AskedProcess] = {}
                for way in WAYS:
                    how = Sharing(
                        way=way,
                        models=str(models),
                        names=asked,
                        streams=given.streams,
                        threads=given.threads,
                        device="cuda" if given.gpu else "cpu",
                        largest=max(given.users),
                    )
                    processes[way] = stack.enter_context(sharing(how))
                    processes[way].ask("open")
                seen += measure(load, processes, given)
                if load == names[0]:
                    fair, calls = _fair(processes["queue"], load, given)
    write(given.out, page(seen, fair, calls, given))


if __name__ == "__main__":
    main()
