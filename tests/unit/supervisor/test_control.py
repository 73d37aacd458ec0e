"""The line to a process: whole messages with their descriptors, nothing lost while the other end is slow."""

import asyncio
import errno
import os
import resource
import socket
from typing import Any

import pytest

from isocenter.supervisor.control import Control, make_pair, receive
from patience import PATIENCE_S

pytestmark = pytest.mark.may_block  # the other end is read as a process does before it has a loop


class Line:
    """One end on the loop, the other as a plain socket."""

    def __init__(self) -> None:
        ours, self.theirs = make_pair()
        self.came: list[tuple[dict[str, Any], list[int]]] = []
        self.cut = asyncio.Event()
        self.control = Control(ours, lambda message, fds: self.came.append((message, fds)), self.cut.set)

    def close(self) -> None:
        self.control.close()
        self.theirs.close()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_messages_arrive_whole_with_their_descriptors() -> None:
    line = Line()
    read, write = os.pipe()
    line.control.say("take", [write], number=3)
    os.close(write)
    found = receive(line.theirs)
    assert found is not None
    message, (fd,) = found
    assert message == {"say": "take", "number": 3}
    os.write(fd, b"x")
    assert os.read(read, 1) == b"x"
    os.close(fd)
    os.close(read)
    line.close()


async def test_what_the_other_end_says_is_handed_over() -> None:
    line = Line()
    line.theirs.send(b'{"say": "ready", "models": 2}')
    line.theirs.send(b'{"say": "took"}')
    await turns()
    assert [message["say"] for message, _ in line.came] == ["ready", "took"]
    line.close()


async def test_nothing_is_lost_and_nothing_waits_while_the_other_end_is_slow() -> None:
    line = Line()
    read, write = os.pipe()
    for number in range(2000):
        line.control.say("take", [write], number=number)
    os.close(write)
    flows = [line.control.flows]
    line.theirs.settimeout(PATIENCE_S)
    for number in range(2000):
        await turns(2)
        found = receive(line.theirs)
        assert found is not None
        message, fds = found
        assert message["number"] == number
        for fd in fds:
            os.close(fd)
    assert [*flows, line.control.flows] == [False, True]
    assert os.read(read, 1) == b""  # no end that could be written to is left open
    os.close(read)
    line.close()


@pytest.mark.parametrize("shortage", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM])
async def test_a_system_that_is_short_of_something_for_a_moment_cuts_no_line(
    monkeypatch: pytest.MonkeyPatch, shortage: int
) -> None:
    line, send, refusals = Line(), socket.send_fds, [shortage] * 3

    def short_at_first(*given: Any) -> int:
        if refusals:
            raise OSError(refusals.pop(), "short")
        return send(*given)

    monkeypatch.setattr(socket, "send_fds", short_at_first)
    line.control.say("first")
    line.control.say("second")
    await turns(20)
    assert line.control.flows
    assert [found and found[0]["say"] for found in (receive(line.theirs), receive(line.theirs))] == ["first", "second"]
    line.close()


async def test_the_end_of_the_other_side_is_told_after_what_it_said() -> None:
    line = Line()
    line.theirs.send(b'{"say": "setup_error"}')
    line.theirs.close()
    await line.cut.wait()
    assert [message["say"] for message, _ in line.came] == ["setup_error"]
    line.control.say("drain")
    assert not line.control.flows


async def test_a_cut_line_is_noticed_by_whoever_sends_first() -> None:
    ours, theirs = make_pair()
    control = Control(ours, lambda *_: None, lambda: None)
    theirs.close()
    control.say("connection")
    assert not control.flows
    control.close()


def test_a_process_that_reads_before_it_has_a_loop_sees_the_end_too() -> None:
    ours, theirs = make_pair()
    ours.close()
    assert receive(theirs) is None
    theirs.close()


def test_where_no_file_may_be_opened_a_message_comes_without_its_descriptors() -> None:
    ours, theirs = make_pair()
    read, write = os.pipe()
    socket.send_fds(ours, [b'{"say": "link"}'], [write, write])
    os.close(write)
    next_free = os.dup(read)
    os.close(next_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free + 1, hard))  # one of the two has room
    try:
        assert receive(theirs) == ({"say": "link"}, [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.read(read, 1) == b""  # no end that could be written to is left open
    for each in (ours, theirs):
        each.close()
    os.close(read)


def test_a_message_that_is_too_large_is_a_defect() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(b"x" * (64 * 1024 + 1))
        with pytest.raises(ValueError, match="more than 65536 bytes"):
            receive(theirs)
