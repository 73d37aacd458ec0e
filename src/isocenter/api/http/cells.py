"""What the routes for images of cells share: from a request to what is asked, and from an error to its answer."""

import asyncio
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from fastapi import Request

from isocenter.api.http.answer import Answer
from isocenter.api.http.body import receive_body
from isocenter.api.http.form import Form, FormFile, is_form, read_form
from isocenter.api.http.gate import HEADERS
from isocenter.api.http.head import number_in, together, version_in, whole_number_in
from isocenter.api.http.problems import problem
from isocenter.api.http.time_given import ReceivedWithin, asked_deadline, deadline_of, longest_deadline
from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import (
    BadValue,
    IsocenterError,
    MissingImage,
    without_frames,
)
from isocenter.core.events import Answered, Observer
from isocenter.imaging.codecs.microscopy import PixelsAsked
from isocenter.serving.budget import Booking, ByteBudget
from isocenter.serving.cells import MAX_THRESHOLD, MIN_THRESHOLD, CellsAsked, SegmentImage

WHAT_IS_ASKED: Final = ("model", "version", "threshold", "detect_holes", "channel", "page")
"""Names of parameters, and of fields of forms."""

_TRUE: Final = frozenset({"true", "1", "yes", "on", "y", "t"})
_FALSE: Final = frozenset({"false", "0", "no", "off", "n", "f"})
_ON_THE_LOOP_BYTES: Final = 1 << 20
"""Larger forms are taken apart on a thread."""


@dataclass(frozen=True, slots=True)
class CellsDoor:
    """What every one of the routes needs."""

    cells: SegmentImage
    max_bytes: int
    """Of one image."""
    bodies: ByteBudget
    clock: Clock
    observer: Observer

    def begin(self, request: Request, asked: CellsAsked) -> Deadline:
        """Refuse by the head alone what can be refused, and say until when the body may come.

        Raises:
            BadInput: no such model, or a header is malformed.
            Refused, DeadlineExceeded: it could not be answered in time.
        """
        models = self.cells.models.all()
        asked_deadline(request)  # who says no time is told that, whatever else is wrong
        if asked.model is None and len(models) > 1:  # the form may name one
            return longest_deadline(request, models)
        served = self.cells.models.served(asked.model, asked.version)
        deadline = deadline_of(request, served)
        self.cells.check(served, deadline)
        return deadline

    def deadline(self, request: Request, asked: CellsAsked) -> Deadline:
        """When the answer is of no use any more: as the caller says, else as the model does."""
        return deadline_of(request, self.cells.models.served(asked.model, asked.version))

    async def receive(
        self,
        request: Request,
        deadline: Deadline,
        booking: Booking,
        *,
        max_bytes: int,
        file_fields: Collection[str],
        text_fields: Collection[str] = WHAT_IS_ASKED,
    ) -> Form:
        """The form in a body, or the body as its only file; or the deadline's end.

        Raises:
            DeadlineExceeded: it was not completely here in time.
            BadInput: it is malformed or too large.
            MissingImage: there is no file in it.
        """
        content_type = request.scope[HEADERS].get(b"content-type")
        async with ReceivedWithin(deadline, self.clock, "the images were"):
            body = await receive_body(request.receive, max_bytes=max_bytes, booking=booking)
        if not is_form(content_type):
            if not body:
                raise MissingImage("the image is empty: 0 bytes", details={"bytes": 0})
            return Form(files=[FormFile("", bytes(body))])
        read = partial(read_form, body, content_type, file_fields=file_fields, text_fields=text_fields)
        form = read() if len(body) <= _ON_THE_LOOP_BYTES else await asyncio.to_thread(read)
        if not form.files:
            there = sorted((*form.texts, *form.others))[:16]
            raise MissingImage(
                f"the form has no field {' or '.join(file_fields)}; it has {there}", details={"fields": list(there)}
            )
        return form

    def refused(self, error: IsocenterError, asked: CellsAsked, started_s: float) -> Answer:
        """The answer to a request that ended in an error; it is counted."""
        # The error's frames hold the error, and the image: without the garbage collector none of it would ever go.
        without_frames(error)
        self.count(error.code, asked, started_s, {})
        return problem(error)

    def count(self, code: str, asked: CellsAsked, started_s: float, stages_s: dict[str, float]) -> None:
        """Tell that one image, or one request, came to its end."""
        meant = self.cells.models.meant_by(asked.model, asked.version)
        self.observer.observe(Answered("segment", *meant, code, self.clock.now_s() - started_s, stages_s))


def asked_in(texts: Mapping[str, str], *, threshold: float | None = None) -> CellsAsked:
    """What is asked, as texts say it; an empty one is as good as none. `threshold` stands where they say none.

    >>> asked_in({"model": "cells", "detect_holes": "False"}).detect_holes
    False

    Raises:
        BadValue: a text is not what its name needs, or out of range.
        BadRequest: the version is no number.
    """
    texts = _said(texts)
    page = texts.get("page")
    asked = CellsAsked(
        model=texts.get("model"),
        version=version_in(texts.get("version")),
        threshold=_threshold(texts["threshold"]) if "threshold" in texts else threshold,
        detect_holes=_truth("detect_holes", texts["detect_holes"]) if "detect_holes" in texts else True,
        pixels=PixelsAsked(channel=texts.get("channel"), page=None if page is None else _page(page)),
    )
    asked.check()
    return asked


def both(query: Mapping[str, str], form: Form) -> dict[str, str]:
    """What stands in the query and what stands in the form, together; what is empty is as good as absent.

    Raises:
        BadRequest: they disagree.
    """
    return together(_said(query), _said(form.texts), where="form")


def _said(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text}


def _threshold(given: str) -> float:
    value = number_in(given)
    if math.isnan(value):
        raise BadValue(
            f"threshold is {given[:64]!r}; it must be a number from {MIN_THRESHOLD} to {MAX_THRESHOLD}",
            details={"threshold": given[:64], "min": MIN_THRESHOLD, "max": MAX_THRESHOLD},
        )
    return value


def _truth(name: str, given: str) -> bool:
    word = given.lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise BadValue(f"{name} is {given[:64]!r}; it must be true or false", details={name: given[:64]})


def _page(given: str) -> int:
    page = whole_number_in(given)
    if page is None:
        raise BadValue(f"page is {given[:64]!r}; pages are counted from 0", details={"page": given[:64]})
    return page
