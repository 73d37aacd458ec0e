"""The models that are served, and which of them a request means."""

import numbers
from collections.abc import Iterable, Iterator

from isocenter.core.errors import BadRequest, UnknownModel, UnknownVersion
from isocenter.engine.lifecycle import State
from isocenter.repository.load import ServedModel


class Repository:
    """Served models by name and version. If a request names no version, the highest one answers."""

    def __init__(self, *, default_model: str | None = None) -> None:
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._default_model = default_model

    @property
    def default_model(self) -> str | None:
        """The name that is meant where none is given, if one was set."""
        return self._default_model

    def add(self, model: ServedModel) -> None:
        """Take in one loaded version, in place of one with the same number."""
        self._models.setdefault(model.name, {})[model.version] = model

    def remove(self, name: str, version: int) -> None:
        """Let one version go. Those who resolved it before keep it."""
        versions = self._models.get(name, {})
        versions.pop(version, None)
        if not versions:
            self._models.pop(name, None)

    def replace(self, models: Iterable[ServedModel]) -> None:
        """Serve these and no others, from one moment to the next."""
        found: dict[str, dict[int, ServedModel]] = {}
        for model in models:
            found.setdefault(model.name, {})[model.version] = model
        self._models = found

    def __iter__(self) -> Iterator[ServedModel]:
        # Of a copy: somebody may reload while somebody else reads.
        return iter([model for versions in self._models.values() for model in versions.values()])

    def versions(self, name: str) -> list[ServedModel]:
        """Every version of one model, lowest first.

        Raises:
            UnknownModel: nothing here has that name.
        """
        versions = self._models.get(name)
        if not versions:
            raise UnknownModel(
                f"no model is called {name[:64]!r}; there are {sorted(self._models)}",
                details={"models": sorted(self._models)},
            )
        return [versions[number] for number in sorted(versions)]

    def resolve(self, name: str | None = None, version: int | None = None, *, task: str | None = None) -> ServedModel:
        """The version that answers. Where none is named and there is no default, the only model of the task is meant.

        Raises:
            BadRequest: no model is named and several are here: which one is meant is never guessed. Or what is named
                is no name, or no number.
            UnknownModel, UnknownVersion: what is named is not here.
        """
        if name is None:
            name = self._default_model or self._only_model(task)
        _refuse_misnamed(name, version)
        versions = self.versions(name)
        if version is None:
            return versions[-1]
        for model in versions:
            if model.version == version:
                return model
        there = [model.version for model in versions]
        raise UnknownVersion(f"model {name} has no version {version}; there are {there}", details={"versions": there})

    @property
    def ready(self) -> bool:
        """Whether there are models and each of them takes requests."""
        models = list(self)
        return bool(models) and all(model.engine.state is State.READY for model in models)

    def _only_model(self, task: str | None) -> str:
        if len(self._models) == 1:
            return next(iter(self._models))
        fitting = {model.name for model in self if model.manifest.task == task}
        if len(fitting) == 1:
            return fitting.pop()
        names = sorted(self._models)
        raise BadRequest(f"several models are served: name one with ?model=, of {names}", details={"models": names})


def _refuse_misnamed(name: object, version: object) -> None:
    if not isinstance(name, str):
        raise BadRequest(f"model is {type(name).__name__}; it must be a name, as text")
    if version is not None and not isinstance(version, numbers.Real):
        raise BadRequest(f"version is {type(version).__name__}; it must be a whole number")
