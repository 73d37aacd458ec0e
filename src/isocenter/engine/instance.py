"""One session on a thread of its own: items in, one outcome back on the event loop."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeAlias

from isocenter.core.clock import Clock
from isocenter.core.errors import Draining, IsocenterError, OutOfMemory, RuntimeFault, without_frames
from isocenter.core.tensor import Tensors
from isocenter.engine.batch import Answer, collate, make_buffers, scatter
from isocenter.runtimes.base import Fresh, Session


@dataclass(frozen=True, slots=True)
class Ran:
    """The batch came back. `service_s` counts gathering, run and scattering."""

    answers: list[Answer]
    service_s: float


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The batch did not come back. `kind` is the class name of what was raised."""

    error: IsocenterError
    kind: str


Outcome: TypeAlias = Ran | RunFailed
Done: TypeAlias = Callable[["Instance", Outcome], None]


class Instance:
    """Owns a session, its thread and its buffers. Called on the event loop only; takes one batch at a time."""

    def __init__(
        self,
        session: Session,
        *,
        name: str,
        max_batch_size: int,
        clock: Clock,
        nice: int = 0,
        fallback: str = "",
    ) -> None:
        self.name = name
        self.fallback = fallback
        """What it answers with if it is not the model's own runtime."""
        self._nice = nice
        self._session = session
        self._fresh = isinstance(session, Fresh)
        self.inputs = session.inputs
        self.outputs = session.outputs
        self._buffers = make_buffers(self.inputs, max_batch_size)
        self._clock = clock
        self._jobs: SimpleQueue[tuple[Sequence[Tensors], Done] | None] = SimpleQueue()
        self._ended: asyncio.Future[bool] | None = None
        self._stopping = False
        self.lone_s: float | None = None
        """What a run of one item took when it was examined last."""

    def start(self) -> None:
        """Start the thread. Outcomes arrive on the loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        # A daemon: a run that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    def submit(self, items: Sequence[Tensors], done: Done) -> None:
        """Run checked items as one batch, then call `done` on the loop."""
        self._jobs.put((items, done))

    async def run(self, items: Sequence[Tensors]) -> Outcome:
        """Run checked items as one batch and wait for it.

        Raises:
            Draining: the instance is stopping.
        """
        if self._stopping:
            raise Draining(f"instance {self.name} is stopping")
        came_back: asyncio.Future[Outcome] = self._loop.create_future()

        def done(_: Instance, outcome: Outcome) -> None:
            if not came_back.done():
                came_back.set_result(outcome)

        self.submit(items, done)
        return await came_back

    def abandon(self) -> None:
        """Give it up in the middle of a run: if that ever ends, the thread does too and the session is closed."""
        self._stopping = True
        self._jobs.put(None)

    async def stop(self, bound_s: float) -> bool:
        """End the thread after the run it is in and close the session; False if that took longer than the bound."""
        self._stopping = True
        if self._ended is None:  # never started
            self._session.close()
            return True
        self._jobs.put(None)
        timer = self._clock.call_at(self._clock.now_s() + bound_s, lambda: self._end(False))
        try:
            closed = await self._ended
        finally:
            timer.cancel()
        if closed:  # the thread has said so as its last act; on a busy machine it is still there for a moment
            await asyncio.to_thread(self._thread.join, bound_s)
        return closed

    def _end(self, closed: bool) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(closed)

    def _work(self) -> None:
        _lower_priority(self._nice)
        try:
            while self._serve_one():
                pass
        finally:
            try:
                self._session.close()
            finally:
                self._tell(self._end, True)

    def _serve_one(self) -> bool:
        # A function of its own, so that an idle thread holds no tensors in its locals.
        job = self._jobs.get()
        if job is None:
            return False
        items, done = job
        return self._tell(done, self, self._run(items))

    def _run(self, items: Sequence[Tensors]) -> Outcome:
        started_s = self._clock.now_s()
        try:
            batch = collate(items, self.inputs, self._buffers)
            answers = scatter(self._session.run(batch), self.outputs, len(items), fresh=self._fresh)
        except BaseException as error:  # some native extensions panic past Exception; the batch must still come back
            return RunFailed(_as_fault(error, len(items)), type(error).__name__)
        return Ran(answers, self._clock.now_s() - started_s)

    def _tell(self, callback: Callable[..., None], *arguments: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            return False
        return True


def _lower_priority(nice: int) -> None:
    """Give this thread a smaller share of its core. Linux counts niceness per thread; elsewhere nothing is done."""
    if nice and sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def _as_fault(error: BaseException, batch_size: int) -> IsocenterError:
    if isinstance(error, IsocenterError):
        return without_frames(error)  # they hold the batch
    kind = type(error).__name__
    if isinstance(error, MemoryError):
        return OutOfMemory(f"no memory for a batch of {batch_size}", details={"batch_size": batch_size})
    # The message of a foreign error may quote the input, so only its kind goes out.
    return RuntimeFault(
        f"the runtime raised {kind} in a batch of {batch_size}", details={"kind": kind, "batch_size": batch_size}
    )
