"""The door to one model version: admission, start, warm-up, drain, stop."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import Draining, IsocenterError, RuntimeFault, RuntimeLost
from isocenter.core.events import Observer
from isocenter.core.reply import Reply
from isocenter.core.request import Request, Result
from isocenter.core.tensor import Tensors
from isocenter.engine.admission import Admission
from isocenter.engine.backlog import Backlog, Place
from isocenter.engine.batch import check_item
from isocenter.engine.batch_caps import BatchCaps
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.cost import CostModel
from isocenter.engine.doorkeeper import Doorkeeper, QueueLimits, View
from isocenter.engine.instance import Instance
from isocenter.engine.instance_group import InstanceGroup, OpenSession
from isocenter.engine.lifecycle import Lifecycle, State
from isocenter.engine.protocol import Engine as Engine
from isocenter.engine.protocol import Reservation as Reservation
from isocenter.engine.queue import Answerable, Entry, RequestQueue
from isocenter.engine.scheduler import Scheduler
from isocenter.engine.warm_up import measured_s
from isocenter.runtimes.base import Session


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
        max_queue_bytes: int | None = None,
        timeout_s: float = 10.0,
        nice: int = 0,
        open_session: OpenSession | None = None,
        open_fallback: OpenSession | None = None,
        fallback: str = "",
        standing_in: Session | None = None,
        missing: int = 0,
        stand_in_s: float = 1.0,
        free: Callable[[], None] = lambda: None,
        drain_bound_s: float = 10.0,
        stop_bound_s: float = 5.0,
    ) -> None:
        """`standing_in` is a session of the fallback, where `missing` of the model's own could not be opened yet;
        `stand_in_s` is what opening one takes."""
        if not sessions and standing_in is None:
            raise ValueError("an engine needs at least one session")
        self.model = model
        self.version = version
        self.timeout_s = timeout_s
        self._clock = clock
        self._observer = observer
        self._drain_bound_s = drain_bound_s
        self._stop_bound_s = stop_bound_s
        self._free = free
        self._can_recover = open_session is not None
        self._stand_in_s = stand_in_s
        self._nobody = False
        self._life = Lifecycle(model, version, observer)
        self._memory_is_short = False
        self._queue = RequestQueue(max_queue_size, backlog=Backlog(2 * timeout_s))
        self._group = InstanceGroup(
            model,
            version,
            sessions,
            max_batch_size=rules.max_batch_size,
            clock=clock,
            observer=observer,
            nice=nice,
            open_session=open_session,
            open_fallback=open_fallback,
            fallback=fallback,
            on_lost=self._lost,
            on_back=self._back,
            on_nobody=self._nobody_left,
            standing_in=standing_in,
            missing=missing,
            dismiss=lambda runner: self._scheduler.dismiss(runner),
            keep=lambda runner: self._scheduler.keep(runner),
            hung_after_s=lambda: self._scheduler.hung_after_s(1),
        )
        self.inputs = self._group.inputs
        self.outputs = self._group.outputs
        self.limits = QueueLimits.of(self.inputs, items=max_queue_size, most_bytes=max_queue_bytes)
        self._door = Doorkeeper(
            model,
            version,
            observer=observer,
            admission=Admission(self._queue.backlog, timeout_s=timeout_s),
            limits=self.limits,
        )
        self._scheduler = Scheduler(
            model,
            version,
            queue=self._queue,
            instances=self._group.working,
            inputs=self.inputs,
            rules=rules,
            clock=clock,
            observer=observer,
            soon=lambda step: self._loop.call_soon(self._guarded, step),
            on_sick=self._group.examine,
            on_hung=self._group.hung,
            on_lost=self._group.lost,
            on_short_of_memory=self._short_of_memory,
            on_empty=self._tell_empty,
        )
        self._scheduler.admission = self._door.admission
        self._caps = BatchCaps(rules, clock=clock, apply=self._apply_rules)
        self._waiting_for_empty: list[asyncio.Future[bool]] = []

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._life.state

    @property
    def backlog(self) -> Backlog:
        """What is queued, and the places held for those to come."""
        return self._queue.backlog

    @property
    def caution_s(self) -> float:
        """What admission keeps free of every request's time, as learned from those that were late."""
        return self._door.admission.caution_s

    @property
    def queued(self) -> int:
        """Items that wait for an instance."""
        return len(self._queue)

    @property
    def instances(self) -> int:
        """Instances that take batches now."""
        return self._scheduler.working

    @property
    def service_s(self) -> Mapping[int, float]:
        """Seconds of a run by batch size, as they are believed now; empty before a warm-up."""
        return self._scheduler.cost.curve() if self._scheduler.cost is not None else {}

    # Requests.

    def check(self, deadline: Deadline, *, priority: int = 0, ready_in_s: float = 0.0) -> None:
        """Refuse what could not be answered in time; see `Engine.check`."""
        now_s = self._clock.now_s()
        self._door.check(deadline, priority, ready_in_s=ready_in_s, now_s=now_s, view=self.view(now_s))

    def view(self, now_s: float) -> View:
        """What a doorkeeper sees of it, here or in another process."""
        return self._scheduler.view(now_s, state=self._life.state, memory_is_short=self._memory_is_short)

    def reserve(self, deadline: Deadline, *, priority: int = 0, ready_in_s: float = 0.0) -> Reservation:
        """Refuse what could not be answered in time, or hold a place; see `Engine.reserve`."""
        self.check(deadline, priority=priority, ready_in_s=ready_in_s)
        return Place(
            self._queue.backlog, deadline.at_s, priority, now_s=self._clock.now_s(), on_release=self._scheduler.wake
        )

    def note_late(self) -> None:
        """Somebody who was let in was not answered in time; see `Engine.note_late`."""
        self._door.admission.note_late(self._clock.now_s())

    async def infer(self, request: Request, reservation: Reservation | None = None) -> Result:
        """Run one item in the company of others; see `Engine.infer` for what is raised."""
        place = reservation or self.reserve(request.deadline, priority=request.priority)
        reply: Reply[Result] = Reply(self._loop)
        entry = self.submit(request, reply, place)
        try:
            return await reply.wait()
        except asyncio.CancelledError:
            self._scheduler.leave(entry)
            raise

    def submit(self, request: Request, reply: Answerable, reservation: Reservation | None = None) -> Entry:
        """Take in one item that was admitted: by a reservation here, or (without one) at a door in another process.

        Raises:
            InputNotAccepted: the item is not what the model takes.
            Overloaded: the queue is full.
            Draining, NotReady, DeadlineExceeded, RuntimeLost: what may have come about since the admission.
        """
        try:
            check_item(request.item, self.inputs)
            now_s = self._clock.now_s()
            if reservation is None:  # its admission was no judgement of ours, and taught us nothing
                self._door.admission.note_budget(request.deadline.at_s - now_s)
            self._door.check_again(request.deadline, now_s=now_s, state=self._life.state, queued=len(self._queue))
            if self._nobody:
                raise self._runtime_lost()
            cell = reservation.take() if isinstance(reservation, Place) else None
            return self._scheduler.submit(request, reply, cell=cell)
        finally:
            if reservation is not None:
                reservation.release()

    def leave(self, entry: Entry) -> None:
        """The caller of a submitted item has left; his reply was settled before."""
        self._scheduler.leave(entry)

    # Memory.

    def limit_batch(self, size: int | None) -> None:
        """Form no batch above a size until told otherwise; None takes the limit away."""
        self._caps.limit("pressure", size)

    def shed_for_memory(self, on: bool) -> None:
        """Refuse new work while memory is short."""
        self._memory_is_short = on

    def _short_of_memory(self, size: int) -> None:
        """A run of so many items had no memory: free what can be freed, and ask for less for a while."""
        self._loop.run_in_executor(None, self._free)
        self._caps.halve_for_a_while(size)

    def _apply_rules(self, rules: BatchRules) -> None:
        self._scheduler.rules = rules

    # Life.

    async def start(self) -> None:
        """Start the threads. Next: `warm_up`, then `open`."""
        self._loop = asyncio.get_running_loop()
        self._life.to(State.WARMING)
        self._group.start()

    async def warm_up(self, sizes: Iterable[int], item: Tensors, *, repeats: int = 3) -> Mapping[int, float]:
        """Run every size on every instance, all instances at once as under load; service seconds by size.

        Only these sizes, and 1, are run from here on. The first round is not counted.

        Raises:
            InputNotAccepted: the item is not what the model takes.
            RuntimeFault, NumericFailure: a run failed; the engine has failed.
        """
        if self._life.state is not State.WARMING:
            raise RuntimeError(f"an engine that is {self._life.state} cannot be warmed up")
        check_item(item, self.inputs)
        rules = replace(self._caps.rules, allowed_batch_sizes=tuple(sorted({1, *sizes})))
        try:
            seconds = await measured_s(self._group.working, rules.allowed_batch_sizes, item, repeats)
        except IsocenterError:
            self._fail()
            raise
        self._group.probe = item
        self._scheduler.cost = CostModel(seconds)
        self._caps.rules = rules
        return seconds

    def open(self) -> None:
        """Take requests from here on."""
        self._life.to(State.READY)
        self._group.open_missing()

    async def drain(self, bound_s: float) -> bool:
        """Take nothing new and finish what is in, places that are held included.

        What is not finished within the bound fails with `Draining`.

        True if everything was finished. Draining an engine that never opened or has stopped is harmless.
        """
        if self._life.state in (State.READY, State.RECOVERING):
            self._life.to(State.DRAINING)
            # Nobody new will come, so nobody waits for company.
            self._caps.rules = replace(self._caps.rules, max_queue_delay_s=0.0)
        if self._life.state is not State.DRAINING:
            return True
        finished = await self._empty_until(self._clock.now_s() + bound_s)
        if not finished:
            self._scheduler.fail_all(self._not_finished)
        return finished

    async def stop(self) -> None:
        """End the scheduler, then the threads. What is still in fails; to finish it, `drain` first. Twice is once."""
        if self._life.state is State.STOPPED:
            return
        if self._life.state in (State.READY, State.RECOVERING):
            self._life.to(State.DRAINING)
        self._life.to(State.STOPPED)
        self._scheduler.fail_all(self._not_finished)
        self._scheduler.close()
        self._caps.close()
        await self._group.stop(self._stop_bound_s)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain(self._drain_bound_s)
        await self.stop()

    async def _empty_until(self, instant_s: float) -> bool:
        """Wait until nothing is queued or running; False if the instant comes first."""
        if self._scheduler.empty and self.backlog.total == 0:
            return True
        self._scheduler.wake()
        empty: asyncio.Future[bool] = self._loop.create_future()
        self._waiting_for_empty.append(empty)
        timer = self._clock.call_at(instant_s, lambda: _tell(empty, False))
        try:
            return await empty
        finally:
            timer.cancel()
            self._waiting_for_empty.remove(empty)

    def _tell_empty(self) -> None:
        if self.backlog.total:
            return
        for empty in self._waiting_for_empty:
            _tell(empty, True)

    # What may go wrong.

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # a defect of ours: whoever waits must hear of it
            kind = type(error).__name__
            self._fail()
            self._scheduler.fail_all(lambda: RuntimeFault(f"the scheduler ended: {kind}", details={"kind": kind}))
            raise

    def _lost(self, instance: Instance, lost: bool) -> None:
        if self._scheduler.cost is not None:
            self._scheduler.cost.forget(instance.name)
        if self._scheduler.working == 0:
            if not self._can_recover:
                self._fail()
                self._scheduler.fail_all(
                    lambda: RuntimeFault(f"{self.model} {self.version} has no instance left", details={})
                )
            elif lost and self._group.awaits_fallback:
                # It will answer in a moment: until then requests are taken as if it were busy.
                self._scheduler.awaited_at_s = self._clock.now_s() + self._stand_in_s
            elif self._life.state is State.READY:
                self._life.to(State.RECOVERING)

    def _nobody_left(self) -> None:
        """What the model runs in is gone, and nothing stands in: whoever waits is told, rather than left to wait."""
        if self._scheduler.working or self._life.state not in (State.READY, State.RECOVERING, State.DRAINING):
            return
        self._nobody = True
        self._scheduler.awaited_at_s = None
        if self._life.state is State.READY:
            self._life.to(State.RECOVERING)
        self._scheduler.fail_all(self._runtime_lost)

    def _runtime_lost(self) -> RuntimeLost:
        return RuntimeLost(
            f"what {self.model} {self.version} runs in is gone, and nothing stands in for it",
            details={"state": self.state.value},
            retry_after_s=1.0,
        )

    def _back(self, instance: Instance) -> None:
        self._nobody = False
        if self._scheduler.cost is not None and instance.lone_s is not None:
            self._scheduler.cost.begin(instance.name, instance.lone_s)
        self._scheduler.join(instance)
        if self._life.state is State.RECOVERING:
            self._life.to(State.READY)

    def _fail(self) -> None:
        if self._life.state not in (State.FAILED, State.STOPPED):
            self._life.to(State.FAILED)

    def _not_finished(self) -> Draining:
        return Draining(
            f"{self.model} {self.version} stopped before this was done", details={"state": self.state.value}
        )


def _tell(future: asyncio.Future[bool], answer: bool) -> None:
    if not future.done():
        future.set_result(answer)
