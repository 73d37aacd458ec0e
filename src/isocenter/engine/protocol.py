"""What the use cases know of an engine, wherever it runs."""

from collections.abc import Mapping
from typing import Protocol

from isocenter.core.deadline import Deadline
from isocenter.core.request import Request, Result
from isocenter.core.tensor import Array, TensorSpec
from isocenter.engine.lifecycle import State


class Reservation(Protocol):
    """A place in the backlog, for a picture that is still being decoded."""

    @property
    def room(self) -> Mapping[str, Array] | None:
        """Where the item may be written so that it need not be copied; None: anywhere.

        Raises:
            Overloaded: there is no room left.
        """
        ...

    def release(self) -> None:
        """Give it back. Twice is once; after `infer` took it, nothing."""
        ...


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
    def instances(self) -> int:
        """Instances that take batches now."""
        ...

    @property
    def service_s(self) -> Mapping[int, float]:
        """Seconds of a run by batch size, as they are believed now; empty before a warm-up."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What an item is made of, without a batch axis."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What an answer is made of, without a batch axis."""
        ...

    def check(self, deadline: Deadline, *, priority: int = 0, ready_in_s: float = 0.0) -> None:
        """Refuse what could not be answered in time if it came to the engine in `ready_in_s` seconds.

        For the door: before a body is read, before a picture is decoded. What passes holds no place yet.

        Raises:
            Overloaded: it would be late, or make another late; or the queue is full, or memory is short.
            DeadlineExceeded: the deadline has passed.
            Draining, NotReady, Unavailable: nothing is taken now.
        """
        ...

    def reserve(self, deadline: Deadline, *, priority: int = 0, ready_in_s: float = 0.0) -> Reservation:
        """The same as `check`, and hold a place from now on; released, or handed to `infer`."""
        ...

    def note_late(self) -> None:
        """Somebody who was let in was not answered in time, for whatever reason: let in less for a while."""
        ...

    async def infer(self, request: Request, reservation: Reservation | None = None) -> Result:
        """Run one item in the company of others; an answer before its deadline, or an error.

        Raises:
            InputNotAccepted: the item is not what the model takes.
            Overloaded: see `check`; not with a reservation.
            Draining: the engine is stopping.
            NotReady: the engine is not ready yet, or has failed.
            DeadlineExceeded: the deadline passed at the door, in the queue or during the run.
            RuntimeFault: the runtime raised on this item.
            NumericFailure: the answer holds NaN or infinity.
        """
        ...
