"""A script in a process of its own, which does what it is asked for line by line and is idle otherwise.

Lines in and out are JSON. Asked {"do": NAME, …}, it answers with a mapping; what fails is {"error": …}.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Refused(Exception):
    """It could not do what it was asked for; says why."""


class AskedProcess:
    """The process, as the one that asks it sees it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Have it do something and wait.

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
        line = self._process.stdout.readline()
        if not line:
            raise Refused(f"the process ended with {self._process.wait()}, perhaps for want of memory")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer


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
