"""What a stranger sees first: versions that agree, packages that introduce themselves, nothing of our workshop."""

import ast
import importlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import isocenter
from conftest import ROOT

MAX_LINES = 420
BUILT = {".venv", ".git", "site", "demo-out", "build", "dist", "__pycache__"}
# Put together here, so that this file does not hold what it looks for.
FORBIDDEN = [
    *("".join(parts) for parts in (("/", "work/"), ("..", "/shared"), ("/", "root/"), ("/", "home/"))),
    *("".join(parts) for parts in (("py", "pi.org"), ("files.python", "hosted"), ("--index", "-url"))),
]


def project() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)["project"]
    return found


def files() -> list[Path]:
    """Everything that belongs to the project: what git has or would take, else what is not built."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        found = [ROOT / name for name in names if name]
    else:
        found = [file for file in ROOT.rglob("*") if not BUILT.intersection(file.relative_to(ROOT).parts)]
    return sorted(file for file in found if file.is_file())


def texts() -> list[tuple[str, str]]:
    """The text files among them, by name."""
    found = []
    for file in files():
        data = file.read_bytes()
        if b"\0" not in data[:8192]:
            found.append((str(file.relative_to(ROOT)), data.decode("utf-8", errors="replace")))
    return found


def modules() -> list[Path]:
    return sorted((ROOT / "src" / "isocenter").rglob("*.py"))


def test_what_is_exported_is_sorted_and_there() -> None:
    assert list(isocenter.__all__) == sorted(isocenter.__all__)
    assert [name for name in isocenter.__all__ if not hasattr(isocenter, name)] == []


def test_the_version_is_said_once_and_the_same() -> None:
    assert project()["version"] == isocenter.__version__


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[?([^\]\s]+)", text, re.MULTILINE)
    assert "Unreleased" in headings or isocenter.__version__ in headings


def test_files_that_are_named_are_there() -> None:
    for name in (project()["readme"], *project()["license-files"], "src/isocenter/py.typed", "Makefile", "mkdocs.yml"):
        assert (ROOT / name).is_file(), name


def test_the_command_is_there() -> None:
    module, _, name = project()["scripts"]["isocenter"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("words", FORBIDDEN)
def test_nothing_of_our_workshop_is_in_the_project(words: str) -> None:
    assert [name for name, text in texts() if words in text] == []


def test_there_is_something_to_look_through() -> None:
    names = {name for name, _ in texts()}
    assert {"README.md", "src/isocenter/app.py", "tests/contract/test_public_face.py"} <= names


def test_every_module_says_what_it_is_for() -> None:
    silent = [file for file in modules() if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))]
    assert [str(file.relative_to(ROOT)) for file in silent] == []


def test_every_package_has_an_init() -> None:
    folders = {file.parent for file in modules()}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_file_holds_two_stories() -> None:
    sources = ("src/", "docs/", "examples/", "benchmarks/")
    longest = {name: text.count("\n") for name, text in texts() if name.endswith(".py") and name.startswith(sources)}
    assert {name: lines for name, lines in longest.items() if lines > MAX_LINES} == {}
