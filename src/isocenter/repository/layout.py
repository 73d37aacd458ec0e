"""Where things stand in a model repository: `<models>/<name>/<version>/model.yaml`."""

from dataclasses import dataclass
from pathlib import Path

from isocenter.core.errors import BadManifest, UnknownModel, UnknownVersion
from isocenter.repository.manifest import MODEL_NAME, Manifest, read_manifest


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One version of one model on disk."""

    path: Path
    manifest: Manifest

    @property
    def weights(self) -> Path:
        """The file that the runtime opens; the folder itself where the weights are another server's."""
        return self.path / (self.manifest.runtime.file or "")

    @property
    def golden(self) -> Path:
        """The folder of golden cases."""
        return self.path / "golden"


def scan(models: Path) -> list[ModelFolder]:
    """Every version of every model, by name, then version.

    Raises:
        BadManifest: no such folder, no model in it, or a manifest that is wrong or stands in the wrong place.
    """
    if not models.is_dir():
        raise BadManifest(f"no model repository at {models}: not a folder")
    found = [
        _open(version)
        for name in sorted(models.iterdir())
        if name.is_dir() and not name.name.startswith(".")
        for version in sorted(_versions(name), key=lambda folder: int(folder.name))
    ]
    if not found:
        raise BadManifest(f"no model in {models}: expected {models}/<name>/<version>/model.yaml")
    return found


def find(models: Path, name: str, version: int | None = None) -> ModelFolder:
    """One version of a model; the highest if none is named.

    Raises:
        UnknownModel, UnknownVersion: it is not there.
        BadManifest: it is there, and wrong.
    """
    folder = models / name
    if not MODEL_NAME.fullmatch(name) or not folder.is_dir():
        known = sorted(path.name for path in models.iterdir() if path.is_dir()) if models.is_dir() else []
        raise UnknownModel(f"no model is called {name!r} in {models}; there are {known}")
    versions = {int(path.name): path for path in _versions(folder)}
    if not versions:
        raise BadManifest(f"no version in {folder}: expected {folder}/<version>/model.yaml")
    wanted = max(versions) if version is None else version
    if wanted not in versions:
        raise UnknownVersion(f"model {name} has no version {wanted}; there are {sorted(versions)}")
    return _open(versions[wanted])


def versions_of(models: Path, name: str) -> dict[int, ModelFolder | BadManifest]:
    """Every version of one model by its number, or what is wrong with it; nothing if there is no such folder."""
    folder = models / name
    if not MODEL_NAME.fullmatch(name) or not folder.is_dir():
        return {}
    found: dict[int, ModelFolder | BadManifest] = {}
    for version in sorted(_versions(folder), key=lambda path: int(path.name)):
        try:
            found[int(version.name)] = _open(version)
        except BadManifest as error:
            found[int(version.name)] = error
    return found


def names(models: Path) -> list[str]:
    """The names of all models that have a folder."""
    if not models.is_dir():
        return []
    return sorted(path.name for path in models.iterdir() if path.is_dir() and MODEL_NAME.fullmatch(path.name))


def _versions(model: Path) -> list[Path]:
    return [path for path in model.iterdir() if path.is_dir() and path.name.isdecimal() and path.name.isascii()]


def _open(folder: Path) -> ModelFolder:
    manifest = read_manifest(folder / "model.yaml")
    if (manifest.name, str(manifest.version)) != (folder.parent.name, folder.name):
        raise BadManifest(
            f"{folder.parent.name}/{folder.name}/model.yaml says it is {manifest.name} version {manifest.version}"
        )
    return ModelFolder(folder, manifest)
