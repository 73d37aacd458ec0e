"""`isocenter`: the commands, and the one place that decides how a command ends."""

import os

# The decode pool and the sessions own the cores. BLAS and OpenMP read these when numpy is first imported, so they are
# set before anything else is; threads of their own would only compete with ours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from isocenter.cli import (
    check,
    difference,
    doctor,
    export,
    import_,
    inspect,
    models,
    phantoms,
    plan,
    predict,
    quantize,
    segment,
    serve,
    simulate,
    version,
)
from isocenter.cli.errors import Exit, explain

# A command's own imports happen inside it: `isocenter --help` must not wait for a web server and a model runtime.

# Typer carries a click of its own in some versions and uses the installed one in others.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class _Commands(TyperGroup):
    """Every way in which a command can end becomes an exit code and, if it went wrong, a sentence on stderr."""

    def main(self, *args: Any, **options: Any) -> Any:
        given = list(options.pop("args", None) or (args[0] if args else sys.argv[1:]))
        options["standalone_mode"] = False
        options["prog_name"] = "isocenter"
        debug, given = _take_debug(given)
        try:
            code = super().main(given, **options)
        except (KeyboardInterrupt, typer.Abort):
            code = Exit.INTERRUPTED
        except Exception as error:
            if debug and not isinstance(error, _UsageError):
                raise
            code = _usage(error) if isinstance(error, _UsageError) else explain(error)
        sys.exit(int(code or 0))


def _take_debug(given: list[str]) -> tuple[bool, list[str]]:
    """`--debug` holds wherever it stands: after an error, people append it."""
    end = given.index("--") if "--" in given else len(given)
    if "--debug" not in given[:end]:
        return False, given
    return True, [word for word in given[:end] if word != "--debug"] + given[end:]


def _usage(error: Any) -> int:
    if not error.format_message():  # a group without a command: the help was asked for
        error.show()
        return Exit.WRONG
    where = getattr(error.ctx, "command_path", "isocenter") if error.ctx else "isocenter"
    return explain(error, message=error.format_message(), hint=f"{where} --help")


app = typer.Typer(
    name="isocenter",
    cls=_Commands,
    help="Serve medical-image models inside a deadline, and prove that they answer what they should.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
    say_version: Annotated[
        bool, typer.Option("--version", callback=version.say, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    # Dealt with before: by `_take_debug`, and by the callback. Declared here for the help.
    del debug, say_version


app.command("serve")(serve.serve)
app.command("predict")(predict.predict)
app.command("segment")(segment.segment)
app.command("check")(check.check)
app.command("difference")(difference.difference)
app.command("quantize")(quantize.quantize)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.command("inspect")(inspect.inspect)
app.command("models")(models.models)
app.command("plan")(plan.plan)
app.command("simulate")(simulate.simulate)
app.command("phantoms")(phantoms.phantoms)
app.command("doctor")(doctor.doctor)
app.command("version")(version.version)


def run() -> None:
    """The entry point of the console script."""
    app()
