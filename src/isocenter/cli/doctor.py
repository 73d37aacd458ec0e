"""`isocenter doctor`: what is installed here, on what, and what is worth knowing about it."""

import os
from typing import TYPE_CHECKING

import typer

from isocenter.cli.errors import Exit
from isocenter.cli.options import AsJson

if TYPE_CHECKING:
    from isocenter.cli.doctor_report import Report

_STYLES = {"ok": "", "absent": "dim", "missing": "red"}


def doctor(as_json: AsJson = False) -> None:
    """Look over the installation and the machine.

    The exit code is 1 only if something is missing that nothing works without.
    """
    from isocenter.cli import console
    from isocenter.cli.doctor_report import gather, report
    from isocenter.runtimes.registry import installed_version

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = report(gather(version_of=installed_version, usable_cores=cores))
    if as_json:
        console.write_json(found.as_json())
    else:
        _show(found)
    if not found.healthy:
        raise typer.Exit(Exit.NOT_ALL)


def _show(found: "Report") -> None:
    from rich.text import Text

    from isocenter.cli import console

    rows = console.table("", "what", "found", fold=("found",))
    section = ""
    for line in found.lines:
        if section and line.section != section:
            rows.add_section()
        rows.add_row(
            Text(line.section if line.section != section else "", style="bold"),
            Text(line.name),
            Text(line.value, style=_STYLES[line.state]),
        )
        section = line.section
    stdout = console.out()
    stdout.print(rows)
    for hint in found.hints:
        stdout.print(Text(f"→ {hint}"), soft_wrap=True)
