"""What is seen of a cohort while it runs, and at the end."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from isocenter.cli import console
from isocenter.cli.cohort_rows import Row, as_json, printable, summary

if TYPE_CHECKING:
    from rich.progress import Progress

_LINES: Final = 100
"""Rows that are printed; beyond, only what was not answered is."""
_NAME_CHARS: Final = 40


class Report:
    """A bar on stderr if somebody watches, else a line a scan; JSON on stdout if that was asked for."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._bars: Progress | None = None
        self._done = 0
        self._total = 0
        self._before = 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, console=console.err(), transient=True)
            self._bars.start()
            self._all = self._bars.add_task("loading the model", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def planned(self, rows: Sequence[Row], before: int) -> None:
        """What there is, and how many of it were answered by earlier runs."""
        self._done = self._before = before
        self._total = len(rows)
        if self._bars is not None:
            self._bars.update(self._all, total=self._total, completed=before)
        if before:
            console.err().print(f"{before} of {self._total} scans were done before", soft_wrap=True)

    def begun(self, name: str) -> Callable[[str, float], object]:
        """See `Watch.begun`."""
        if self._bars is None:
            return lambda stage, share: None
        bars, short = self._bars, name if len(name) <= _NAME_CHARS else f"…{name[1 - _NAME_CHARS :]}"

        def tell(stage: str, share: float) -> None:
            bars.update(self._all, description=f"{escape(short)}: {stage} {share * 100:.0f} %")

        return tell

    def ended(self, row: Row | None, *, scans: int) -> None:
        """See `Watch.ended`."""
        self._total = scans
        self._done += row is not None
        if self._bars is not None:
            self._bars.update(self._all, total=self._total, completed=self._done)
        elif row is not None and not self._as_json:
            line = f"{self._done}/{self._total} {row.name}: {said(row)}"
            console.err().print(line, soft_wrap=True, markup=False)

    def result(self, rows: Sequence[Row], *, wall_s: float, out: Path) -> None:
        """Every row, what came of all of them, and where it is."""
        if self._as_json:
            for row in rows:
                console.write_json(as_json(row), indent=False)
        else:
            shown = rows if len(rows) <= _LINES else [row for row in rows if row.state != "answered"]
            if shown:
                console.out().print(as_table(shown))
        where = console.err() if self._as_json else console.out()
        text = f"{summary(rows)} · {wall_s:.1f} s, loading the model included"
        text += f", {self._before} done before" if self._before else ""
        where.print(f"{text} · {printable(str(out / 'index.html'))}", soft_wrap=True, markup=False)


def as_table(rows: Sequence[Row]) -> Table:
    """One row a scan; what was not answered with code and message."""
    made = console.table("scan", "finding", "time", "notes", right=("time",), fold=("scan", "finding", "notes"))
    for row in rows:
        answered = row.state == "answered"
        made.add_row(
            Text(row.name),
            Text(said(row), style="bold" if row.present else "" if answered else "red"),
            "" if row.seconds is None else f"{row.seconds:.1f} s",
            Text(", ".join(row.warnings), style="yellow") if answered else Text(row.message),
        )
    return made


def said(row: Row) -> str:
    """One row in a few words.

    >>> said(Row(path="a", state="refused", code="gantry_tilt"))
    'refused: gantry_tilt'
    >>> said(Row(path="b", state="answered", present=True, probability=0.98, volume_ml=1.5, lesions=({},)))
    'present, 0.980, 1.50 ml, 1 lesion'
    """
    if row.state != "answered":
        return f"{row.state}: {row.code}" if row.code else row.state
    parts = [row.finding or "answered"]
    parts += [f"{row.probability:.3f}"] if row.probability is not None else []
    parts += [f"{row.volume_ml:.2f} ml"] if row.volume_ml else []
    parts += [f"{len(row.lesions)} lesion{'s' if len(row.lesions) > 1 else ''}"] if row.lesions else []
    return ", ".join(parts)
