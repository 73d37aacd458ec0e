"""`isocenter predict`: classify files, here or on a server."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isocenter.cli.errors import Exit, Hopeless
from isocenter.cli.options import AsJson, ModelsFolder, Version, settings_from
from isocenter.cli.progress import outcomes_in_order

if TYPE_CHECKING:
    from isocenter.cli.outcome import Outcome


def predict(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Images, folders (searched to the bottom) or 'patterns*.png'.")
    ],
    models: ModelsFolder = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Needed if there are several.")] = None,
    version: Version = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Ask this server instead of loading a model.")] = None,
    at_once: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="How many files are asked at once.")] = 8,
    as_json: AsJson = False,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write a CSV table; - is stdout.")] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw all images with their predictions as one picture.")
    ] = None,
) -> None:
    """Classify images.

    One bad file never stops the rest: it is shown with the reason, and the exit code is 1. With --json there is one
    line a file, as the server would answer, with "file" added.
    """
    if as_json and csv == "-":
        raise Hopeless("--json and --csv - both want stdout", hint="--csv table.csv")
    if url is not None and models is not None:
        raise Hopeless("--url asks a server, which has its own models: --models has no meaning then", hint="without it")
    if version is not None and model is None and url is not None:
        raise Hopeless("--version without --model: of which model?", hint="--model NAME --version N")
    for target in (csv, contact_sheet):
        if target is not None and not Path(target).parent.is_dir():
            raise Hopeless(
                f"cannot write {target}: there is no folder {Path(target).parent}", hint="mkdir, or another place"
            )
    from isocenter.cli.inputs import SUFFIXES, find_files

    if csv is not None and Path(csv).suffix.lower() in SUFFIXES:  # a shell makes `--csv *.png` the first of them
        raise Hopeless(f"--csv {csv} is the name of an image: nothing is written over it", hint="--csv table.csv")
    found = find_files(files)
    _refuse_replacing(found, [Path(each) for each in (csv, contact_sheet) if each not in (None, "-")])
    show = _Show(as_json=as_json, csv=csv)
    import time

    started_s = time.monotonic()
    first = "loading the model" if url is None else "asking the server"
    with outcomes_in_order(len(found), first, "predicting", show.take) as (tell, _):
        if url is None:
            from isocenter.cli.ask_here import ask_here

            ask_here(found, settings_from(models=models), model=model, version=version, at_once=at_once, tell=tell)
        else:
            from isocenter.cli.ask_server import Server, ask_server

            ask_server(found, Server(url), model=model, version=version, at_once=at_once, tell=tell)
    show.result(wall_s=time.monotonic() - started_s, at_once=at_once, loaded=url is None)
    if contact_sheet is not None:
        _draw(show.outcomes, contact_sheet)
    if any(outcome.error is not None for outcome in show.outcomes):
        raise typer.Exit(Exit.NOT_ALL)


class _Show:
    """Where outcomes go: JSON lines at once, everything else at the end."""

    def __init__(self, *, as_json: bool, csv: str | None) -> None:
        self.outcomes: list[Outcome] = []
        self._as_json = as_json
        self._csv = csv

    def take(self, outcome: "Outcome") -> None:
        """The next outcome, in the order of the files."""
        self.outcomes.append(outcome)
        if self._as_json:
            from isocenter.cli.console import write_json

            write_json(outcome.as_json(), indent=False)

    def result(self, *, wall_s: float, at_once: int, loaded: bool) -> None:
        """Table, CSV and summary. stdout belongs to JSON or CSV if one of them was asked for there."""
        from isocenter.cli import console, predict_report

        stdout_taken = self._as_json or self._csv == "-"
        if not stdout_taken:  # before anything that can fail: the answers are there
            console.out().print(predict_report.as_table(self.outcomes))
        if self._csv == "-":
            predict_report.write_csv(self.outcomes, sys.stdout)
        elif self._csv is not None:
            try:
                with Path(self._csv).open("w", newline="", encoding="utf-8") as stream:
                    predict_report.write_csv(self.outcomes, stream)
            except OSError as error:
                raise Hopeless(f"cannot write {self._csv}: {error.strerror}", hint="--csv - for stdout") from error
        where = console.err() if stdout_taken else console.out()
        text = predict_report.summary(self.outcomes, wall_s=wall_s, at_once=at_once, loaded=loaded)
        where.print(text, soft_wrap=True, markup=False)


def _refuse_replacing(images: list[Path], targets: list[Path]) -> None:
    """See that nothing is written over an image that is asked about."""
    for target in targets:
        if target.exists() and any(target.samefile(image) for image in images if image.exists()):
            raise Hopeless(f"{target} is an image that is asked about: nothing is written over it", hint="another file")


def _draw(outcomes: "list[Outcome]", file: Path) -> None:
    from isocenter.cli.console import err
    from isocenter.cli.contact_sheet import draw

    try:
        draw(outcomes).save(file)
    except (OSError, ValueError) as error:
        raise Hopeless(f"cannot write {file}: {error}", hint="--contact-sheet sheet.png") from error
    err().print(f"contact sheet: {file}", soft_wrap=True, markup=False)
