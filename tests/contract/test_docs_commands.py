"""The README and the manual do what they say: commands are run, answers have the shape that is shown.

Blocks of a page run from top to bottom in one folder, with this interpreter's environment as `.venv` and first on PATH.

- bash: run by bash, and must end with 0 (`EXIT_CODES` names the exceptions). Port 8000 is replaced by a free one. A
  server's refusal must be shown in the block that follows.
  `isocenter serve` stays up until the page ends, and is then stopped by Ctrl-C, which must end it with 0.
  `make TARGET` must be a target of the Makefile. Only `make demo` runs, as the script that it stands for; the other
  targets would run these tests again, or minutes of work.
- console: the same for the lines after `$`; the others were in the output, numbers and spaces aside; `…` is anything.
- json: the standard output of the bash block before it ends with an object of these keys and types, and these codes.
- yaml: keys of a manifest, which it must leave valid.
- python: run, and must end with 0; the port is replaced there as well.
- text: drawings; not checked.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import yaml

from conftest import MODELS, ROOT
from isocenter.repository.manifest import Manifest
from patience import PATIENCE_S

pytestmark = [
    pytest.mark.docs,
    pytest.mark.skipif(shutil.which("curl") is None, reason="the manual's commands need curl on PATH"),
]

NOT_RUN: dict[str, str] = {}
"""First line of a block -> why it is not run."""
EXIT_CODES = {"isocenter predict demo-out/slices --url": 1}
"""Start of a block -> how it ends: there, one file is broken on purpose."""
EXACT = {"code", "model", "version", "status", "state", "task"}
"""Keys whose values are shown as they are."""


class Block(NamedTuple):
    """One fenced block."""

    line: int
    language: str
    text: str


END = Block(0, "", "")


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    found: list[Block] = []
    language, start, lines = None, 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.fullmatch(r"\s*```(\w*)", line)
        if not fence:
            lines.append(line)
        elif language is None:
            language, start, lines = fence[1], number, []
        else:
            found.append(Block(start, language, "\n".join(lines)))
            language = None
    assert language is None, f"{page.name}:{start}: a block without an end"
    return found


PAGES = {
    str(page.relative_to(ROOT)): blocks
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if (blocks := blocks_of(page))
}


@dataclass(frozen=True, slots=True)
class Demo:
    """What `make demo` left behind."""

    folder: Path
    output: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demonstration, run once for all pages."""
    folder = lay_out(tmp_path_factory.mktemp("demo"))
    done = run([sys.executable, "examples/demo.py"], folder, {})
    assert done.returncode == 0, done.stdout + done.stderr
    return Demo(folder, done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_does_what_it_says(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    reader = Reader(lay_out(tmp_path), request)
    try:
        for block, following in pairwise((*PAGES[name], END)):
            try:
                reader.follow(block, following)
            except (AssertionError, subprocess.TimeoutExpired, ValueError) as failure:
                pytest.fail(f"{name}:{block.line}: {failure}", pytrace=False)
    finally:
        reader.put_down()


def test_the_readme_and_the_tutorial_hold_commands_answers_and_manifests() -> None:
    languages = {block.language for name in ("README.md", "docs/tutorial/first-prediction.md") for block in PAGES[name]}
    assert {"bash", "json", "yaml"} <= languages


def test_reasons_for_not_running_belong_to_blocks() -> None:
    first_lines = {block.text.partition("\n")[0] for blocks in PAGES.values() for block in blocks}
    assert set(NOT_RUN) <= first_lines
    assert all(NOT_RUN.values())


@pytest.mark.parametrize(
    ("shown", "real", "place"),
    [
        ({"a": 1}, {}, "$"),
        ({}, {"a": 1}, "$"),
        ({"a": 1}, {"a": "1"}, "$.a"),
        ({"a": True}, {"a": 1}, "$.a"),
        ({"a": [{"code": "x"}]}, {"a": [{"code": "y"}]}, "$.a[0].code"),
        ({"a": []}, {"a": [1]}, "$.a"),
    ],
    ids=["missing", "new", "type", "not a number", "code", "length"],
)
def test_another_shape_is_noticed(shown: Any, real: Any, place: str) -> None:
    assert [each.partition(":")[0] for each in differences(shown, real)] == [place]


def test_other_numbers_are_the_same_shape() -> None:
    assert differences({"a": 1.5, "b": ["x"]}, {"a": 2, "b": ["y"]}) == []


class Reader:
    """Someone who types what a page says."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self._folder = folder
        self._request = request
        self._port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._log = folder / "server.log"
        self._output: str | None = None
        """Of the bash block just before; None if that was another kind of block."""

    def follow(self, block: Block, following: Block) -> None:
        """Do what one block says, or hold it against what was done."""
        if block.text.partition("\n")[0] in NOT_RUN:
            return
        before, self._output = self._output, None
        match block.language:
            case "bash":
                self._output = self._type(block.text)
                as_shown = following.language == "json" and '"error":' in following.text
                assert as_shown or '"error":' not in self._output, f"refused, and not shown as such: {self._output}"
            case "json":
                assert before is not None, "json shows the output of a bash block before it"
                found = differences(json.loads(block.text), json.loads(before[before.index("{") :]))
                assert not found, "\n".join(found)
            case "console":
                commands = [line for line in block.text.splitlines() if line.startswith("$ ")]
                shown = [line for line in block.text.splitlines() if not line.startswith("$ ")]
                output = self._type("\n".join(command[2:] for command in commands))
                missing = lines_missing(shown, output)
                assert not missing, f"not in the output: {missing}\n{output}"
            case "text":
                pass
            case "yaml":
                base = yaml.safe_load(next(MODELS.glob("*/*/model.yaml")).read_text(encoding="utf-8"))
                said = yaml.safe_load(block.text)
                if said.get("task", base["task"]) != base["task"]:
                    del base["transforms"]
                Manifest.model_validate(base | said)
            case "python":
                done = run([sys.executable, "-c", self._as_typed(block.text)], self._folder, {})
                assert done.returncode == 0, done.stderr
            case other:
                raise AssertionError(f"a block of {other or 'no language'}: say which, so that it can be checked")

    def put_down(self) -> None:
        """Press Ctrl-C where a server runs."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGINT)
        try:
            code = self._server.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
            raise
        assert code == 0, f"the server ended with {code}\n{self._log.read_text()}"

    def _type(self, text: str) -> str:
        script, output = list[str](), ""
        for line in text.splitlines():
            command = line.partition(" #")[0].strip()
            if command.startswith("make "):
                output += self._make(command.removeprefix("make ").strip())
            elif command.startswith("isocenter serve"):
                self._serve(command)
            else:
                script.append(self._as_typed(line))
        if any(line.strip() and not line.lstrip().startswith("#") for line in script):
            done = run(["bash", "-euo", "pipefail", "-c", "\n".join(script)], self._folder, self._environment)
            wanted = next((code for start, code in EXIT_CODES.items() if text.startswith(start)), 0)
            assert done.returncode == wanted, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
            output += done.stdout
        return output

    def _as_typed(self, text: str) -> str:
        """At the port that is free, by someone who waits as long as it takes."""
        patient = re.sub(r"\b(timeout(?:_s)?=)[\d.]+", rf"\g<1>{PATIENCE_S}", text)
        patient = re.sub(r"(X-Timeout-Ms: )\d+", rf"\g<1>{1e3 * PATIENCE_S:.0f}", patient)
        return patient.replace(":8000", f":{self._port}")

    def _make(self, target: str) -> str:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        recipe = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)
        assert recipe, f"the Makefile has no target {target}"
        if target != "demo":
            return ""
        assert "examples/demo.py" in recipe[1]
        demo = cast(Demo, self._request.getfixturevalue("demo"))
        shutil.copytree(demo.folder / "demo-out", self._folder / "demo-out", dirs_exist_ok=True)
        return demo.output

    def _serve(self, command: str) -> None:
        assert self._server is None, "a second server on one page"
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                command.split(), cwd=self._folder, env=environment(self._environment), stdout=log, stderr=log
            )
        until_s = time.monotonic() + PATIENCE_S
        while not re.search(r"^Serving .* at http://", self._log.read_text(), re.MULTILINE):
            assert self._server.poll() is None, self._log.read_text()
            assert time.monotonic() < until_s, "the server is not ready"
            time.sleep(0.02)

    @property
    def _environment(self) -> dict[str, str]:
        return {"ISOCENTER_HTTP__PORT": str(self._port)}


