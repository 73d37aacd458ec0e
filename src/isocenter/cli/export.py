"""`isocenter export`: a network, or a checkpoint of one, as a model folder; or a model as a Triton repository."""

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isocenter.cli.errors import Hopeless
from isocenter.cli.options import ModelsFolder, settings_from
from isocenter.networks.registry import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from isocenter.repository.layout import ModelFolder


Format = Literal["onnx", "torchscript", "openvino", "triton"]


def export(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK|CHECKPOINT",
            help=f"One of {', '.join(NETWORKS)}; or a file of weights, whose network is found by its tensors; or, "
            "with --to triton, a model of the repository.",
        ),
    ],
    to: Annotated[Format, typer.Option("--to", help="The format; triton writes a Triton model repository.")] = "onnx",
    models: ModelsFolder = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="With --to triton: the Triton repository to write into.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the model; else the network's.")
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", min=1, help="Else one more than the highest there is.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B,…", help="One an output; the first of a softmax mask is the background."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="A checkpoint: .safetensors, or tensors that torch.save wrote."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of random weights, where no file is given.")
    ] = 0,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Sides of the input, such as 512x512 or 96x96x96.")
    ] = None,
    free_sides: Annotated[
        bool, typer.Option("--free-sides", help="Let a segmentation network take other sides as well.")
    ] = False,
    max_batch_size: Annotated[
        int | None, typer.Option("--max-batch-size", metavar="N", min=1, max=1024, help="Else the network's own.")
    ] = None,
    backend: Annotated[
        Literal["native", "python"],
        typer.Option("--backend", help="With --to triton: python also runs where the server has no other backend."),
    ] = "native",
    queue_delay_us: Annotated[
        int | None,
        typer.Option(
            "--queue-delay-us",
            metavar="N",
            min=0,
            help="With --to triton: how long Triton waits for company; 0 where Isocenter is in front of it.",
        ),
    ] = None,
) -> None:
    """Make a model folder of a network: weights, digest, golden cases, manifest, and what an item costs here.

    The exported file is held against the network in torch before anything is written, and proven as `serve` proves it.
    A checkpoint is read and never run: one that holds code is refused. With --to triton, a model of the repository, or
    a network by way of ONNX, becomes a Triton model repository.
    """
    from rich.text import Text

    from isocenter.cli import console
    from isocenter.process import tune_process

    if (to == "triton") != (out is not None):
        raise typer.BadParameter("--to triton needs --out DIR, and nothing else takes it")
    tune_process()
    folder = settings_from(models=models).models
    made = partial(
        make,
        what,
        name=name,
        labels=split_labels(labels),
        weights=weights,
        seed=seed,
        size=sides_of(size) if size else None,
        free_sides=free_sides,
        max_batch_size=max_batch_size,
    )
    if to == "triton":
        from isocenter.importers.triton_repository import write_triton_repository

        assert out is not None
        write = partial(write_triton_repository, out=out, backend=backend, max_queue_delay_us=queue_delay_us)
        written, notes = _to_triton(what, folder, write, version, made)
    else:
        found, notes = made(folder, to=to, version=version)
        written = found.path
    stdout = console.out()
    stdout.print(Text(str(written)), soft_wrap=True)
    for note in notes:
        stdout.print(Text(f"  {note}"), soft_wrap=True)


def _to_triton(
    what: str,
    models: Path,
    write: "Callable[[ModelFolder], Path]",
    version: int | None,
    made: "Callable[..., tuple[ModelFolder, list[str]]]",
) -> tuple[Path, list[str]]:
    """A version of the repository if it has a model of that name, else a network by way of ONNX."""
    from isocenter.repository.layout import find, names

    if what in names(models):
        folder = find(models, what, version)
        note = f"version {folder.manifest.version} of {what}, from {models}"
        return write(folder), [note]
    with tempfile.TemporaryDirectory(prefix="isocenter-export-") as scratch:
        folder, notes = made(Path(scratch), to="onnx", version=version or 1)
        return write(folder), notes


def sides_of(text: str) -> tuple[int, ...]:
    """Sides as people write them.

    >>> sides_of("512x384"), sides_of("96X96x96")
    ((512, 384), (96, 96, 96))

    Raises:
        BadParameter: not two or three whole numbers with x between.
    """
    parts = text.lower().split("x")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is no size; write it as 512x512 or 96x96x96")
    return tuple(int(part) for part in parts)


def split_labels(text: str | None) -> tuple[str | int, ...] | None:
    """Labels between commas; whole numbers are numbers.

    >>> split_labels("no, yes"), split_labels("0,1"), split_labels(None)
    (('no', 'yes'), (0, 1), None)
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise typer.BadParameter(f"a label of {text!r} is empty")
    return tuple(int(word) if word.isascii() and word.isdecimal() else word for word in words)


def make(
    what: str,
    models: Path,
    *,
    to: Literal["onnx", "torchscript", "openvino"],
    name: str | None = None,
    version: int | None = None,
    labels: tuple[str | int, ...] | None = None,
    weights: Path | None = None,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    free_sides: bool = False,
    max_batch_size: int | None = None,
) -> "tuple[ModelFolder, list[str]]":
    """Write a model folder; gives it, and what a person should know of it.

    Raises:
        Hopeless: there is no such network or file.
        MissingExtra, ImportRefused, SetupError: see `isocenter.importers.network`.
    """
    from isocenter.core.errors import MissingExtra
    from isocenter.runtimes.registry import installed

    entry = NETWORKS.get(what)
    if entry is None and not Path(what).is_file():
        raise Hopeless(f"no network is called {what!r}, and there is no such file", hint=", ".join(NETWORKS))
    if entry is None and weights is not None:
        raise Hopeless(f"{what} is a checkpoint, and so is --weights {weights}", hint="one of the two")
    for module in ("torch", "onnx"):
        if not installed(module):
            raise MissingExtra(f'export needs {module}, which is not installed: pip install "isocenter[torch]"')
    from isocenter.importers import network as making
    from isocenter.importers.folder import next_version, write_folder

    if entry is None:
        weights = Path(what)
        entry = making.recognised(weights)
    if free_sides and not entry.fully_convolutional:
        raise Hopeless(f"{entry.name} answers one picture of one size with one label", hint="--size sets that size")
    called = name or entry.name
    number = version or next_version(models, called)
    if (models / called / str(number)).exists():
        raise Hopeless(f"{called} {number} is there already", hint=f"--version {next_version(models, called)}")
    network, named, origin = making.built(entry, weights=weights, seed=seed, labels=labels)
    order = making.Order(
        entry=entry,
        to=to,
        name=called,
        version=number,
        labels=named,
        item_shape=(entry.input_shape[0], *(size or entry.input_shape[1:])),
        free_sides=free_sides,
        max_batch_size=max_batch_size or entry.max_batch_size,
        weights=origin,
    )
    with tempfile.TemporaryDirectory(prefix="isocenter-export-") as scratch:
        made = making.packaged(network, order, Path(scratch))
        return write_folder(models, made), made.notes
