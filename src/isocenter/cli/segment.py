"""`isocenter segment`: find the cells of images, here or on a server, or what a model finds in cohorts of scans."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, get_args

import typer

from isocenter.cli.errors import Exit, Hopeless
from isocenter.cli.options import AsJson, ModelsFolder, Version, settings_from
from isocenter.cli.progress import outcomes_in_order

if TYPE_CHECKING:
    from isocenter.cli.outcome import Outcome
    from isocenter.serving.cell_answer import CellFormat

OF_IMAGES: Final = ("json", "geojson", "coco", "coco-rle", "labels", "overlay")
_OF_SCANS: Final = ("nifti", "dicom-seg", "probabilities")
_IMAGES_AT_ONCE: Final = 4


def segment(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE…", help="Images or scans: files, folders (searched to the bottom) or 'patterns*.tif'."
        ),
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="Of each image: json (if not said), geojson for QuPath, coco, coco-rle, labels or overlay. Of each "
            "scan one or more, with commas: nifti (if not said), dicom-seg, probabilities.",
        ),
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Draw the objects on each image as well.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go; made if it is not there.")] = Path(
        "segmented"
    ),
    models: ModelsFolder = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Needed if several segment what is named.")] = None,
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
    at_once: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=256, help="How many are asked at once: 4 images or 1 scan if it is not said."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the cells of images, or what a model finds in the scans of a cohort.

    Results keep the names and folders of what they are of. One bad file never stops the rest: it is shown with the
    reason, and the exit code is 1. A TIFF that is too large for memory is answered by its windows, with labels only.
    With --json there is one line a file or scan: what was found, and where the results are.

    Every scan file, every zip and every folder of DICOM is a scan, each series by itself: its mask and a picture of it
    are written, and for all of them results.csv, lesions.csv and the page index.html. What ends the command, the same
    command goes on: a scan that is answered is not asked again.
    """
    if url is not None and models is not None:
        raise Hopeless("--url asks a server, which has its own models: --models has no meaning then", hint="without it")
    if version is not None and model is None:
        raise Hopeless("--version without --model: of which model?", hint="--model NAME --version N")
    from isocenter.cli.inputs import refuse_nameless

    refuse_nameless(files)
    formats = _formats(form)
    if _means_scans(files, formats, models=models, model=model, version=version, url=url):
        of_images = {
            "--overlay": overlay, "--threshold": threshold is not None, "--no-holes": not holes,
            "--channel": channel is not None, "--page": page is not None, "--url": url is not None,
            "--format": bool(formats) and not {*formats} <= {*_OF_SCANS},
        }  # fmt: skip
        if options := [option for option, given in of_images.items() if given]:
            raise Hopeless(f"{', '.join(options)}: for images, and these are scans", hint="isocenter segment --help")
        _scans(files, formats or ["nifti"], out, models, model, version, at_once or 1, as_json=as_json)
        return
    if len(formats) > 1 or {*formats} - {*OF_IMAGES}:
        raise Hopeless(f"--format {form}: for scans, and these are images", hint=f"one of {', '.join(OF_IMAGES)}")
    at_once = at_once or _IMAGES_AT_ONCE
    from isocenter.cli.segment_files import suffixes
    from isocenter.cli.segment_places import meant, outside, places, refuse_replacing

    found = outside(meant(files), files, out)
    where = places(found, files, out)
    of_each = _of_cells(formats[0] if formats else "json")
    cell_formats: list[CellFormat] = [of_each, "overlay"] if overlay and of_each != "overlay" else [of_each]
    refuse_replacing(found, where, suffixes(cell_formats))
    _make(out)
    import time

    from isocenter.imaging.codecs.microscopy import PixelsAsked
    from isocenter.serving.cells import CellsAsked

    pixels = PixelsAsked(channel=channel, page=page)
    asked = CellsAsked(model=model, version=version, threshold=threshold, detect_holes=holes, pixels=pixels)
    show = _Show(as_json=as_json)
    started_s = time.monotonic()
    first = "loading the model" if url is None else "asking the server"
    with outcomes_in_order(len(found), first, "segmenting", show.take) as (tell, steps):
        if url is None:
            from isocenter.cli.segment_here import segment_here

            settings = settings_from(models=models)
            segment_here(found, settings, asked, cell_formats, where, at_once=at_once, tell=tell, steps_of=steps.of)
        else:
            from isocenter.cli.ask_server import Server
            from isocenter.cli.segment_server import segment_server

            segment_server(found, Server(url), asked, cell_formats, where, at_once=at_once, tell=tell)
    show.result(wall_s=time.monotonic() - started_s, at_once=at_once, loaded=url is None, out=out)
    if any(outcome.error is not None for outcome in show.outcomes):
        raise typer.Exit(Exit.NOT_ALL)


def _formats(form: str | None) -> list[str]:
    """The formats that are named, in any case, each once.

    Raises:
        typer.BadParameter: there is no such.
    """
    named = [*dict.fromkeys(word.strip().lower() for word in (form or "").split(",") if word.strip())]
    for word in named:
        if word not in (*OF_IMAGES, *_OF_SCANS):
            known = ", ".join((*OF_IMAGES, *_OF_SCANS))
            raise typer.BadParameter(f"{word!r} is none of {known}", param_hint="--format")
    return named


def _means_scans(
    files: list[str],
    formats: list[str],
    *,
    models: Path | None,
    model: str | None,
    version: int | None,
    url: str | None,
) -> bool:
    """By the format, else by the model, else by what is named."""
    if formats:
        return bool({*formats} & {*_OF_SCANS})
    if model is not None and url is None:
        from isocenter.core.errors import IsocenterError
        from isocenter.repository.layout import find

        try:
            manifest = find(settings_from(models=models).models, model, version).manifest
        except IsocenterError:  # said again where it is loaded
            return False
        return manifest.task == "segmentation" and manifest.input.kind == "volume3d"
    from isocenter.cli.cohort_find import means_scans
    from isocenter.cli.segment_places import absent

    return means_scans(file for file in files if not absent(file))


def _scans(
    files: list[str],
    formats: list[str],
    out: Path,
    models: Path | None,
    model: str | None,
    version: int | None,
    at_once: int,
    *,
    as_json: bool,
) -> None:
    from isocenter.cli.cohort_here import segment_cohort
    from isocenter.serving.scan_answer import ScanFormat

    wanted: list[ScanFormat] = [each for each in get_args(ScanFormat) if each in formats]
    _make(out)
    settings = settings_from(models=models)
    rows = segment_cohort(
        files, settings, model=model, version=version, formats=wanted, out=out, at_once=at_once, as_json=as_json
    )
    if any(row.state != "answered" for row in rows):
        raise typer.Exit(Exit.NOT_ALL)


def _of_cells(name: str) -> "CellFormat":
    from isocenter.serving.cell_answer import CellFormat

    return next(each for each in get_args(CellFormat) if each == name)


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
