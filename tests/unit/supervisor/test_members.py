"""What the supervisor knows of its processes: who is ready, who is given what, and what the dead leave behind."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from isocenter.engine.link.figures import FrontEndFigures, OwnFigures, make_shared
from isocenter.supervisor import members
from isocenter.supervisor.members import EngineMember, FrontEndMember, Member


class FakeChild:
    """A process that says and hears what a test wants."""

    def __init__(
        self,
        module: str,
        name: str,
        *,
        on_message: Callable[[dict[str, Any], list[int]], None],
        on_end: Callable[["FakeChild", int], None],
    ) -> None:
        self.name = name
        self.pid = 4711
        self.started_s = 0.0
        self.heard: list[str] = []
        self.killed = False
        self.listens = True
        self._on_message = on_message
        self._on_end = on_end
        CHILDREN.append(self)

    def says(self, what: str, **more: Any) -> None:
        self._on_message({"say": what, **more}, [])

    def ends(self, code: int) -> None:
        self._on_end(self, code)

    def say(self, what: str, fds: list[int] | None = None, **_: Any) -> None:
        self.heard.append(what)

    def kill(self) -> None:
        self.killed = True


CHILDREN: list[FakeChild] = []
MADE: list[FrontEndMember] = []


class FakeOwner:
    """Takes note of what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.handed: list[socket.socket] = []

    def became_ready(self, member: Member) -> None:
        self.told.append(f"{member.name} ready")

    def lost(self, member: Member, code: int) -> bool:
        self.told.append(f"{member.name} lost {code}")
        return True

    def could_not_start(self, member: Member, error: list[Any]) -> None:
        self.told.append(f"{member.name} {error[0]}")

    def link(self, front_end: FrontEndMember) -> None:
        self.told.append(f"{front_end.name} to be linked")

    def relink(self, front_end: FrontEndMember) -> None:
        self.told.append(f"{front_end.name} to be linked again")

    def hand_out(self, connection: socket.socket) -> None:
        self.handed.append(connection)


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    CHILDREN.clear()
    MADE.clear()
    monkeypatch.setattr(members, "Child", FakeChild)
    yield
    for member in MADE:
        member.drop_arena()


@pytest.fixture
def figures() -> OwnFigures:
    fd = make_shared("figures", FrontEndFigures.size_bytes(2))
    found = FrontEndFigures(fd, 2).of(1)
    os.close(fd)
    return found


def front_end(owner: FakeOwner, figures: OwnFigures) -> FrontEndMember:
    member = FrontEndMember(owner, "front_end", "{}", -1, 1, 2, arena_bytes=4096, figures=figures)
    MADE.append(member)
    return member


async def test_a_front_end_takes_connections_when_it_is_ready_and_keeps_up(figures: OwnFigures) -> None:
    owner = FakeOwner()
    member = front_end(owner, figures)
    member.start()
    takes = [member.takes]
    CHILDREN[0].says("ready")
    takes.append(member.takes)
    CHILDREN[0].listens = False
    takes.append(member.takes)
    assert takes == [False, True, False]
    assert owner.told == ["frontend 1 to be linked", "frontend 1 ready"]


async def test_the_load_is_what_was_given_and_has_not_ended(figures: OwnFigures) -> None:
    member = front_end(FakeOwner(), figures)
    member.start()
    ends = [socket.socketpair() for _ in range(3)]
    for ours, _ in ends:
        member.give(ours)
        CHILDREN[0].says("took")
    figures.count_closed()
    assert member.load == (2, 3)
    for _, theirs in ends:
        theirs.close()


async def test_a_caller_for_whom_a_front_end_has_no_file_left_is_let_go_and_no_other(figures: OwnFigures) -> None:
    owner = FakeOwner()
    member = front_end(owner, figures)
    member.start()
    pairs = [socket.socketpair() for _ in range(3)]
    for ours, _ in pairs:
        member.give(ours)
    for said in ("took", "full"):
        CHILDREN[0].says(said)
    assert pairs[1][1].recv(1) == b""
    assert member.load == (2, 2)
    CHILDREN[0].ends(-9)
    assert owner.handed == [pairs[2][0]]
    for pair in pairs:
        for each in pair:
            each.close()


async def test_what_a_dead_front_end_had_not_taken_goes_to_another(figures: OwnFigures) -> None:
    owner = FakeOwner()
    member = front_end(owner, figures)
    member.start()
    CHILDREN[0].says("ready")
    first, second = socket.socketpair()
    member.give(first)
    member.give(second)
    CHILDREN[0].says("took")
    assert first.fileno() == -1
    CHILDREN[0].ends(-9)
    member.stop_restarting()
    assert owner.handed == [second]
    assert member.drained.is_set()
    assert "frontend 1 lost -9" in owner.told
    second.close()


