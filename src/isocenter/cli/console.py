"""Where commands write: tables and answers to stdout, progress and errors to stderr."""

import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH_WHEN_PIPED = 160


def out() -> Console:
    """What was asked for."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH_WHEN_PIPED, highlight=False)


def err() -> Console:
    """What was not asked for, and is worth knowing."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else _WIDTH_WHEN_PIPED, highlight=False)


def table(*columns: str, right: tuple[str, ...] = (), fold: tuple[str, ...] = (), **options: Any) -> Table:
    """The one look of every table."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", **options)
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column not in fold
        )
    return made


def write_json(value: object, *, indent: bool = True) -> None:
    """One JSON value on stdout, and nothing else."""
    import orjson

    # orjson writes NaN and infinity as null, which is JSON; the standard library's `NaN` is not.
    option = orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if indent else 0)
    sys.stdout.write(orjson.dumps(value, option=option).decode())
    sys.stdout.flush()
