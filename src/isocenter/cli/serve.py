"""`isocenter serve`: the server, until it is told to stop."""

import atexit
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Annotated, Any, Literal

import typer

from isocenter.cli.errors import Exit
from isocenter.cli.options import ModelsFolder, settings_from


def serve(
    models: ModelsFolder = None,
    host: Annotated[str | None, typer.Option(metavar="H", help="Address to listen on; else 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(metavar="P", help="Port, 0 lets the system choose; else 8000.")] = None,
    frontends: Annotated[
        int | None, typer.Option(metavar="N", help="HTTP processes beside the engine; else 0.")
    ] = None,
    default_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Answers if a request names none and several are served.")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(metavar="LEVEL", help="debug, info, warning or error; else info."),
    ] = None,
) -> None:
    """Serve every model of a repository over HTTP.

    Each model is proven and warmed before the first request is taken. SIGTERM or Ctrl-C drains: what is in is
    finished, then the process ends. What is not given here is read from ISOCENTER_* variables.
    """
    _hold_standard_streams()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload, it must not end the process
    settings = settings_from(
        models=models,
        default_model=default_model,
        frontends=frontends,
        log_level=log_level,
        http={"host": host, "port": port},
    )
    if settings.frontends:
        import asyncio

        from isocenter.supervisor.supervise import serve as serve_in_processes

        # Not uvloop: the supervisor has next to nothing to do, and should be light.
        whole = asyncio.run(serve_in_processes(settings, announce=_announce))
    else:
        from isocenter.app import serve as serve_until_stopped

        whole = _run(serve_until_stopped(settings, announce=_announce))
    if not whole:
        raise typer.Exit(Exit.NOT_ALL)


def _hold_standard_streams() -> None:
    """Open what a script has closed of the first three files, before anything else gets its number.

    A socket that got the number of stderr would be sent what libraries write there, and be closed by others.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free, and children have it too
            os.set_inheritable(number, True)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    atexit.register(_leave_unread)


def _leave_unread() -> None:
    """Drop what nobody reads any more: Python would try once more to write it, and end with 120 for that alone."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


def _run(main: Coroutine[Any, Any, bool]) -> bool:
    try:
        import uvloop
    except ImportError:
        import asyncio

        return asyncio.run(main)
    return uvloop.run(main)


def _announce(address: str, models: int) -> None:
    # Programs read the address from this line: `at (http://\S+)`.
    line = f"Serving {models} model{'s' if models != 1 else ''} at {address} - POST /predict, docs at /docs"
    if not sys.stderr.isatty():
        with suppress(OSError):  # who read what is written there has gone; those who ask have not
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        return
    from rich.text import Text

    from isocenter.cli.console import err

    text = Text(line, style="green")
    text.stylize("bold", line.index(address), line.index(address) + len(address))
    err().print(text, soft_wrap=True)
