"""An engine whose sessions' health is in the hands of a test."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from isocenter.core.clock import ManualClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import IsocenterError
from isocenter.core.events import InstanceChanged, RecordingObserver, StateChanged
from isocenter.core.request import Request, Result
from isocenter.core.tensor import Tensors
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.engine import InlineEngine
from isocenter.engine.scheduler import HUNG_LEAST_S, HUNG_LOOK_EVERY_S, HUNG_LOOKS
from isocenter.runtimes.synthetic import INPUT, OUTPUT, SyntheticSession, checksum, item
from patience import PATIENCE_S

PROBE = 7.0


class Patient(SyntheticSession):
    """A session whose health is in the hands of a test."""

    def __init__(self, takes_s: float = 0.0) -> None:
        super().__init__()
        self.takes_s = takes_s
        self.turn: Callable[[float], None] = lambda _: None
        self.raises = False
        self.hangs = False
        self.hangs_on: float | None = None
        self.stuck = False
        self.no_memory_above: int | None = None
        self.nan = False
        self.woken = threading.Event()

    def run(self, batch: Tensors) -> Tensors:
        size = len(batch[INPUT])
        self.turn(self.takes_s)
        if self.hangs or self.hangs_on in batch[INPUT][:, 0]:
            self.stuck = True
            self.woken.wait(PATIENCE_S)
        if self.raises:
            raise ValueError("not today")
        if self.no_memory_above is not None and size > self.no_memory_above:
            raise MemoryError
        found = super().run(batch)
        if self.nan:
            found[OUTPUT][:] = math.nan
        return found


def unwell() -> Patient:
    """One whose runs all fail."""
    patient = Patient()
    patient.raises = True
    return patient


class Ward:
    """An engine of patients, and who is opened when one of them is given up."""

    def __init__(self, *, instances: int, max_batch_size: int, takes_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = ManualClock(100.0)
        self.observer = RecordingObserver()
        self.patients = [self._admitted(Patient(takes_s)) for _ in range(instances)]
        self.opened: list[Patient] = []
        self.next_patient: Callable[[], Patient] = Patient
        self.next_stand_in: Callable[[], Patient] = Patient
        self.stand_ins: list[Patient] = []
        self.freed = 0
        self.engine = InlineEngine(
            model="demo",
            version=1,
            sessions=self.patients,
            rules=BatchRules(max_batch_size=max_batch_size, max_queue_delay_s=0.0),
            max_queue_size=100,
            clock=self.clock,
            observer=self.observer,
            open_session=self._open,
            open_fallback=self._open_fallback,
            fallback="fp32 on cpu",
            free=self._free,
        )

    def _open(self) -> Patient:
        self.opened.append(self._admitted(self.next_patient()))
        return self.opened[-1]

    def _open_fallback(self) -> Patient:
        self.stand_ins.append(self._admitted(self.next_stand_in()))
        return self.stand_ins[-1]

    def _admitted(self, patient: Patient) -> Patient:
        patient.turn = self._turn_from_a_thread
        return patient

    def _turn_from_a_thread(self, seconds: float) -> None:
        """Turn the clock while a run goes on, a little at a time, so that what is due on the way happens."""
        for _ in range(math.ceil(seconds / 0.25)):
            asyncio.run_coroutine_threadsafe(self.turn(min(0.25, seconds)), self.loop).result()

    def _free(self) -> None:
        self.freed += 1

    def ask(self, marker: float, timeout_s: float = math.inf) -> asyncio.Task[Result]:
        request = Request(str(marker), item(marker), Deadline(self.clock.now_s() + timeout_s))
        return asyncio.create_task(self.engine.infer(request))

    async def outcome(self, marker: float, timeout_s: float = math.inf) -> Result | IsocenterError:
        try:
            return await self.ask(marker, timeout_s)
        except IsocenterError as error:
            return error

    async def until(self, fact: Callable[[], bool]) -> None:
        while not fact():  # noqa: ASYNC110 - threads report to this loop
            await asyncio.sleep(0)

    async def turn(self, seconds: float) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        self.clock.advance(seconds)
        for _ in range(20):
            await asyncio.sleep(0)

    async def turn_until_hung(self) -> None:
        """Until a run that does not come back has been given up."""
        await self.turn(HUNG_LEAST_S + 0.5)
        for _ in range(HUNG_LOOKS):
            await self.turn(HUNG_LOOK_EVERY_S + 0.1)

    def count(self, found: Sequence[Result | IsocenterError]) -> dict[str, int]:
        """Of callers who asked with 0.0, 1.0 … in turn: how many were answered, answered wrongly, told why not."""
        results = [(n, each) for n, each in enumerate(found) if isinstance(each, Result)]
        wrong = sum(not answered(each, n) for n, each in results)
        told = sum(isinstance(each, IsocenterError) for each in found)
        return {"asked": len(found), "answered": len(results) - wrong, "wrong": wrong, "told": told}

    def said(self) -> list[str]:
        return [event.what for event in self.observer.events if isinstance(event, InstanceChanged)]

    def states(self) -> list[str]:
        return [event.state for event in self.observer.events if isinstance(event, StateChanged)]


@asynccontextmanager
async def ward(*, instances: int = 1, max_batch_size: int = 4, takes_s: float = 0.0) -> AsyncIterator[Ward]:
    made = Ward(instances=instances, max_batch_size=max_batch_size, takes_s=takes_s)
    await made.engine.start()
    sizes = [size for size in (1, 2, 4) if size <= max_batch_size]
    await made.engine.warm_up(sizes, item(PROBE), repeats=1)
    made.engine.open()
    try:
        yield made
    finally:
        for patient in (*made.patients, *made.opened, *made.stand_ins):
            patient.hangs = False
            patient.woken.set()
        await made.engine.drain(0.0)
        await made.engine.stop()


def answered(found: object, marker: float) -> bool:
    return isinstance(found, Result) and float(found.outputs[OUTPUT]) == checksum(item(marker)[INPUT])
