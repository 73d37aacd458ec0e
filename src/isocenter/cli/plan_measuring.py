"""The figures behind `isocenter plan`: each model opened and run by itself, in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path

from isocenter.cli.errors import Hopeless
from isocenter.core.errors import UnknownModel
from isocenter.engine.memory import Footprint, ModelCost
from isocenter.measure.memory import ProcessMemory, free_memory, memory_left
from isocenter.repository import integrity
from isocenter.repository.footprint import Measuring, meter_for
from isocenter.repository.golden import pipeline_of
from isocenter.repository.layout import ModelFolder, scan
from isocenter.repository.load import typical_item, warm_up_sizes
from isocenter.repository.sessions import open_sessions


def there_is() -> int | None:
    """All that this process may hold: the machine's memory or its container's; None where the system does not say."""
    return min((bound.total_bytes for bound in memory_left()), default=None)


def measure(models: Path, *, names: Sequence[str], tell: Callable[[str], None]) -> tuple[int, list[ModelCost]]:
    """What the process holds without a model, and what each version costs.

    Args:
        models: the repository.
        names: of the models that are meant; none: all.
        tell: called with each version before it is measured.

    Raises:
        SetupError: a model cannot be opened, or is not the one that its manifest names.
        UnknownModel: a name is not in the repository.
        Hopeless: this system, or the device, does not say what is held.
    """
    folders = chosen(scan(models), names)
    for folder in folders:
        integrity.check_digest(folder)
    first_of_kind = {folder.manifest.runtime_kind: folder for folder in reversed(folders)}
    for folder in first_of_kind.values():
        _rehearse(folder)
    free_memory()
    base_bytes = ProcessMemory().held_bytes()
    if base_bytes is None:
        raise Hopeless("this system does not say what a process holds", hint="isocenter plan on Linux")
    return base_bytes, [_cost(folder, tell) for folder in folders]


def chosen(folders: list[ModelFolder], names: Sequence[str]) -> list[ModelFolder]:
    """Every version of the models that are named; without names, of all."""
    there = {folder.manifest.name for folder in folders}
    for name in names:
        if name not in there:
            raise UnknownModel(f"no model is called {name[:64]!r}; there are {sorted(there)}")
    return [folder for folder in folders if not names or folder.manifest.name in names]


def _rehearse(folder: ModelFolder) -> None:
    """Open it and let go: what a runtime takes once, for all of its sessions, is the process's."""
    for session in open_sessions(folder):
        session.close()


def _cost(folder: ModelFolder, tell: Callable[[str], None]) -> ModelCost:
    manifest = folder.manifest
    tell(f"{manifest.name} {manifest.version}")
    found = _footprint(folder)
    if found is None:
        raise Hopeless(
            f"what {manifest.name} {manifest.version} holds on {manifest.instances.device} cannot be measured",
            hint="--model with one that runs on the CPU",
        )
    return ModelCost(manifest.name, manifest.version, manifest.instances.count, found)


def _footprint(folder: ModelFolder) -> Footprint | None:
    manifest = folder.manifest
    measuring = Measuring(meter_for(manifest.instances.device))
    cases, pipeline = integrity.golden_cases(folder)[:1], pipeline_of(manifest)
    sessions = measuring.open(lambda: open_sessions(folder))
    try:
        item = typical_item(manifest, integrity.golden_items(cases, pipeline, sessions[0]))
        return measuring.run(sessions[0], item, warm_up_sizes(manifest))
    finally:
        for session in sessions:
            session.close()
