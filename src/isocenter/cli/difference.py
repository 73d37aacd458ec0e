"""`isocenter difference`: how far a version's precision is from fp32, measured and written beside its manifest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isocenter.cli.check import which_model
from isocenter.cli.errors import Exit, Hopeless
from isocenter.cli.options import AsJson, ModelsFolder, Version

if TYPE_CHECKING:
    from rich.table import Table

    from isocenter.repository.accuracy import Difference
    from isocenter.repository.comparison import Figures
    from isocenter.repository.layout import ModelFolder
    from isocenter.repository.manifest import Manifest


def difference(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name in the repository, or a folder: models/x/2.")],
    against: Annotated[
        str, typer.Option(metavar="NAME[:N]|fp32", help="The fp32 version it is compared with; fp32: its own file.")
    ],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Images, or .npy files of what the model takes.")],
    models: ModelsFolder = None,
    version: Version = None,
    fallback: Annotated[bool, typer.Option("--fallback", help="Measure the version's fallback instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how far a version's precision is from fp32.

    Both versions answer every image, each through its own preprocessing. What was measured is written to
    difference.json beside model.yaml (difference.fallback.json with --fallback); without it, no precision but fp32
    becomes ready. The exit code is 1 if it lies outside the manifest's gate.
    """
    folder, name, number = which_model(model, models, version)
    from isocenter.cli import console
    from isocenter.cli.progress import progress
    from isocenter.process import tune_process
    from isocenter.repository import accuracy, comparison
    from isocenter.repository.layout import find

    tune_process()
    there = find(folder, name, number)
    measured, file = (_in_place(there), accuracy.FALLBACK_DIFFERENCE) if fallback else (there, accuracy.DIFFERENCE)
    if measured.manifest.runtime.precision == "fp32":
        raise Hopeless(f"{name} {there.manifest.version} is fp32, which is the reference itself")
    reference = _reference(folder, there, against)
    files = comparison.distinct(images_in(images))
    with progress(len(files), "comparing") as step:
        found = comparison.compare(measured, reference, files, tell=lambda so_far: step(in_short(so_far)))
    accuracy.write_difference(there.path / file, found)
    outside = accuracy.misses(found, there.manifest)
    few = found.items < there.manifest.gate.min_items
    ok = not outside and not few
    if as_json:
        console.write_json({"model": name, "version": there.manifest.version, "file": file, "ok": ok}
            | {"difference": found.model_dump(mode="json"), "outside": [each.name for each in outside]})  # fmt: skip
    else:
        stdout = console.out()
        stdout.print(as_table(found, there.manifest))
        stdout.print(f"written to {there.path / file}", soft_wrap=True, markup=False)
    if not ok:
        raise typer.Exit(Exit.NOT_ALL)


def images_in(folder: Path) -> list[Path]:
    """The pictures of a folder, or its arrays; a golden pair's output is none of them.

    Raises:
        Hopeless: there is neither.
    """
    from isocenter.cli.inputs import find_files

    if not folder.is_dir():
        raise Hopeless(f"no such folder: {folder}", hint="--images with a folder of images")
    arrays = sorted(each for each in folder.rglob("*.np[yz]") if not each.stem.endswith(".output"))
    return arrays or find_files([str(folder)])


def in_short(so_far: "Figures") -> str:
    """What stands beside the bar."""
    return f"comparing: max |dp| {so_far.max_abs_dp:.2g}"


def as_table(found: "Difference", manifest: "Manifest") -> "Table":
    """What was measured beside what the gate allows."""
    from rich.text import Text

    from isocenter.cli import console
    from isocenter.repository.accuracy import misses

    gate = manifest.gate
    rows = console.table(f"{found.precision} against {found.reference.precision}", "measured", "gate", "")
    outside = {each.name for each in misses(found, manifest)}
    figures: list[tuple[str, str, float | int | None, str]] = [
        ("max_abs_dp", "max |dp|", found.max_abs_dp, f"≤ {gate.max_abs_dp:g}"),
        ("top1_agreement", "top-1 agreement", found.top1_agreement, f"≥ {gate.top1_agreement:g}"),
        ("dice", "Dice", found.dice, f"≥ {gate.dice:g}"),
        ("items", "items", found.items, f"≥ {gate.min_items}"),
    ]
    if found.items < gate.min_items:
        outside.add("items")
    for name, said, value, bound in figures:
        if value is not None:
            word, style = ("OUTSIDE", "red") if name in outside else ("ok", "green")
            rows.add_row(said, f"{value:.4g}", bound, Text(word, style=style))
    return rows


def _in_place(there: "ModelFolder") -> "ModelFolder":
    """The version as if its fallback was its runtime."""
    from isocenter.repository.layout import ModelFolder

    manifest = there.manifest
    if (fallback := manifest.fallback) is None:
        raise Hopeless(f"{manifest.name} {manifest.version} has no fallback", hint="without --fallback")
    instances = manifest.instances.model_copy(update={"device": fallback.device})
    changes = {"runtime": fallback, "instances": instances, "ensemble": None}
    return ModelFolder(there.path, manifest.model_copy(update=changes))


def _reference(models: Path, there: "ModelFolder", against: str) -> "ModelFolder":
    from isocenter.repository.accuracy import reference_of
    from isocenter.repository.layout import find

    if against == "fp32":
        return reference_of(there)
    name, _, number = against.partition(":")
    if number and not (number.isascii() and number.isdecimal()):
        raise Hopeless(f"--against {against!r}: the version is a whole number", hint=f"--against {name}:1")
    found = find(models, name, int(number) if number else None)
    if found.manifest.runtime.precision != "fp32":
        raise Hopeless(
            f"{name} {found.manifest.version} is {found.manifest.runtime.precision}; the reference is fp32",
            hint=f"--against {name}:N with a version in fp32",
        )
    return found
