"""Frames: whatever is sent arrives whole, in order, and as what it was."""

import asyncio
import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.core import errors, events
from isocenter.core.tensor import TensorSpec
from isocenter.engine.link.errors import error_from_json, error_to_json
from isocenter.engine.link.frames import (
    Channel,
    Kind,
    event_from_json,
    event_to_json,
    instant_from_json,
    instant_to_json,
    specs_from_json,
    specs_to_json,
)
from isocenter.engine.link.layout import ALIGNMENT, lay_out


class Ends:
    """Two channels and what came to the second."""

    def __init__(self) -> None:
        self.came: list[tuple[Kind, Any, bytes]] = []
        self.lost = asyncio.Event()

    async def open(self) -> None:
        here, there = socket.socketpair()
        self.near = await Channel.open(here, lambda *_: None, lambda: None)
        self.far = await Channel.open(there, lambda *frame: self.came.append(frame), self.lost.set)


FRAMES: list[tuple[Kind, Any, bytes]] = [
    (Kind.SUBMIT, [1, "ünïcode", None, {"a": [1, 2]}], b""),
    (Kind.RESULT, [2], bytes(range(256)) * 4096),
    (Kind.FREED, 3, b""),
    (Kind.ERROR, [4, {"beyond 64 bits": 2.0**70}], b"tail"),
]


async def test_frames_arrive_whole_and_in_order() -> None:
    ends = Ends()
    await ends.open()
    for frame in FRAMES:
        ends.near.send(*frame)
    ends.near.close()
    await ends.lost.wait()
    assert ends.came == FRAMES


@pytest.mark.parametrize("at_once", [1, 2, 7, 8, 9, 10, 1000])
async def test_frames_arrive_however_the_bytes_are_cut(at_once: int) -> None:
    sent, whole = Ends(), Ends()
    await sent.open()
    await whole.open()
    collected = bytearray()
    sent.far.data_received = collected.extend  # type: ignore[method-assign,assignment]
    for kind, head, tail in FRAMES:
        sent.near.send(kind, head, tail[:100])
    sent.near.close()
    await sent.lost.wait()
    for at in range(0, len(collected), at_once):
        whole.far.data_received(bytes(collected[at : at + at_once]))
    assert whole.came == [(kind, head, tail[:100]) for kind, head, tail in FRAMES]
    whole.near.close()
    await whole.lost.wait()


async def test_what_is_sent_on_a_closed_channel_vanishes() -> None:
    ends = Ends()
    await ends.open()
    ends.far.close()
    ends.near.close()
    ends.near.send(Kind.FREED, 1)
    await ends.lost.wait()
    assert ends.came == []


def every(kind: type[errors.IsocenterError]) -> list[type[errors.IsocenterError]]:
    below = [each for each in kind.__subclasses__() if each.__module__.startswith("isocenter.core.")]
    return [kind, *(each for child in below for each in every(child))]


@pytest.mark.parametrize("kind", every(errors.IsocenterError), ids=lambda kind: kind.code)
def test_an_error_arrives_as_what_it_was(kind: type[errors.IsocenterError]) -> None:
    found = error_from_json(error_to_json(kind("why", details={"limit": 3}, retry_after_s=1.5)))
    assert type(found) is kind
    assert (found.message, found.details, found.retry_after_s) == ("why", {"limit": 3}, 1.5)


def test_a_foreign_exception_says_no_more_than_its_class() -> None:
    found = error_from_json(error_to_json(KeyError("Doe^John")))
    assert type(found) is RuntimeError
    assert "KeyError" in str(found)
    assert "Doe" not in str(found)


@pytest.mark.parametrize(
    "event",
    [
        events.Enqueued("m", 1),
        events.Shed("m", 1, "queue_full"),
        events.BatchStarted("m", 1, 8, 0.25),
        events.Answered("predict", "m", 1, "ok", 0.5, {"decode": 0.1}),
        events.InstanceChanged("m", 1, "hung"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_arrives_as_what_it_was(event: events.Event) -> None:
    assert event_from_json(event_to_json(event)) == event


def test_never_is_an_instant_too() -> None:
    assert [instant_from_json(instant_to_json(at_s)) for at_s in (1.5, float("inf"))] == [1.5, float("inf")]


SPECS = st.lists(
    st.builds(
        TensorSpec,
        name=st.uuids().map(str),
        dtype=st.sampled_from(["f4", "u1", "i8", "f8", "?"]).map(np.dtype),
        shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=4,
).map(tuple)


@given(SPECS, SPECS)
def test_tensors_of_a_block_neither_overlap_nor_leave_it(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    assert specs_from_json(specs_to_json(inputs)) == inputs
    layout = lay_out(inputs, outputs, {})
    places = [*layout.inputs, *layout.outputs]
    for place, following in zip(places, [*places[1:], None], strict=True):
        assert place.offset % ALIGNMENT == 0
        assert place.offset + place.size <= (following.offset if following else layout.size)
    block = np.zeros(layout.size, np.uint8)
    for place, spec in zip(layout.inputs, inputs, strict=True):
        assert spec.describes(place.of(block))
