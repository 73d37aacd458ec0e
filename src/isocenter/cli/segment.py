"""`isocenter segment`: find the cells of images, here or on a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isocenter.cli.errors import Exit, Hopeless
from isocenter.cli.options import AsJson, ModelsFolder, Version, settings_from
from isocenter.cli.progress import outcomes_in_order

if TYPE_CHECKING:
    from isocenter.cli.outcome import Outcome
    from isocenter.serving.cell_answer import CellFormat

Format = Literal["json", "geojson", "coco", "coco-rle", "labels", "overlay"]


def segment(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Images, folders (searched to the bottom) or 'patterns*.tif'.")
    ],
    form: Annotated[
        Format, typer.Option("--format", help="What is written of each image; QuPath opens geojson.")
    ] = "json",
    overlay: Annotated[bool, typer.Option("--overlay", help="Draw the objects on each image as well.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go; made if it is not there.")] = Path(
        "segmented"
    ),
    models: ModelsFolder = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Needed if several segment images.")] = None,
    version: Version = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="P", min=0.1, max=0.9, help="Probability from which a pixel is in an object; else the model's."
        ),
    ] = None,
    holes: Annotated[bool, typer.Option("--holes/--no-holes", help="Whether objects may have holes.")] = True,
    channel: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which channel is meant, by name or number from 0.")
    ] = None,
    page: Annotated[int | None, typer.Option(metavar="N", min=0, help="Which page of a file with several.")] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Ask this server instead of loading a model.")] = None,
    at_once: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="How many files are asked at once.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Find the cells of images, and write them as polygons, labels or pictures.

    Results keep the names and folders of their images. One bad file never stops the rest: it is shown with the
    reason, and the exit code is 1. A TIFF that is too large for memory is answered by its windows, with labels only.
    With --json there is one line a file: how many objects, how large, and where the results are.
    """
    if url is not None and models is not None:
        raise Hopeless("--url asks a server, which has its own models: --models has no meaning then", hint="without it")
    if version is not None and model is None:
        raise Hopeless("--version without --model: of which model?", hint="--model NAME --version N")
    from isocenter.cli.inputs import find_files
    from isocenter.cli.segment_files import outside, places

    found = outside(find_files(files), files, out)
    where = places(found, files, out)
    _make(out)
    formats: list[CellFormat] = [form, "overlay"] if overlay and form != "overlay" else [form]
    import time

    from isocenter.imaging.codecs.microscopy import PixelsAsked
    from isocenter.serving.cells import CellsAsked

    number = channel is not None and channel.isascii() and channel.isdecimal()
    pixels = PixelsAsked(channel=int(channel) if channel is not None and number else channel, page=page)
    asked = CellsAsked(model=model, version=version, threshold=threshold, detect_holes=holes, pixels=pixels)
    show = _Show(as_json=as_json)
    started_s = time.monotonic()
    first = "loading the model" if url is None else "asking the server"
    with outcomes_in_order(len(found), first, "segmenting", show.take) as (tell, steps):
        if url is None:
            from isocenter.cli.segment_here import segment_here

            settings = settings_from(models=models)
            segment_here(found, settings, asked, formats, where, at_once=at_once, tell=tell, steps_of=steps.of)
        else:
            from isocenter.cli.ask_server import Server
            from isocenter.cli.segment_server import segment_server

            segment_server(found, Server(url), asked, formats, where, at_once=at_once, tell=tell)
    show.result(wall_s=time.monotonic() - started_s, at_once=at_once, loaded=url is None, out=out)
    if any(outcome.error is not None for outcome in show.outcomes):
        raise typer.Exit(Exit.NOT_ALL)


class _Show:
    """Where outcomes go: JSON lines at once, everything else at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self.outcomes: list[Outcome] = []
        self._as_json = as_json

    def take(self, outcome: "Outcome") -> None:
        """The next outcome, in the order of the files."""
        self.outcomes.append(outcome)
        if self._as_json:
            from isocenter.cli.console import write_json

            write_json(outcome.as_json(), indent=False)

    def result(self, *, wall_s: float, at_once: int, loaded: bool, out: Path) -> None:
        """Table and summary. stdout belongs to JSON if that was asked for."""
        from isocenter.cli import console, segment_report

        if not self._as_json:
            console.out().print(segment_report.as_table(self.outcomes))
        where = console.err() if self._as_json else console.out()
        text = segment_report.summary(self.outcomes, wall_s=wall_s, at_once=at_once, loaded=loaded, out=out)
        where.print(text, soft_wrap=True, markup=False)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Hopeless(f"cannot write to {out}: {error.strerror}", hint="--out with another folder") from error
