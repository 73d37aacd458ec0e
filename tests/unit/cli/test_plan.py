"""`isocenter plan`: amounts as people write them, and a plan as it was measured."""

import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from conftest import MODELS
from isocenter.cli import main, plan_measuring
from isocenter.cli.plan import as_json_value, bytes_of, mixed_in_words
from isocenter.core.errors import UnknownModel
from isocenter.engine.memory import Footprint, ModelCost, plan
from isocenter.repository.layout import scan

RUN = CliRunner()
NAME = "brain-mri-classifier"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody says what a process holds")


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = RUN.invoke(main.app, ["plan", *map(str, arguments), "--models", str(MODELS)])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("text", "count"),
    [("24GiB", 24 * 2**30), ("24 gib", 24 * 2**30), ("1.5GB", 1_500_000_000), ("512MiB", 2**29), ("7", 7), ("7B", 7)],
)
def test_amounts_are_read_as_people_write_them(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "24GiX", "-1GiB", "0", "0.1B", "1,5GB", "nan", "9" * 400])
def test_what_is_no_amount_is_said(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no amount of memory"):
        bytes_of(text)


def test_json_holds_the_plan_and_what_was_measured() -> None:
    costs = [ModelCost("lungs", 3, 2, Footprint(100, {1: 10, 4: 40}))]
    value = as_json_value(plan(costs, users=5, memory_bytes=1000, base_bytes=50), costs)
    assert value == {
        "users": 5,
        "memory_bytes": 1000,
        "reserve_bytes": 100,
        "base_bytes": 50,
        "resident_bytes": 200,
        "total_bytes": 450,
        "headroom_bytes": 450,
        "mixed_bytes": 450,
        "fits": True,
        "models": [
            {
                "name": "lungs",
                "version": 3,
                "fits": True,
                "problem": "",
                "instances": 2,
                "session_bytes": 100,
                "peak_bytes": {"1": 10, "4": 40},
                "batch_per_user": 4,
                "bytes_per_user": 40,
                "total_bytes": 450,
                "headroom_bytes": 450,
                "mixed_users": 5,
            }
        ],
    }


def test_users_at_different_models_are_dealt_out_in_turn() -> None:
    costs = [ModelCost(name, 1, 1, Footprint(100, {1: peak})) for name, peak in (("hrnet", 10), ("unet", 50))]
    found = plan(costs, users=3, memory_bytes=1000, base_bytes=50)
    assert found.mixed_users == (2, 1)
    assert found.mixed_bytes == 50 + 2 * 100 + 2 * 10 + 50
    assert mixed_in_words(found) == "mixed, 2 at hrnet 1, 1 at unet 1: 1 MiB in all, headroom 0 MiB"


def test_only_models_that_are_named_are_measured() -> None:
    folders = scan(MODELS)
    assert plan_measuring.chosen(folders, []) == folders
    assert {folder.manifest.name for folder in plan_measuring.chosen(folders, [NAME])} == {NAME}
    with pytest.raises(UnknownModel, match="no model is called 'lungs'"):
        plan_measuring.chosen(folders, [NAME, "lungs"])


@pytest.mark.slow
@LINUX
def test_what_is_shipped_is_measured_and_planned() -> None:
    code, stdout, _ = invoke("--users", 4, "--memory", "64GiB", "--model", NAME, "--json")
    found = json.loads(stdout)
    (model,) = found["models"]
    assert (code, found["fits"], model["batch_per_user"]) == (0, True, 16)
    assert list(model["peak_bytes"]) == ["1", "2", "4", "8", "16"]
    assert 0 < model["peak_bytes"]["1"] <= model["peak_bytes"]["16"]
    assert model["peak_bytes"]["16"] > 16 * 3 * 224 * 224 * 4  # at least the pictures themselves
    assert found["total_bytes"] == found["base_bytes"] + found["resident_bytes"] + 4 * model["peak_bytes"]["16"]


@pytest.mark.slow
@LINUX
def test_what_does_not_fit_is_shown_and_ends_with_1() -> None:
    code, stdout, _ = invoke("--users", 1000, "--memory", "256MiB", "--model", NAME)
    assert code == 1
    assert "does not fit: needs" in stdout
    assert "has 256 MiB" in stdout


@pytest.mark.slow
@LINUX
def test_without_an_amount_the_machine_is_taken() -> None:
    _, stdout, _ = invoke("--users", 1, "--model", NAME, "--json")
    assert json.loads(stdout)["memory_bytes"] == plan_measuring.there_is()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--users", 1, "--memory", "much"), "'much' is no amount of memory"),
        (("--users", 1, "--memory", "1GiB", "--model", "lungs"), "no model is called 'lungs'"),
        (("--memory", "1GiB"), "--users"),
    ],
    ids=["amount", "name", "users"],
)
def test_what_cannot_be_planned_ends_with_2(arguments: tuple[object, ...], said: str) -> None:
    code, stdout, stderr = invoke(*arguments)
    assert (code, stdout) == (2, "")
    assert said in stderr


def test_a_system_that_says_nothing_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_measuring, "memory_left", list)
    assert plan_measuring.there_is() is None
    code, _, stderr = invoke("--users", 1)
    assert code == 2
    assert "does not say how much memory there is" in stderr
