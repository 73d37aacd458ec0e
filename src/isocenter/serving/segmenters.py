"""The models of a server that segment one kind of input, pictures or scans, and which of them a request means."""

from typing import Final

from isocenter.core.errors import BadInput, BadRequest, WrongTask
from isocenter.repository.load import ServedModel
from isocenter.repository.manifest import Manifest
from isocenter.repository.repository import Repository
from isocenter.serving.predict import refuse_other_task

_SEGMENTS: Final = {"image2d": "pictures", "volume3d": "volumes", "tensors": "tensors"}
_ASKED: Final = {"image2d": "images", "volume3d": "scans"}


class Segmenters:
    """The models of a repository that segment inputs of one kind."""

    def __init__(self, repository: Repository, kind: str, *, refuse_none: bool) -> None:
        """`refuse_none`: where no such model is served, say so; else the repository says which models there are."""
        self._repository = repository
        self._kind = kind
        self._refuse_none = refuse_none

    def served(self, model: str | None = None, version: int | None = None) -> ServedModel:
        """The version that answers.

        Raises:
            UnknownModel, UnknownVersion: what is named is not here.
            BadRequest: nothing is named, and several could be meant.
            WrongTask: it does not segment inputs of this kind.
        """
        served = self._repository.resolve(model if model is not None else self._usual(), version, task="segmentation")
        refuse_other_task(served, "segmentation")
        kind = served.manifest.input.kind
        if kind != self._kind:
            raise WrongTask(
                f"{served.name} {served.version} segments {_SEGMENTS[kind]} ({kind}); "
                f"this is the place for {_ASKED[self._kind]} ({self._kind})",
                details={"task": "segmentation", "kind": kind, "asked": self._kind},
            )
        return served

    def all(self) -> list[ServedModel]:
        """The version of every such model that answers where none is named."""
        names = dict.fromkeys(each.name for each in self._repository if segments(each.manifest, self._kind))
        highest = [self._repository.versions(name)[-1] for name in names]
        return [each for each in highest if segments(each.manifest, self._kind)]

    def meant_by(self, model: str | None, version: int | None) -> tuple[str, int]:
        """The name and version that a request means; an empty name and 0 if it means none that is served."""
        try:
            served = self._repository.resolve(model if model is not None else self._usual(), version)
        except BadInput:
            return "", 0
        return served.name, served.version

    def _usual(self) -> str | None:
        """The default model if it is one of them, else the only one."""
        names = [each.name for each in self.all()]
        if self._repository.default_model in names:
            return self._repository.default_model
        asked = _ASKED[self._kind]
        if len(names) > 1:
            raise BadRequest(
                f"several models segment {asked}: name one, of {sorted(names)}", details={"models": sorted(names)}
            )
        if not names and self._refuse_none:
            raise WrongTask(f"no model of this server segments {asked} ({self._kind})", details={"asked": self._kind})
        return names[0] if names else None


def segments(manifest: Manifest, kind: str) -> bool:
    """Whether a model segments inputs of this kind."""
    return manifest.task == "segmentation" and manifest.input.kind == kind
