"""An engine that runs in another process, behind the protocol of those that run here."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded, Overloaded
from isocenter.core.events import Shed
from isocenter.core.request import Request, Result
from isocenter.core.tensor import Array, Tensors, TensorSpec
from isocenter.engine.admission import Admission, Busy
from isocenter.engine.backlog import Backlog
from isocenter.engine.batch import check_item
from isocenter.engine.cost import CostModel
from isocenter.engine.doorkeeper import FRESH_S, Doorkeeper, View
from isocenter.engine.lifecycle import State
from isocenter.engine.link.arena import Block
from isocenter.engine.link.card import EngineCard, Speed
from isocenter.engine.link.layout import Layout, lay_out, shapes_of
from isocenter.engine.protocol import Reservation

if TYPE_CHECKING:
    from isocenter.engine.link.client import EngineLink

GRACE_S = 0.1
"""The engine process tells of a passed deadline itself; so much later it is told here, should that process be stuck."""


class RemoteEngine:
    """One engine in the engine process. Its door is here: whom to let in is read off the board."""

    def __init__(self, link: "EngineLink", card: EngineCard) -> None:
        self.card = card
        varies = any(-1 in spec.shape for spec in card.inputs)
        self.layout: Layout | None = None if varies else lay_out(card.inputs, card.outputs, {})
        self._link = link
        self._lost = False
        self._retiring = False
        self._users = 0
        self._board = link.board
        self._counts = None if card.slot is None else self._board.counts(card.slot)
        own = None if self._counts is None else self._counts[1 + link.number]
        self._backlog = Backlog(2 * card.timeout_s, own)
        self._cost: CostModel | None = None
        self._sizes: tuple[int, ...] = (1,)
        self._door = Doorkeeper(
            card.model,
            card.version,
            observer=link.observer,
            admission=Admission(self._backlog, timeout_s=card.timeout_s, of_all=self._counts),
            limits=card.limits,
        )

    @property
    def model(self) -> str:
        return self.card.model

    @property
    def version(self) -> int:
        return self.card.version

    @property
    def state(self) -> State:
        """As announced; `loading` while the engine process is away."""
        return State.LOADING if self._lost else self.card.state

    @property
    def queued(self) -> int:
        """Items that wait for an instance."""
        return 0 if self._lost or self.card.slot is None else self._board.read(self.card.slot).queued

    @property
    def instances(self) -> int:
        """Instances that take batches now."""
        return 0 if self._lost or self.card.slot is None else self._board.read(self.card.slot).instances

    @property
    def service_s(self) -> Mapping[int, float]:
        """Seconds of a run by batch size, as they are believed now; empty before a warm-up."""
        return self._cost.curve() if self._cost is not None else {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What an item is made of, without a batch axis."""
        return self.card.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What an answer is made of, without a batch axis."""
        return self.card.outputs

    def learn(self, speed: Speed) -> None:
        """The engine has become faster or slower."""
        self._cost, self._sizes = speed.cost(), speed.sizes
        self._door.admission.caution_elsewhere_s = speed.caution_s

    def lost(self) -> None:
        """The engine process is gone, and this engine with it."""
        self._lost = True

    def retire(self) -> None:
        """It is announced no more; those who have begun may finish."""
        self._retiring = True
        self._note_unused()

    # Requests.

    def check(self, deadline: Deadline, *, priority: int = 0, ready_in_s: float = 0.0) -> None:
        """Refuse what could not be answered in time; see `Engine.check`."""
        if self._lost:
            raise self._link.unavailable()
        now_s = self._link.clock.now_s()
        self._door.check(deadline, priority, ready_in_s=ready_in_s, now_s=now_s, view=self._view(now_s))

    def reserve(self, deadline: Deadline, *, priority: int = 0, ready_in_s: float = 0.0) -> "RemoteReservation":
        """Refuse what could not be answered in time, or hold a place; see `Engine.reserve`."""
        self.check(deadline, priority=priority, ready_in_s=ready_in_s)
        self._users += 1
        cell = self._backlog.add(deadline.at_s, priority, now_s=self._link.clock.now_s())
        return RemoteReservation(self, cell)

    def note_late(self) -> None:
        """Somebody who was let in was not answered in time; see `Engine.note_late`."""
        self._door.admission.note_late(self._link.clock.now_s())

    async def infer(self, request: Request, reservation: Reservation | None = None) -> Result:
        """Run one item in the company of others; see `Engine.infer` for what is raised.

        Raises:
            Unavailable: the engine process is gone.
        """
        place = reservation or self.reserve(request.deadline, priority=request.priority)
        if not isinstance(place, RemoteReservation):
            raise TypeError(f"a reservation of another engine: {type(place).__name__}")
        try:
            return await self._infer(request, place)
        finally:
            place.release()

    async def _infer(self, request: Request, place: "RemoteReservation") -> Result:
        if self._lost:
            raise self._link.unavailable()
        check_item(request.item, self.inputs)
        now_s = self._link.clock.now_s()
        self._door.check_again(request.deadline, now_s=now_s, state=self.state, queued=0)
        block, layout = place.hold(request.item)
        number, reply = self._link.submit(request, self, block, layout)
        place.hand_over()
        del block
        alarm = None
        if math.isfinite(request.deadline.at_s):
            alarm = self._link.clock.call_at(request.deadline.at_s + GRACE_S, lambda: reply.fail(_too_late()))
        try:
            result = await reply.wait()
            self._door.admission.note_in_time()
            return result
        finally:
            if alarm is not None:
                alarm.cancel()
            self._link.leave(number)  # does nothing if it was answered

    def take_room(self, item: Tensors | None = None) -> tuple[Block, Layout, dict[str, Array]]:
        """A block for one item, and the arrays of the item in it.

        Raises:
            Overloaded: the arena is full.
        """
        layout = self.layout
        if layout is None:
            assert item is not None
            layout = lay_out(self.inputs, self.outputs, shapes_of(item, self.inputs))
        try:
            block = self._link.arena.take(layout.size)
        except Overloaded as error:
            self._link.observer.observe(Shed(self.model, self.version, "arena_full"))
            view = self._view(self._link.clock.now_s())
            if view.cost is not None:  # when the half of what is on its way has been run
                error.retry_after_s = max(0.05, view.cost.service_s(view.held) / max(1, view.busy.instances) / 2)
            raise
        return block, layout, layout.item(block.array())

    def uncount(self, cell: int) -> None:
        """A place is counted here no more. On the board of a lost engine nothing counts any more."""
        if not self._lost:
            self._backlog.remove(cell)

    def left(self) -> None:
        """One who held a place has gone."""
        self._users -= 1
        self._note_unused()

    def _note_unused(self) -> None:
        if self._retiring and self._users == 0 and not self._lost:
            self._link.retire(self)

    def _view(self, now_s: float) -> View:
        if self.card.slot is None or self._counts is None:
            return View(self.state, self._backlog.total, False, Busy(1), None, False, self._sizes)
        glance = self._board.read(self.card.slot)
        # Nothing was written since it became idle, and predictions of long ago are held against nobody.
        fresh = glance.left_s > 0 or now_s - glance.written_at_s < FRESH_S
        held = int(self._counts[:, :-1].sum())
        busy = glance.busy(now_s)
        return View(self.state, held, glance.memory_is_short, busy, self._cost, glance.knows and fresh, self._sizes)


class RemoteReservation:
    """A place with a remote engine, and the memory that its item is written to."""

    __slots__ = ("_cell", "_engine", "_room")

    def __init__(self, engine: RemoteEngine, cell: int) -> None:
        self._engine: RemoteEngine | None = engine
        self._cell: int | None = cell
        self._room: tuple[Block, Layout, Mapping[str, Array]] | None = None

    @property
    def room(self) -> Mapping[str, Array] | None:
        """Where the item may be written so that it need not be copied; None: anywhere.

        Raises:
            Overloaded: the arena is full.
        """
        if self._engine is None or self._engine.layout is None:
            return None
        if self._room is None:
            block, layout, arrays = self._engine.take_room()
            self._room = block, layout, MappingProxyType(arrays)
        return self._room[2]

    def hold(self, item: Tensors) -> tuple[Block, Layout]:
        """The block, with the item in it."""
        if self._engine is None:
            raise RuntimeError("a reservation can be used once")
        if self._room is None:
            self._room = self._engine.take_room(item)
        block, layout, arrays = self._room
        for name, array in arrays.items():
            if item[name] is not array:
                np.copyto(array, item[name])
        return block, layout

    def hand_over(self) -> None:
        """The engine process counts it from here on."""
        if self._engine is not None and self._cell is not None:
            self._engine.uncount(self._cell)
            self._cell = None

    def release(self) -> None:
        """Give the place back. The memory follows when nobody holds an array of it any more."""
        self.hand_over()
        self._room = None
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.left()


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed and the engine did not say so", details={"where": "link"})
