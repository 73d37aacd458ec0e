"""`isocenter inspect`: what is in a model file, before anything of it is run, or in a scan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from isocenter.cli.errors import Hopeless
from isocenter.cli.options import AsJson

if TYPE_CHECKING:
    from isocenter.importers.inspect_facts import Cost, Facts

_SHOWN_OPS: Final = 12


def inspect(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|FOLDER",
            help="An ONNX or TorchScript file, a model folder (models/x/1), or a scan: DICOM folder, NIfTI file, zip.",
        ),
    ],
    size: Annotated[
        str | None, typer.Option("--size", metavar="H,W", help="Sizes of the axes that the file leaves open, in order.")
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option("--input", metavar="SPEC", help="TorchScript: what it takes, 'image: float32[3, 224, 224]'."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="PNG", help="Of a scan: draw its volumes, and where their slices lie."),
    ] = None,
    show_identifiers: Annotated[
        bool,
        typer.Option("--show-identifiers", help="Of a scan: print names, numbers and dates of its DICOM headers."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is in a model file: tensors, operators, weights, and what one item costs on paper. Or in a scan.

    Multiply-adds are those of convolutions, matrix products and recurrent cells; FLOPs are twice that. The memory of
    one item is the largest sum of values that are needed at one time. Nothing is measured: `isocenter check` does that.

    Of a scan: its series and volumes, their grids, where slices lie (gaps, doubled ones, tilt), how pixels are encoded,
    and what would be refused, and why. Nobody's name is shown unless it is asked for.
    """
    from isocenter.cli import inspect_scan

    if inspect_scan.is_scan(source):
        inspect_scan.show(source, as_json=as_json, picture=picture, identifiers=show_identifiers)
        return
    if picture is not None or show_identifiers:
        raise Hopeless(f"no scan at {source}: nothing there begins as one", hint="a DICOM folder, NIfTI file or zip")
    from isocenter.importers.answers import size as read_size

    try:
        sizes = read_size(size) if size else []
    except ValueError as error:
        raise typer.BadParameter(f"--size {size!r}: {error}") from error
    file, specs = _weights_of(source)
    facts = _facts(file, sizes, input_ or specs)
    if as_json:
        from isocenter.cli import console

        console.write_json(_as_json(facts))
    else:
        _show(facts)


def _weights_of(source: Path) -> tuple[Path, str]:
    """The file that is meant, and what a manifest says of its inputs."""
    if not source.is_dir():
        return source, ""
    if not (source / "model.yaml").is_file():
        raise Hopeless(f"no model.yaml in {source}", hint="a file, or the folder of one version: models/x/1")
    from isocenter.repository.manifest import read_manifest

    runtime = read_manifest(source / "model.yaml").runtime
    if runtime.file is None:
        raise Hopeless(f"the weights of {source} are another server's", hint=f"they are at {runtime.url}")
    return source / runtime.file, str(runtime.options.get("inputs", ""))


def _facts(file: Path, sizes: list[int], specs: str) -> "Facts":
    from isocenter.importers import inspect_onnx, inspect_torchscript
    from isocenter.importers.kinds import kind_of

    kind = kind_of(file)
    if kind == "onnx":
        return inspect_onnx.inspect(file, sizes=sizes)
    if kind == "torchscript":
        return inspect_torchscript.inspect(file, ports=specs, sizes=sizes)
    raise Hopeless(f"{file} is a {kind} package", hint="isocenter import makes a model folder of it")


def _as_json(facts: "Facts") -> dict[str, Any]:
    from dataclasses import asdict

    said = asdict(facts)
    said |= {"parameters": facts.parameters, "weights_bytes": facts.weights_bytes}
    if facts.cost is not None:
        said["cost"]["flops"] = facts.cost.flops
    return said


def _show(facts: "Facts") -> None:
    from rich.text import Text

    from isocenter.cli import console

    rows = console.table("what", "found", fold=("found",), show_header=False)
    for what, found in _lines(facts):
        rows.add_row(Text(what, style="bold"), Text(found))
    stdout = console.out()
    stdout.print(rows)
    for warning in facts.warnings:
        stdout.print(Text(f"! {warning}", style="yellow"), soft_wrap=True)


def _lines(facts: "Facts") -> list[tuple[str, str]]:
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts.opsets.items())
    ops = list(facts.ops.items())
    shown = ", ".join(f"{op} {count}" for op, count in ops[:_SHOWN_OPS])
    more = f" and {len(ops) - _SHOWN_OPS} more kinds" if len(ops) > _SHOWN_OPS else ""
    lines = [
        ("file", f"{facts.file}: {facts.kind}, {facts.bytes / 1e6:.1f} MB"),
        ("made by", facts.producer),
        ("operator sets", opsets),
        *(("takes", str(slot)) for slot in facts.inputs),
        *(("gives", str(slot)) for slot in facts.outputs),
        ("operators", f"{sum(facts.ops.values())}: {shown}{more}" if ops else ""),
        ("parameters", f"{facts.parameters:,} ({_types(facts)}), {facts.weights_bytes / 1e6:.1f} MB"),
        ("layers", ", ".join(f"{count} in {word}" for word, count in facts.layers.items())),
        *(("weights in", f"{name}: {'not read' if size is None else size}") for name, size in facts.external.items()),
        *(_cost_lines(facts.cost) if facts.cost else [("one item", f"not counted: {facts.cost_missing}")]),
    ]
    return [line for line in lines if line[1]]


def _types(facts: "Facts") -> str:
    return ", ".join(
        f"{count:,} {dtype}" if len(facts.weights) > 1 else dtype for dtype, count in facts.weights.items()
    )


def _cost_lines(cost: "Cost") -> list[tuple[str, str]]:
    memory = "of unknown size" if cost.activation_bytes is None else f"{cost.activation_bytes / 1e6:.1f} MB"
    return [
        ("one item", " x ".join(map(str, cost.item_shape))),
        ("multiply-adds", f"{_short(cost.multiply_adds)} ({_short(cost.flops)} FLOPs), {cost.method}"),
        ("not counted", ", ".join(cost.uncounted)),
        ("its values", f"{memory} at one time, at most"),
    ]


def _short(count: int) -> str:
    """A large count for people.

    >>> _short(4_089_184_256), _short(5_200_000), _short(812)
    ('4.09 G', '5.20 M', '812')
    """
    for unit, letter in ((10**9, "G"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.2f} {letter}"
    return str(count)
