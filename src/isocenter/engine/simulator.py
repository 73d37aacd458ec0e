"""The engine without a machine: the same queue, policy, admission and scheduler over cost curves and a turned clock.

It answers what a load would meet on hardware that is not here, in seconds: runs cost what a curve says, nobody computes
anything. What it does not know: the network, decoding, and that neighbours on one machine slow one another down.

    >>> curve = {1: 0.010, 4: 0.016, 16: 0.040}
    >>> report = simulate(poisson(500.0, seconds=20.0, timeout_s=0.25, seed=1), Machine(curve, instances=2))
    >>> report.offered == report.answered + report.shed + report.expired + report.failed + report.left
    True
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from isocenter.core.clock import Timer
from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded, IsocenterError, OutOfMemory, Overloaded, RuntimeFault
from isocenter.core.events import NullObserver, Observer
from isocenter.core.request import Request, Result
from isocenter.core.tensor import Tensors
from isocenter.engine.admission import Admission
from isocenter.engine.backlog import Backlog
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.cost import CostModel
from isocenter.engine.doorkeeper import Doorkeeper, QueueLimits
from isocenter.engine.instance import Outcome, Ran, RunFailed
from isocenter.engine.lifecycle import State
from isocenter.engine.queue import Entry, RequestQueue
from isocenter.engine.running import Runner
from isocenter.engine.scheduler import Scheduler


class Arrival(NamedTuple):
    """One request of a load."""

    at_s: float
    timeout_s: float
    priority: int = 0
    group: str = ""
    leaves_after_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Machine:
    """What the load meets."""

    curve_s: Mapping[int, float]
    """Seconds of a run by batch size, as `isocenter check` prints them or as they were recorded."""
    instances: int = 1
    max_queue_size: int = 100_000
    max_queue_delay_s: float = 0.002
    spread: float = 0.05
    """Standard deviation of the logarithm of a run's time around its curve."""
    fails: float = 0.0
    """Share of runs that raise."""
    short_of_memory_above: int | None = None
    """A larger batch has no memory."""


@dataclass(slots=True)
class Report:
    """What became of a load. Latencies in seconds, of the answered."""

    offered: int = 0
    answered: int = 0
    shed: int = 0
    expired: int = 0
    failed: int = 0
    left: int = 0
    late: int = 0
    """Answered after their deadline; part of the answered."""
    run_in_vain: int = 0
    """Items that were started although nobody could wait for them any more."""
    runs: int = 0
    items_run: int = 0
    ended_at_s: float = 0.0
    busy_s: float = 0.0
    instances: int = 1
    latencies_s: list[float] = field(default_factory=list)

    @property
    def goodput_per_s(self) -> float:
        """Answers in time per second."""
        return (self.answered - self.late) / self.ended_at_s if self.ended_at_s else 0.0

    @property
    def mean_batch(self) -> float:
        """Items in a run."""
        return self.items_run / self.runs if self.runs else 0.0

    @property
    def utilisation(self) -> float:
        """Share of the time that instances were busy."""
        return self.busy_s / (self.ended_at_s * self.instances) if self.ended_at_s else 0.0


def poisson(rate_per_s: float, *, seconds: float, timeout_s: float, seed: int) -> Iterator[Arrival]:
    """Independent callers: an open loop."""
    chance = random.Random(seed)
    at_s = chance.expovariate(rate_per_s)
    while at_s < seconds:
        yield Arrival(at_s, timeout_s)
        at_s += chance.expovariate(rate_per_s)


def simulate(load: Iterable[Arrival], machine: Machine, *, rules: BatchRules | None = None, seed: int = 0) -> Report:
    """Run a load, which rises in time, to its end."""
    simulation = Simulation(machine, rules=rules, seed=seed)
    for arrival in load:
        simulation.world.run_until(arrival.at_s)
        simulation.ask(arrival)
    simulation.world.run_until(math.inf)
    return simulation.report


