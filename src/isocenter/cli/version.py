"""`isocenter version`, and `isocenter --version`."""

import platform

import typer

from isocenter import __version__
from isocenter.cli.options import AsJson


def version(as_json: AsJson = False) -> None:
    """Say which version this is, and what it stands on."""
    from isocenter.cli import console
    from isocenter.runtimes.registry import installed_version

    facts = {
        "isocenter": __version__,
        "python": platform.python_version(),
        "numpy": installed_version("numpy"),
        "onnxruntime": installed_version("onnxruntime") or installed_version("onnxruntime-gpu"),
        "platform": platform.platform(),
    }
    if as_json:
        console.write_json(facts)
        return
    for name, value in facts.items():
        console.out().print(f"{name:<12} {value or 'missing'}", soft_wrap=True, markup=False)


def say(asked: bool) -> None:
    """Say the version alone, if it is asked for, and end."""
    from isocenter.cli import console

    if asked:
        console.out().print(f"isocenter {__version__}", markup=False)
        raise typer.Exit
