"""How long a request may take: until when its answer is of use, and with it how long its body may be on the way."""

import asyncio
from collections.abc import Iterable
from types import TracebackType

from fastapi import Request

from isocenter.api.http.gate import HEADERS, STARTED_S
from isocenter.api.http.head import deadline_in
from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded
from isocenter.repository.load import ServedModel
from isocenter.serving.predict import own_deadline


def asked_deadline(request: Request) -> Deadline | None:
    """When the answer is of no use any more, as the caller says it; None if he does not.

    Raises:
        BadRequest: his header says no time.
    """
    return deadline_in(request.scope[HEADERS].get(b"x-timeout-ms"), request.scope[STARTED_S])


def deadline_of(request: Request, served: ServedModel) -> Deadline:
    """When the answer is of no use any more: as the caller says, else as the model does."""
    return asked_deadline(request) or own_deadline(served, request.scope[STARTED_S])


def longest_deadline(request: Request, models: Iterable[ServedModel]) -> Deadline:
    """The same where the body may name one of several models: as the one does that may take longest."""
    patient = max(models, key=lambda each: each.manifest.slo.timeout_ms)
    return deadline_of(request, patient)


class ReceivedWithin:
    """Ends what receives a body where its deadline ends: one that trickles in holds nobody up for longer.

    No generator: every request passes through here.
    """

    __slots__ = ("_left_s", "_timeout", "_what")

    def __init__(self, deadline: Deadline, clock: Clock, what: str) -> None:
        """`what` is sent, as in "the image was"."""
        self._left_s = deadline.left_s(clock.now_s())
        self._what = what
        self._timeout = asyncio.timeout(self._left_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it.

        Raises:
            DeadlineExceeded: not everything had come.
        """
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the deadline passed before {self._what} completely here, after {self._left_s:.3f} s",
                details={"waited_s": round(self._left_s, 3), "where": "receive"},
            ) from None
