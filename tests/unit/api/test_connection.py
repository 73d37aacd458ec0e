"""A block is given up when its caller leaves, and only then."""

import asyncio

import pytest

from isocenter.api.http.connection import CONNECTION, Connection, WhileConnected
from isocenter.core.errors import Abandoned


async def turns() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def answer(connection: Connection | None, go_on: asyncio.Event) -> str:
    with WhileConnected({} if connection is None else {CONNECTION: connection}):
        await go_on.wait()
    return "answer"


async def test_work_for_a_caller_who_leaves_is_abandoned_where_it_waits() -> None:
    connection = Connection(1)
    working = asyncio.create_task(answer(connection, asyncio.Event()))
    await turns()

    connection.lose()

    with pytest.raises(Abandoned) as abandoned:
        await working
    assert not working.cancelled()
    assert abandoned.value.__context__ is not None
    assert abandoned.value.__context__.__traceback__ is None  # frames would keep the image alive


async def test_one_who_left_before_is_not_worked_for() -> None:
    connection = Connection(1)
    connection.lose()

    with pytest.raises(Abandoned):
        await answer(connection, asyncio.Event())


async def test_a_caller_who_leaves_after_his_answer_disturbs_nobody() -> None:
    connection = Connection(1)
    go_on = asyncio.Event()
    go_on.set()

    async def answer_and_more() -> str:
        found = await answer(connection, go_on)
        connection.lose()
        await turns()
        return found

    assert await asyncio.create_task(answer_and_more()) == "answer"


async def test_on_a_kept_connection_only_the_running_request_is_told() -> None:
    connection = Connection(1)
    go_on = asyncio.Event()
    go_on.set()
    first = asyncio.create_task(answer(connection, go_on))
    assert await first == "answer"
    second = asyncio.create_task(answer(connection, asyncio.Event()))
    await turns()

    connection.lose()

    with pytest.raises(Abandoned):
        await second


async def test_a_caller_who_leaves_as_the_answer_is_made_counts_as_left() -> None:
    connection = Connection(1)
    go_on = asyncio.Event()
    working = asyncio.create_task(answer(connection, go_on))
    await turns()

    go_on.set()
    connection.lose()

    with pytest.raises(Abandoned):
        await working


async def test_a_server_that_stops_still_cancels_work_whose_caller_left_at_the_same_time() -> None:
    connection = Connection(1)
    working = asyncio.create_task(answer(connection, asyncio.Event()))
    await turns()

    connection.lose()
    working.cancel()

    with pytest.raises(asyncio.CancelledError):
        await working


async def test_a_cancellation_by_others_is_no_leaving() -> None:
    connection = Connection(1)
    working = asyncio.create_task(answer(connection, asyncio.Event()))
    await turns()

    working.cancel()

    with pytest.raises(asyncio.CancelledError):
        await working
    assert connection.on_lost is None


async def test_an_error_within_the_block_stays_what_it_is() -> None:
    connection = Connection(1)

    with pytest.raises(KeyError), WhileConnected({CONNECTION: connection}):
        raise KeyError

    assert connection.on_lost is None


async def test_a_deadline_within_the_block_stays_a_deadline() -> None:
    connection = Connection(1)

    with pytest.raises(TimeoutError), WhileConnected({CONNECTION: connection}):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()


async def test_the_task_can_be_used_afterwards() -> None:
    connection = Connection(1)

    async def abandoned_and_then() -> str:
        asyncio.get_running_loop().call_soon(connection.lose)
        with pytest.raises(Abandoned):
            await answer(connection, asyncio.Event())
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)
        return "refused"

    assert await asyncio.create_task(abandoned_and_then()) == "refused"


async def test_under_a_server_that_tells_nothing_nothing_happens() -> None:
    go_on = asyncio.Event()
    go_on.set()

    assert await answer(None, go_on) == "answer"
