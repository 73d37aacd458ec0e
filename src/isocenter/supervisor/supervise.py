"""The supervisor: starts the processes, hands out connections, restarts what dies, stops everything in order.

One thread, and next to no work: what it does must never wait for a picture or a model.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from isocenter.api.listener import address, bound
from isocenter.core.errors import SetupError
from isocenter.engine.link.errors import error_from_json
from isocenter.engine.link.figures import FrontEndFigures, make_shared
from isocenter.settings import Settings
from isocenter.supervisor.child import refuse_elsewhere
from isocenter.supervisor.members import EngineMember, FrontEndMember, Member
from isocenter.telemetry.logging import set_up_logging

STOP_BOUND_S: Final = 5.0
"""What a process may take to end once it has nothing left to do."""
SLACK_S: Final = 2.0
_ACCEPTED_AT_ONCE: Final = 32
_RELINK_AFTER_S: Final = 1.0
LOOK_EVERY_S: Final = 1.0
"""How often processes are asked for a sign of life."""


async def serve(settings: Settings, *, announce: Callable[[str, int], None] = lambda *_: None) -> bool:
    """Serve with several processes until SIGTERM or SIGINT, then drain. True if everybody who was in got an answer.

    `announce` is called with the address and the number of models once requests are answered.

    Raises:
        SetupError: nothing could be served.
    """
    refuse_elsewhere()
    logger = set_up_logging(settings.log_level)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with bound(settings.http.host, settings.http.port) as listener:
        supervisor = Supervisor(settings, listener, logger)
        try:
            with supervisor.signals():
                if not await supervisor.start():
                    logger.info("stopped", extra={"left": 0})
                    return True
                host, port, url = address(listener)
                logger.info("ready", extra={"host": host, "port": port, "models": supervisor.versions})
                announce(url, supervisor.models)
                return await supervisor.run()
        finally:
            await supervisor.close()


class Supervisor:
    """Owns the processes. The engine process is one of them, each front end another."""

    def __init__(self, settings: Settings, listener: socket.socket, logger: logging.Logger) -> None:
        self._settings = settings
        self._listener = listener
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        count = settings.frontends
        board_fd = self._board_fd = make_shared("isocenter-board", FrontEndFigures.size_bytes(count))
        figures = FrontEndFigures(board_fd, count)
        plan = settings.model_dump_json()
        self._failure: Exception | None = None
        self._begun = asyncio.Event()
        """All are ready, or it is clear that they will not be."""
        self._stop = asyncio.Event()
        self._accepting = False
        self._unserved: list[socket.socket] = []
        """Accepted, and left behind by a front end that died, while there was no other."""
        self._opened = False
        self._draining = False
        self._reload_asked = False
        self._left = 0
        self._engine = EngineMember(self, "isocenter.supervisor.engine_process", plan, board_fd, count)
        self._front_ends = [
            FrontEndMember(
                self,
                "isocenter.supervisor.front_end",
                plan,
                board_fd,
                number,
                count,
                arena_bytes=settings.link.arena_mib * 2**20,
                figures=figures.of(number),
            )
            for number in range(count)
        ]

    @property
    def models(self) -> int:
        """How many models are served."""
        return self._engine.models

    @property
    def versions(self) -> int:
        """How many versions of models are served."""
        return self._engine.versions

    # Start.

    async def start(self) -> bool:
        """Start every process and return when all are ready; False if told to stop before.

        Raises:
            SetupError: one of them cannot be.
        """
        for member in (self._engine, *self._front_ends):
            member.start()
        await self._begun.wait()
        if self._failure is not None:
            raise self._failure
        if self._stop.is_set():
            return False
        self._opened = True
        for member in (self._engine, *self._front_ends):
            member.say("open")
        self._listener.listen(self._settings.http.backlog)
        self._listener.setblocking(False)
        self._accept_if_possible()
        self._loop.call_later(LOOK_EVERY_S, self._look_after_all)
        return True

    def became_ready(self, member: Member) -> None:
        """A process can do its work."""
        if isinstance(member, EngineMember):
            for front_end in self._front_ends:
                self.link(front_end)
            if self._reload_asked:  # some models may have been read before they were changed
                self.reload()
        elif isinstance(member, FrontEndMember) and self._draining:
            member.say("drain")
        if all(each.ready for each in (self._engine, *self._front_ends)):
            self._begun.set()
        if self._opened:
            member.say("open")
            if member.lost_at_s is not None:
                seconds = round(self._loop.time() - member.lost_at_s, 3)
                self._logger.info("restarted", extra={"role": member.name, "pid": member.pid, "seconds": seconds})
                member.lost_at_s = None
            unserved, self._unserved = self._unserved, []
            for connection in unserved:
                self.hand_out(connection)
            self._accept_if_possible()

    def link(self, front_end: FrontEndMember) -> None:
        """Connect a front end with the engine process."""
        if self._engine.ready and front_end.running:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with here, there:
                self._engine.say("link", [here.fileno(), front_end.arena_fd], number=front_end.number)
                front_end.say("link", [there.fileno()], restart_s=self._engine.start_took_s)

    def relink(self, front_end: FrontEndMember) -> None:
        """A front end has lost its link. If the engine process did not die, it needs a new one."""
        pid = self._engine.pid

        def again() -> None:
            if self._engine.pid == pid and not self._draining:
                self.link(front_end)

        self._loop.call_later(_RELINK_AFTER_S, again)

    # Life.

    async def run(self) -> bool:
        """Keep everything alive until told to stop; then drain. True if nobody was left without an answer."""
        await self._stop.wait()
        return await self._drain()

    def _look_after_all(self) -> None:
        """End what hangs, so that it is started again. Whoever drains is bounded anyway."""
        if self._draining:
            return
        most_silent = max(1, round(self._settings.hang_after_s / LOOK_EVERY_S))
        for member in (self._engine, *self._front_ends):
            pid = member.pid
            if not member.look_after(most_silent=most_silent):
                extra = {"role": member.name, "pid": pid, "seconds": most_silent * LOOK_EVERY_S}
                self._logger.error("process_hung", extra=extra)
        self._loop.call_later(LOOK_EVERY_S, self._look_after_all)

    def lost(self, member: Member, code: int) -> bool:
        """A process has ended by itself, or was ended because it hung; whether it is to be started again."""
        if not self._opened:
            self._fail(SetupError(f"the {member.name} process ended with code {code} before it was ready"))
            return False
        extra = {"role": member.name, "pid": member.pid, "status": code}
        if isinstance(member, EngineMember):
            self._logger.error("engine_lost", extra=extra)
        else:
            self._logger.error("frontend_lost", extra=extra)
        if self._draining:
            self._left += 1  # at least: nobody knows how many it had
        return not self._draining

    def could_not_start(self, member: Member, error: list[Any]) -> None:
        """A process says why it cannot do its work."""
        found = error_from_json(error)
        if not self._opened:
            self._fail(found if isinstance(found, SetupError) else SetupError(str(found)))
            return
        self._logger.error("start_failed", extra={"role": member.name, "pid": member.pid, "code": error[0]})

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._begun.set()

    def reload(self) -> None:
        """Have the models read again; an engine process that is only starting, as soon as it has."""
        self._reload_asked = not self._engine.ready
        if self._engine.ready:
            self._engine.say("reload")

    # Connections.

    def _accept_if_possible(self) -> None:
        """Accept while there is somebody to take it; the rest waits with the system."""
        wanted = self._opened and not self._listener_closed and any(each.takes for each in self._front_ends)
        if wanted and not self._accepting:
            self._loop.add_reader(self._listener, self._accept)
        elif self._accepting and not wanted:
            self._loop.remove_reader(self._listener)
        self._accepting = wanted

    def _look_again(self) -> None:
        """In a moment, and again until somebody takes connections: one that is slow will not say when it caught up."""
        self._accept_if_possible()
        if not self._accepting and self._opened and not self._listener_closed:
            self._loop.call_later(0.01, self._look_again)

    @property
    def _listener_closed(self) -> bool:
        return self._listener.fileno() < 0

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if not any(each.takes for each in self._front_ends):
                self._accept_if_possible()
                self._look_again()
                return
            try:
                connection, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause()
                    return
                continue  # that caller is gone already
            self.hand_out(connection)

    def hand_out(self, connection: socket.socket) -> None:
        """Give a connection to the least busy front end; of equals, to the one that has been given the fewest."""
        chosen = min((each for each in self._front_ends if each.takes), key=lambda each: each.load, default=None)
        if chosen is not None:
            chosen.give(connection)
        elif self._draining:
            connection.close()
        else:
            self._unserved.append(connection)

    def _pause(self) -> None:
        """Nothing can be accepted for want of descriptors: try again in a moment, rather than all the time."""
        self._loop.remove_reader(self._listener)
        self._accepting = False
        self._loop.call_later(0.1, self._accept_if_possible)

    # Stop.

    @contextmanager
    def signals(self) -> Iterator[None]:
        """The first signal drains; the second ends everything at once. SIGHUP reloads."""

        def caught(number: signal.Signals) -> None:
            if self._stop.is_set():
                self._logger.warning("forced", extra={"signal": number.name})
                os._exit(1)  # the others die with their parent
            self._logger.info("stopping", extra={"signal": number.name})
            self._stop.set()
            self._begun.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, caught, number)
        self._loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._loop.remove_signal_handler(number)

    async def _drain(self) -> bool:
        """Doors first: front ends finish what is in and keep telling newcomers 503; then they end, then the engine."""
        drain = self._settings.drain
        started_s = self._loop.time()
        self._draining = True
        self._engine.say("closing")
        for front_end in self._front_ends:
            front_end.drain()
        bound_s = max(drain.bound_s, drain.linger_s) + SLACK_S
        done = [asyncio.create_task(each.drained.wait()) for each in self._front_ends if each.running]
        if done:
            _, late = await asyncio.wait(done, timeout=bound_s)
            self._left += len(late)
            for task in late:
                task.cancel()
        self._left += sum(each.left for each in self._front_ends)
        seconds = round(self._loop.time() - started_s, 3)
        self._logger.info("drained", extra={"left": self._left, "seconds": seconds})
        self._loop.remove_reader(self._listener)
        self._accepting = False
        self._listener.close()
        for front_end in self._front_ends:
            front_end.stop()
        await asyncio.gather(*(each.end_within(STOP_BOUND_S) for each in self._front_ends))
        # If somebody had to be left, the time for finishing is used up.
        self._engine.stop(bound_s=0.1 if self._left else drain.bound_s)
        await self._engine.end_within((0.1 if self._left else drain.bound_s) + 2 * STOP_BOUND_S)
        self._logger.info("stopped", extra={"left": self._left})
        return self._left == 0

    async def close(self) -> None:
        """End whatever still runs."""
        members: list[Member] = [*self._front_ends, self._engine]
        for member in members:
            member.stop_restarting()
            member.kill()
        for connection in self._unserved:
            connection.close()
        await asyncio.gather(*(member.end_within(STOP_BOUND_S) for member in members))
        for front_end in self._front_ends:
            front_end.drop_arena()
        os.close(self._board_fd)
