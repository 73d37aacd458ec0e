"""What was broken on purpose, and what became of everybody who asked: rows that tests fill, printed at the end."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

import pytest


@dataclass(frozen=True, kw_only=True)
class FaultRow:
    """One fault. Whoever asked was answered, told why not, left by himself, or cut off with his server's process."""

    fault: str
    answered: int
    told: int = 0
    left: int = 0
    cut_off: int = 0
    wrong: int = 0
    asked: int

    @property
    def lost(self) -> int:
        """Who heard nothing at all."""
        return self.asked - self.answered - self.told - self.left - self.cut_off


Fault: TypeAlias = Callable[..., None]
"""`fault("what broke", asked=…, answered=…)`: take a row into the table; fails if anybody was lost or told nonsense."""

_ROWS = pytest.StashKey[list[FaultRow]]()
_HEADS = ("fault", "asked", "answered", "told why not", "left", "cut off with their process", "wrong", "lost")


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    """Takes the figures of one fault into the table."""
    rows = request.config.stash.setdefault(_ROWS, [])

    def take(name: str, **figures: int) -> None:
        unknown = set(figures) - {field.name for field in fields(FaultRow)}
        assert not unknown, unknown
        row = FaultRow(fault=name, **figures)
        assert (row.wrong, row.lost) == (0, 0), row
        rows.append(row)

    return take


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the table goes besides the terminal."""
    parser.addoption("--fault-table", type=Path, default=None, help="write the table of faults to this file")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, if anything was broken."""
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    lines = [
        "| " + " | ".join(_HEADS) + " |",
        "|" + "---|" * len(_HEADS),
        *(
            f"| {row.fault} | {row.asked} | {row.answered} | {row.told} | {row.left} | {row.cut_off} "
            f"| {row.wrong} | {row.lost} |"
            for row in rows
        ),
    ]
    terminalreporter.section("faults")
    terminalreporter.write_line("\n".join(lines))
    if (file := config.getoption("--fault-table")) is not None:
        file.write_text("# What breaks, and what becomes of everybody\n\n" + _HOW + "\n\n" + "\n".join(lines) + "\n")


_HOW = (
    "Repeat: `make faults`. Each row is a test that fails if anybody is lost or answered wrongly; its figures are\n"
    "those of the run that wrote this page. *Told why not*: a typed error with a code, and when to come back where\n"
    "that helps."
)
