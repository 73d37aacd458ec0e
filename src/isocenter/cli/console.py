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


def one_line(text: str) -> str:
    r"""What comes from outside, such as a file name, as a terminal may have it: control characters as `repr` has them.

    >>> print(one_line("a\x1b[31m\nb\udcff.png"))
    a\x1b[31m\nb?.png
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in _in_letters(text))


def write_json(value: object, *, indent: bool = True) -> None:
    """One JSON value on stdout, and nothing else."""
    import orjson

    # orjson writes NaN and infinity as null, which is JSON; the standard library's `NaN` is not.
    option = orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if indent else 0)
    try:
        written = orjson.dumps(value, option=option)
    except orjson.JSONEncodeError:  # a path may hold bytes that are no letters, and JSON is letters
        written = orjson.dumps(_all_in_letters(value), option=option)
    sys.stdout.write(written.decode())
    sys.stdout.flush()


def _all_in_letters(value: object) -> object:
    match value:
        case str():
            return _in_letters(value)
        case dict():
            return {_all_in_letters(key): _all_in_letters(each) for key, each in value.items()}
        case list() | tuple():
            return [_all_in_letters(each) for each in value]
        case _:
            return value


def _in_letters(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
