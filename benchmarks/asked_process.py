"""A script in a process of its own, which does what it is asked for line by line and is idle otherwise.

Lines in and out are JSON. Asked {"do": NAME, …}, it answers with a mapping; what fails is {"error": …}.
"""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from isocenter.core.errors import IsocenterError


class Refused(Exception):
    """It could not do what it was asked for; says why."""


class AskedProcess:
    """The process, as the one that asks it sees it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._ended_after_s = 0.0

    def ask(self, what: str, *, bound_s: float = math.inf, **more: Any) -> dict[str, Any]:
        """Have it do something and wait; after a bound, the process is ended.

        Raises:
            Refused: it could not.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **more}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Refused("the process ended") from None
        line = self._answer(bound_s)
        if not line and self._ended_after_s:
            raise Refused(f"not done after {self._ended_after_s:g} s")
        if not line:
            raise Refused(f"the process ended with {self._process.wait()}, perhaps for want of memory")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def _answer(self, bound_s: float) -> str:
        assert self._process.stdout is not None
        if math.isinf(bound_s):
            return self._process.stdout.readline()

        def end() -> None:
            self._ended_after_s = bound_s
            self._process.kill()

        alarm = threading.Timer(bound_s, end)
        alarm.start()
        try:
            return self._process.stdout.readline()
        finally:
            alarm.cancel()


@contextmanager
def asked_process(script: str, told: Mapping[str, Any]) -> Iterator[AskedProcess]:
    """A script that is told something as its only argument, in its own process, which is gone afterwards."""
    argv = [sys.executable, script, json.dumps(told)]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield AskedProcess(process)
    finally:
        process.kill()
        process.communicate()


def answer_lines(do: Callable[..., dict[str, Any]]) -> None:
    """Be such a process until nobody asks any more: `do` is called with what to do, by its name, and the rest."""
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = do(asked.pop("do"), **asked)
        except IsocenterError as error:
            answer = {"error": error.message}
        except Exception as error:  # it is a figure that is missing, not the end of the table
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        print(json.dumps(answer), flush=True)
