"""`isocenter import`: a model that others have made becomes a version of the repository."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from isocenter.cli.errors import Hopeless
from isocenter.cli.options import AsJson, ModelsFolder, settings_from

if TYPE_CHECKING:
    from isocenter.importers.answers import Ask, Question
    from isocenter.importers.folder import Imported
    from isocenter.repository.layout import ModelFolder

Format = Literal["onnx", "torchscript", "monai", "bioimageio", "nnunet"]

_BARE: Final = ("onnx", "torchscript")
_TAKEN: Final[dict[str, tuple[str, ...]]] = {
    "monai": ("labels",),
    "bioimageio": ("labels", "threshold"),
    "nnunet": ("folds",),
}
"""The flags that a package leaves to a person; everything else stands in it."""


def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="The model: a file, a folder or a zip.")],
    form: Annotated[Format | None, typer.Option("--as", help="What it is; else it is looked at.")] = None,
    models: ModelsFolder = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the model; a package may have one itself.")
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", min=1, help="Else one more than the highest that is there.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: what no option says is an error.")] = False,
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="classification|segmentation|tensors")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B,…", help="In the order of the output; commas between them.")
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option("--activation", metavar="NAME", help="softmax|sigmoid|none: what belongs to the output."),
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", metavar="X[,…]", help="Subtracted from scaled samples, one a channel.")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", metavar="X[,…]", help="Divides them then, one a channel.")] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", metavar="X", help="Factor of the samples before; 1/255 is written so.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="H,W", help="Pixels of the input, where the file leaves them open.")
    ] = None,
    color: Annotated[
        str | None, typer.Option("--color", metavar="NAME", help="gray|rgb, where the file does not say.")
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option("--resize", metavar="MODE", help="stretch|letterbox|crop: how a picture comes to size."),
    ] = None,
    channels: Annotated[
        str | None, typer.Option("--channels", metavar="A,…", help="Names of the input's channels; of a segmentation.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option("--layout", metavar="NAME", help="first|last: the channels, where sizes do not tell.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", metavar="P", help="From which a voxel has a label; bioimage.io.")
    ] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="SPEC", help="TorchScript: 'image: float32[3, 224, 224]'.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", metavar="SPEC", help="TorchScript: the same; ONNX: which output, by name.")
    ] = None,
    folds: Annotated[
        str | None, typer.Option("--folds", metavar="0,1,…", help="nnU-Net: which answer together; else all there are.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a version of the repository from a model that others have made.

    Reads ONNX and TorchScript files, MONAI bundles, bioimage.io packages and nnU-Net results; which of them it is, is
    looked at, and nothing is run for that. What a bare file does not say is asked on a terminal; nothing is guessed.
    The version is written after it has passed the proofs of `serve`, or not at all.
    """
    given: dict[str, str | None] = {
        "task": task, "labels": labels, "activation": activation, "mean": mean, "std": std, "scale": scale,
        "size": size, "color": color, "resize": resize, "channels": channels, "layout": layout,
        "input": input_, "output": output, "threshold": None if threshold is None else str(threshold),
        "folds": folds,
    }  # fmt: skip
    repository = settings_from(models=models).models
    from isocenter.importers.folder import next_version, write_folder
    from isocenter.importers.kinds import kind_of
    from isocenter.process import tune_process

    kind = form or kind_of(source)
    if kind in _BARE and name is None:
        raise Hopeless("a bare file has no name for the model", hint="--name NAME")
    if kind not in _BARE:
        _refuse_unused(kind, given)
    tune_process()
    ask = None if yes or not sys.stdin.isatty() else _ask
    made = _read(kind, source, name, version or 1, given, ask)
    if version is None:
        made.manifest["version"] = next_version(repository, str(made.manifest["name"]))
    _tell(kind, made, write_folder(repository, made), as_json=as_json)


def _refuse_unused(kind: str, given: dict[str, str | None]) -> None:
    unused = [flag for flag, text in given.items() if text is not None and flag not in _TAKEN[kind]]
    if unused:
        raise Hopeless(
            f"--{unused[0]} is not asked of a {kind} package: it says that itself", hint=f"without --{unused[0]}"
        )


def _read(
    kind: str, source: Path, name: str | None, version: int, given: dict[str, str | None], ask: "Ask | None"
) -> "Imported":
    """By the importer of its kind; what an importer needs is imported with it."""
    from isocenter.importers.answers import FOLDS, LABELS, THRESHOLD, Answers, number, words

    answers = Answers(given, ask)
    said: dict[str, Any] = {"name": name, "version": version}
    if kind in _BARE:
        said["answers"] = answers
    else:
        said |= {"labels": answers.given(LABELS, words), "folds": answers.given(FOLDS, words)}
        said["threshold"] = answers.given(THRESHOLD, number)
        said = {key: value for key, value in said.items() if value is not None}
    module = importlib.import_module(f"isocenter.importers.{kind}{'_file' if kind in _BARE else ''}")
    made: Imported = module.read(source, **said)
    if unused := answers.unused() if kind in _BARE else []:
        raise Hopeless(f"--{unused[0]} does not belong to this model", hint=f"without --{unused[0]}")
    return made


def _ask(question: "Question", read: Callable[[str], object]) -> str:
    """On stderr, until the answer can be read."""
    from rich.prompt import Prompt
    from rich.text import Text

    from isocenter.cli.console import err
    from isocenter.core.errors import ImportRefused

    console = err()
    while True:
        text = Prompt.ask(Text(question.text), console=console, choices=list(question.choices) or None)
        try:
            read(text)
        except ImportRefused as error:
            console.print(Text(error.message, style="red"))
        else:
            return text


def _tell(kind: str, made: "Imported", folder: "ModelFolder", *, as_json: bool) -> None:
    from rich.text import Text

    from isocenter.cli import console

    manifest = folder.manifest
    if as_json:
        console.write_json(
            {
                "kind": kind, "name": manifest.name, "version": manifest.version, "task": manifest.task,
                "path": str(folder.path), "sha256": manifest.runtime.sha256, "notes": list(made.notes),
            }
        )  # fmt: skip
        return
    stdout = console.out()
    said = f"{manifest.name} {manifest.version}: {manifest.task}, proven and written to {folder.path}"
    stdout.print(Text(said, style="green"), soft_wrap=True)
    for note in made.notes:
        stdout.print(Text(f"· {note}"), soft_wrap=True)
    stdout.print(Text(f"→ isocenter check {folder.path} shows the proofs one by one", style="dim"), soft_wrap=True)
