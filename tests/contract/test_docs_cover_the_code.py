"""What the code has, the manual has: settings, codes, metrics, commands, keys, stages, warnings, log lines."""

import doctest
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

from conftest import ROOT
from isocenter.api.http.problems import HTTP_STATUS
from isocenter.cli import main
from isocenter.cli.errors import Exit
from isocenter.core import errors
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.transforms.fast import TOLERANCE
from isocenter.repository.manifest import Manifest
from isocenter.settings import Settings, known_variables
from isocenter.telemetry.metrics import METRICS
from patience import PATIENCE_S

DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "isocenter"

pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The module that writes the generated pages, as MkDocs loads it."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("hooks")
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def generated(hooks: ModuleType) -> dict[str, str]:
    pages: dict[str, str] = hooks.pages()
    return pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built manual: that of `make check` within `make test`, which says so, or one of its own.

    Not quiet: MkDocs counts as warnings only what it would have shown.
    """
    if built := os.environ.get("BUILT_MANUAL"):
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return folder


def rows(text: str) -> dict[str, list[str]]:
    """Table rows by what stands as code in their first cell."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[0].startswith("`"):
            found[cells[0].strip("`")] = cells[1:]
    return found


def written(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def in_source(pattern: str) -> set[str]:
    """Everything that a pattern catches in the source."""
    return {found for file in SOURCE.rglob("*.py") for found in re.findall(pattern, file.read_text(encoding="utf-8"))}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)
    for inner in get_args(annotation):
        yield from models_in(inner)


def codes_below(owner: type[errors.IsocenterError]) -> set[str]:
    """The codes of the leaves and branches below a class."""
    return {each.code for each in owner.__subclasses__()}.union(*map(codes_below, owner.__subclasses__()))


def test_every_setting_has_its_range_and_its_meaning(generated: dict[str, str]) -> None:
    there = rows(generated["reference/settings.md"])
    groups = {f"ISOCENTER_{name}".upper() for name, field in Settings.model_fields.items() if models(field.annotation)}
    assert set(there) == set(known_variables()) - groups
    assert [name for name, cells in there.items() if not all(cells)] == []


def models(annotation: Any) -> bool:
    return any(True for _ in models_in(annotation))


def test_every_code_has_its_status_and_its_meaning(generated: dict[str, str]) -> None:
    there = rows(generated["reference/errors.md"].partition("## The tree")[0])
    assert {code: cells[0] for code, cells in there.items()} == {c: str(s) for c, s in HTTP_STATUS.items()}
    assert [code for code, cells in there.items() if not cells[2]] == []
    assert codes_below(errors.IsocenterError) <= set(there)


def test_every_metric_has_its_labels_and_its_meaning(generated: dict[str, str]) -> None:
    there = rows(generated["reference/metrics.md"])
    assert set(METRICS) | in_source(r'LiveGauge\("(\w+)"') == set(there)
    for name, (_, _, labels) in METRICS.items():
        assert [label.strip(" `") for label in there[name][1].split(",")] == list(labels)
        assert there[name][2]


def test_every_command_and_option_is_there(generated: dict[str, str]) -> None:
    text = generated["reference/command-line.md"]
    root: Any = typer.main.get_command(main.app)
    assert set(root.commands) == set(re.findall(r"^## isocenter (\w+)$", text, re.MULTILINE))
    for name, command in root.commands.items():
        part = text.partition(f"## isocenter {name}\n")[2].partition("\n## ")[0]
        assert [
            option for each in command.params for option in each.opts if option[0] == "-" and option not in part
        ] == []


def test_every_key_of_a_manifest_is_there(generated: dict[str, str]) -> None:
    text = generated["reference/manifest.md"]
    for model in models_in(Manifest):
        for name, field in model.model_fields.items():
            assert f"| `{field.alias or name}` |" in text, f"{model.__name__}.{name}"


def test_every_section_of_a_manifest_is_told_about() -> None:
    text = written("concepts/model-package.md")
    sections = {name for name, field in Manifest.model_fields.items() if models(field.annotation)}
    headings = {word.strip(",:") for line in re.findall(r"^### (.*)$", text, re.MULTILINE) for word in line.split()}
    assert sections - headings == set()


def test_every_route_is_there(generated: dict[str, str]) -> None:
    described = set(re.findall(r"^## (?:GET|POST) (\S+)$", generated["reference/http.md"], re.MULTILINE))
    prefixes = in_source(r'APIRouter\(prefix="([^"]+)"')
    paths = in_source(r'@router\.(?:get|post)\("([^"]*)"')
    assert {path for path in paths if path and "{" not in path} | prefixes <= described
    assert all(any(each.endswith(path) for each in described) for path in paths)