async def test_a_front_end_that_comes_back_begins_at_zero(figures: OwnFigures) -> None:
    member = front_end(FakeOwner(), figures)
    member.start()
    figures.count_closed()
    arena = os.fstat(member.arena_fd).st_ino
    CHILDREN[0].ends(1)
    member.stop_restarting()
    member.start()
    assert member.load == (0, 0)
    # A run may still read what the first one left in its own.
    assert os.fstat(member.arena_fd).st_ino != arena
    assert CHILDREN[1].heard == ["start"]


async def test_a_front_end_that_came_back_is_waited_for_at_a_stop(figures: OwnFigures) -> None:
    member = front_end(FakeOwner(), figures)
    member.start()
    CHILDREN[0].says("drained", left=3)
    CHILDREN[0].ends(-9)
    member.stop_restarting()
    member.start()
    assert (member.drained.is_set(), member.left) == (False, 0)


async def test_who_is_told_to_stop_is_not_missed(figures: OwnFigures) -> None:
    owner = FakeOwner()
    member = front_end(owner, figures)
    member.start()
    CHILDREN[0].says("ready")
    member.drain()
    CHILDREN[0].says("drained", left=3)
    member.stop()
    CHILDREN[0].ends(0)
    assert CHILDREN[0].heard == ["start", "drain", "stop"]
    assert member.left == 3
    assert not any("lost" in told for told in owner.told)


async def test_a_front_end_that_is_only_starting_is_not_waited_for(figures: OwnFigures) -> None:
    member = front_end(FakeOwner(), figures)
    member.start()
    member.drain()
    assert CHILDREN[0].killed


async def test_an_engine_says_how_many_models_it_has_or_why_it_has_none() -> None:
    owner = FakeOwner()
    engine = EngineMember(owner, "engine_process", "{}", -1, 2)
    engine.start()
    CHILDREN[0].says("setup_error", error=["digest_mismatch", "why", {}, None])
    CHILDREN[0].says("ready", models=2, versions=3)
    assert (engine.models, engine.versions) == (2, 3)
    assert owner.told == ["engine digest_mismatch", "engine ready"]
    engine.stop(bound_s=1.0)
    assert CHILDREN[0].heard == ["start", "stop"]


async def test_one_that_gives_signs_of_life_is_left_alone() -> None:
    engine = EngineMember(FakeOwner(), "engine_process", "{}", -1, 2)
    engine.start()
    CHILDREN[0].says("ready", models=1, versions=1)
    for _ in range(10):
        assert engine.look_after(most_silent=3)
        CHILDREN[0].says("alive")
    assert CHILDREN[0].heard.count("alive?") == 10
    assert not CHILDREN[0].killed


async def test_one_that_hangs_is_asked_once_then_ended_and_started_again() -> None:
    owner = FakeOwner()
    engine = EngineMember(owner, "engine_process", "{}", -1, 2)
    engine.start()
    CHILDREN[0].says("ready", models=1, versions=1)
    looks = [engine.look_after(most_silent=3) for _ in range(5)]
    assert looks == [True, True, True, True, False]
    assert CHILDREN[0].heard == ["start", "alive?"]
    assert CHILDREN[0].killed
    CHILDREN[0].ends(-9)
    engine.stop_restarting()
    assert owner.told[-1] == "engine lost -9"
    # The next one begins with a clean sheet, and is not asked before it is ready.
    engine.start()
    assert all(engine.look_after(most_silent=3) for _ in range(10))
    CHILDREN[1].says("ready", models=1, versions=1)
    assert engine.look_after(most_silent=3)
    assert CHILDREN[1].heard == ["start", "alive?"]


async def test_a_silent_front_end_is_given_nothing_until_it_speaks_again(figures: OwnFigures) -> None:
    member = front_end(FakeOwner(), figures)
    member.start()
    CHILDREN[0].says("ready")
    takes = []
    for _ in range(4):
        member.look_after(most_silent=30)
        takes.append(member.takes)
    CHILDREN[0].says("alive")
    takes.append(member.takes)
    assert takes == [True, True, False, False, True]


async def test_one_that_was_told_to_stop_is_not_taken_for_one_that_hangs() -> None:
    engine = EngineMember(FakeOwner(), "engine_process", "{}", -1, 2)
    engine.start()
    CHILDREN[0].says("ready", models=1, versions=1)
    engine.stop(bound_s=1.0)
    assert all(engine.look_after(most_silent=1) for _ in range(10))
    assert not CHILDREN[0].killed
