"""`isocenter quantize`: an int8 version of a model, from calibration images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isocenter.cli.check import which_model
from isocenter.cli.difference import as_table, images_in
from isocenter.cli.errors import Exit
from isocenter.cli.options import AsJson, ModelsFolder, Version

if TYPE_CHECKING:
    from rich.table import Table

    from isocenter.importers.quantize import Quantised


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name in the repository, or a folder: models/x/1.")],
    to: Annotated[Literal["onnxruntime", "openvino"], typer.Option(help="The runtime of the new version.")],
    calibration: Annotated[
        Path, typer.Option(metavar="DIR", help="Images like those to come: half calibrate, half are held out.")
    ],
    models: ModelsFolder = None,
    version: Version = None,
    number: Annotated[
        int | None, typer.Option("--as", metavar="N", min=1, help="The new version's number; else the next one.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write it although it lies outside the gate; it does not become ready.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an int8 version of an fp32 ONNX model.

    Half of the images calibrate it. On the other half it is compared with the version it is made of, and timed against
    it; what was measured is written to its difference.json. Outside of the manifest's gate nothing is written and the
    exit code is 2; with --keep it is written, and the exit code is 1.
    """
    folder, name, source_number = which_model(model, models, version)
    from isocenter.cli import console
    from isocenter.cli.progress import progress
    from isocenter.importers import quantize as making
    from isocenter.importers.folder import next_version
    from isocenter.process import tune_process
    from isocenter.repository.comparison import distinct
    from isocenter.repository.layout import find

    tune_process()
    source = find(folder, name, source_number)
    files = distinct(images_in(calibration))
    chosen = number if number is not None else next_version(folder, name)
    with progress(len(files) + 1, "reading") as step:
        made = making.quantize(folder, source, files, to=to, version=chosen, keep=keep, tell=step)
    if as_json:
        console.write_json(
            {
                "model": name,
                "version": chosen,
                "ready": not made.outside,
                "difference": made.difference.model_dump(mode="json"),
                "outside": [each.name for each in made.outside],
                "service_ms": {str(size): {"fp32": a, "int8": b} for size, (a, b) in made.service_ms.items()},
            }
        )
    else:
        stdout = console.out()
        stdout.print(as_table(made.difference, made.folder.manifest))
        stdout.print(_speeds(made, to))
        ready = "" if not made.outside else "; it does not become ready: " + "; ".join(map(str, made.outside))
        stdout.print(f"written to {made.folder.path}{ready}", soft_wrap=True, markup=False)
    if made.outside:
        raise typer.Exit(Exit.NOT_ALL)


def _speeds(made: "Quantised", to: str) -> "Table":
    from isocenter.cli import console

    columns = ("fp32 ms", "int8 ms", "times as fast")
    rows = console.table(f"batch size, in {to}", *columns, right=columns)
    for size, (fp32_ms, int8_ms) in made.service_ms.items():
        rows.add_row(str(size), f"{fp32_ms:.2f}", f"{int8_ms:.2f}", f"{fp32_ms / int8_ms:.2f}")
    return rows
