"""How a command ends: an exit code, and if it went wrong one sentence with a way out."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isocenter import __version__
from isocenter.cli import main, models
from isocenter.cli.console import write_json
from isocenter.cli.errors import HINTS, Exit, Hopeless
from isocenter.core.errors import BadManifest, IsocenterError, SetupError

RUN = CliRunner()


def tree(root: type[IsocenterError]) -> Iterator[type[IsocenterError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from tree(kind)


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(models, "list_versions", fail)


def test_a_known_error_is_one_sentence_and_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(BadManifest("model.yaml: name: unknown key"), monkeypatch)
    result = RUN.invoke(main.app, ["models"])
    assert result.exit_code == Exit.WRONG
    assert result.stderr.splitlines() == [
        "error: model.yaml: name: unknown key",
        f"→ try: {HINTS['bad_manifest']}",
    ]
    assert result.stdout == ""


def test_an_unexpected_error_is_a_bug_and_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(ZeroDivisionError("division by zero\nand more"), monkeypatch)
    result = RUN.invoke(main.app, ["models"])
    assert result.exit_code == Exit.BUG
    assert result.stderr.splitlines() == [
        "error: unexpected ZeroDivisionError: division by zero; this is a bug",
        "→ try: the same command with --debug for the trace",
    ]


def test_what_the_system_refuses_is_no_bug() -> None:
    result = RUN.invoke(main.app, ["segment", "x" * 5000])
    assert result.exit_code == Exit.WRONG
    assert result.stderr.startswith(f"error: {'x' * 5000}: File name too long")


def test_control_characters_in_a_message_do_not_reach_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(Hopeless("no folder \x1b[2Ja\u202eb"), monkeypatch)
    assert "error: no folder \\x1b[2Ja\\u202eb" in RUN.invoke(main.app, ["models"]).stderr


@pytest.mark.parametrize("line", [["--debug", "models"], ["models", "--debug"]], ids=["before", "after"])
def test_debug_holds_wherever_it_stands(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(ZeroDivisionError("division by zero"), monkeypatch)
    assert isinstance(RUN.invoke(main.app, line).exception, ZeroDivisionError)


def test_the_version_is_one_line_without_a_command() -> None:
    result = RUN.invoke(main.app, ["--version"])
    assert (result.exit_code, result.stdout) == (Exit.DONE, f"isocenter {__version__}\n")


def test_a_file_may_be_called_debug() -> None:
    result = RUN.invoke(main.app, ["predict", "--", "--debug"])
    assert "no such file or folder: --debug" in result.stderr


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    result = RUN.invoke(main.app, ["models"])
    assert (result.exit_code, result.output) == (Exit.INTERRUPTED, "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param(["nope"], "No such command 'nope'", id="command"),
        pytest.param(["predict"], "Missing argument", id="argument"),
        pytest.param(["serve", "--prot", "1"], "--prot", id="option"),
        pytest.param(["serve", "--port", "x"], "--port", id="value"),
    ],
)
def test_wrong_usage_is_said_and_points_to_the_help(line: list[str], said: str) -> None:
    result = RUN.invoke(main.app, line)
    assert result.exit_code == Exit.WRONG
    assert said in result.stderr
    assert "--help" in result.stderr.splitlines()[-1]


def test_markup_in_a_message_is_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(Hopeless("no file [bold]x[/bold]"), monkeypatch)
    assert "error: no file [bold]x[/bold]" in RUN.invoke(main.app, ["models"]).stderr


def test_a_setting_out_of_range_is_refused_before_anything_is_loaded() -> None:
    result = RUN.invoke(main.app, ["serve", "--port", "70000"])
    assert result.exit_code == Exit.WRONG
    assert "ISOCENTER_HTTP__PORT" in result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param(["--json", "--csv", "-"], "both want stdout", id="two on stdout"),
        pytest.param(["--url", "http://x", "--models", "m"], "--models has no meaning", id="url and models"),
        pytest.param(["--url", "http://x", "--version", "1"], "of which model", id="version of nothing"),
        pytest.param(["--csv", "nowhere/x.csv"], "there is no folder nowhere", id="csv"),
        pytest.param(["--contact-sheet", "nowhere/x.png"], "there is no folder nowhere", id="sheet"),
    ],
)
def test_predict_refuses_what_cannot_be_meant_before_any_work(line: list[str], said: str) -> None:
    result = RUN.invoke(main.app, ["predict", "x.png", *line])
    assert result.exit_code == Exit.WRONG
    assert said in result.stderr


def test_check_takes_a_version_once(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    result = RUN.invoke(main.app, ["check", str(tmp_path / "1"), "--version", "2"])
    assert result.exit_code == Exit.WRONG
    assert "is version 1 already" in result.stderr


def test_json_is_json_whatever_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"worst": float("inf"), "mean": float("nan")})
    assert json.loads(capsys.readouterr().out) == {"worst": None, "mean": None}


def test_json_holds_a_path_of_any_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"file": "a\udcff.png", "written": ["b\udcff.json", 3], "error": None})
    assert json.loads(capsys.readouterr().out) == {"file": "a?.png", "written": ["b?.json", 3], "error": None}


def test_every_setup_error_has_a_way_out() -> None:
    without = {kind.code for kind in tree(SetupError)} - HINTS.keys()
    assert without == set()


def test_every_hint_belongs_to_an_error() -> None:
    assert HINTS.keys() <= {kind.code for kind in tree(IsocenterError)}


def test_help_waits_for_nothing_heavy() -> None:
    heavy = {"numpy", "cv2", "onnxruntime", "fastapi", "uvicorn", "pydantic", "PIL", "yaml", "asyncio"}
    code = "import sys, isocenter.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert heavy & set(loaded) == set()


def test_blas_gets_one_thread_unless_somebody_says_otherwise() -> None:
    code = "import os, isocenter.cli.main; print(os.environ['OPENBLAS_NUM_THREADS'], os.environ['OMP_NUM_THREADS'])"
    environment = {"OMP_NUM_THREADS": "3"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == ["1", "3"]
