"""Which model a request means that names none."""

from types import SimpleNamespace
from typing import Any

import pytest

from isocenter.core.errors import BadRequest
from isocenter.repository.repository import Repository


def served(name: str, task: str) -> Any:
    return SimpleNamespace(name=name, version=1, manifest=SimpleNamespace(task=task))


def repository(*models: Any, default_model: str | None = None) -> Repository:
    found = Repository(default_model=default_model)
    for model in models:
        found.add(model)
    return found


HEADS, LUNGS, NUCLEI = (
    served("heads", "classification"),
    served("lungs", "classification"),
    served("nuclei", "segmentation"),
)


def test_the_only_model_is_meant_whatever_is_asked_of_it() -> None:
    assert repository(NUCLEI).resolve(task="classification") is NUCLEI


@pytest.mark.parametrize(("task", "meant"), [("classification", HEADS), ("segmentation", NUCLEI)])
def test_of_several_the_only_one_of_the_task_is_meant(task: str, meant: Any) -> None:
    assert repository(HEADS, NUCLEI).resolve(task=task) is meant


@pytest.mark.parametrize("task", ["classification", "tensors", None])
def test_which_of_several_is_meant_is_never_guessed(task: str | None) -> None:
    with pytest.raises(BadRequest, match="several models are served"):
        repository(HEADS, LUNGS, NUCLEI).resolve(task=task)


@pytest.mark.parametrize("name", [5, [1], b"heads", {}], ids=repr)
def test_a_name_is_a_text(name: Any) -> None:
    with pytest.raises(BadRequest, match="must be a name"):
        repository(HEADS).resolve(name)


@pytest.mark.parametrize("version", ["1", [1], 1j], ids=repr)
def test_a_version_is_a_number(version: Any) -> None:
    with pytest.raises(BadRequest, match="must be a whole number"):
        repository(HEADS).resolve("heads", version)


def test_a_default_stands_before_the_task() -> None:
    assert repository(HEADS, LUNGS, NUCLEI, default_model="lungs").resolve(task="segmentation") is LUNGS
