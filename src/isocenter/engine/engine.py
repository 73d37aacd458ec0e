"""The door to one model version: admission, start, warm-up, drain, stop."""

import asyncio
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from isocenter.core.clock import Clock
from isocenter.core.errors import (
    DeadlineExceeded,
    Draining,
    IsocenterError,
    NotReady,
    Overloaded,
    Refused,
    RuntimeFault,
)
from isocenter.core.events import Observer, Shed
from isocenter.core.reply import Reply
from isocenter.core.request import Request, Result
from isocenter.core.tensor import Tensors, TensorSpec
from isocenter.engine.batch import check_item
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.cost import CostTable
from isocenter.engine.instance import Instance, RunFailed
from isocenter.engine.lifecycle import Lifecycle, State
from isocenter.engine.queue import RequestQueue
from isocenter.engine.scheduler import Scheduler
from isocenter.runtimes.base import Session


class Engine(Protocol):
    """What the use cases know of an engine, wherever it runs."""

    @property
    def model(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def state(self) -> State: ...

    @property
    def queued(self) -> int:
        """Items that wait for an instance."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What an item is made of, without a batch axis."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What an answer is made of, without a batch axis."""
        ...

    async def infer(self, request: Request) -> Result:
        """Run one item in the company of others; an answer before its deadline, or an error.

        Raises:
            InputNotAccepted: the item is not what the model takes.
            Overloaded: the queue is full.
            Draining: the engine is stopping.
            NotReady: the engine is not ready yet, or has failed.
            DeadlineExceeded: the deadline passed at the door, in the queue or during the run.
            RuntimeFault: the runtime raised on this item.
            NumericFailure: the answer holds NaN or infinity.
        """
        ...


class InlineEngine:
    """An engine on the event loop of its callers, with a thread for each session.

    `async with` starts it and, on the way out, drains and stops it. It takes requests from `open` on.
    """

    def __init__(
        self,
        *,
        model: str,
        version: int,
        sessions: Sequence[Session],
        rules: BatchRules,
        max_queue_size: int,
        clock: Clock,
        observer: Observer,
        drain_bound_s: float = 10.0,
        stop_bound_s: float = 5.0,
    ) -> None:
        if not sessions:
            raise ValueError("an engine needs at least one session")
        self.model = model
        self.version = version
        self._clock = clock
        self._observer = observer
        self._drain_bound_s = drain_bound_s
        self._stop_bound_s = stop_bound_s
        self._life = Lifecycle(model, version, observer)
        self._costs: CostTable | None = None
        self._queue = RequestQueue(max_queue_size)
        self._instances = [
            Instance(session, name=f"{model}-{version}-{n}", max_batch_size=rules.max_batch_size, clock=clock)
            for n, session in enumerate(sessions)
        ]
        self._scheduler = Scheduler(
            model,
            version,
            queue=self._queue,
            instances=self._instances,
            rules=rules,
            clock=clock,
            observer=observer,
        )
        self._scheduling: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._life.state

    @property
    def queued(self) -> int:
        """Items that wait for an instance."""
        return len(self._queue)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What an item is made of, without a batch axis."""
        return self._instances[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What an answer is made of, without a batch axis."""
        return self._instances[0].outputs

    # Requests.

    async def infer(self, request: Request) -> Result:
        """Run one item in the company of others; see `Engine.infer` for what is raised."""
        self._admit(request)
        entry = self._scheduler.submit(request, Reply(self._loop))
        try:
            return await entry.reply.wait()
        except asyncio.CancelledError:
            self._scheduler.leave(entry)
            raise

    def _admit(self, request: Request) -> None:
        if self._life.state is not State.READY:
            raise self._closed()
        check_item(request.item, self.inputs)
        now_s = self._clock.now_s()
        if request.deadline.expired(now_s):
            self._shed(DeadlineExceeded.code)
            late_s = now_s - request.deadline.at_s
            raise DeadlineExceeded(
                f"the deadline had passed by {late_s:.3f} s when the item came to the engine",
                details={"waited_s": 0.0, "where": "door"},
            )
        if self._queue.full:
            self._shed("queue_full")
            raise Overloaded(
                f"{len(self._queue)} items are queued, the limit is {self._queue.limit}",
                details={"queued": len(self._queue), "limit": self._queue.limit},
                retry_after_s=self._clear_s(),
            )

    def _closed(self) -> Refused:
        state = self._life.state
        if state in (State.DRAINING, State.STOPPED):
            self._shed("draining")
            return Draining(f"{self.model} {self.version} is {state}", details={"state": state.value})
        self._shed("not_ready")
        return NotReady(f"{self.model} {self.version} is {state}", details={"state": state.value})

    def _shed(self, reason: str) -> None:
        self._observer.observe(Shed(self.model, self.version, reason))

    def _clear_s(self) -> float | None:
        """Predicted seconds until all that is in is done; None before a warm-up has measured anything."""
        if self._costs is None:
            return None
        return self._costs.clear_s(len(self._queue) + self._scheduler.in_flight, instances=len(self._instances))

    # Life.

    async def start(self) -> None:
        """Start the threads and the scheduler. Next: `warm_up`, then `open`."""
        self._loop = asyncio.get_running_loop()
        self._life.to(State.WARMING)
        for instance in self._instances:
            instance.start()
        self._scheduling = self._loop.create_task(self._schedule(), name=f"{self.model}-{self.version}-scheduler")

    async def warm_up(self, sizes: Iterable[int], item: Tensors, *, repeats: int = 3) -> Mapping[int, float]:
        """Run every size on every instance, all instances at once as under load; median service seconds by size.

        Only these sizes, and 1, are run from here on. The first run of a size is not counted.

        Raises:
            InputNotAccepted: the item is not what the model takes.
            RuntimeFault, NumericFailure: a run failed; the engine has failed.
        """
        if self._life.state is not State.WARMING:
            raise RuntimeError(f"an engine that is {self._life.state} cannot be warmed up")
        check_item(item, self.inputs)
        rules = replace(self._scheduler.rules, allowed_batch_sizes=tuple(sorted({1, *sizes})))
        medians = await self._measure(rules.allowed_batch_sizes, item, repeats)
        self._costs = CostTable(medians)
        self._scheduler.rules = rules
        self._scheduler.service_s = self._costs.service_s(rules.largest)
        self._scheduler.batching_pays = self._costs.batching_pays
        return medians

    async def _measure(self, sizes: Sequence[int], item: Tensors, repeats: int) -> dict[int, float]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_run_sizes(instance, sizes, item, repeats)) for instance in self._instances]
        except* IsocenterError as failed:
            self._fail()
            raise failed.exceptions[0] from None
        measured = [task.result() for task in tasks]
        return {size: statistics.median(seconds for runs in measured for seconds in runs[size]) for size in sizes}

    def open(self) -> None:
        """Take requests from here on."""
        self._life.to(State.READY)

    async def drain(self, bound_s: float) -> bool:
        """Take nothing new and finish what is in; what is not finished within the bound fails with `Draining`.

        True if everything was finished. Draining an engine that never opened or has stopped is harmless.
        """
        if self._life.state is State.READY:
            self._life.to(State.DRAINING)
            # Nobody new will come, so nobody waits for company.
            self._scheduler.rules = replace(self._scheduler.rules, max_queue_delay_s=0.0)
        if self._life.state is not State.DRAINING:
            return True
        finished = await self._scheduler.empty_until(self._clock.now_s() + bound_s)
        if not finished:
            self._scheduler.fail_all(self._not_finished)
        return finished

    async def stop(self) -> None:
        """End the scheduler, then the threads. What is still in fails; to finish it, `drain` first. Twice is once."""
        if self._life.state is State.STOPPED:
            return
        if self._life.state is State.READY:
            self._life.to(State.DRAINING)
        self._life.to(State.STOPPED)
        self._scheduler.fail_all(self._not_finished)
        if self._scheduling is not None:
            self._scheduling.cancel()
            await asyncio.wait([self._scheduling])
        await asyncio.gather(*(instance.stop(self._stop_bound_s) for instance in self._instances))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain(self._drain_bound_s)
        await self.stop()

    async def _schedule(self) -> None:
        try:
            await self._scheduler.run()
        except Exception as error:  # a defect of ours: whoever waits must hear of it
            kind = type(error).__name__
            self._fail()
            self._scheduler.fail_all(lambda: RuntimeFault(f"the scheduler ended: {kind}", details={"kind": kind}))
            raise

    def _fail(self) -> None:
        if self._life.state not in (State.FAILED, State.STOPPED):
            self._life.to(State.FAILED)

    def _not_finished(self) -> Draining:
        return Draining(
            f"{self.model} {self.version} stopped before this was done", details={"state": self.state.value}
        )


async def _run_sizes(instance: Instance, sizes: Sequence[int], item: Tensors, repeats: int) -> dict[int, list[float]]:
    """Seconds of every run that counts, by batch size."""
    measured: dict[int, list[float]] = {}
    for size in sizes:
        runs_s = [await _run_once(instance, [item] * size) for _ in range(1 + repeats)]
        measured[size] = runs_s[1:] or runs_s
    return measured


async def _run_once(instance: Instance, items: list[Tensors]) -> float:
    outcome = await instance.run(items)
    if isinstance(outcome, RunFailed):
        raise outcome.error
    for answer in outcome.answers:
        if isinstance(answer, IsocenterError):
            raise answer
    return outcome.service_s
