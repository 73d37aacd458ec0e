"""A bar on stderr, if somebody watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from isocenter.cli.outcome import Outcome, Tell


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[str], None]]:
    """Call what is given after each of `total` steps, with what is to be said beside the bar."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda _: None
        return
    with _bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda said: bar.update(task, advance=1, description=said)


@contextmanager
def outcomes_in_order(
    total: int, first: str, then: str, take: "Callable[[Outcome], None]"
) -> "Iterator[tuple[Tell, Steps]]":
    """Pass outcomes on in the order of the files; a bar says `first` before the first of them, and `then` after it.

    Beside it, what tells the steps within one large file.
    """
    from isocenter.cli.outcome import InOrder

    in_order = InOrder(take)
    if not sys.stderr.isatty():
        yield in_order, Steps(None)
        return
    with _bar() as bar:
        task = bar.add_task(first, total=total, visible=total > 1)

        def tell(index: int, outcome: "Outcome") -> None:
            in_order(index, outcome)
            bar.update(task, advance=1, description=then)

        yield tell, Steps(bar)


class Steps:
    """How far one large file is: a bar of its own, or a line at every tenth where nobody watches."""

    def __init__(self, bar: "Progress | None") -> None:
        self._bar = bar

    def of(self, name: str) -> "Callable[[int, int], None]":
        """Call what is given with how many steps are done, and how many there are."""
        from isocenter.cli.console import one_line

        name = one_line(name)
        if self._bar is None:
            return _lines(name)
        bar, task = self._bar, self._bar.add_task(name, total=None)

        def step(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=done < total)

        return step


def _lines(name: str) -> "Callable[[int, int], None]":
    said = 0

    def step(done: int, total: int) -> None:
        nonlocal said
        tenths = 10 * done // max(1, total)
        if tenths > said:
            said = tenths
            from isocenter.cli.console import err

            err().print(f"{name}: {tenths * 10} %", soft_wrap=True, markup=False)

    return step


def _bar() -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from isocenter.cli.console import err

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err(), transient=True)
