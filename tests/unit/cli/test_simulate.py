"""`isocenter simulate`: a load that ends, told in figures that add up."""

import json

import pytest
from typer.testing import CliRunner

from isocenter.cli import main
from isocenter.cli.errors import Exit

RUN = CliRunner()
CURVE = ["simulate", "--curve", "1:10,4:16"]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(["--rate", "inf"], id="a rate without end"),
        pytest.param(["--rate", "nan"], id="a rate that is no number"),
        pytest.param(["--seconds", "inf"], id="a time without end"),
        pytest.param(["--rate", "1000", "--seconds", "1000000"], id="more requests than anybody waits for"),
        pytest.param(["--clients", "1000000000"], id="more clients than anybody waits for"),
        pytest.param(["--clients", "4", "--seconds", "1000000000"], id="a closed loop for 30 years"),
    ],
)
def test_what_would_not_end_is_refused_at_once(line: list[str]) -> None:
    result = RUN.invoke(main.app, [*CURVE, *line])

    assert result.exit_code == Exit.WRONG
    assert result.stdout == ""


@pytest.mark.parametrize("load", [["--clients", "4"], ["--rate", "50"], ["--rate", "500"]])
def test_every_request_is_answered_or_refused(load: list[str]) -> None:
    result = RUN.invoke(main.app, [*CURVE, *load, "--seconds", "2", "--spread", "0", "--json"])
    told = json.loads(result.stdout)

    assert told["ceiling_per_s"] == 250
    [facts] = told["loads"]
    assert facts["offered"] == facts["answered"] + facts["shed"] > 0
    assert facts["goodput_per_s"] <= 250
