"""An engine in another process, seen through its link: answers, errors, leavers, and the end of either side."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from isocenter.core.clock import ManualClock, SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import (
    DeadlineExceeded,
    InputNotAccepted,
    IsocenterError,
    Overloaded,
    RuntimeFault,
    Unavailable,
    UnknownModel,
)
from isocenter.core.events import AbandonedInQueue, Answered
from isocenter.core.request import Request
from isocenter.core.tensor import Array, Tensors, TensorSpec
from isocenter.engine.lifecycle import State
from isocenter.runtimes.synthetic import INPUT, OUTPUT, Faults, SyntheticSession, checksum, item
from patience import PATIENCE_S
from unit.engine.link.pair import SHAPE, Pair, until


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Nothing may depend on the garbage collector's coming by."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def deadline(timeout_s: float = PATIENCE_S) -> Deadline:
    return Deadline.after(timeout_s, now_s=SystemClock().now_s())


async def given_back(pair: Pair) -> None:
    """Return when no block is taken any more."""
    await until(lambda: pair.link.outstanding == 0 and pair.arena.blocks == 0)


async def test_answers_are_those_of_the_engine() -> None:
    async with Pair() as pair:
        asked = [pair.ask(float(marker)) for marker in range(200)]
        for marker, result in enumerate(await asyncio.gather(*asked)):
            assert result.outputs[OUTPUT] == checksum(item(float(marker))[INPUT])
            assert result.timings.batch_size >= 1
        assert pair.remote.state is State.READY
        assert pair.remote.card.about == {"title": "a demo"}
        del asked
        await given_back(pair)


async def test_an_item_that_is_written_into_its_room_is_not_copied() -> None:
    async with Pair() as pair:
        place = pair.remote.reserve(deadline())
        room = place.room
        assert room is not None
        room[INPUT][:] = 5.0
        result = await pair.remote.infer(Request("a", room, deadline()), place)
        assert result.outputs[OUTPUT] == checksum(item(5.0)[INPUT])
        assert pair.arena.taken_bytes == 4096
        del room
        await given_back(pair)


async def test_a_reservation_that_is_given_back_gives_the_room_back_when_its_writer_has_ended() -> None:
    async with Pair() as pair:
        place = pair.remote.reserve(deadline())
        assert place.room is not None
        writer = place.room[INPUT]
        place.release()
        place.release()
        assert pair.arena.blocks == 1
        writer[:] = 1.0  # a decode thread whose caller has left
        del writer
        assert pair.arena.blocks == 0
        assert pair.board.counts(0)[1][:-1].sum() == 0


async def test_errors_of_the_engine_are_those_of_the_caller() -> None:
    session = SyntheticSession(shape=SHAPE, faults=Faults(raise_markers={7.0}))
    async with Pair(session=session) as pair:
        with pytest.raises(RuntimeFault, match="SyntheticError"):
            await pair.ask(7.0)
        with pytest.raises(InputNotAccepted):
            await pair.ask(1.0, shape=(5,))
        await given_back(pair)


async def test_a_deadline_that_passes_in_the_engine_is_told_by_the_engine() -> None:
    clock = ManualClock()
    async with Pair(gated=True, clock=clock) as pair:
        first = pair.ask(1.0)
        await pair.at_gate()
        second = pair.ask(2.0, timeout_s=0.02)
        await until(lambda: pair.engine.queued == 1)
        clock.advance(0.03)
        with pytest.raises(DeadlineExceeded) as late:
            await second
        assert late.value.details["where"] == "queue"
        pair.gate.open()
        await first
        del first, second, late
        await given_back(pair)


@pytest.mark.usefixtures("without_collector")
async def test_a_thousand_leavers_leave_no_block_behind() -> None:
    async with Pair(gated=True, arena_bytes=8 * 2**20) as pair:
        stays = pair.ask(0.5)
        await pair.at_gate()
        leavers = [pair.ask(float(marker)) for marker in range(1000)]
        await until(lambda: pair.engine.queued >= 1000)
        for leaver in leavers:
            leaver.cancel()
        await asyncio.gather(*leavers, return_exceptions=True)
        leavers.clear()
        await until(lambda: pair.engine.queued == 0)
        pair.gate.open()
        assert (await stays).outputs[OUTPUT] == checksum(item(0.5)[INPUT])
        del stays
        await given_back(pair)
        assert sum(len(run) for run in pair.session.runs) == 1


async def test_who_leaves_at_once_is_never_run_and_leaves_nothing_behind() -> None:
    async with Pair(gated=True) as pair:
        first = pair.ask(1.0)
        await pair.at_gate()
        for _ in range(50):
            leaver = pair.ask(2.0)
            await asyncio.sleep(0)
            leaver.cancel()
        del leaver
        await until(lambda: pair.link.outstanding == 1)
        pair.gate.open()
        await first
        del first
        await given_back(pair)
        assert sum(len(run) for run in pair.session.runs) == 1


@pytest.mark.usefixtures("without_collector")
async def test_the_block_of_a_leaver_is_not_used_again_while_a_run_reads_it() -> None:
    async with Pair(gated=True, arena_bytes=4096) as pair:
        leaver = pair.ask(1.0)
        await pair.at_gate()
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        del leaver
        with pytest.raises(Overloaded, match="pixels"):
            await pair.ask(2.0)
        pair.gate.open()
        await given_back(pair)
        assert (await pair.ask(2.0)).outputs[OUTPUT] == checksum(item(2.0)[INPUT])


@pytest.mark.usefixtures("without_collector")
async def test_the_block_of_one_who_was_told_that_it_is_too_late_is_not_used_again_while_a_run_reads_it() -> None:
    clock = ManualClock()
    async with Pair(gated=True, arena_bytes=4096, clock=clock) as pair:
        late = pair.ask(1.0, timeout_s=0.2)
        await pair.at_gate()
        clock.advance(0.2)
        with pytest.raises(DeadlineExceeded):
            await late
        del late
        with pytest.raises(Overloaded, match="pixels"):
            await pair.ask(2.0)
        pair.gate.open()
        await given_back(pair)


async def test_when_the_engine_process_goes_everybody_hears_it_at_once_and_later_answers_come_again() -> None:
    async with Pair(gated=True) as pair:
        waiting = [pair.ask(float(marker)) for marker in range(20)]
        await pair.at_gate()
        gone = pair.remote
        assert pair.host is not None
        pair.host.close()
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
            assert outcome.retry_after_s is not None
        assert gone.state is State.LOADING
        with pytest.raises(Unavailable):
            gone.check(deadline())
        waiting.clear()
        await given_back(pair)
        pair.gate.open()
        pair.host = pair.make_host()
        await pair.connect()
        assert pair.remote is not gone
        assert (await pair.ask(3.0)).outputs[OUTPUT] == checksum(item(3.0)[INPUT])


async def test_when_a_front_end_goes_its_queued_work_is_dropped() -> None:
    async with Pair(gated=True) as pair:
        asked = [pair.ask(float(marker)) for marker in range(20)]
        await until(lambda: pair.engine.queued >= 16)
        assert pair.host is not None
        pair.link.close()
        await until(lambda: pair.host is not None and pair.host.requests == 0)
        assert pair.engine.queued == 0
        assert AbandonedInQueue("demo", 1) in pair.engine_events
        await asyncio.gather(*asked, return_exceptions=True)


async def test_an_engine_that_is_taken_from_the_list_answers_those_who_hold_a_place() -> None:
    async with Pair() as pair:
        assert pair.host is not None
        old = pair.remote
        place = old.reserve(deadline())
        pair.host.publish([])
        unused = asyncio.create_task(pair.host.unused(pair.engine))
        await until(lambda: pair.announced[-1] == [])
        assert not unused.done()
        result = await old.infer(Request("a", item(4.0), deadline()), place)
        assert result.outputs[OUTPUT] == checksum(item(4.0)[INPUT])
        await unused
        pair.host.forget(pair.engine)
        with pytest.raises(IsocenterError, match="no longer served"):
            await old.infer(Request("b", item(4.0), deadline()))


async def test_a_front_end_that_goes_holds_up_no_engine_that_was_taken_from_the_list() -> None:
    async with Pair() as pair:
        assert pair.host is not None
        pair.remote.reserve(deadline())
        pair.host.publish([])
        unused = asyncio.create_task(pair.host.unused(pair.engine))
        pair.link.close()
        await unused


async def test_events_of_a_front_end_are_counted_by_the_engine_process() -> None:
    async with Pair() as pair:
        event = Answered("predict", "demo", 1, "ok", 0.5, {"decode": 0.25})
        for _ in range(300):
            pair.link.observe(event)
        await until(lambda: len(pair.counted.events) == 300)
        assert pair.counted.events[-1] == event


async def test_questions_are_answered_with_data_bytes_or_an_error() -> None:
    async def answer(what: str, argument: Any) -> tuple[Any, bytes]:
        if what == "unknown":
            raise UnknownModel("no model is called 'x'")
        if what == "defect":
            raise KeyError("x")
        return {what: argument}, b"tail"

    async with Pair(answer=answer) as pair:
        assert await pair.link.ask("stats", ["demo", None]) == ({"stats": ["demo", None]}, b"tail")
        with pytest.raises(UnknownModel, match="no model is called 'x'"):
            await pair.link.ask("unknown")
        with pytest.raises(RuntimeError, match="KeyError"):
            await pair.link.ask("defect")
        assert pair.host is not None
        pair.host.close()
        await until(lambda: not pair.link.is_up)
        with pytest.raises(Unavailable):
            await pair.link.ask("stats")


class LargeOutputs:
    """Gives back what it takes, twice as large as a frame should be."""

    def __init__(self) -> None:
        self.inputs = (TensorSpec("x", np.dtype(np.float32), (-1, 512)),)
        self.outputs = (TensorSpec("y", np.dtype(np.float32), (4, 512)), TensorSpec("n", np.dtype(np.int64), (-1,)))
        self.runs: list[Any] = []

    def run(self, batch: Tensors) -> dict[str, Array]:
        x = batch["x"]
        return {"y": x + 1, "n": np.array([each.shape for each in x])}

    def close(self) -> None: ...


async def test_large_outputs_and_shapes_that_vary_come_back_as_they_are() -> None:
    async with Pair(session=LargeOutputs()) as pair:
        x = np.arange(4 * 512, dtype=np.float32).reshape(4, 512)
        result = await pair.remote.infer(Request("a", {"x": x}, deadline()))
        assert np.array_equal(result.outputs["y"], x + 1)
        assert result.outputs["n"].tolist() == [4, 512]
        assert all(array.flags.writeable for array in result.outputs.values())
        await given_back(pair)


async def test_a_door_in_a_front_end_sees_what_all_have_reserved_and_queued() -> None:
    async with Pair(gated=True, max_queue_size=4) as pair:
        running = pair.ask(0.0)
        await pair.at_gate()
        queued = [pair.ask(1.0), pair.ask(2.0)]
        await until(lambda: pair.engine.queued == 2)
        await until(lambda: pair.remote.queued == 2)
        places = [pair.remote.reserve(deadline()), pair.remote.reserve(deadline())]
        with pytest.raises(Overloaded, match="4 items are queued, the limit is 4"):
            pair.remote.check(deadline())
        for place in places:
            place.release()
        pair.remote.check(deadline())
        pair.gate.open()
        await asyncio.gather(running, *queued)


async def test_what_a_dead_front_end_had_reserved_is_forgotten() -> None:
    async with Pair() as pair:
        row = pair.board.counts(0)[1]
        dead = await pair.connect_nobody()
        row[3] = 2
        dead.close()
        await until(lambda: row.sum() == 0)


async def test_what_was_reserved_with_an_engine_that_is_lost_counts_no_more() -> None:
    async with Pair() as pair:
        place = pair.remote.reserve(deadline())
        row = pair.board.counts(0)[1]
        assert row[:-1].sum() == 1
        pair.link.close()
        await until(lambda: row.sum() == 0)
        place.release()
        assert row.sum() == 0


def test_the_loop_that_is_used_in_earnest_will_do() -> None:
    async def ask() -> None:
        async with Pair() as pair:
            results = await asyncio.gather(*(pair.ask(float(marker)) for marker in range(50)))
            assert [result.outputs[OUTPUT] for result in results] == [
                checksum(item(float(marker))[INPUT]) for marker in range(50)
            ]
            pair.link.close()
            await until(lambda: pair.host is not None and pair.host.requests == 0)

    uvloop = pytest.importorskip("uvloop")
    uvloop.run(ask())