def test_every_warning_is_explained() -> None:
    explained = set(re.findall(r"\| `(\w+)` \|$", written("input-images.md") + written("volumes.md"), re.MULTILINE))
    assert in_source(r'\bNote\(\s*"(\w+)"') == explained


def test_every_refusal_of_a_picture_is_explained() -> None:
    raised = {
        kind
        for file in (SOURCE / "imaging").rglob("*.py")
        for kind in re.findall(r"\b(?:raise|return) ([A-Z]\w+)\(", file.read_text(encoding="utf-8"))
    }
    kinds = [getattr(errors, kind) for kind in raised if hasattr(errors, kind)]
    assert kinds
    text = written("input-images.md") + written("volumes.md")
    assert {kind.code for kind in kinds} - set(re.findall(r"`(\w+)`", text)) == set()


def test_every_stage_is_explained() -> None:
    text = (SOURCE / "serving" / "predict.py").read_text()
    stages = re.findall(r'^\s+"(\w+)": .*_s\b', text[text.index("stages_s={") :], re.MULTILINE)
    assert len(stages) > 4
    assert {"receive", *stages} - set(rows(written("concepts/how-a-request-travels.md"))) == set()


def test_every_end_of_a_request_has_its_place() -> None:
    text = written("concepts/how-a-request-travels.md")
    ends = codes_below(errors.BadInput) | codes_below(errors.Refused) | codes_below(errors.ModelFault)
    assert (ends | {"deadline_exceeded", "internal"}) - set(re.findall(r"`(\w+)`", text)) == set()


def test_the_bound_of_the_fast_preprocessing_is_the_one_that_is_told() -> None:
    assert f"within `{TOLERANCE}` of" in written("concepts/preprocessing.md")


def test_the_limits_of_images_are_the_ones_that_are_told() -> None:
    limits, text = ImageLimits(), written("behaviour.md")
    assert f"| a side | {limits.max_side_px:,} px |" in text
    assert f"| bytes of all samples | {limits.max_decoded_bytes >> 20} MiB |" in text
    assert f"above {limits.expansion_from_bytes >> 20} MiB of samples | {limits.max_expansion} to 1 |" in text


def test_every_log_line_is_explained() -> None:
    events = in_source(r'logger\.(?:debug|info|warning|error|exception)\(\s*"(\w+)"')
    assert events - set(re.findall(r"`(\w+)`", written("behaviour.md"))) == set()


def test_every_exit_code_is_explained() -> None:
    text = written("behaviour.md")
    assert [int(each) for each in Exit if f"\n| {int(each)} | " not in text] == []


def test_every_page_is_in_the_nav_and_every_entry_is_a_page(generated: dict[str, str]) -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def entries(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from entries(inner)

    listed = list(entries(config["nav"]))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert sorted(listed) == sorted(pages | set(generated))


def test_every_decision_is_listed() -> None:
    listed = set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", written("decisions/index.md")))
    assert listed == {page.name for page in (DOCS / "decisions").glob("0*.md")}


def test_every_module_of_the_python_reference_exists(hooks: ModuleType) -> None:
    named = [f"isocenter.{package}.{module}" for package, modules in hooks.PYTHON.items() for module in modules]
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


def test_the_words_of_the_generated_pages_are_as_documented(hooks: ModuleType) -> None:
    assert hooks  # imported with its neighbour
    found = doctest.testmod(sys.modules["in_words"])
    assert found.attempted > 0
    assert found.failed == 0


def test_links_of_the_texts_beside_the_manual_resolve() -> None:
    links = [
        (page, target.partition("#")[0])
        for page in (*ROOT.glob("*.md"), *ROOT.glob("models/*/*/*.md"))
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if not target.startswith(("http://", "https://", "#"))
    ]
    assert links
    assert [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()] == []


def test_the_manual_builds_without_a_warning(site: Path) -> None:
    assert (site / "index.html").is_file()
    assert (site / "reference" / "python" / "engine.html").is_file()
    assert not list(site.rglob("*.py"))


def test_the_manual_asks_nobody_for_anything(site: Path) -> None:
    asked = {target for page in site.rglob("*.html") for target in Fetched.by(page) if "//" in target}
    sheets = [sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css")]
    assert asked == set()
    assert sheets
    assert [found for sheet in sheets for found in re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet)] == []


class Fetched(HTMLParser):
    """What a browser loads to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element's source."""
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.targets.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.targets.append(given.get("href") or "")

    @classmethod
    def by(cls, page: Path) -> list[str]:
        """All of one page."""
        parser = cls()
        parser.feed(page.read_text(encoding="utf-8"))
        return parser.targets