def simulate_clients(
    clients: int, machine: Machine, *, seconds: float, timeout_s: float, think_s: float = 0.0, seed: int = 0
) -> Report:
    """A closed loop: each client asks again when it was answered and has thought; a refused one waits as it is told."""
    simulation = Simulation(machine, seed=seed)
    world = simulation.world

    def ask() -> None:
        if world.now < seconds:
            simulation.ask(Arrival(world.now, timeout_s), then=again)

    def again(error: Exception | None) -> None:
        pause_s = error.retry_after_s if isinstance(error, Overloaded) else None
        world.call_at(world.now + max(think_s, pause_s or 0.0), ask)

    for _ in range(clients):
        world.call_at(0.0, ask)
    world.run_until(math.inf)
    return simulation.report


class World:
    """A clock and what is to happen. Stands still between two happenings."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()
        self._soon: deque[Callable[[], object]] = deque()

    def now_s(self) -> float:
        """Seconds since the beginning."""
        return self.now

    async def sleep_until(self, instant_s: float) -> None:
        """Nobody sleeps here."""
        raise NotImplementedError

    def call_at(self, instant_s: float, callback: Callable[[], object]) -> Timer:
        """Let something happen at an instant, now at the earliest."""
        timer = _Timer(callback)
        at_s = instant_s if instant_s > self.now else self.now
        heapq.heappush(self._events, (at_s, next(self._order), timer))
        return timer

    def soon(self, callback: Callable[[], object]) -> None:
        """Let something happen now, after what is happening."""
        self._soon.append(callback)

    def run_until(self, instant_s: float) -> None:
        """Let everything happen that is due before the instant, and go there."""
        soon, events = self._soon, self._events
        while True:
            while soon:
                soon.popleft()()
            if not events or events[0][0] >= instant_s:
                break
            at_s, _, timer = heapq.heappop(events)
            if timer.callback is not None:
                self.now = at_s
                timer.callback()
        if instant_s < math.inf:
            self.now = instant_s


class _Timer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Simulation:
    """One engine in a world of its own."""

    def __init__(
        self,
        machine: Machine,
        *,
        rules: BatchRules | None = None,
        observer: Observer | None = None,
        seed: int = 0,
    ) -> None:
        self.world = World()
        self.machine = machine
        self.chance = random.Random(seed)
        self.report = Report(instances=machine.instances)
        sizes = tuple(sorted(machine.curve_s))
        rules = rules or BatchRules(max_batch_size=sizes[-1], max_queue_delay_s=machine.max_queue_delay_s)
        if not rules.allowed_batch_sizes:
            rules = _warmed(rules, sizes)
        self.observer = observer or NullObserver()
        self.queue = RequestQueue(machine.max_queue_size, backlog=Backlog(20.0))
        self.runners = [SimulatedInstance(self, f"sim-{n}") for n in range(machine.instances)]
        self.scheduler = Scheduler(
            "sim",
            1,
            queue=self.queue,
            instances=self.runners,
            inputs=(),
            rules=rules,
            clock=self.world,
            observer=self.observer,
            soon=self.world.soon,
            on_sick=lambda runner: self.scheduler.join(runner),
        )
        self.scheduler.cost = CostModel(machine.curve_s)
        self._door = Doorkeeper(
            "sim",
            1,
            observer=self.observer,
            admission=Admission(self.queue.backlog, timeout_s=10.0),
            limits=QueueLimits(machine.max_queue_size, 0, None),
        )
        self.scheduler.admission = self._door.admission

    def ask(
        self, arrival: Arrival, *, then: Callable[[Exception | None], None] = lambda _: None
    ) -> "SimulatedReply | None":
        """One request comes; None if it is shed. `then` is told how it ended."""
        self.report.offered += 1
        now_s = self.world.now
        deadline = Deadline(now_s + arrival.timeout_s)
        scheduler = self.scheduler
        view = scheduler.view(now_s, state=State.READY)
        try:
            self._door.check(deadline, arrival.priority, ready_in_s=0.0, now_s=now_s, view=view)
        except IsocenterError as refused:
            self.report.shed += 1
            then(refused)
            return None
        item: Any = {_DEADLINE: deadline.at_s}  # all that the simulated instance looks at
        request = Request("", item, deadline, arrival.priority, arrival.group)
        reply = SimulatedReply(self, deadline.at_s, then)
        entry = scheduler.submit(request, reply)
        if arrival.leaves_after_s < math.inf:
            self.world.call_at(now_s + arrival.leaves_after_s, lambda: self._leave(reply, entry))
        return reply

    def _leave(self, reply: "SimulatedReply", entry: Entry) -> None:
        if reply.leave():
            self.scheduler.leave(entry)


class SimulatedReply:
    """Settled once; counts what became of the request."""

    __slots__ = ("_deadline_s", "_simulation", "_started_s", "_then", "settled", "times")

    def __init__(self, simulation: Simulation, deadline_s: float, then: Callable[[Exception | None], None]) -> None:
        self._simulation = simulation
        self._started_s = simulation.world.now
        self._deadline_s = deadline_s
        self._then = then
        self.settled = False
        self.times = 0

    def settle(self, answer: Result) -> bool:
        """Answered."""
        if not self._end():
            return False
        report, now_s = self._simulation.report, self._simulation.world.now
        report.answered += 1
        report.late += now_s > self._deadline_s
        report.latencies_s.append(now_s - self._started_s)
        self._then(None)
        return True

    def fail(self, error: Exception) -> bool:
        """Failed."""
        if not self._end():
            return False
        if isinstance(error, DeadlineExceeded):
            self._simulation.report.expired += 1
        else:
            self._simulation.report.failed += 1
        self._then(error)
        return True

    def leave(self) -> bool:
        """The caller goes away; False if he had his answer."""
        if not self._end():
            return False
        self._simulation.report.left += 1
        return True

    def _end(self) -> bool:
        if self.settled:
            return False
        self.settled = True
        self.times += 1
        self._simulation.report.ended_at_s = self._simulation.world.now
        return True


class SimulatedInstance:
    """Takes as long as the curve says."""

    fallback = ""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.name = name
        self._simulation = simulation
        self.sizes: list[int] = []
        self._truth = CostModel(simulation.machine.curve_s)

    def submit(self, items: Sequence[Tensors], done: Callable[[Runner, Outcome], None]) -> None:
        """Run items: time passes, nothing is computed."""
        simulation, size = self._simulation, len(items)
        machine, chance, report = simulation.machine, simulation.chance, simulation.report
        service_s = self._truth.service_s(size) * math.exp(chance.gauss(0.0, machine.spread))
        report.runs += 1
        report.items_run += size
        report.busy_s += service_s
        deadlines_s: list[Any] = [item[_DEADLINE] for item in items]
        report.run_in_vain += sum([deadline_s <= simulation.world.now for deadline_s in deadlines_s])
        self.sizes.append(size)
        outcome: Outcome
        if machine.short_of_memory_above is not None and size > machine.short_of_memory_above:
            outcome = RunFailed(OutOfMemory("simulated"), "OutOfMemory")
        elif machine.fails and chance.random() < machine.fails:
            outcome = RunFailed(RuntimeFault("simulated"), "RuntimeFault")
        else:
            outcome = Ran([_NOTHING] * size, service_s)
        simulation.world.call_at(simulation.world.now + service_s, lambda: done(self, outcome))


_DEADLINE = "deadline_s"
_NOTHING: dict[str, npt.NDArray[np.float32]] = {}


def _warmed(rules: BatchRules, sizes: tuple[int, ...]) -> BatchRules:
    return replace(rules, allowed_batch_sizes=tuple(size for size in sizes if size <= rules.max_batch_size))
