"""Outcomes come in the order of the files, and whoever watches sees how far it is."""

import io
import sys
from pathlib import Path

import pytest

from isocenter.cli.outcome import Outcome
from isocenter.cli.progress import outcomes_in_order

FILES = [Path(name) for name in "abc"]


class Terminal(io.StringIO):
    """Somebody watches."""

    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, files: int = 3) -> list[str]:
    monkeypatch.setattr(sys, "stderr", stream)
    taken: list[str] = []
    with outcomes_in_order(files, "loading", "asking", lambda outcome: taken.append(outcome.name)) as (tell, steps):
        step = steps.of("slide.tif")
        for index in reversed(range(files)):
            tell(index, Outcome(FILES[index]))
        for done in range(1, 26):
            step(done, 25)
    return taken


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "pipe"])
def test_outcomes_come_in_the_order_of_the_files(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(stream, monkeypatch) == ["a", "b", "c"]


def test_a_terminal_has_a_bar_for_the_files_and_one_for_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    run(stream, monkeypatch)
    assert "asking" in stream.getvalue()
    assert "%" not in stream.getvalue()


def test_a_pipe_has_a_line_at_every_tenth_of_a_large_file_and_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    run(stream, monkeypatch, files=1)
    assert stream.getvalue().splitlines() == [f"slide.tif: {tenth}0 %" for tenth in range(1, 11)]


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "pipe"])
def test_a_file_name_can_neither_colour_what_is_seen_nor_command_the_terminal(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    with outcomes_in_order(1, "loading", "asking", lambda _: None) as (_, steps):
        steps.of("[/x]\n\x1b[31m.tif")(1, 2)
    assert r"[/x]\n\x1b[31m.tif" in stream.getvalue()
