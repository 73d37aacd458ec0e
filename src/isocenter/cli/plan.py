"""`isocenter plan`: which batches fit into memory for so many users at once."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from isocenter.cli.errors import Exit, Hopeless
from isocenter.cli.options import AsJson, ModelsFolder, settings_from

if TYPE_CHECKING:
    from isocenter.engine.memory import MemoryPlan, ModelCost

_UNITS: Final = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


_LONGEST = 40  # characters; of amounts that a float holds


def bytes_of(text: str) -> int:
    """An amount of memory as people write it.

    >>> bytes_of("24GiB") == 24 * 2**30, bytes_of("1.5 GB"), bytes_of("1000")
    (True, 1500000000, 1000)

    Raises:
        BadParameter: it is not one.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None or len(text) > _LONGEST or not (count := int(float(found[1]) * unit)):
        raise typer.BadParameter(f"{text[:_LONGEST]!r} is no amount of memory; write it as 24GiB, 512MiB or 8GB")
    return count


def plan(
    users: Annotated[int, typer.Option("--users", metavar="N", min=1, help="Inferences that run at the same time.")],
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="How much there is, such as 24GiB; else what this machine has."),
    ] = None,
    models: ModelsFolder = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="Only this one; may be given several times.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which batches fit into memory for N users at once.

    Each model is opened and each of its batch sizes is run once, here, and what that takes is measured. The plan gives
    every user the same part of what the process and the idle models leave, and holds whichever model each user is
    at; a tenth of the memory is kept in reserve. The exit code is 1 if a model does not fit.
    """
    given_bytes = bytes_of(memory) if memory is not None else None
    folder = settings_from(models=models).models
    from isocenter.cli import console
    from isocenter.cli.plan_measuring import measure, there_is
    from isocenter.engine.memory import plan as plan_for
    from isocenter.process import tune_process

    memory_bytes = given_bytes if given_bytes is not None else there_is()
    if memory_bytes is None:
        raise Hopeless("this system does not say how much memory there is", hint="--memory 24GiB")
    tune_process()
    with _progress() as tell:
        base_bytes, costs = measure(folder, names=model or [], tell=tell)
    found = plan_for(costs, users=users, memory_bytes=memory_bytes, base_bytes=base_bytes)
    if as_json:
        console.write_json(as_json_value(found, costs))
    else:
        _show(found)
    if not found.fits:
        raise typer.Exit(Exit.NOT_ALL)


@contextmanager
def _progress() -> "Iterator[Callable[[str], None]]":
    """What is being measured, on stderr, if somebody watches."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from isocenter.cli.console import err

    with err().status("looking for models") as status:
        yield lambda what: status.update(f"measuring {what}")


def as_json_value(found: "MemoryPlan", costs: "list[ModelCost]") -> dict[str, Any]:
    """The plan for programs; every amount in bytes."""
    return {
        "users": found.users,
        "memory_bytes": found.memory_bytes,
        "reserve_bytes": found.reserve_bytes,
        "base_bytes": found.base_bytes,
        "resident_bytes": found.resident_bytes,
        "total_bytes": found.total_bytes,
        "headroom_bytes": found.headroom_bytes,
        "mixed_bytes": found.mixed_bytes,
        "fits": found.fits,
        "models": [
            {
                "name": each.name,
                "version": each.version,
                "fits": each.fits,
                "problem": each.problem,
                "instances": cost.instances,
                "session_bytes": cost.footprint.session_bytes,
                "peak_bytes": {str(size): peak for size, peak in cost.footprint.peak_bytes_by_size.items()},
                "batch_per_user": each.batch_per_user,
                "bytes_per_user": each.bytes_per_user,
                "total_bytes": each.total_bytes,
                "headroom_bytes": each.headroom_bytes,
                "mixed_users": users,
            }
            for each, cost, users in zip(found.models, costs, found.mixed_users, strict=True)
        ],
    }


def _show(found: "MemoryPlan") -> None:
    from rich.text import Text

    from isocenter.cli import console
    from isocenter.engine.memory import bytes_in_words as words

    figures = ("batch per user", "memory per user", "idle", "total", "headroom")
    rows = console.table("model", "version", *figures, "", right=("version", *figures), fold=("",))
    for each in found.models:
        rows.add_row(
            Text(each.name, style="bold"),
            str(each.version),
            str(each.batch_per_user),
            words(each.bytes_per_user),
            words(each.resident_bytes),
            words(each.total_bytes),
            words(each.headroom_bytes, up=False),
            Text("fits", style="green") if each.fits else Text(each.problem, style="red"),
        )
    stdout = console.out()
    stdout.print(rows)
    said = (
        f"{found.users} at once in {words(found.memory_bytes, up=False)}, of which {words(found.reserve_bytes)} are "
        f"kept in reserve: the process {words(found.base_bytes)}, idle models {words(found.resident_bytes)}, at most "
        f"{words(found.total_bytes)} in all"
    )
    stdout.print(Text(said), soft_wrap=True)
    if len(found.models) > 1:
        stdout.print(Text(mixed_in_words(found)), soft_wrap=True)


def mixed_in_words(found: "MemoryPlan") -> str:
    """What is held if the users are at different models."""
    from isocenter.engine.memory import bytes_in_words as words

    at = [f"{users} at {each.name} {each.version}" for each, users in zip(found.models, found.mixed_users, strict=True)]
    left = found.memory_bytes - found.reserve_bytes - found.mixed_bytes
    return f"mixed, {', '.join(at)}: {words(found.mixed_bytes)} in all, headroom {words(left, up=False)}"
