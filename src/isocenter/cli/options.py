"""Options that several commands share, and the settings they lead to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

if TYPE_CHECKING:
    from isocenter.settings import Settings

ModelsFolder: TypeAlias = Annotated[
    Path | None,
    typer.Option("--models", metavar="DIR", help="The model repository; else ISOCENTER_MODELS, else ./models."),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")]
Version: TypeAlias = Annotated[int | None, typer.Option("--version", metavar="N", help="The highest if not given.")]


def settings_from(**given: Any) -> "Settings":
    """The settings, with what was given on the command line; None means: not given."""
    from isocenter.settings import load_settings

    def only_given(values: dict[str, Any]) -> dict[str, Any]:
        kept = {name: only_given(value) if isinstance(value, dict) else value for name, value in values.items()}
        return {name: value for name, value in kept.items() if value not in (None, {})}

    return load_settings(**only_given(given))
