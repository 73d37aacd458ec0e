"""`isocenter models`: what is in a repository."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from isocenter.cli.errors import Exit
from isocenter.cli.options import AsJson, ModelsFolder, settings_from

if TYPE_CHECKING:
    from isocenter.repository.layout import ModelFolder


def models(folder: ModelsFolder = None, as_json: AsJson = False) -> None:
    """List what is in a model repository.

    One version with a problem does not hide the others; then the exit code is 1. Only manifests are read:
    `isocenter check MODEL` proves a version.
    """
    from isocenter.cli import console

    found = list_versions(settings_from(models=folder).models)
    if as_json:
        console.write_json(found)
    else:
        rows = console.table(
            "name", "version", "task", "labels", "runtime", "precision", "size", "state",
            right=("version", "size"), fold=("labels", "state"),
        )  # fmt: skip
        for each in found:
            rows.add_row(*_row(each))
        console.out().print(rows)
    if any(each["problem"] for each in found):
        raise typer.Exit(Exit.NOT_ALL)


def list_versions(models: Path) -> list[dict[str, Any]]:
    """What each version says of itself, or what is wrong with it.

    Raises:
        BadManifest: there is no such folder, or nothing in it.
    """
    from isocenter.core.errors import BadManifest, IsocenterError
    from isocenter.repository import layout

    if not models.is_dir():
        raise BadManifest(f"no model repository at {models}: not a folder")
    found: list[dict[str, Any]] = []
    for name in sorted(path.name for path in models.iterdir() if path.is_dir() and not path.name.startswith(".")):
        versions = sorted(int(path.name) for path in (models / name).iterdir() if _is_version(path))
        for version in versions or (None,):
            try:
                found.append(_facts(layout.find(models, name, version)))
            except IsocenterError as error:
                found.append({"name": name, "version": version, "problem": error.message})
    if not found:
        raise BadManifest(f"no model in {models}: expected {models}/<name>/<version>/model.yaml")
    return found


def _is_version(path: Path) -> bool:
    return path.is_dir() and path.name.isascii() and path.name.isdecimal()


def _facts(folder: "ModelFolder") -> dict[str, Any]:
    manifest = folder.manifest
    there = folder.weights.is_file()
    remote = manifest.runtime.url is not None
    return {
        "name": manifest.name,
        "version": manifest.version,
        "title": manifest.title,
        "task": manifest.task,
        "labels": list(manifest.output.labels),
        "runtime": manifest.runtime_kind,
        "precision": manifest.runtime.precision,
        "file": manifest.runtime.file,
        "bytes": folder.weights.stat().st_size if there else None,
        "problem": "" if there or remote else f"no file {manifest.runtime.file}",
    }


def _row(each: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    state = Text(each["problem"], style="red") if each["problem"] else Text("ok", style="green")
    size = each.get("bytes")
    return [
        Text(each["name"], style="bold"),
        str(each["version"] or ""),
        each.get("task", ""),
        Text(", ".join(each.get("labels", []))),
        each.get("runtime", ""),
        each.get("precision", ""),
        f"{size / 1e6:.1f} MB" if size else "",
        state,
    ]
