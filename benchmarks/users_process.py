"""One way to share a machine among users, in a process of its own that measures whenever a line asks it to.

Lines in and out are JSON: {"do": "open"}, then {"do": "users", ...}, {"do": "single", ...} and {"do": "call", ...}.
What fails is {"error": ...}. Items are finished tensors: nothing is decoded here, and no mask is looked at.
"""

import asyncio
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from asked_process import AskedProcess, asked_process
from isocenter.core.clock import SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import IsocenterError
from isocenter.core.events import NullObserver
from isocenter.core.request import Request
from isocenter.core.tensor import Tensors
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.engine import InlineEngine
from isocenter.repository.layout import ModelFolder, find
from isocenter.repository.load import open_sessions, warm_up_sizes
from isocenter.repository.manifest import InstancesPart
from server_process import proportional_bytes

Way: TypeAlias = Literal["queue", "streams", "lock"]
Ask: TypeAlias = Callable[[str], Awaitable[tuple[float, int]]]
"""One image for a model: seconds that it waited for its run, and how many ran together."""

LOCK_WORKERS = 2
"""Threads of the existing service, which then wait for one another."""
_LOOKS_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How a process shares its machine."""

    way: Way
    """queue: one instance with every core, and batches. streams: instances side by side, one image each. lock: one
    session, one image at a time, threads that wait for a lock."""
    models: str
    names: tuple[str, ...]
    """More than one: every user asks them in turn."""
    streams: int
    threads: int
    """Of all instances of a model together."""
    device: str = "cpu"
    largest: int = 8
    """No batch above this: of more users nobody asks."""

    def folder(self, name: str) -> ModelFolder:
        """The model with the instances that this way gives it."""
        folder = find(Path(self.models), name)
        count = self.streams if self.way == "streams" else 1
        part = InstancesPart(count=count, threads=max(1, self.threads // count), device=self.device)
        return replace(folder, manifest=folder.manifest.model_copy(update={"instances": part}))


def sharing(how: Sharing) -> AbstractContextManager[AskedProcess]:
    """It in its own process, which is gone afterwards."""
    return asked_process(__file__, asdict(how))


class Work:
    """The other end."""

    def __init__(self, how: Sharing, stack: AsyncExitStack) -> None:
        self._how = how
        self._stack = stack
        self._items: dict[str, Tensors] = {}
        self._engines: dict[str, InlineEngine] = {}
        self._ask: Ask = self._of_engine
        self._asked = 0

    async def open(self) -> dict[str, Any]:
        """Open every model and warm its sizes."""
        locks: dict[str, Callable[[], float]] = {}
        for name in self._how.names:
            folder = self._how.folder(name)
            if self._how.way == "lock":
                locks[name] = self._locked(folder)
                await asyncio.to_thread(locks[name])
            else:
                self._engines[name] = await self._started(folder)
        if locks:
            self._ask = self._of_lock(locks)
        return {"sizes": {name: list(engine.service_s) for name, engine in self._engines.items()}}

    async def users(self, count: int, seconds: float, rounds: int) -> dict[str, Any]:
        """A closed loop: every user asks again when he was answered, until the time is up and `rounds` are done."""
        latencies_s: list[float] = []
        sizes: list[int] = []
        names, began_s = self._how.names, time.perf_counter()

        async def user(number: int) -> None:
            for turn in range(10**9):
                if turn >= rounds and time.perf_counter() - began_s >= seconds:
                    return
                asked_s = time.perf_counter()
                _, size = await self._ask(names[(number + turn) % len(names)])
                latencies_s.append(time.perf_counter() - asked_s)
                sizes.append(size)

        with _Peak() as peak:
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    group.create_task(user(number))
        return {
            "latencies_s": latencies_s,
            "seconds": time.perf_counter() - began_s,
            "runs": sum(1 / size for size in sizes),
            "peak_bytes": peak.bytes,
        }

    async def single(self, name: str, images: int) -> dict[str, Any]:
        """What one image waits for that comes while a batch call of so many runs; and what the call's runs take."""
        engine = self._engines[name]
        call = [asyncio.create_task(self._engine_run(engine, name, "call")) for _ in range(images)]
        await asyncio.wait(call, return_when=asyncio.FIRST_COMPLETED)
        waited_s = (await self._engine_run(engine, name, ""))[0]
        left = sum(not each.done() for each in call)
        runs_s = [(await each)[2] for each in call]
        return {"waited_s": waited_s, "run_s": max(runs_s), "left": left}

    async def call(self, name: str, images: int, together: bool) -> dict[str, Any]:
        """Seconds for so many images: in one call, or in as many calls at once."""
        engine, began_s = self._engines[name], time.perf_counter()
        asking = (self._engine_run(engine, name, "call" if together else "") for _ in range(images))
        await asyncio.gather(*asking)
        return {"seconds": time.perf_counter() - began_s}

    async def _started(self, folder: ModelFolder) -> InlineEngine:
        manifest = folder.manifest
        sessions = open_sessions(folder)
        largest = 1 if self._how.way == "streams" else min(manifest.batching.max_batch_size, self._how.largest)
        sizes = [size for size in warm_up_sizes(manifest) if size <= largest]
        self._items[manifest.name] = item = _noise(sessions[0].inputs)
        engine = InlineEngine(
            model=manifest.name,
            version=manifest.version,
            sessions=sessions,
            rules=BatchRules(max_batch_size=max(sizes), max_queue_delay_s=manifest.batching.max_queue_delay_ms / 1e3),
            max_queue_size=1024,
            clock=SystemClock(),
            observer=NullObserver(),
        )
        await self._stack.enter_async_context(engine)
        await engine.warm_up(sizes, item, repeats=0)
        engine.open()
        return engine

    async def _of_engine(self, name: str) -> tuple[float, int]:
        waited_s, size, _ = await self._engine_run(self._engines[name], name, "")
        return waited_s, size

    async def _engine_run(self, engine: InlineEngine, name: str, group: str) -> tuple[float, int, float]:
        self._asked += 1
        result = await engine.infer(Request(str(self._asked), self._items[name], Deadline.never(), group=group))
        timings = result.timings
        return timings.queue_s, timings.batch_size, timings.service_s

    def _locked(self, folder: ModelFolder) -> Callable[[], float]:
        """A run behind the model's lock; gives the seconds that it waited for it."""
        (session,) = open_sessions(folder)
        self._items[folder.manifest.name] = item = _noise(session.inputs)
        batch = {name: array[np.newaxis] for name, array in item.items()}
        lock = threading.RLock()

        def run() -> float:
            asked_s = time.perf_counter()
            with lock:
                waited_s = time.perf_counter() - asked_s
                session.run(batch)
            return waited_s

        return run

    def _of_lock(self, runs: dict[str, Callable[[], float]]) -> Ask:
        threads = self._stack.enter_context(ThreadPoolExecutor(LOCK_WORKERS))

        async def ask(name: str) -> tuple[float, int]:
            return await asyncio.get_running_loop().run_in_executor(threads, runs[name]), 1

        return ask


def _noise(specs: Sequence[Any]) -> Tensors:
    chance = np.random.default_rng(5)
    return {spec.name: chance.standard_normal(spec.shape).astype(spec.dtype) for spec in specs}


class _Peak(threading.Thread):
    """The most memory of this process while it is looked at: its own, and its share of what it shares."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._done = threading.Event()

    def __enter__(self) -> "_Peak":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        """Look now and then."""
        while True:
            self.bytes = max(self.bytes, proportional_bytes(os.getpid()))
            if self._done.wait(_LOOKS_EVERY_S):
                return


async def serve(how: Sharing) -> None:
    """Answer lines until there are no more."""
    async with AsyncExitStack() as stack:
        work = Work(how, stack)
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            do = partial(getattr(work, asked.pop("do")), **asked)
            try:
                answer = await do()
            except (IsocenterError, OSError, MemoryError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    told = json.loads(sys.argv[1])
    asyncio.run(serve(Sharing(**{**told, "names": tuple(told["names"])})))
