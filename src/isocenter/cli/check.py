"""`isocenter check`: is a model what it claims to be?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isocenter.cli.errors import Exit, Hopeless
from isocenter.cli.options import AsJson, ModelsFolder, Version, settings_from

if TYPE_CHECKING:
    from rich.table import Table

    from isocenter.cli.proofs import Proof


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name in the repository, or a folder: models/x/1.")],
    models: ModelsFolder = None,
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Prove that a model is what it claims to be.

    The same proofs as `serve` demands before it takes requests, each on its own: manifest, digest, difference from
    fp32, tensors, golden answers, preprocessing against its reference, answers that do not depend on the batch; and
    what each batch size costs here. The exit code is 1 if a proof fails.
    """
    folder, name, number = which_model(model, models, version)
    from isocenter.cli import console
    from isocenter.cli.proofs import prove
    from isocenter.process import tune_process
    from isocenter.repository.layout import find

    tune_process()
    proofs = list(prove(lambda: find(folder, name, number)))
    ok = all(proof.ok for proof in proofs)
    if as_json:
        from dataclasses import asdict

        console.write_json({"model": model, "ok": ok, "proofs": [asdict(proof) for proof in proofs]})
    else:
        _show(proofs)
    if not ok:
        raise typer.Exit(Exit.NOT_ALL)


def which_model(model: str, models: Path | None, version: int | None) -> tuple[Path, str, int | None]:
    """Repository, name and version that are meant."""
    path = Path(model)
    if not path.is_dir() or (len(path.parts) == 1 and not (path / "model.yaml").exists()):
        return settings_from(models=models).models, model, version
    path = path.resolve()
    if not (path.name.isascii() and path.name.isdecimal()):
        return path.parent, path.name, version
    if version is not None:
        raise Hopeless(f"{model} is version {path.name} already, and --version says {version}", hint="one of the two")
    return path.parent.parent, path.parent.name, int(path.name)


def _show(proofs: "list[Proof]") -> None:
    from rich.text import Text

    from isocenter.cli import console

    rows = console.table("proof", "", "what was found", fold=("what was found",))
    for proof in proofs:
        word, style = {True: ("ok", "green"), False: ("FAILED", "red"), None: ("-", "dim")}[proof.ok]
        rows.add_row(
            Text(proof.name, style="bold"),
            Text(word, style=style),
            Text(proof.summary, style="" if proof.ok else style),
        )
    stdout = console.out()
    stdout.print(rows)
    for proof in proofs:
        if "service_ms" in proof.details:
            stdout.print(_timings(proof))


def _timings(proof: "Proof") -> "Table":
    from isocenter.cli import console

    sizes = list(proof.details["service_ms"])
    rows = console.table("batch size", *sizes, right=tuple(sizes))
    rows.add_row("median ms a run", *(f"{proof.details['service_ms'][size]:.1f}" for size in sizes))
    rows.add_row("items/s", *(f"{proof.details['items_per_s'][size]:.0f}" for size in sizes))
    return rows
