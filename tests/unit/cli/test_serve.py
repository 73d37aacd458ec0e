"""`isocenter serve`: what was given reaches the server, and the shell learns how it ended."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import isocenter.app
import isocenter.supervisor.supervise
from isocenter.cli import main
from isocenter.settings import Settings

RUN = CliRunner()


def serve(monkeypatch: pytest.MonkeyPatch, *line: str, whole: bool = True, models: int = 1) -> tuple[Result, Settings]:
    seen: list[Settings] = []

    async def instead(settings: Settings, *, announce: Callable[[str, int], None]) -> bool:
        seen.append(settings)
        announce("http://127.0.0.1:4321", models)
        return whole

    monkeypatch.setattr(isocenter.app, "serve", instead)
    result = RUN.invoke(main.app, ["serve", *line])
    return result, seen[0]


def test_front_ends_are_the_supervisors_business(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    async def instead(settings: Settings, *, announce: Callable[[str, int], None]) -> bool:
        seen.append(settings.frontends)
        announce("http://127.0.0.1:4321", 2)
        return False

    monkeypatch.setattr(isocenter.supervisor.supervise, "serve", instead)
    result = RUN.invoke(main.app, ["serve", "--frontends", "3"])
    assert seen == [3]
    assert result.exit_code == 1
    assert result.stderr == "Serving 2 models at http://127.0.0.1:4321 - POST /predict, docs at /docs\n"


@pytest.mark.parametrize(("whole", "code"), [(True, 0), (False, 1)], ids=["all answered", "some left"])
def test_the_exit_code_says_whether_everybody_was_answered(
    whole: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = serve(monkeypatch, whole=whole)
    assert result.exit_code == code


@pytest.mark.parametrize(("models", "words"), [(1, "1 model"), (3, "3 models")])
def test_the_address_is_one_plain_line_on_stderr(models: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = serve(monkeypatch, models=models)
    assert result.stderr == f"Serving {words} at http://127.0.0.1:4321 - POST /predict, docs at /docs\n"
    assert result.stdout == ""


def test_what_is_given_wins_and_the_environment_fills_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_HTTP__PORT", "9001")
    monkeypatch.setenv("ISOCENTER_HTTP__HOST", "10.0.0.1")
    monkeypatch.setenv("ISOCENTER_LOG_LEVEL", "error")
    _, settings = serve(monkeypatch, "--host", "127.0.0.2", "--models", "elsewhere", "--log-level", "debug")
    assert (settings.http.host, settings.http.port) == ("127.0.0.2", 9001)
    assert (settings.models, settings.log_level) == (Path("elsewhere"), "debug")
