"""The instances of one model version: started and stopped together, examined when they fail, replaced when broken.

An instance that has failed several times in a row is given one item with a known good answer. If it passes, what it was
sent was at fault, and it goes on. If not, or if a run hangs, a new session is opened in its place, later and later as
that fails too; meanwhile the model's fallback answers, if it has one. Where an instance is lost with what it runs in (a
server that stopped), the fallback is opened first.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeAlias

from isocenter.core.clock import Clock
from isocenter.core.errors import IsocenterError
from isocenter.core.events import InstanceChanged, Observer
from isocenter.core.tensor import Tensors, TensorSpec
from isocenter.engine.instance import Instance, Ran
from isocenter.engine.running import Runner
from isocenter.runtimes.base import Session

OpenSession: TypeAlias = Callable[[], Session]

# Seconds before the first and at most before any further attempt to open a session again.
REOPEN_FIRST_S, REOPEN_MOST_S = 0.1, 30.0
# An examination that takes so long has been failed, unless the model's runs are known to take longer.
EXAMINATION_LEAST_S = 10.0
# How often a fallback that is no longer needed is looked at until it has finished what it is at.
RETIRE_S = 0.05


class InstanceGroup:
    """Owns the instances and the tasks that look after them. Lives on one event loop."""

    def __init__(
        self,
        model: str,
        version: int,
        sessions: Sequence[Session],
        *,
        max_batch_size: int,
        clock: Clock,
        observer: Observer,
        nice: int = 0,
        open_session: OpenSession | None = None,
        open_fallback: OpenSession | None = None,
        fallback: str = "",
        on_lost: Callable[[Instance, bool], None] = lambda *_: None,
        on_back: Callable[[Instance], None] = lambda _: None,
        on_nobody: Callable[[], None] = lambda: None,
        dismiss: Callable[[Runner], bool] = lambda _: True,
        keep: Callable[[Runner], None] = lambda _: None,
        hung_after_s: Callable[[], float] = lambda: 0.0,
        standing_in: Session | None = None,
        missing: int = 0,
    ) -> None:
        """`standing_in` is the fallback's session, where `missing` of the model's own could not be opened yet. A lone
        run that takes longer than `hung_after_s` does not come back."""
        self._model, self._version = model, version
        self._max_batch_size, self._clock, self._observer, self._nice = max_batch_size, clock, observer, nice
        self._open_session, self._open_fallback = open_session, open_fallback
        self._fallback = fallback
        self._on_lost, self._on_back = on_lost, on_back
        self._dismiss, self._keep = dismiss, keep
        self._on_nobody = on_nobody
        self._hung_after_s = hung_after_s
        self._made = 0
        self._missing = missing
        self.instances = [self._instance(session) for session in sessions]
        self.standing_in = self._instance(standing_in, fallback=fallback) if standing_in is not None else None
        """The fallback's instance while there is one."""
        self.probe: Tensors | None = None
        """An item that a healthy instance answers."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempts = 0  # to open the fallback, at this moment
        self._tell_if_nobody = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What an item is made of."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What an answer is made of."""
        return self._outputs

    @property
    def working(self) -> list[Instance]:
        """Every instance there is, the fallback's included."""
        return [*self.instances, *([self.standing_in] if self.standing_in is not None else [])]

    @property
    def awaits_fallback(self) -> bool:
        """Whether nothing is there to answer, and the fallback will be opened."""
        return not self.working and self._open_fallback is not None

    def start(self) -> None:
        """Start every instance's thread."""
        for instance in self.working:
            instance.start()

    def open_missing(self) -> None:
        """Go on trying to open what could not be opened yet."""
        if self._missing:
            self._say("fallback")
        for _ in range(self._missing):
            self._look_after(self._replace())
        self._missing = 0

    async def stop(self, bound_s: float) -> None:
        """End what looks after the instances, then the instances, each within the bound."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(instance.stop(bound_s) for instance in self.working))

    # What the scheduler reports. The instance is out of its hands already.

    def examine(self, runner: Runner) -> None:
        """It failed several times in a row: at fault, or what it was sent?"""
        instance = self._own(runner)
        self._say("suspected")
        self._look_after(self._examine(instance))

    def hung(self, runner: Runner) -> None:
        """A run does not come back."""
        instance = self._own(runner)
        self._say("hung")
        self._give_up(instance)
        instance.abandon()

    def lost(self, runner: Runner) -> None:
        """What it runs in is gone, so there is nothing to examine."""
        instance = self._own(runner)
        self._say("lost")
        self._give_up(instance, lost=True)
        instance.abandon()

    async def _examine(self, instance: Instance) -> None:
        if await self._passes(instance):
            self._say("recovered")
            self._on_back(instance)
            return
        self._say("broken")
        self._give_up(instance)
        instance.abandon()

    def _give_up(self, instance: Instance, *, lost: bool = False) -> None:
        if instance is self.standing_in:
            self.standing_in = None
            self._on_lost(instance, lost)
            if lost:  # if not, it comes again with the next attempt to open one of the model's own
                self._look_after(self._stand_in(at_once=True))
            return
        self.instances.remove(instance)
        if self.standing_in is not None and not self.instances:
            self._keep(self.standing_in)  # it may be on its way out
        self._on_lost(instance, lost)
        self._look_after(self._replace(lost=lost))

    async def _replace(self, *, lost: bool = False) -> None:
        """Open a session until one works; what was lost will not be back at once, so the fallback comes first."""
        if lost:
            await self._stand_in(at_once=True)
        wait_s = REOPEN_FIRST_S
        while self._open_session is not None:
            instance = await self._opened(self._open_session)
            if instance is not None:
                self.instances.append(instance)
                self._say("rebuilt")
                self._on_back(instance)
                await self._retire_fallback()
                return
            self._say("not_rebuilt")
            await self._stand_in()
            await self._clock.sleep_until(self._clock.now_s() + wait_s)
            wait_s = min(2 * wait_s, REOPEN_MOST_S)

    async def _stand_in(self, *, at_once: bool = False) -> None:
        """Open the fallback if nothing works. `at_once`, whoever waits is told when it does not open.

        Several may try at once, as it is lost again while it is opened: then the last to fail tells.
        """
        self._tell_if_nobody |= at_once
        if not self.working and self._open_fallback is not None:
            self._attempts += 1
            instance = await self._opened(self._open_fallback, fallback=self._fallback)
            self._attempts -= 1
            if instance is not None and self.standing_in:
                instance.abandon()  # another was quicker
            elif instance is not None:
                self.standing_in = instance
                self._say("fallback")
                self._on_back(instance)
        if self.working:
            self._tell_if_nobody = False
        elif self._tell_if_nobody and not self._attempts:
            self._on_nobody()

    async def _retire_fallback(self) -> None:
        while self.instances and (instance := self.standing_in) is not None:
            if self._dismiss(instance):
                self.standing_in = None
                self._say("retired")
                instance.abandon()
                return
            await self._clock.sleep_until(self._clock.now_s() + RETIRE_S)

    async def _opened(self, open_session: OpenSession, *, fallback: str = "") -> Instance | None:
        """An instance that has shown that it works; None if there is none to be had."""
        opening = asyncio.ensure_future(asyncio.to_thread(open_session))
        try:
            session = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_again)
            raise
        except Exception:  # whatever a framework raises, it is tried again
            return None
        instance = self._instance(session, fallback=fallback)
        instance.start()
        passed = False
        try:
            # Twice: the first run of a session may be far slower than any later one, and what it takes is believed.
            passed = await self._passes(instance) and await self._passes(instance)
        finally:
            if not passed:
                instance.abandon()
        return instance if passed else None

    async def _passes(self, instance: Instance) -> bool:
        if self.probe is None:
            return True
        examination = asyncio.ensure_future(instance.run([self.probe]))
        most_s = max(EXAMINATION_LEAST_S, self._hung_after_s())
        alarm = self._clock.call_at(self._clock.now_s() + most_s, examination.cancel)
        try:
            outcome = await examination
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return False
        except IsocenterError:
            return False
        finally:
            alarm.cancel()
        if not isinstance(outcome, Ran) or any(isinstance(answer, IsocenterError) for answer in outcome.answers):
            return False
        instance.lone_s = outcome.service_s
        return True

    def _instance(self, session: Session, *, fallback: str = "") -> Instance:
        if not self._made:
            self._inputs, self._outputs = session.inputs, session.outputs
        self._made += 1
        return Instance(
            session,
            name=f"{self._model}-{self._version}-{self._made}",
            max_batch_size=self._max_batch_size,
            clock=self._clock,
            nice=self._nice,
            fallback=fallback,
        )

    def _own(self, runner: Runner) -> Instance:
        assert isinstance(runner, Instance)
        return runner

    def _say(self, what: str) -> None:
        self._observer.observe(InstanceChanged(self._model, self._version, what))

    def _look_after(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _close_again(opening: "asyncio.Future[Session]") -> None:
    """Close a session that nobody waits for any more; that may take as long as opening it did."""
    if not opening.cancelled() and opening.exception() is None:
        opening.get_loop().run_in_executor(None, opening.result().close)