def lay_out(folder: Path) -> Path:
    """What of a clone the commands touch. On a machine that others keep busy, the models wait as long as it takes."""
    (folder / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(ROOT / "models", folder / "models")
    for manifest in (folder / "models").glob("*/*/model.yaml"):
        text, count = re.subn(
            r"(?m)^  timeout_ms: \d+$", f"  timeout_ms: {1e3 * PATIENCE_S:.0f}", manifest.read_text("utf-8")
        )
        assert count == 1, manifest
        manifest.write_text(text, encoding="utf-8")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run(command: list[str], folder: Path, extra: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(extra), check=False, capture_output=True, text=True, timeout=PATIENCE_S
    )


def environment(extra: dict[str, str]) -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    return {**os.environ, **extra, "PATH": f"{scripts}:{os.environ['PATH']}", "no_proxy": "127.0.0.1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def differences(shown: Any, real: Any, at: str = "$") -> list[str]:
    """Where keys, types, or lengths of lists differ."""
    if type_of(shown) != type_of(real):
        return [f"{at}: {type_of(shown)} is shown, the answer has {type_of(real)}"]
    if isinstance(shown, dict):
        odd = sorted(shown.keys() ^ real.keys())
        if odd:
            return [f"{at}: only on one side: {odd}"]
        return list(chained(differences(shown[key], real[key], f"{at}.{key}") for key in shown))
    if isinstance(shown, list):
        if len(shown) != len(real):
            return [f"{at}: {len(shown)} are shown, the answer has {len(real)}"]
        return list(chained(differences(*pair, f"{at}[{n}]") for n, pair in enumerate(zip(shown, real, strict=True))))
    if at.rpartition(".")[2] in EXACT and shown != real:
        return [f"{at}: {shown!r} is shown, the answer has {real!r}"]
    return []


def chained(lists: Iterator[list[str]]) -> Iterator[str]:
    for each in lists:
        yield from each


def type_of(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def lines_missing(shown: list[str], real: str) -> list[str]:
    """The lines that are shown and were not there."""
    there = {plain(line) for line in real.splitlines()}
    return [line for line in shown if line.strip() not in ("", "…") and plain(line) not in there]


def plain(line: str) -> str:
    return " ".join(re.sub(r"\d+(\.\d+)?", "#", line).split())
