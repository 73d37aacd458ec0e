"""Tests for which a machine has no time left are left out, and counted at the end.

`make test TEST_MINUTES=70` says so in TESTS_END_AT, in seconds since 1970. Unit tests that are not slow always run, and
everything does where no end is given.
"""

import os
import time
from collections import Counter

import pytest

LEFT_OUT = "left out: TEST_MINUTES are over"


def may_be_left_out(item: pytest.Item) -> bool:
    """Whether others have tried the same parts one by one before."""
    return "tests/unit/" not in item.path.as_posix() or item.get_closest_marker("slow") is not None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin no such test after the end."""
    end = os.environ.get("TESTS_END_AT")
    if end and time.time() >= float(end) and may_be_left_out(item):
        pytest.skip(LEFT_OUT)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many were left out, and where."""
    files = Counter(
        report.nodeid.partition("::")[0]
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and LEFT_OUT in report.longrepr[2]
    )
    if not files:
        return
    terminalreporter.section("left out", red=True)
    terminalreporter.write_line(f"{files.total()} tests, for TEST_MINUTES were over. `make test` without it runs all.")
    for file, count in sorted(files.items()):
        terminalreporter.write_line(f"{count:6} {file}")
